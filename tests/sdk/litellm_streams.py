"""Complete streams through a real LiteLLM, which is the gateway's provider here, by clients that stop reading at the end
of the answer: all must be `complete` in the access log, also when the last event comes 50 ms late.

    pip install 'litellm[proxy]' openai langchain-openai llama-index-llms-openai-like requests
    cargo build --release --features proxy
    python3 tests/sdk/litellm_streams.py target/release/fusebox
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GATEWAY, LITELLM, MODEL = 18483, 18484, 18485
BASE = f"http://127.0.0.1:{GATEWAY}/v1"
STREAMS = 20
TEXT = "The circuit is closed again."
LATE = 0.0


class Model(BaseHTTPRequestHandler):
    """What LiteLLM asks."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

        def send(data):
            event = f"data: {data}\n\n".encode()
            self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            self.wfile.flush()

        def chunk(delta, finish=None):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            send(json.dumps({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}))

        for word in TEXT.split(" "):
            chunk({"role": "assistant", "content": word + ("" if word.endswith(".") else " ")})
        time.sleep(LATE)
        chunk({}, "stop")
        time.sleep(LATE)
        send("[DONE]")
        self.wfile.write(b"0\r\n\r\n")


def wait_for(url):
    for _ in range(600):
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


MESSAGES = [{"role": "user", "content": "Hello"}]


def with_openai():
    from openai import OpenAI

    client = OpenAI(base_url=BASE, api_key="none", max_retries=0)
    stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def with_openai_async():
    from openai import AsyncOpenAI

    async def ask():
        async with AsyncOpenAI(base_url=BASE, api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    return asyncio.run(ask())


def with_langchain():
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="m", base_url=BASE, api_key="none", max_retries=0)
    return "".join(chunk.content for chunk in model.stream("Hello"))


def with_llama_index():
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    model = OpenAILike(model="m", api_base=BASE, api_key="none", is_chat_model=True, max_retries=0)
    return "".join(chunk.delta or "" for chunk in model.stream_chat([ChatMessage(role="user", content="Hello")]))


def with_litellm():
    import litellm

    stream = litellm.completion(model="openai/m", api_base=BASE, api_key="none", messages=MESSAGES, stream=True, num_retries=0)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def with_requests():
    import requests

    body = {"model": "m", "messages": MESSAGES, "stream": True}
    text = ""
    with requests.post(BASE + "/chat/completions", json=body, stream=True, timeout=30) as answer:
        for line in answer.iter_lines():
            if line == b"data: [DONE]":
                break
            if line.startswith(b"data: "):
                choices = json.loads(line[6:])["choices"]
                text += (choices[0]["delta"].get("content") or "") if choices else ""
    return text


CLIENTS = [with_openai, with_openai_async, with_langchain, with_llama_index, with_litellm, with_requests]


def main():
    global LATE
    folder = tempfile.mkdtemp()
    threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", MODEL), Model).serve_forever, daemon=True).start()
    settings = {"model_name": "m", "litellm_params": {"model": "openai/m", "api_base": f"http://127.0.0.1:{MODEL}/v1", "api_key": "none"}}
    with open(f"{folder}/litellm.yaml", "w") as file:
        json.dump({"model_list": [settings]}, file)
    with open(f"{folder}/fusebox.toml", "w") as file:
        file.write(f"[server]\nlisten = '127.0.0.1:{GATEWAY}'\n[[providers]]\nname = 'litellm'\n")
        file.write(f"url = 'http://127.0.0.1:{LITELLM}/v1'\nmodels = ['m']\n")
    litellm = [os.path.join(os.path.dirname(sys.executable), "litellm"), "--config", f"{folder}/litellm.yaml"]
    log = open(f"{folder}/access.log", "w+")
    # It is reached on loopback only, and looks for no prices in the internet.
    alone = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    os.environ.update(alone)
    running = [
        subprocess.Popen([*litellm, "--port", str(LITELLM), "--host", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
        subprocess.Popen([sys.argv[1], "serve", "--config", f"{folder}/fusebox.toml"], stdout=log),
    ]
    try:
        wait_for(f"http://127.0.0.1:{LITELLM}/health/liveliness")
        wait_for(f"http://127.0.0.1:{GATEWAY}/health")
        failures = 0
        for late in [0.0, 0.05]:
            LATE = late
            for client in CLIENTS:
                before = len(open(log.name).readlines())
                for _ in range(STREAMS):
                    text = client()
                    assert text == TEXT, (client.__name__, text)
                for _ in range(100):
                    lines = [json.loads(line) for line in open(log.name).readlines()[before:]]
                    if len(lines) >= STREAMS:
                        break
                    time.sleep(0.05)
                good = [line for line in lines if line["end"] == "complete" and line["attempts"][-1]["outcome"] == "ok"]
                failures += len(lines) - len(good) + abs(STREAMS - len(lines))
                print(f"{client.__name__[5:]:14} last event {late * 1000:3.0f} ms late: {len(good)} of {len(lines)} complete")
        assert failures == 0, "some streams were not complete"
        print("ok")
    finally:
        for process in running:
            process.terminate()


main()
