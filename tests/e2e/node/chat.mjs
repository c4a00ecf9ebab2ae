// OpenAI's own client for Node against a chat completions endpoint: what it makes of what it gets, as JSON.
import OpenAI from "openai";

const { baseURL, apiKey, text, call, broken, refused } = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "say something" }];
const ask = (script, more = {}) => ({ model: "some-model", messages, script, ...more });

const results = {};

const { data: stream, response } = await client.chat.completions
  .create(ask(text, { stream: true, stream_options: { include_usage: true } }))
  .withResponse();
results.streamId = response.headers.get("x-stream-id");
results.chunks = [];
for await (const chunk of stream) results.chunks.push(chunk);

results.whole = await client.chat.completions.create(ask(text));

const runner = client.chat.completions.stream(ask(call, { tools: [] }));
results.calls = [];
runner.on("tool_calls.function.arguments.done", (done) => results.calls.push(done));
results.final = await runner.finalChatCompletion();
results.called = await client.chat.completions.create(ask(call));

const caught = async (work) => {
  try {
    await work();
    return null;
  } catch (error) {
    const { status, code, type } = error;
    return { name: error.constructor.name, status, code, type, message: error.message };
  }
};
results.received = "";
results.midStream = await caught(async () => {
  for await (const chunk of await client.chat.completions.create(ask(broken, { stream: true })))
    results.received += chunk.choices[0].delta.content ?? "";
});
results.refused = await caught(() => client.chat.completions.create(ask(refused, { stream: true })));

results.models = [];
for await (const model of client.models.list()) results.models.push(model.id);

console.log(JSON.stringify(results));
