// OpenAI's own client for Node against a responses endpoint: what it makes of what it gets, as JSON.
import OpenAI from "openai";

const { baseURL, otherURL, slow, call } = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const other = new OpenAI({ baseURL: otherURL, apiKey: "any", maxRetries: 0 });
const ask = (script, more = {}) => ({ model: "some-model", input: "say something", script, ...more });
const all = async (stream) => {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
};

const told = {};

told.whole = await client.responses.create(ask({ tokens: 5 }));
told.text = told.whole.output_text;
told.retrieved = await other.responses.retrieve(told.whole.id);
told.again = await all(await other.responses.retrieve(told.whole.id, { stream: true }));
told.nothing = await all(
  await other.responses.retrieve(told.whole.id, { stream: true, starting_after: told.again.length - 1 }),
);

told.first = [];
for await (const event of await client.responses.create(ask(slow, { background: true, stream: true }))) {
  told.first.push(event);
  if (told.first.length === 8) break; // the connection is dropped here
}
const id = told.first[0].response.id;
told.rest = await all(await other.responses.retrieve(id, { stream: true, starting_after: 7 }));

const runner = client.responses.stream(ask(call));
told.deltas = "";
runner.on("response.function_call_arguments.delta", (event) => (told.deltas += event.delta));
told.called = await runner.finalResponse();
told.followed = await client.responses.stream({ response_id: id }).finalResponse();

try {
  await client.responses.create(ask(slow, { conversation: "conv_1" }));
} catch (error) {
  told.refused = { name: error.constructor.name, status: error.status, param: error.param };
}

console.log(JSON.stringify(told));
