// calls.mjs URL: calls create, cancel, receipt and state at the address of /v1/streams, and prints what came of it.
import process from "node:process";
import { cancel, create, follow, receipt, state, StreamError } from "../../../clients/js/midstream.js";

const streams = process.argv[2];
const request = (script, more = {}) => ({ messages: [{ role: "user", content: "calls" }], script, ...more });

async function endOf(url, options) {
  let end;
  for await (const event of follow(url, options)) end = event;
  const { type, by, truncated, retryable } = end;
  return { cancelled: `cancelled by ${by}`, done: truncated ? "done, cut off" : "done", failed: retryable ? "failed: retryable" : "failed" }[type];
}

const statusOf = (promise) => promise.then(() => 200, (error) => (error instanceof StreamError ? error.status : String(error)));

const long = request({ tokens: 2000, tokens_per_second: 50 });
const first = await create(streams, long, { idempotencyKey: "calls" });
const again = await create(streams, long, { idempotencyKey: "calls" });
for await (const event of follow(first.url)) if (event.type === "token") break;
const { status, cancelled_by } = await cancel(first.url);
const ends = [await endOf(first.url)];

const done = await create(streams, request({ tokens: 5 }));
const waited = await state(done.url, { waitSeconds: 20 });
ends.push(await endOf(done.url));
ends.push(await endOf((await create(streams, request({ tokens: 9 }, { max_tokens: 3 }))).url));
ends.push(await endOf((await create(streams, request({ tokens: 9, break_after: 3 }, { midstream: { on_interrupt: "fail" } }))).url));
ends.push(await endOf(first.url, { after: "99-0" })); // behind the end: 204, and then the terminal event

const { undelivered_tokens: undelivered } = await receipt(done.url);
const refused = [await statusOf(create(streams, { messages: [] })), await statusOf(follow(`${streams}/unknown`).next()), await statusOf(follow(`${streams}/${"0".repeat(36)}`).next())];
console.log(JSON.stringify({ same: first.id === again.id, cancelled: { status, cancelled_by }, ends, waited: waited.status, undelivered, refused }));
