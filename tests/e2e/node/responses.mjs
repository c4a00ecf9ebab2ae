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

const results = {};

results.whole = await client.responses.create(ask({ tokens: 5 }));
results.text = results.whole.output_text;
results.retrieved = await other.responses.retrieve(results.whole.id);
results.again = await all(await other.responses.retrieve(results.whole.id, { stream: true }));
results.nothing = await all(
  await other.responses.retrieve(results.whole.id, { stream: true, starting_after: results.again.length - 1 }),
);

results.first = [];
for await (const event of await client.responses.create(ask(slow, { background: true, stream: true }))) {
  results.first.push(event);
  if (results.first.length === 8) break; // the connection is dropped here
}
const id = results.first[0].response.id;
results.rest = await all(await other.responses.retrieve(id, { stream: true, starting_after: 7 }));

const runner = client.responses.stream(ask(call));
results.deltas = "";
runner.on("response.function_call_arguments.delta", (event) => (results.deltas += event.delta));
results.called = await runner.finalResponse();
results.followed = await client.responses.stream({ response_id: id }).finalResponse();

try {
  await client.responses.create(ask(slow, { conversation: "conv_1" }));
} catch (error) {
  results.refused = { name: error.constructor.name, status: error.status, param: error.param };
}

console.log(JSON.stringify(results));
