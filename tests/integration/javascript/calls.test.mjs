// create, cancel, receipt and state: their requests, and what they do about a failed one.
import assert from "node:assert/strict";
import test from "node:test";
import { cancel, create, follow, receipt, state, StreamError } from "../../../clients/js/midstream.js";
import { hurried, refused, scripted, streaming, URL_OF_STREAM } from "./support.mjs";

const json = (body) => () => new Response(JSON.stringify(body), { headers: { "content-type": "application/json" } });
const unreachable = () => Promise.reject(new TypeError("fetch failed"));
const REQUEST = { messages: [{ role: "user", content: "hi" }] };
const FAST = { giveUpMs: 10_000 };

test("create: however often it is tried, there is one key", async () => {
  const fetch = scripted(unreachable, () => refused(503), json({ id: "s1", status: "queued", events_url: "/v1/streams/s1/events" }));
  const pauses = await hurried(async () => {
    const created = await create("http://gateway.test/v1/streams", REQUEST, { fetch, ...FAST, token: async () => "t" });
    assert.deepEqual([created.id, created.url], ["s1", URL_OF_STREAM]);
  });
  assert.equal(pauses.length, 2);
  const keys = fetch.requests.map(({ method, body, headers }) => {
    assert.deepEqual([method, JSON.parse(body), headers["content-type"], headers.authorization], ["POST", REQUEST, "application/json", "Bearer t"]);
    return headers["idempotency-key"];
  });
  assert.equal(new Set(keys).size, 1);
  await create("http://gateway.test/v1/streams", REQUEST, { fetch });
  assert.notEqual(fetch.requests.at(-1).headers["idempotency-key"], keys[0]);
  await create("http://gateway.test/v1/streams", REQUEST, { fetch, idempotencyKey: "mine" });
  assert.equal(fetch.requests.at(-1).headers["idempotency-key"], "mine");
});

test("where there is no crypto, keys differ all the same", async () => {
  const crypto = Object.getOwnPropertyDescriptor(globalThis, "crypto");
  Object.defineProperty(globalThis, "crypto", { value: undefined, configurable: true });
  try {
    const fetch = scripted(json({ id: "s1" }));
    for (let round = 0; round < 1000; round++) await create("http://gateway.test/v1/streams", REQUEST, { fetch });
    const keys = fetch.requests.map((request) => request.headers["idempotency-key"]);
    assert.equal(new Set(keys).size, 1000);
    assert.ok(keys.every((key) => key.length >= 20 && key.length <= 255));
  } finally {
    if (crypto) Object.defineProperty(globalThis, "crypto", crypto);
    else delete globalThis.crypto;
  }
});

for (const url of [URL_OF_STREAM, `${URL_OF_STREAM}/events`, new URL(URL_OF_STREAM)])
  test(`cancel, receipt and state of ${url}`, async () => {
    const fetch = scripted(json({ status: "running" }));
    for (const call of [cancel, receipt, state]) assert.deepEqual(await call(url, { fetch }), { status: "running" });
    await state(url, { fetch, waitSeconds: 30 });
    assert.deepEqual(fetch.requests.map((request) => `${request.method ?? "GET"} ${request.url}`), [
      `POST ${URL_OF_STREAM}/cancel`,
      `GET ${URL_OF_STREAM}/receipt`,
      `GET ${URL_OF_STREAM}`,
      `GET ${URL_OF_STREAM}?wait=30`,
    ]);
  });

test("a query of the application's own stays", async () => {
  const fetch = scripted(json({ id: "s2" }));
  await cancel(`${URL_OF_STREAM}/events?tenant=7`, { fetch });
  await state(`${URL_OF_STREAM}/events?tenant=7`, { fetch, waitSeconds: 30 });
  const { url } = await create("http://gateway.test/v1/streams?tenant=7", REQUEST, { fetch });
  assert.deepEqual([...fetch.requests.map((request) => request.url), url], [
    `${URL_OF_STREAM}/cancel?tenant=7`,
    `${URL_OF_STREAM}?wait=30&tenant=7`,
    "http://gateway.test/v1/streams?tenant=7",
    "http://gateway.test/v1/streams/s2?tenant=7",
  ]);
});

test("an address that is none is an error at once", async () => {
  const wrong = { name: "TypeError", message: /Failed to parse URL/ };
  await assert.rejects(follow("/v1/streams/s1").next(), wrong);
  await assert.rejects(create("v1/streams", REQUEST), wrong);
  assert.throws(() => cancel("/v1/streams/s1"), wrong);
});

test("what is refused says why; what stays away is given up", async () => {
  for (const [body, message] of [['{"detail":"max_tokens …"}', "400: max_tokens …"], ['{"error":{"message":"OpenAI\'s"}}', "400: OpenAI's"], ["<html>", "400: <html>"], ['{"detail":[1]}', '400: {"detail":[1]}'], ["null", "400: null"]])
    await assert.rejects(cancel(URL_OF_STREAM, { fetch: scripted(() => refused(400, { body })) }), { name: "StreamError", status: 400, retryable: false, message });
  await assert.rejects(cancel(URL_OF_STREAM, { fetch: scripted(() => refused(500, { body: "x".repeat(9999) })), giveUpMs: 0 }), (error) => {
    assert.ok(error instanceof StreamError && error instanceof Error && error.message.length === 500 && error.retryable);
    return true;
  });
  await assert.rejects(receipt(URL_OF_STREAM, { fetch: scripted(() => refused(429, { headers: { "retry-after": "61" } })) }), { status: 429, retryAfterMs: 61_000 });
});

test("a body that breaks off or stalls is fetched again; the signal ends the wait for one", async () => {
  const half = (end) => (init) => streaming(['{"status":'], { end, signal: init.signal });
  const fetch = scripted(half("cut"), half("silence"), json({ status: "completed" }));
  await hurried(async () => assert.equal((await state(URL_OF_STREAM, { fetch, stallMs: 40 })).status, "completed"));
  const aborting = new AbortController();
  setTimeout(() => aborting.abort(new Error("left")), 20);
  await assert.rejects(state(URL_OF_STREAM, { fetch: scripted(half("silence")), signal: aborting.signal }), { message: "left" });
});

for (const [what, answer] of [
  ["silence after the head", (init) => streaming(['{"status":'], { end: "silence", signal: init.signal })],
  ["half an answer", () => streaming(['{"status":'], { end: "cut" })],
])
  test(`${what}, every time, is given up: an accepted request is no answer`, async () => {
    const fetch = scripted(answer);
    const begun = performance.now();
    const expected = { "silence after the head": "nothing came for 0.04 s", "half an answer": "terminated" }[what];
    await assert.rejects(receipt(URL_OF_STREAM, { fetch, stallMs: 40, giveUpMs: 1_500 }), { message: expected });
    assert.ok(performance.now() - begun < 1_600);
    assert.ok(fetch.requests.length <= 3, "each pause is longer than the one before");
  });

test("the time that the server may take by agreement is added to what a call may take", async () => {
  const answer = (init) => new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 120, json({ status: "completed" })());
    init.signal.addEventListener("abort", () => reject(init.signal.reason, clearTimeout(timer)));
  });
  assert.equal((await state(URL_OF_STREAM, { fetch: scripted(answer), stallMs: 40, waitSeconds: 0.2 })).status, "completed");
});
