// The clients of Durable Streams from npm, unchanged: what they write and read, as JSON.
import { createDurableChatTransport, toDurableStreamResponse } from "@durable-streams/aisdk-transport";
import { DurableStream, IdempotentProducer, stream } from "@durable-streams/client";
import { readUIMessageStream } from "ai";

const { writeUrl, readUrl, messages, words } = JSON.parse(process.argv[2]);
const seen = {};

// A producer appends in batches at one gateway, a reader follows at another. The gateways end each connection after a
// moment: the reader comes back with its offset.
const handle = await DurableStream.create({ url: `${writeUrl}/run`, contentType: "application/json" });
const producer = new IdempotentProducer(handle, "producer", { lingerMs: 2 });
const live = async (mode) => {
  const response = await stream({ url: `${readUrl}/run`, offset: "-1", live: mode });
  const items = [];
  for await (const item of response.jsonStream()) items.push(item);
  return items;
};
const readers = [live("sse"), live("long-poll")];
for (let number = 0; number < messages; number++) {
  producer.append(JSON.stringify({ number }));
  if (number % 20 === 0) await new Promise((resolve) => setTimeout(resolve, 40));
}
await producer.flush();
await producer.close();
seen.live = await Promise.all(readers);
seen.caughtUp = await (await stream({ url: `${readUrl}/run`, offset: "-1", live: false })).json();

// A zombie: an older epoch of the same producer.
const second = await DurableStream.create({ url: `${writeUrl}/epochs`, contentType: "application/json" });
const restarted = new IdempotentProducer(second, "producer", { epoch: 1 });
restarted.append(JSON.stringify("newer"));
await restarted.flush();
seen.fenced = await new Promise((resolve) => {
  const zombie = new IdempotentProducer(second, "producer", { onError: (error) => resolve(error.name) });
  zombie.append(JSON.stringify("older"));
  zombie.flush().catch((error) => resolve(error.name));
});

// The transport of useChat: an application answers with its own chunks, which it writes to a stream.
async function* answer() {
  yield { type: "start", messageId: "m1" };
  yield { type: "text-start", id: "t" };
  for (let number = 0; number < words; number++) {
    yield { type: "text-delta", id: "t", delta: `${number} ` };
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  yield { type: "text-end", id: "t" };
  yield { type: "finish" };
}
const target = { writeUrl: `${writeUrl}/chat`, readUrl: `${readUrl}/chat` };
const transport = createDurableChatTransport({
  api: "http://app.test/chat",
  fetchClient: async (url, init) =>
    init.method === "POST" ? toDurableStreamResponse({ source: answer(), stream: target }) : Response.json({ streamUrl: target.readUrl }),
});
const textOf = async (chunks) => {
  let message;
  for await (message of readUIMessageStream({ stream: chunks }));
  return message.parts.find((part) => part.type === "text").text;
};
seen.sent = await textOf(await transport.sendMessages({ trigger: "submit-message", chatId: "c", messages: [] }));
seen.reconnected = await textOf(await transport.reconnectToStream({ chatId: "c" }));

console.log(JSON.stringify(seen));
