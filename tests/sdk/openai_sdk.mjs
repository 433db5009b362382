// The official OpenAI SDK for Node against `fusebox demo`; see openai_sdk.py, which does the same.
//
//     npm install --prefix /tmp/sdk openai
//     cargo build --release --features proxy
//     NODE_PATH=/tmp/sdk/node_modules node tests/sdk/openai_sdk.mjs target/release/fusebox

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

// `import` does not look at NODE_PATH.
const { OpenAI, APIError, toFile } = createRequire(import.meta.url)("openai");

const PORT = 18475;
const TEXT = "The circuit is closed again.";
const THRESHOLD = 3;

const control = (fault) => fetch(`http://127.0.0.1:${PORT + 1}/primary/${fault}`, { method: "POST" });
const get = (path) => fetch(`http://127.0.0.1:${PORT}${path}`);
const state = async () => (await (await get("/health")).json()).providers.primary.state;

async function metric(start) {
  const lines = (await (await get("/metrics")).text()).split("\n");
  return Number(lines.find((line) => line.startsWith(start)).split(" ").at(-1));
}

// Asks for everything, and returns how many streams broke off.
async function ask(client) {
  const messages = [{ role: "user", content: "Hello" }];
  const completion = await client.chat.completions.create({ model: "demo", messages });
  assert.equal(completion.choices[0].message.content, TEXT);
  const embedding = await client.embeddings.create({ model: "demo", input: "Hello", encoding_format: "float" });
  assert.deepEqual(embedding.data[0].embedding, [0.25, -0.5]);
  assert.deepEqual((await client.models.list()).data.map((model) => model.id), ["demo"]);
  assert.equal((await client.models.retrieve("demo")).id, "demo");
  const wav = await toFile(Buffer.from("RIFF".repeat(1000)), "a.wav");
  assert.equal((await client.audio.transcriptions.create({ file: wav, model: "demo" })).text, TEXT);
  const jsonl = await toFile(Buffer.from("{}\n"), "demo.jsonl");
  assert.equal((await client.files.create({ file: jsonl, purpose: "batch" })).id, "file-demo");
  try {
    let text = "";
    for await (const chunk of await client.chat.completions.create({ model: "demo", messages, stream: true })) {
      text += chunk.choices[0].delta.content ?? "";
    }
    assert.equal(text, TEXT);
  } catch (error) {
    if (!(error instanceof APIError && error.code === "provider_stream_broken")) throw error;
    return 1;
  }
  return 0;
}

const demo = spawn(process.argv[2], ["demo", "--port", String(PORT)], { stdio: ["ignore", "ignore", "inherit"] });
try {
  // Without retries of its own, so that nothing is hidden.
  const client = new OpenAI({ baseURL: `http://127.0.0.1:${PORT}/v1`, apiKey: "unused", maxRetries: 0, timeout: 10_000 });
  for (let tries = 0; tries < 100; tries++) {
    try {
      await control("heal");
      break;
    } catch {
      await sleep(50);
    }
  }
  assert.equal(await ask(client), 0);
  for (const fault of ["500", "hang", "refuse", "429", "abort", "slow"]) {
    const probes = await metric("fusebox_circuit_probes_total");
    await control(fault);
    let rounds = 0;
    let cut = 0;
    while (rounds < 8 || (fault !== "429" && (await state()) !== "open")) {
      cut += await ask(client);
      rounds++;
    }
    await control("heal");
    const deadline = Date.now() + 10_000;
    while ((await state()) !== "closed") {
      assert(Date.now() < deadline, "the circuit did not close");
      cut += await ask(client);
      rounds++;
    }
    const most = ["abort", "slow"].includes(fault) ? THRESHOLD + (await metric("fusebox_circuit_probes_total")) - probes : 0;
    assert(cut <= most, `${fault}: ${cut} streams broke off, more than ${most}`);
    console.log(`${fault}: ${rounds} rounds of 7 calls, ${cut} streams broke off`);
  }
  console.log("ok: no other exception reached the caller");
} finally {
  demo.kill();
}
