// Vercel's AI SDK: text, streams, tools and objects, by OpenAI's two APIs and Anthropic's.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";

const { GATEWAY: url, KEY: apiKey } = process.env;
const headers = { "x-popi-user": "ann" };
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey, headers });
const compatible = createOpenAICompatible({ name: "popi", baseURL: `${url}/v1`, apiKey, headers });
const claude = createAnthropic({ baseURL: `${url}/v1`, apiKey, headers });
const asked = { system: "You are kind.", prompt: "hello", maxRetries: 0 };
const weather = tool({
  description: "The weather of a place.",
  inputSchema: jsonSchema({ type: "object", properties: { place: { type: "string" } }, required: ["place"] }),
});

async function streamed(model) {
  let text = "";
  for await (const piece of streamText({ ...asked, model }).textStream) text += piece;
  return text;
}

const called = await generateText({
  model: openai.chat("m"),
  prompt: "What is the weather in Bonn?",
  tools: { weather },
  maxRetries: 0,
});
console.log(
  JSON.stringify({
    chat: (await generateText({ ...asked, model: openai.chat("m") })).text,
    stream: await streamed(openai.chat("m")),
    compatible: (await generateText({ ...asked, model: compatible("m") })).text,
    tool: called.toolCalls[0].input,
    responses: (await generateText({ ...asked, model: openai.responses("m") })).text,
    messages: (await generateText({ ...asked, model: claude("m") })).text,
    "messages stream": await streamed(claude("m")),
  }),
);
