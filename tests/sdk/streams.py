"""Clients of streams through the gateway, behind an nginx that closes connections on which nothing comes for 10 s: content
that comes late, streams that no provider begins, and streams that stop in the middle.

    pip install openai anthropic langchain-openai
    npm install openai @anthropic-ai/sdk ai @ai-sdk/openai
    cargo build --release --features proxy
    python3 tests/sdk/streams.py target/release/fusebox [the folder with node_modules]
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anthropic
import openai
from langchain_openai import ChatOpenAI

LATE = 12
TEXT = "The circuit is closed."


class Provider(BaseHTTPRequestHandler):
    """What it does, the model says: `late` begins after 12 s of comments, `never` never begins, `stall` stops in the middle."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            {"late": self.late, "never": self.never, "stall": self.stall}[asked["model"]](self.path.endswith("/messages"))
        except OSError:
            self.close_connection = True

    def log_message(self, *_):
        pass

    def piece(self, text):
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def event(self, name, **data):
        self.piece(f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n")

    def chunk(self, delta, finish=None):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
        self.piece(f"data: {json.dumps(chunk)}\n\n")

    def wait(self, seconds):
        for _ in range(seconds * 2):
            self.piece(": wait\n\n")
            time.sleep(0.5)

    def begin(self, is_anthropic):
        if is_anthropic:
            usage = {"input_tokens": 1, "output_tokens": 1}
            message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
                       "stop_sequence": None, "usage": usage}
            self.event("message_start", message=message)
            self.event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        else:
            self.chunk({"role": "assistant", "content": ""})

    def say(self, is_anthropic, text):
        if is_anthropic:
            self.event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
        else:
            self.chunk({"content": text})

    def late(self, is_anthropic):
        self.wait(LATE)
        self.begin(is_anthropic)
        self.say(is_anthropic, TEXT)
        if is_anthropic:
            self.event("content_block_stop", index=0)
            self.event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 5})
            self.event("message_stop")
        else:
            self.chunk({}, "stop")
            self.piece("data: [DONE]\n\n")
        self.piece("")

    def never(self, is_anthropic):
        self.begin(is_anthropic)
        self.wait(60)

    def stall(self, is_anthropic):
        self.begin(is_anthropic)
        self.say(is_anthropic, TEXT)
        self.wait(60)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def provider():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def start(folder, fusebox):
    inner, outer = free_port(), free_port()
    models = "models = ['late', 'never', 'stall']"
    providers = [f"[[providers]]\nname = '{name}'\nurl = 'http://127.0.0.1:{provider()}/v1'\n{models}\n" for name in "ab"]
    config = f"{folder}/fusebox.toml"
    with open(config, "w") as file:
        file.write(
            f"[server]\nlisten = '127.0.0.1:{inner}'\naccess_log = false\nheartbeat_after = '4s'\nheartbeat = '4s'\n"
            "[timeouts]\nfirst_content = '14s'\nidle = '3s'\n[breaker]\nfailure_threshold = 1000\n" + "".join(providers)
        )
    nginx = f"{folder}/nginx.conf"
    with open(nginx, "w") as file:
        file.write(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
            f"http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; server {{\n"
            f" listen 127.0.0.1:{outer}; location / {{ proxy_pass http://127.0.0.1:{inner}; proxy_http_version 1.1;\n"
            " proxy_read_timeout 10s; } } }\n"
        )
    running = [subprocess.Popen([fusebox, "serve", "--config", config]), subprocess.Popen(["nginx", "-c", nginx])]
    for port in (inner, outer):
        for _ in range(100):
            with socket.socket() as found:
                if found.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
    return running, f"http://127.0.0.1:{outer}"


def through_openai(url, model):
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "Hello"}]
    for chunk in client.chat.completions.create(model=model, messages=messages, stream=True):
        yield chunk.choices[0].delta.content or ""


def through_anthropic(url, model):
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    with client.messages.stream(model=model, max_tokens=9, messages=[{"role": "user", "content": "Hello"}]) as stream:
        yield from stream.text_stream


def through_langchain(url, model):
    client = ChatOpenAI(base_url=url + "/v1", api_key="none", model=model, max_retries=0)
    for chunk in client.stream("Hello"):
        yield chunk.content


def outcome(stream):
    """The text, and the error that was raised."""
    text = ""
    try:
        for piece in stream:
            text += piece
    except (openai.APIError, anthropic.APIError) as error:
        return text, type(error).__name__
    return text, None


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        running, url = start(folder, sys.argv[1])
        try:
            clients = {"openai": through_openai, "anthropic": through_anthropic, "langchain": through_langchain}
            for name, client in clients.items():
                for model, expected in [("late", TEXT), ("never", ""), ("stall", TEXT)]:
                    begun = time.monotonic()
                    text, error = outcome(client(url, model))
                    print(f"{name} {model}: {text!r}, {error}, after {time.monotonic() - begun:.1f} s", flush=True)
                    assert text == expected and (error is None) == (model == "late")
            if len(sys.argv) > 2:
                script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "streams.mjs")
                subprocess.run(["node", script, url, os.path.abspath(sys.argv[2])], check=True)
        finally:
            for process in running:
                process.terminate()
                process.wait()
    print("ok")


main()
