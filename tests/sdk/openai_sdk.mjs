// The official OpenAI SDK for Node against `fusebox demo`; see openai_sdk.py, which does the same.
//
//     npm install --prefix /tmp/sdk openai
//     cargo build --release --features proxy
//     NODE_PATH=/tmp/sdk/node_modules node tests/sdk/openai_sdk.mjs target/release/fusebox

import assert from "node:assert/strict";
import { createRequire } from "node:module";

import { throughEveryFault } from "./faults.mjs";

// `import` does not look at NODE_PATH.
const { OpenAI, APIError, toFile } = createRequire(import.meta.url)("openai");

const PORT = 18475;
const TEXT = "The circuit is closed again.";

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

// Without retries of its own, so that nothing is hidden.
const client = new OpenAI({ baseURL: `http://127.0.0.1:${PORT}/v1`, apiKey: "unused", maxRetries: 0, timeout: 10_000 });
await throughEveryFault(PORT, 7, () => ask(client), (fault, state) => fault === "429" || state === "open");
