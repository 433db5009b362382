// The official Anthropic SDK for Node against `fusebox demo`; see anthropic_sdk.py, which does the same.
//
//     npm install --prefix /tmp/sdk @anthropic-ai/sdk
//     cargo build --release --features proxy
//     NODE_PATH=/tmp/sdk/node_modules node tests/sdk/anthropic_sdk.mjs target/release/fusebox

import assert from "node:assert/strict";
import { createRequire } from "node:module";

import { throughEveryFault } from "./faults.mjs";

// `import` does not look at NODE_PATH.
const { Anthropic, APIError, NotFoundError } = createRequire(import.meta.url)("@anthropic-ai/sdk");

const PORT = 18479;
const TEXT = "The circuit is closed again.";

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

// An error of the gateway is an exception of the right class.
async function unknownModel(client) {
  const asked = client.messages.create({ model: "unknown", max_tokens: 1, messages: [] });
  await assert.rejects(asked, (error) => error instanceof NotFoundError && error.error.error.type === "not_found_error");
}

// Without retries of its own, so that nothing is hidden. Its base URL has no /v1.
const client = new Anthropic({ baseURL: `http://127.0.0.1:${PORT}`, apiKey: "unused", maxRetries: 0, timeout: 10_000 });
const both = async () => {
  await unknownModel(client);
  return ask(client);
};
// Slow counts of tokens are in time, so that `slow` does not take the provider out as a whole.
const isBroken = (fault, state) => ["429", "slow"].includes(fault) || state !== "closed";
await throughEveryFault(PORT, 7, both, isBroken);
