// Every client for Node that docs/CLIENTS.md names, against `fusebox demo` whose first provider answers 500: each operation has
// to get its answer from the second one. The last line runs Codex CLI, if it is there.
//
//     npm install --prefix /tmp/sdk openai @anthropic-ai/sdk ai @ai-sdk/openai @ai-sdk/openai-compatible @ai-sdk/anthropic @openai/codex
//     cargo build --release --features proxy
//     NODE_PATH=/tmp/sdk/node_modules node tests/sdk/clients.mjs target/release/fusebox

import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

// `import` does not look at NODE_PATH.
const require = createRequire(import.meta.url);
const PORT = 18487;
const BASE = `http://127.0.0.1:${PORT}`;
const TEXT = "The circuit is closed again.";
const messages = [{ role: "user", content: "Hello" }];

async function all(stream, text) {
  let whole = "";
  for await (const piece of stream) whole += text(piece);
  return whole;
}

function openai() {
  const { OpenAI } = require("openai");
  return new OpenAI({ baseURL: `${BASE}/v1`, apiKey: "token", maxRetries: 0 });
}

function anthropic() {
  const { Anthropic } = require("@anthropic-ai/sdk");
  return new Anthropic({ baseURL: BASE, apiKey: "token", maxRetries: 0 });
}

async function vercel(model) {
  const { generateText, streamText } = require("ai");
  const { text } = await generateText({ model, prompt: "Hello", maxRetries: 0 });
  if (text !== TEXT) return text;
  return all(streamText({ model, prompt: "Hello", maxRetries: 0 }).textStream, (piece) => piece);
}

function codex() {
  const home = mkdtempSync(join(tmpdir(), "codex-"));
  const settings = [
    'model="demo"',
    'model_provider="fusebox"',
    `model_providers.fusebox={name="fusebox", base_url="${BASE}/v1", env_key="FUSEBOX_TOKEN", wire_api="responses"}`,
  ];
  const last = join(home, "last");
  const more = ["exec", "--skip-git-repo-check", "--output-last-message", last, "Hello"];
  const program = join(process.env.NODE_PATH, ".bin", "codex");
  const env = { ...process.env, CODEX_HOME: home, FUSEBOX_TOKEN: "token" };
  const ran = spawnSync(program, [...settings.flatMap((it) => ["-c", it]), ...more], { env, cwd: home, timeout: 60_000, input: "" });
  try {
    return readFileSync(last, "utf8").trim();
  } catch {
    return `${ran.stderr}`.slice(-300);
  } finally {
    rmSync(home, { recursive: true });
  }
}

const tries = [
  ["openai", "chat.completions.create", async () => (await openai().chat.completions.create({ model: "demo", messages })).choices[0].message.content],
  ["openai", "chat.completions.create, stream", async () => all(await openai().chat.completions.create({ model: "demo", messages, stream: true }), (chunk) => chunk.choices[0].delta.content ?? "")],
  ["openai", "responses.create", async () => (await openai().responses.create({ model: "demo", input: "Hello" })).output_text],
  ["openai", "responses.create, stream", async () => all(await openai().responses.create({ model: "demo", input: "Hello", stream: true }), (event) => (event.type === "response.output_text.delta" ? event.delta : ""))],
  ["@anthropic-ai/sdk", "messages.create", async () => (await anthropic().messages.create({ model: "demo", max_tokens: 9, messages })).content[0].text],
  ["@anthropic-ai/sdk", "messages.stream", () => anthropic().messages.stream({ model: "demo", max_tokens: 9, messages }).finalText()],
  ["ai", "generateText, streamText with @ai-sdk/openai (responses)", () => vercel(require("@ai-sdk/openai").createOpenAI({ baseURL: `${BASE}/v1`, apiKey: "token" })("demo"))],
  ["ai", "the same with .chat()", () => vercel(require("@ai-sdk/openai").createOpenAI({ baseURL: `${BASE}/v1`, apiKey: "token" }).chat("demo"))],
  ["ai", "the same with @ai-sdk/openai-compatible", () => vercel(require("@ai-sdk/openai-compatible").createOpenAICompatible({ name: "fusebox", baseURL: `${BASE}/v1`, apiKey: "token" })("demo"))],
  ["ai", "the same with @ai-sdk/anthropic", () => vercel(require("@ai-sdk/anthropic").createAnthropic({ baseURL: `${BASE}/v1`, apiKey: "token" })("demo"))],
  ["@openai/codex", "codex exec", codex],
];

const version = (name) => JSON.parse(readFileSync(join(process.env.NODE_PATH, name, "package.json"))).version;
const demo = spawn(process.argv[2], ["demo", "--port", String(PORT)], { stdio: ["ignore", "ignore", "inherit"] });
let failed = 0;
try {
  for (let tries = 0; tries < 100; tries++) {
    try {
      await fetch(`http://127.0.0.1:${PORT + 1}/primary/500`, { method: "POST" });
      break;
    } catch {
      await sleep(50);
    }
  }
  for (const [name, operation, ask] of tries) {
    let result;
    try {
      const answer = await ask();
      result = answer === TEXT ? "ok" : `FAILED: ${JSON.stringify(answer)}`;
    } catch (error) {
      result = `FAILED: ${error}`.slice(0, 300);
    }
    failed += result !== "ok";
    console.log(`| ${name} ${version(name)} | ${operation} | ${result} |`);
  }
} finally {
  demo.kill();
}
process.exit(failed === 0 ? 0 : 1);
