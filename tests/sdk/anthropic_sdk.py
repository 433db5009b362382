"""The official Anthropic SDK for Python against `fusebox demo`, as openai_sdk.py does it with OpenAI's.

    pip install anthropic
    cargo build --release --features proxy
    python3 tests/sdk/anthropic_sdk.py target/release/fusebox
"""

import itertools
import json
import subprocess
import sys
import time
import urllib.request

import anthropic
from anthropic import Anthropic

PORT = 18477
TEXT = "The circuit is closed again."
THRESHOLD = 3
ASKS = itertools.count()


def control(fault):
    urllib.request.urlopen(f"http://127.0.0.1:{PORT + 1}/primary/{fault}", data=b"", timeout=5).read()


def state():
    health = urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5)
    return json.load(health)["providers"]["primary"]["state"]


def metric(line):
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=5).read().decode()
    return next(int(found.split()[-1]) for found in metrics.splitlines() if found.startswith(line))


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


def errors(client):
    """The gateway's own errors are exceptions of the right class."""
    asked = {"max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}
    try:
        client.messages.create(model="unknown", **asked)
        raise AssertionError("no exception")
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error", error.body
        assert error.request_id or error.body["request_id"]


def main():
    demo = subprocess.Popen([sys.argv[1], "demo", "--port", str(PORT)], stdout=subprocess.DEVNULL)
    try:
        # Without retries of its own, so that nothing is hidden. Its base URL has no /v1.
        client = Anthropic(base_url=f"http://127.0.0.1:{PORT}", api_key="unused", max_retries=0, timeout=10)
        for _ in range(100):
            try:
                control("heal")
                break
            except OSError:
                time.sleep(0.05)
        assert ask(client) == 0 and state() == "closed"
        errors(client)
        for fault in ["500", "hang", "refuse", "429", "abort", "slow"]:
            probes = metric("fusebox_circuit_probes_total")
            control(fault)
            # Slow counts are in time.
            breaks_all = fault not in ["429", "slow"]
            rounds = cut = 0
            while rounds < 8 or (breaks_all and state() == "closed"):
                cut += ask(client)
                rounds += 1
            control("heal")
            deadline = time.monotonic() + 10
            while state() != "closed":
                assert time.monotonic() < deadline, "the circuit did not close"
                cut += ask(client)
                rounds += 1
            most = THRESHOLD + metric("fusebox_circuit_probes_total") - probes if fault in ["abort", "slow"] else 0
            assert cut <= most, f"{fault}: {cut} streams broke off, more than {most}"
            print(f"{fault}: {rounds} rounds of 6 calls, {cut} streams broke off")
        print("ok: no other exception reached the caller")
    finally:
        demo.terminate()
        demo.wait()


main()
