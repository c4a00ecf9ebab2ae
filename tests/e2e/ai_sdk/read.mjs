// Reads a UI message stream from standard input as the SDK of one version does: every part against its own schema, then
// put together. Tells what it saw as one line of JSON.
const { parseJsonEventStream, readUIMessageStream, uiMessageChunkSchema } = await import(process.argv[2]);

const bytes = new ReadableStream({
  async start(controller) {
    for await (const piece of process.stdin) controller.enqueue(new Uint8Array(piece));
    controller.close();
  },
});
const chunks = [];
const wrong = [];
for await (const parsed of parseJsonEventStream({ stream: bytes, schema: uiMessageChunkSchema })) {
  if (parsed.success) chunks.push(parsed.value);
  else wrong.push(String(parsed.error));
}
const errors = [];
const stream = new ReadableStream({
  start(controller) {
    for (const chunk of chunks) controller.enqueue(chunk);
    controller.close();
  },
});
let message = null;
for await (const state of readUIMessageStream({ stream, onError: error => errors.push(error.message) })) message = state;
console.log(JSON.stringify({ chunks, wrong, errors, message }));
