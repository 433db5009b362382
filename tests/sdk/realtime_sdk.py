"""WebSocket sessions of the official OpenAI SDK for Python, through a gateway whose first provider fails at the handshake in
each way, and in the middle of a session.

    pip install 'openai[realtime]'
    cargo build --release --features proxy
    python3 tests/sdk/realtime_sdk.py target/release/fusebox
"""

import asyncio
import http
import json
import subprocess
import sys
import tempfile
import time
import urllib.request

import websockets
from openai import AsyncOpenAI, OpenAI
from websockets.asyncio.server import serve

PORT = 18483
TEXT = "The circuit is closed again."


class Simulated:
    """A provider of sessions that fails as it is told."""

    def __init__(self):
        self.fault = None
        self.sessions = 0

    async def start(self):
        self.server = await serve(self.session, "127.0.0.1", 0, process_request=self.handshake)
        self.port = self.server.sockets[0].getsockname()[1]

    async def handshake(self, connection, request):
        if self.fault == "hang":
            await asyncio.sleep(3600)
        if self.fault == "500":
            return connection.respond(http.HTTPStatus.INTERNAL_SERVER_ERROR, '{"error": {"message": "simulated"}}')
        if self.fault == "401":
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, '{"error": {"code": "invalid_api_key"}}')
        if self.fault == "cut":
            connection.transport.abort()
        return None

    async def session(self, socket):
        self.sessions += 1
        path = socket.request.path
        assert socket.request.headers["authorization"] == "Bearer simulated"
        if path.startswith("/v1/realtime"):
            assert "model=real-name" in path, path
            await socket.send(json.dumps({"type": "session.created", "event_id": "e", "session": {"type": "realtime"}}))
        async for message in socket:
            event = json.loads(message)
            if self.fault == "abort":
                socket.transport.abort()
                return
            if event["type"] != "response.create":
                continue
            if not path.startswith("/v1/realtime"):
                assert event["model"] == "real-name", event
            for number, word in enumerate(TEXT.split(" ")):
                delta = {"type": "response.output_text.delta", "event_id": "e", "delta": word + " ", "response_id": "r"}
                delta |= {"item_id": "i", "output_index": 0, "content_index": 0, "sequence_number": number, "logprobs": []}
                await socket.send(json.dumps(delta))
            kind = "response.done" if path.startswith("/v1/realtime") else "response.completed"
            response = {"id": "r", "object": "response", "status": "completed", "output": []}
            await socket.send(json.dumps({"type": kind, "event_id": "e", "sequence_number": 9, "response": response}))


def client(kind, **more):
    return kind(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="token", max_retries=0, timeout=10, **more)


async def realtime():
    text = ""
    async with client(AsyncOpenAI).realtime.connect(model="demo") as session:
        await session.response.create()
        async for event in session:
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.done":
                return text.strip()
    return text.strip()


def realtime_blocking():
    text = ""
    with client(OpenAI).realtime.connect(model="demo") as session:
        session.response.create()
        for event in session:
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.done":
                return text.strip()
    return text.strip()


async def responses():
    text = ""
    async with client(AsyncOpenAI).responses.connect() as session:
        await session.response.create(model="demo", input="Hello")
        async for event in session:
            assert event.type != "error", event
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.completed":
                break
    return text.strip()


async def main():
    primary, fallback = Simulated(), Simulated()
    await primary.start()
    await fallback.start()
    config = tempfile.NamedTemporaryFile("w", suffix=".toml")
    config.write(f"[server]\nlisten = '127.0.0.1:{PORT}'\nauth_tokens = ['token']\n[breaker]\nopen_for = '1s'\n")
    config.write("[timeouts]\nfirst_byte = '1s'\nidle = '2s'\n[cooldown]\nkey_cooldown = '1s'\n")
    for name, provider in [("primary", primary), ("fallback", fallback)]:
        config.write(f"[[providers]]\nname = '{name}'\nurl = 'http://127.0.0.1:{provider.port}/v1'\n")
        config.write("api_key = 'simulated'\naliases = { demo = 'real-name' }\n")
    config.flush()
    gateway = subprocess.Popen([sys.argv[1], "serve", "--config", config.name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ready", timeout=5).read()
                break
            except OSError:
                time.sleep(0.05)
        for fault in [None, "500", "401", "hang", "cut"]:
            primary.fault, before = fault, (primary.sessions, fallback.sessions)
            for _ in range(5):
                assert await realtime() == TEXT
                assert await asyncio.to_thread(realtime_blocking) == TEXT
                assert await responses() == TEXT
            took = primary.sessions - before[0], fallback.sessions - before[1]
            print(f"{fault or 'healthy'} at the handshake: 15 sessions, {took[0]} at primary, {took[1]} at fallback")
            assert took == ((15, 0) if fault is None else (0, 15)), took
            primary.fault = None
            deadline = time.monotonic() + 20
            while primary.sessions == before[0] or fault is not None and primary.sessions < before[0] + 3:
                assert time.monotonic() < deadline, "primary is not asked again"
                assert await realtime() == TEXT and await responses() == TEXT
                await asyncio.sleep(0.1)
        primary.fault = "abort"
        broken = 0
        for _ in range(8):
            try:
                broken += await realtime() != TEXT
            except (websockets.ConnectionClosedError, websockets.ConnectionClosedOK) as error:
                assert error.rcvd.code == 1011, error
                broken += 1
        assert broken == 3, f"{broken} sessions broke off, and the third opens the circuit"
        print(f"abort in the middle: 8 sessions, {broken} broke off with 1011")
        print("ok: every other session got all its events")
    finally:
        gateway.terminate()
        gateway.wait()


asyncio.run(main())
