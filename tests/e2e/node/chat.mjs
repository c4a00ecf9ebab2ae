// OpenAI's own client for Node against a chat completions endpoint: what it makes of what it gets, as JSON.
import OpenAI from "openai";

const { baseURL, text, call, broken, refused } = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "say something" }];
const ask = (script, more = {}) => ({ model: "some-model", messages, script, ...more });

const told = {};

const { data: stream, response } = await client.chat.completions
  .create(ask(text, { stream: true, stream_options: { include_usage: true } }))
  .withResponse();
told.streamId = response.headers.get("x-stream-id");
told.chunks = [];
for await (const chunk of stream) told.chunks.push(chunk);

told.whole = await client.chat.completions.create(ask(text));

const runner = client.chat.completions.stream(ask(call, { tools: [] }));
told.calls = [];
runner.on("tool_calls.function.arguments.done", (done) => told.calls.push(done));
told.final = await runner.finalChatCompletion();
told.called = await client.chat.completions.create(ask(call));

const caught = async (work) => {
  try {
    await work();
    return null;
  } catch (error) {
    const { status, code, type } = error;
    return { name: error.constructor.name, status, code, type, message: error.message };
  }
};
told.received = "";
told.midStream = await caught(async () => {
  for await (const chunk of await client.chat.completions.create(ask(broken, { stream: true })))
    told.received += chunk.choices[0].delta.content ?? "";
});
told.refused = await caught(() => client.chat.completions.create(ask(refused, { stream: true })));

told.models = [];
for await (const model of client.models.list()) told.models.push(model.id);

console.log(JSON.stringify(told));
