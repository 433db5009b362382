"""The official OpenAI SDK for Python against `fusebox demo`: no exception may reach its caller while the first provider is
broken in every way that the demo knows, and healed; but for streams that break off after they have begun, of which there may
be as many as it takes to open the circuit, and one for each probe.

    pip install openai
    cargo build --release --features proxy
    python3 tests/sdk/openai_sdk.py target/release/fusebox
"""

import openai
from faults import through_every_fault
from openai import OpenAI

PORT = 18473
TEXT = "The circuit is closed again."


def ask(client):
    """Asks for everything, and returns how many streams broke off."""
    messages = [{"role": "user", "content": "Hello"}]
    completion = client.chat.completions.create(model="demo", messages=messages)
    assert completion.choices[0].message.content == TEXT
    assert client.embeddings.create(model="demo", input="Hello", encoding_format="float").data[0].embedding == [0.25, -0.5]
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    assert client.audio.transcriptions.create(model="demo", file=("a.wav", b"RIFF" * 1000)).text == TEXT
    assert client.files.create(file=("demo.jsonl", b"{}\n"), purpose="batch").id == "file-demo"
    try:
        stream = client.chat.completions.create(model="demo", messages=messages, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT
    except openai.APIError as error:
        assert error.code == "provider_stream_broken", error
        return 1
    return 0


# Without retries of its own, so that nothing is hidden.
CLIENT = OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="unused", max_retries=0, timeout=10)
through_every_fault(PORT, 7, lambda: ask(CLIENT), lambda fault, state: fault == "429" or state == "open")
