"""The official OpenAI SDK against `fusebox demo`: no exception may reach its caller while the first provider is broken
in every way that the demo knows, and healed.

    pip install openai
    cargo build --release --features proxy
    python3 tests/sdk/openai_sdk.py target/release/fusebox
"""

import json
import subprocess
import sys
import time
import urllib.request

from openai import OpenAI

PORT = 18473
TEXT = "The circuit is closed again."


def control(fault):
    urllib.request.urlopen(f"http://127.0.0.1:{PORT + 1}/primary/{fault}", data=b"", timeout=5).read()


def state(client):
    health = client.base_url.join("/health")
    return json.load(urllib.request.urlopen(str(health), timeout=5))["providers"]["primary"]["state"]


def ask(client):
    messages = [{"role": "user", "content": "Hello"}]
    completion = client.chat.completions.create(model="demo", messages=messages)
    assert completion.choices[0].message.content == TEXT
    stream = client.chat.completions.create(model="demo", messages=messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT
    assert [model.id for model in client.models.list()] == ["demo"]


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
        ask(client)
        assert state(client) == "closed"
        for fault in ["500", "hang", "refuse"]:
            control(fault)
            rounds = 0
            while state(client) != "open" or rounds < 8:
                ask(client)
                rounds += 1
            control("heal")
            deadline = time.monotonic() + 10
            while state(client) != "closed":
                assert time.monotonic() < deadline, "the circuit did not close"
                ask(client)
                rounds += 1
            print(f"{fault}: {rounds} rounds of completion, stream and model list; the circuit opened and closed")
        print("ok: no exception reached the caller")
    finally:
        demo.terminate()
        demo.wait()


main()
