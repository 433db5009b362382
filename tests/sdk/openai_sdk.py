"""The official OpenAI SDK for Python against `fusebox demo`: no exception may reach its caller while the first provider is
broken in every way that the demo knows, and healed; but for streams that break off after they have begun, of which there may
be as many as it takes to open the circuit, and one for each probe.

    pip install openai
    cargo build --release --features proxy
    python3 tests/sdk/openai_sdk.py target/release/fusebox
"""

import json
import subprocess
import sys
import time
import urllib.request

import openai
from openai import OpenAI

PORT = 18473
TEXT = "The circuit is closed again."
THRESHOLD = 3


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


def main():
    demo = subprocess.Popen([sys.argv[1], "demo", "--port", str(PORT)], stdout=subprocess.DEVNULL)
    try:
        # Without retries of its own, so that nothing is hidden.
        client = OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="unused", max_retries=0, timeout=10)
        for _ in range(100):
            try:
                control("heal")
                break
            except OSError:
                time.sleep(0.05)
        assert ask(client) == 0 and state() == "closed"
        for fault in ["500", "hang", "refuse", "429", "abort", "slow"]:
            probes = metric("fusebox_circuit_probes_total")
            control(fault)
            rounds = cut = 0
            while rounds < 8 or (fault != "429" and state() != "open"):
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
            print(f"{fault}: {rounds} rounds of 7 calls, {cut} streams broke off")
        print("ok: no other exception reached the caller")
    finally:
        demo.terminate()
        demo.wait()


main()
