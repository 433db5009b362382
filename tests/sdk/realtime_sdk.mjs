// Realtime sessions of the official OpenAI SDK for Node, over the package `ws` and as a page's script, through a gateway whose
// first provider refuses every handshake; realtime_sdk.py tries more faults. The SDK speaks TLS only: openssl makes a certificate.
//
//     npm install --prefix /tmp/sdk openai ws
//     cargo build --release --features proxy
//     NODE_PATH=/tmp/sdk/node_modules node tests/sdk/realtime_sdk.mjs target/release/fusebox

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

// `import` does not look at NODE_PATH.
const require = createRequire(import.meta.url);
const { OpenAI } = require("openai");
const { OpenAIRealtimeWS } = require("openai/realtime/ws");
const { OpenAIRealtimeWebSocket } = require("openai/realtime/websocket");
const { WebSocket, WebSocketServer } = require("ws");

const PORT = 18489;
const TEXT = "The circuit is closed again.";

const home = mkdtempSync(join(tmpdir(), "fusebox-"));
const [key, cert] = ["key.pem", "cert.pem"].map((name) => join(home, name));
const names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
spawnSync("openssl", ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert, ...names]);
const ca = readFileSync(cert);
// As a page has it, but for the certificate.
globalThis.WebSocket = class extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols, { ca });
  }
};

const seen = [];
const server = createServer((_, answer) => answer.writeHead(404).end());
new WebSocketServer({ server }).on("connection", (socket, request) => {
  seen.push(request);
  const say = (event) => socket.send(JSON.stringify(event));
  say({ type: "session.created", session: {} });
  socket.on("message", () => {
    for (const word of TEXT.split(" ")) say({ type: "response.output_text.delta", delta: `${word} ` });
    say({ type: "response.done", response: {} });
  });
});
let refusals = 0;
const refusing = createServer().on("upgrade", (_, socket) => {
  refusals++;
  socket.end("HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n");
});
const listen = (it) => new Promise((done) => it.listen(0, "127.0.0.1", () => done(it.address().port)));
const [first, second] = [await listen(refusing), await listen(server)];

const provider = (name, port) =>
  `[[providers]]\nname = '${name}'\nurl = 'http://127.0.0.1:${port}/v1'\napi_key = 'simulated'\nmodels = ['demo']\n`;
writeFileSync(
  join(home, "fusebox.toml"),
  `[server]\nlisten = '127.0.0.1:${PORT}'\nadmin_listen = '127.0.0.1:${PORT + 1}'\ntls = { cert = '${cert}', key = '${key}' }\nauth_tokens = ['token']\n${provider("a", first)}${provider("b", second)}`,
);
const gateway = spawn(process.argv[2], ["serve", "--config", join(home, "fusebox.toml")], { stdio: "ignore" });

function session(connect) {
  return new Promise((done, fail) => {
    const it = connect();
    let text = "";
    it.on("error", fail);
    it.on("session.created", () => it.send({ type: "response.create" }));
    it.on("response.output_text.delta", (event) => (text += event.delta));
    it.on("response.done", () => {
      it.close();
      done(text.trim());
    });
  });
}

try {
  for (let tries = 0; tries < 100 && !(await fetch(`http://127.0.0.1:${PORT + 1}/ready`).catch(() => false)); tries++) await sleep(50);
  const client = new OpenAI({ baseURL: `https://localhost:${PORT}/v1`, apiKey: "token", dangerouslyAllowBrowser: true });
  for (let n = 0; n < 5; n++) {
    assert.equal(await session(() => new OpenAIRealtimeWS({ model: "demo", options: { ca } }, client)), TEXT);
    assert.equal(await session(() => new OpenAIRealtimeWebSocket({ model: "demo", dangerouslyAllowBrowser: true }, client)), TEXT);
  }
  assert.equal(refusals, 3, "three failures open the circuit");
  for (const { headers } of seen) {
    assert.equal(headers.authorization, "Bearer simulated");
    assert(!JSON.stringify(headers).includes("token"), "no provider sees the client's token");
  }
  console.log(`ok: ${seen.length} sessions at b, ${refusals} handshakes refused by a`);
} finally {
  gateway.kill();
  server.close();
  refusing.close();
  rmSync(home, { recursive: true });
}
process.exit(0);
