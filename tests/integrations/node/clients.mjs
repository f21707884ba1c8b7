// Programs for Node against a server: node clients.mjs URL MODEL < what to ask. Prints what each of them got as JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { embed, embedMany, generateObject, generateText, jsonSchema, streamText } from "ai";
import { CohereClientV2 } from "cohere-ai";
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const { texts, question, schema, tokens } = JSON.parse(readFileSync(0, "utf8"));
const messages = [{ role: "user", content: question }];

async function openai() {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
  const vectors = await client.embeddings.create({ model, input: texts });
  const floats = await client.embeddings.create({ model: `${model}:query`, input: texts, encoding_format: "float" });
  const asked = { model, messages, max_completion_tokens: tokens };
  const whole = await client.chat.completions.create(asked);
  let streamed = "";
  let usage = null;
  const stream = await client.chat.completions.create({
    ...asked, stream: true, stream_options: { include_usage: true },
  });
  for await (const chunk of stream) {
    streamed += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  const stopped = await client.chat.completions.create({ ...asked, stream: true, max_completion_tokens: 5000 });
  for await (const _ of stopped) break; // leaves in mid-stream
  let refusal = "";
  try {
    await client.chat.completions.create({ ...asked, n: 3 });
  } catch (error) {
    refusal = `${error.status} ${error.message}`;
  }
  return {
    vectors: vectors.data.map((one) => one.embedding),
    queries: floats.data.map((one) => one.embedding),
    answer: whole.choices[0].message.content,
    streamed,
    usage,
    refusal,
    models: (await client.models.list()).data.map((one) => one.id),
  };
}

async function ai() {
  const provider = createOpenAICompatible({
    name: "grit", baseURL: `${url}/v1`, includeUsage: true, supportsStructuredOutputs: true,
  });
  const chat = provider.chatModel(model);
  const embedder = provider.textEmbeddingModel(model);
  const { embeddings } = await embedMany({ model: embedder, values: texts });
  const { embedding } = await embed({ model: embedder, value: texts[0] });
  const whole = await generateText({ model: chat, messages, maxOutputTokens: tokens });
  let streamed = "";
  const stream = streamText({ model: chat, messages, maxOutputTokens: tokens });
  for await (const piece of stream.textStream) streamed += piece;
  const { object } = await generateObject({
    model: chat, schema: jsonSchema(schema), prompt: "A colour?", maxOutputTokens: 200,
  });
  return { vectors: embeddings, first: embedding, answer: whole.text, streamed, usage: await stream.usage, object };
}

async function anthropic() {
  const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
  const whole = await client.messages.create({ model, messages, max_tokens: tokens });
  const stream = client.messages.stream({ model, messages, max_tokens: tokens });
  return { answer: whole.content[0].text, streamed: await stream.finalText() };
}

async function cohere() {
  const client = new CohereClientV2({ environment: url, token: "none" });
  const ranked = await client.rerank({ model, query: question, documents: texts, topN: texts.length });
  return { order: ranked.results.map((one) => one.index), scores: ranked.results.map((one) => one.relevanceScore) };
}

const results = {};
for (const client of [openai, ai, anthropic, cohere]) results[client.name] = await client();
console.log(JSON.stringify(results));
