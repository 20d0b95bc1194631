// Vercel's AI SDK with popi's gateway as the provider; the user comes with each call.
//
//   npm install
//   POPI_KEY=popi_... node app.mjs "how far is it to the moon?" ada

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText } from "ai";

const gateway = createOpenAICompatible({
  name: "popi",
  apiKey: process.env.POPI_KEY,
  baseURL: `${process.env.POPI_URL ?? "http://localhost:8600"}/v1`,
});

export async function answer(question, userId) {
  const { text } = await generateText({
    model: gateway(process.env.MODEL ?? "gpt-4o-mini"),
    system: "You are a kind helper.",
    prompt: question,
    headers: { "x-popi-user": userId },
  });
  return text;
}

console.log(await answer(process.argv[2] ?? "hello", process.argv[3] ?? "ada"));
