"""The official Anthropic SDK for Python against `fusebox demo`, as openai_sdk.py does it with OpenAI's.

    pip install anthropic
    cargo build --release --features proxy
    python3 tests/sdk/anthropic_sdk.py target/release/fusebox
"""

import itertools

import anthropic
from anthropic import Anthropic
from faults import through_every_fault

PORT = 18477
TEXT = "The circuit is closed again."
ASKS = itertools.count()


def ask(client):
    """Asks for everything, and returns how many streams broke off."""
    # The failures of the same request would count once.
    messages = [{"role": "user", "content": f"Hello {next(ASKS)}"}]
    asked = {"model": "demo", "max_tokens": 100, "messages": messages}
    message = client.messages.create(**asked)
    assert message.content[0].text == TEXT and message.stop_reason == "end_turn"
    assert client.messages.count_tokens(model="demo", messages=messages).input_tokens == 1
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    cut = 0
    try:
        assert "".join(e.delta.text for e in client.messages.create(**asked, stream=True) if e.type == "content_block_delta") == TEXT
    except anthropic.APIStatusError as error:
        assert error.body["error"]["code"] == "provider_stream_broken", error
        cut += 1
    try:
        with client.messages.stream(**asked | {"max_tokens": 101}) as stream:
            assert stream.get_final_text() == TEXT
    except anthropic.APIStatusError as error:
        assert error.body["error"]["code"] == "provider_stream_broken", error
        cut += 1
    return cut


def unknown_model(client):
    """An error of the gateway is an exception of the right class."""
    try:
        client.messages.create(model="unknown", max_tokens=100, messages=[{"role": "user", "content": "Hello"}])
        raise AssertionError("no exception")
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error", error.body
        assert error.request_id or error.body["request_id"]


def both(client):
    unknown_model(client)
    return ask(client)


# Without retries of its own, so that nothing is hidden. Its base URL has no /v1.
CLIENT = Anthropic(base_url=f"http://127.0.0.1:{PORT}", api_key="unused", max_retries=0, timeout=10)
# Slow counts of tokens are in time, so that `slow` does not take the provider out as a whole.
through_every_fault(PORT, 7, lambda: both(CLIENT), lambda fault, state: fault in ["429", "slow"] or state != "closed")
