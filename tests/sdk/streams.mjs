// The same as in streams.py, which starts this: the official SDKs of OpenAI and Anthropic for JavaScript, and Vercel's.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [url, folder] = process.argv.slice(2);
const require = createRequire(pathToFileURL(folder + "/"));
const load = async (name) => import(pathToFileURL(require.resolve(name)).href);
const OpenAI = (await load("openai")).default;
const Anthropic = (await load("@anthropic-ai/sdk")).default;
const { streamText } = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");
const TEXT = "The circuit is closed.";
const messages = [{ role: "user", content: "Hello" }];

async function* throughOpenai(model) {
  const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none", maxRetries: 0 });
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
    yield chunk.choices[0].delta.content ?? "";
  }
}

async function* throughAnthropic(model) {
  const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
  for await (const event of await client.messages.create({ model, messages, max_tokens: 9, stream: true })) {
    if (event.type === "content_block_delta") yield event.delta.text;
  }
}

async function* throughVercel(model) {
  const provider = createOpenAI({ baseURL: url + "/v1", apiKey: "none" });
  const { fullStream } = streamText({ model: provider.chat(model), messages, maxRetries: 0, onError: () => {} });
  for await (const part of fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") yield part.text ?? part.textDelta;
  }
}

for (const [name, client] of Object.entries({ openai: throughOpenai, anthropic: throughAnthropic, vercel: throughVercel })) {
  for (const [model, expected] of [["late", TEXT], ["never", ""], ["stall", TEXT]]) {
    const begun = Date.now();
    let text = "";
    let error = null;
    try {
      for await (const piece of client(model)) text += piece;
    } catch (caught) {
      error = caught;
    }
    const shown = error && (error.name ?? error.message ?? JSON.stringify(error));
    console.log(`npm ${name} ${model}: ${JSON.stringify(text)}, ${shown}, after ${(Date.now() - begun) / 1000} s`);
    if (text !== expected || (error === null) !== (model === "late")) process.exit(1);
  }
}
