// The official Anthropic SDK for Node against `fusebox demo`; see anthropic_sdk.py, which does the same.
//
//     npm install --prefix /tmp/sdk @anthropic-ai/sdk
//     cargo build --release --features proxy
//     NODE_PATH=/tmp/sdk/node_modules node tests/sdk/anthropic_sdk.mjs target/release/fusebox

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

// `import` does not look at NODE_PATH.
const { Anthropic, APIError, NotFoundError } = createRequire(import.meta.url)("@anthropic-ai/sdk");

const PORT = 18479;
const TEXT = "The circuit is closed again.";
const THRESHOLD = 3;

const control = (fault) => fetch(`http://127.0.0.1:${PORT + 1}/primary/${fault}`, { method: "POST" });
const get = (path) => fetch(`http://127.0.0.1:${PORT}${path}`);
const state = async () => (await (await get("/health")).json()).providers.primary.state;

async function metric(start) {
  const lines = (await (await get("/metrics")).text()).split("\n");
  return Number(lines.find((line) => line.startsWith(start)).split(" ").at(-1));
}

// 1 if the stream broke off.
async function cut(read) {
  try {
    assert.equal(await read(), TEXT);
  } catch (error) {
    if (!(error instanceof APIError && error.error?.error?.code === "provider_stream_broken")) throw error;
    return 1;
  }
  return 0;
}

let asks = 0;

// Asks for everything, and returns how many streams broke off.
async function ask(client) {
  // The failures of the same request would count once.
  const messages = [{ role: "user", content: `Hello ${asks++}` }];
  const asked = { model: "demo", max_tokens: 100, messages };
  assert.equal((await client.messages.create(asked)).content[0].text, TEXT);
  assert.equal((await client.messages.countTokens({ model: "demo", messages })).input_tokens, 1);
  assert.deepEqual((await client.models.list()).data.map((model) => model.id), ["demo"]);
  assert.equal((await client.models.retrieve("demo")).id, "demo");
  const events = await cut(async () => {
    let text = "";
    for await (const event of await client.messages.create({ ...asked, stream: true })) {
      if (event.type === "content_block_delta") text += event.delta.text;
    }
    return text;
  });
  return events + (await cut(() => client.messages.stream({ ...asked, max_tokens: 101 }).finalText()));
}

const demo = spawn(process.argv[2], ["demo", "--port", String(PORT)], { stdio: ["ignore", "ignore", "inherit"] });
try {
  // Without retries of its own, so that nothing is hidden. Its base URL has no /v1.
  const client = new Anthropic({ baseURL: `http://127.0.0.1:${PORT}`, apiKey: "unused", maxRetries: 0, timeout: 10_000 });
  for (let tries = 0; tries < 100; tries++) {
    try {
      await control("heal");
      break;
    } catch {
      await sleep(50);
    }
  }
  assert.equal(await ask(client), 0);
  const unknown = client.messages.create({ model: "unknown", max_tokens: 1, messages: [] });
  await assert.rejects(unknown, (error) => error instanceof NotFoundError && error.error.error.type === "not_found_error");
  for (const fault of ["500", "hang", "refuse", "429", "abort", "slow"]) {
    const probes = await metric("fusebox_circuit_probes_total");
    await control(fault);
    // Slow counts are in time.
    const breaksAll = fault !== "429" && fault !== "slow";
    let [rounds, broken] = [0, 0];
    while (rounds < 8 || (breaksAll && (await state()) === "closed")) {
      broken += await ask(client);
      rounds++;
    }
    await control("heal");
    const deadline = Date.now() + 10_000;
    while ((await state()) !== "closed") {
      assert(Date.now() < deadline, "the circuit did not close");
      broken += await ask(client);
      rounds++;
    }
    const breaks = fault === "abort" || fault === "slow";
    const most = breaks ? THRESHOLD + (await metric("fusebox_circuit_probes_total")) - probes : 0;
    assert(broken <= most, `${fault}: ${broken} streams broke off, more than ${most}`);
    console.log(`${fault}: ${rounds} rounds of 6 calls, ${broken} streams broke off`);
  }
  console.log("ok: no other exception reached the caller");
} finally {
  demo.kill();
}
