// TanStack AI over Durable Streams, unchanged: its ChatClient with the connection of @durable-streams/tanstack-ai-transport.
import {
  durableStreamConnection,
  materializeSnapshotFromDurableStream,
  toDurableChatSessionResponse,
} from "@durable-streams/tanstack-ai-transport";
import { ChatClient } from "@tanstack/ai-client";

const { writeUrl, readUrl, words } = JSON.parse(process.argv[2]);
const ids = { threadId: "thread", runId: "run" };

async function* answer() {
  yield { type: "RUN_STARTED", ...ids };
  yield { type: "TEXT_MESSAGE_START", messageId: "answer", role: "assistant" };
  for (let number = 0; number < words; number++) {
    yield { type: "TEXT_MESSAGE_CONTENT", messageId: "answer", delta: `${number} ` };
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  yield { type: "TEXT_MESSAGE_END", messageId: "answer" };
  yield { type: "RUN_FINISHED", ...ids, finishReason: "stop" };
}

const connect = (initialOffset) =>
  durableStreamConnection({
    sendUrl: "http://app.test/chat",
    readUrl,
    initialOffset,
    fetchClient: async (_, { body }) => {
      const question = { id: "question", role: "user", parts: [{ type: "text", content: "Count." }] };
      if (!JSON.parse(body).messages.length) throw new Error("no message was sent");
      return toDurableChatSessionResponse({ stream: { writeUrl }, newMessages: [question], responseStream: answer() });
    },
  });
const textOf = (messages) => messages.at(-1).parts.filter((part) => part.type === "text").map((part) => part.content).join("");
await toDurableChatSessionResponse({ stream: { writeUrl }, newMessages: [], responseStream: (async function* () {})(), mode: "await" });

const seen = {};
const client = new ChatClient({ connection: connect() });
await client.sendMessage("Count.");
seen.asked = textOf(client.getMessages());

// A page that was reloaded: what is there, and the offset from which it follows.
const snapshot = await materializeSnapshotFromDurableStream({ readUrl });
seen.snapshot = textOf(snapshot.messages);
seen.roles = snapshot.messages.map((message) => message.role);
const rest = new AbortController();
const behind = connect(snapshot.offset).subscribe(rest.signal)[Symbol.asyncIterator]();
const next = behind.next();
await connect().send([{}]);
seen.next = (await next).value.type;
rest.abort();
console.log(JSON.stringify(seen));
process.exit(0);
