// node provider.mjs ARGUMENT: the SDK's `openai` provider over two turns of a chat. Tells what it got, and what it sent as input.
import { createOpenAI } from '@ai-sdk/openai';
import { streamText } from 'ai';

const { baseURL, simulate } = JSON.parse(process.argv[2]);
const inputs = [];
const fetched = (url, request) => {
  const body = JSON.parse(request.body);
  inputs.push(body.input);
  return fetch(url, { ...request, body: JSON.stringify({ ...body, simulate }) });
};
const model = createOpenAI({ baseURL, apiKey: 'any', fetch: fetched })('some-model');
const messages = [], texts = [], errors = [];
for (const content of ['first question', 'second question', 'third question']) {
  messages.push({ role: 'user', content });
  const result = streamText({ model, messages, maxRetries: 0, onError: ({ error }) => errors.push(String(error)) });
  texts.push(await result.text);
  messages.push(...(await result.response).messages);
}
console.log(JSON.stringify({ texts, errors, inputs }));
