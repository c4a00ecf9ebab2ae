// What `follow` does about each thing that happens to a connection, a token, a page or a storage.
import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import net from "node:net";
import test from "node:test";
import { follow } from "../../../clients/js/midstream.js";
import { collect, DONE, hurried, refused, scripted, sse, streaming, token, URL_OF_STREAM } from "./support.mjs";

const FIRST = ":\nretry: 0\n" + token("1-1", "a");
const LAST = token("1-2", "b") + sse("1-3", "done", DONE);
const whole = () => streaming([FIRST + LAST]);
const rest = () => streaming([LAST]);
const broken = () => streaming([FIRST], { end: "cut" });
const silent = (init) => streaming([FIRST], { end: "silence", signal: init.signal });
const unreachable = () => Promise.reject(new TypeError("fetch failed"));

test("an attempt whose `restarted` is missing: its offsets say what it replaces", async () => {
  const body = token("1-1", "a") + token("1-2", "b") + token("1-3", "c") + token("2-2", "B") + sse("2-3", "done", DONE);
  assert.equal((await collect({ fetch: scripted(() => streaming([body])) })).text, "aB");
});

// --- statuses

for (const status of [400, 403, 404, 409, 410, 421, 422])
  test(`${status} is final`, async () => {
    const fetch = scripted(() => refused(status, { body: '{"detail":"why"}' }));
    await assert.rejects(collect({ fetch }), { name: "StreamError", status, retryable: false, message: `${status}: why` });
    assert.equal(fetch.requests.length, 1);
  });

for (const status of [408, 425, 429, 500, 502, 503, 504])
  test(`${status} is tried again`, async () => {
    const fetch = scripted(broken, () => refused(status), () => refused(status), rest);
    await hurried(async () => {
      const { text, lost } = await collect({ fetch });
      assert.equal(text, "ab");
      assert.deepEqual(lost.map((one) => one.error.status), [undefined, status, status]);
    });
    assert.ok(fetch.requests.slice(1).every((request) => request.headers["last-event-id"] === "1-1"));
  });

test("404 and 410 after a loss end it, too", async () => {
  for (const status of [404, 410]) await assert.rejects(collect({ fetch: scripted(broken, () => refused(status)) }), { status });
});

test("204: the terminal event is fetched, and asked for once", async () => {
  for (const after of ["1-3", "1-9", "99-0"]) {
    const fetch = scripted(() => refused(204), () => streaming([sse("1-3", "cancelled", { by: "client" })]));
    const { events } = await collect({ fetch, after });
    assert.deepEqual(events, [{ type: "cancelled", by: "client", id: "1-3", text: "" }]);
    assert.deepEqual(fetch.requests.map(({ url, headers }) => [url, headers["last-event-id"]]), [
      [`${URL_OF_STREAM}/events`, after],
      [`${URL_OF_STREAM}/events?from=now`, undefined],
    ]);
  }
  const never = scripted(broken, () => refused(204));
  await assert.rejects(collect({ fetch: never }), { name: "StreamError", retryable: false });
  assert.equal(never.requests.length, 3, "who gets 204 again does not ask for ever");
});

test("Retry-After: seconds and a date", async () => {
  const inTwoSeconds = new Date(Date.now() + 2_000).toUTCString();
  const past = new Date(0).toUTCString();
  for (const [value, leastMs, mostMs = leastMs * 1.5] of [["0.4", 400], [inTwoSeconds, 200, 3_100], [past, 200], ["-5", 200], ["nonsense", 200], ["1e9", 86_400_000, 86_400_000]]) {
    const fetch = scripted(broken, () => refused(503, { headers: { "retry-after": value } }), whole);
    for await (const event of follow(URL_OF_STREAM, { fetch, giveUpMs: Infinity }))
      if (event.type === "lost" && event.error.status === 503) {
        assert.ok(event.wait_ms >= leastMs && event.wait_ms <= mostMs && event.error.retryAfterMs >= 0, `${value}: ${event.wait_ms}`);
        break;
      }
  }
});

test("the pause doubles up to 30 s, is jittered, never below `retry:`, and starts again after an event", async () => {
  const fails = Array(9).fill(unreachable);
  const fetch = scripted(() => streaming(["retry: 400\n" + token("1-1", "a")]), ...fails, () => streaming([token("1-2", "b")]), () => streaming([sse("1-3", "done", DONE)]));
  const pauses = await hurried(() => collect({ fetch }));
  const least = [400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000, 400];
  assert.equal(pauses.length, least.length);
  pauses.forEach((pause, index) => assert.ok(pause >= least[index] && pause <= least[index] * 1.5, `${index}: ${pauses}`));
  assert.ok(new Set(pauses.map((pause, index) => pause / least[index])).size > 5, "jittered");
});

test("it gives up when nobody has accepted a request for `giveUpMs`", async () => {
  const fetch = scripted(() => streaming(["retry: 10\n" + token("1-1", "a")], { end: "cut" }), unreachable);
  await assert.rejects(collect({ fetch, giveUpMs: 400 }), { message: "fetch failed" });
  assert.ok(fetch.requests.length > 2);
});

test("`retry: 0`: at once after a connection that brought events, and never again and again without a pause", async () => {
  const empty = () => streaming([":\nretry: 0\n"]); // an EventSource's answer from a server that cannot serve now
  const fetch = scripted(broken, empty, empty, empty, rest);
  const pauses = await hurried(async () => assert.equal((await collect({ fetch })).text, "ab"));
  const least = [0, 200, 400, 800];
  assert.equal(pauses.length, least.length);
  pauses.forEach((pause, index) => assert.ok(pause >= least[index] && pause <= least[index] * 1.5, `${index}: ${pauses}`));
});

test("it does not ask as an EventSource does, which is told nothing of a 503", async () => {
  const fetch = scripted(whole);
  await collect({ fetch });
  assert.equal(fetch.requests[0].headers.accept, "text/event-stream, application/problem+json");
});

test("the time of a connection that held does not count", async () => {
  const fetch = scripted(broken, rest);
  let text;
  for await (const event of follow(URL_OF_STREAM, { fetch, giveUpMs: 100 })) {
    ({ text } = event);
    if (event.type === "token") await new Promise((resolve) => setTimeout(resolve, 120));
  }
  assert.equal(text, "ab");
});

test("what is no event stream: final at first, a hotel's login page later", async () => {
  const page = () => streaming(["<html>"], { type: "text/html" });
  await assert.rejects(collect({ fetch: scripted(page, whole) }), { name: "StreamError", retryable: false });
  await hurried(async () => assert.equal((await collect({ fetch: scripted(broken, page, page, rest) })).text, "ab"));
});

test("a fetch that cannot stream is named as such", async () => {
  const fetch = async () => ({ ok: true, status: 200, headers: new Headers({ "content-type": "text/event-stream" }), body: undefined });
  await assert.rejects(collect({ fetch }), { retryable: false, message: /cannot stream/ });
});

// --- silence

for (const [what, listener] of [
  ["accepts and says nothing", () => {}],
  ["sends a head and nothing more", (socket) => socket.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")],
  ["sends half an error", (socket) => socket.write("HTTP/1.1 503 Busy\r\ncontent-length: 100\r\n\r\nhalf")],
])
  test(`a server that ${what}`, async (t) => {
    let requests = 0;
    const server = net.createServer((socket) => socket.on("error", () => {}).on("data", () => ((requests += 1), listener(socket)))).listen(0, "127.0.0.1");
    t.after(() => server.close());
    await once(server, "listening");
    const aborting = new AbortController();
    const lost = [];
    const following = follow(`http://127.0.0.1:${server.address().port}/v1/streams/s1`, { stallMs: 80, signal: aborting.signal });
    await assert.rejects(async () => {
      for await (const event of following) {
        lost.push(event.error.message);
        if (lost.length === 1) setTimeout(() => aborting.abort(new Error("enough")), 20);
      }
    }, { message: "enough" });
    assert.deepEqual([lost, requests], [["nothing came for 0.08 s"], 1]);
  });

test("comments keep a connection, their absence ends it", async () => {
  let beats = 0;
  const server = http.createServer((request, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    if (request.headers["last-event-id"]) return response.end(LAST);
    response.write(FIRST);
    const timer = setInterval(() => (++beats < 12 ? response.write(":\n") : clearInterval(timer)), 50);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { text, lost } = await collect({ stallMs: 250 }, `http://127.0.0.1:${server.address().port}/v1/streams/s1/events`);
  assert.deepEqual([text, beats, lost.length, lost[0].error.message], ["ab", 12, 1, "nothing came for 0.25 s"]);
  server.closeAllConnections();
  server.close();
});

test("a reader that takes its time is not taken for silence", async () => {
  const fetch = scripted(() => streaming([FIRST, LAST]));
  for await (const event of follow(URL_OF_STREAM, { fetch, stallMs: 40 })) {
    assert.notEqual(event.type, "lost");
    await new Promise((resolve) => setTimeout(resolve, 60));
  }
  assert.equal(fetch.requests.length, 1);
});

test("a laptop that has slept: the clock shows it, however short a while the timers ran", async () => {
  const now = Date.now;
  const begun = performance.now();
  const following = follow(URL_OF_STREAM, { fetch: scripted(silent, rest), stallMs: 1_600 });
  try {
    assert.equal((await following.next()).value.text, "a");
    const next = following.next(); // it waits in a read
    await new Promise((resolve) => setTimeout(resolve, 5));
    Date.now = () => now() + 3_600_000;
    assert.equal((await next).value.type, "lost");
    assert.ok(performance.now() - begun < 1_500);
  } finally {
    Date.now = now;
  }
  await following.return();
});

test("a fetch that heeds no signal (React Native) is left all the same", async () => {
  const deaf = () => streaming([FIRST], { end: "silence", heeds: false });
  assert.equal((await collect({ fetch: scripted(deaf, rest), stallMs: 40 })).text, "ab");
  await hurried(async () => assert.equal((await collect({ fetch: scripted(() => new Promise(() => {}), whole), stallMs: 40 })).text, "ab"));
});

test("a fetch that cannot stream (React Native's own) is refused at once, in one clear error", async () => {
  const never = Object.assign(scripted(() => new Promise(() => {})), { polyfill: true }); // as whatwg-fetch marks itself
  const whole = scripted(() => ({ ok: true, status: 200, headers: new Headers({ "content-type": "text/event-stream" }), body: undefined }));
  for (const [fetch, requests] of [[never, 0], [whole, 1]]) {
    const events = follow(URL_OF_STREAM, { fetch });
    await assert.rejects(events.next(), ({ name, message, retryable }) => name === "StreamError" && /cannot stream/.test(message) && !retryable);
    assert.equal(fetch.requests.length, requests);
  }
});

// --- tokens

test("a fresh token before each try", async () => {
  let tokens = 0;
  const fetch = scripted(broken, unreachable, () => refused(503), rest);
  await hurried(() => collect({ fetch, token: () => `t${++tokens}`, headers: { "x-app": "1" } }));
  assert.deepEqual(fetch.requests.map(({ headers }) => [headers.authorization, headers["x-app"]]), [1, 2, 3, 4].map((n) => [`Bearer t${n}`, "1"]));
});

test("an expired token is renewed at once; a second refusal in a row is final", async () => {
  const seen = [];
  const fresh = async (wasRefused) => `t${seen.push(wasRefused)}`;
  const fetch = scripted(broken, () => refused(401), broken, () => refused(401), rest);
  const { text, lost } = await collect({ fetch, token: fresh });
  assert.equal(text, "ab");
  assert.deepEqual(seen, [false, false, true, false, true]);
  assert.deepEqual(fetch.requests.map((request) => request.headers.authorization), [1, 2, 3, 4, 5].map((n) => `Bearer t${n}`));
  assert.equal(lost[1].wait_ms, 0);
  const never = scripted(() => refused(401));
  await assert.rejects(collect({ fetch: never, token: fresh }), { status: 401 });
  assert.equal(never.requests.length, 2);
});

test("a token that cannot be had, or never comes, is waited for like a lost connection", async () => {
  let asked = 0;
  const tokens = [() => Promise.reject(new TypeError("no network")), () => new Promise(() => {}), () => "t"];
  await hurried(async () => {
    const { text, lost } = await collect({ fetch: scripted(whole), token: () => tokens[asked++](), stallMs: 80 });
    assert.equal(text, "ab");
    assert.deepEqual(lost.map((one) => one.error.message), ["no network", "nothing came for 0.08 s"]);
  });
});

// --- leaving

test("the signal ends it: before it begins, in a read, in a pause, in a wait for the token", async () => {
  const reason = new Error("left");
  const cases = [
    { fetch: scripted(silent), at: "begin" },
    { fetch: scripted(silent), at: "token" },
    { fetch: scripted(() => refused(503, { headers: { "retry-after": "60" } })), at: "lost" },
    { fetch: scripted(silent), at: "never", token: () => new Promise(() => {}) },
  ];
  for (const { fetch, at, token } of cases) {
    const aborting = new AbortController();
    const leave = () => aborting.abort(reason);
    if (at === "begin") leave();
    if (at === "never") setTimeout(leave, 20);
    await assert.rejects(async () => {
      for await (const event of follow(URL_OF_STREAM, { fetch, token, signal: aborting.signal })) if (event.type === at) setTimeout(leave, 10);
    }, reason);
  }
});

test("who leaves the loop closes the connection, and leaves no timer or listener behind", async () => {
  let closed;
  const server = http.createServer((request, response) => {
    closed = once(response, "close");
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(FIRST);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  let listeners = 0;
  const signal = new AbortController().signal;
  const { addEventListener, removeEventListener } = signal;
  signal.addEventListener = (...all) => ((listeners += 1), addEventListener.apply(signal, all));
  signal.removeEventListener = (...all) => ((listeners -= 1), removeEventListener.apply(signal, all));
  for await (const event of follow(`http://127.0.0.1:${server.address().port}/v1/streams/s1`, { signal })) if (event.text === "a") break;
  await closed;
  assert.equal(listeners, 0);
  assert.deepEqual(process.getActiveResourcesInfo().filter((name) => name === "Timeout"), []);
  server.closeAllConnections();
  server.close();
});

// --- the page

/** Runs with an event target in place of the global one, and with this document and navigator. */
async function inPage(globals, run) {
  const target = new EventTarget();
  let listeners = 0;
  const methods = {
    addEventListener: (...all) => ((listeners += 1), target.addEventListener(...all)),
    removeEventListener: (...all) => ((listeners = 0), target.removeEventListener(...all)),
  };
  const before = Object.fromEntries(["document", "navigator", ...Object.keys(methods)].map((name) => [name, Object.getOwnPropertyDescriptor(globalThis, name)]));
  for (const [name, value] of Object.entries({ ...methods, ...globals })) Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  try {
    await run((type) => target.dispatchEvent(new Event(type)));
    assert.equal(listeners, 0);
  } finally {
    for (const [name, descriptor] of Object.entries(before)) {
      delete globalThis[name];
      if (descriptor) Object.defineProperty(globalThis, name, descriptor);
    }
  }
}

test("a network that comes back ends the pause, and the old connection", () =>
  inPage({ navigator: { onLine: false } }, async (happens) => {
    const fetch = scripted(unreachable, silent, rest);
    const lost = [];
    let text;
    for await (const event of follow(URL_OF_STREAM, { fetch })) {
      text = event.text;
      if (event.type === "lost") lost.push(event.wait_ms);
      if (event.type !== "done") setTimeout(() => happens("online"));
    }
    assert.equal(text, "ab");
    assert.equal(lost.length, 2);
    assert.ok(lost.every((wait) => wait >= 30_000), `while it is offline nobody tries: ${lost}`);
  }));

test("a page that is shown again leaves a connection that has been silent, and no other", () =>
  inPage({ document: { hidden: false } }, async (happens) => {
    const silentAtFirst = (init) => streaming([token("1-1", "a")], { end: "silence", signal: init.signal });
    for (const [silentMs, leaves] of [[0, false], [25_000, true]]) {
      const now = Date.now;
      const fetch = scripted(silentAtFirst, rest);
      const following = follow(URL_OF_STREAM, { fetch });
      await following.next();
      const next = following.next(); // it waits in a read
      await new Promise((resolve) => setTimeout(resolve, 5));
      Date.now = () => now() + silentMs;
      happens("visibilitychange");
      Date.now = now;
      const left = await Promise.race([next.then(() => true), new Promise((resolve) => setTimeout(resolve, 20, false))]);
      assert.equal(left, leaves);
      if (!leaves) happens("online");
      assert.deepEqual([(await next).value.type, (await next).value.wait_ms], ["lost", 0]);
      assert.equal((await following.next()).value.text, "ab");
      await following.return();
    }
  }));

test("nothing shortens Retry-After", () =>
  inPage({ document: { hidden: false } }, async (happens) => {
    const fetch = scripted(() => refused(429, { headers: { "retry-after": "0.2" } }), whole);
    const begun = performance.now();
    for await (const event of follow(URL_OF_STREAM, { fetch })) if (event.type === "lost") setTimeout(() => happens("visibilitychange"));
    assert.ok(performance.now() - begun >= 190);
  }));

// --- the storage

const storage = (kept = new Map()) => ({
  kept,
  getItem: (key) => kept.get(key) ?? null,
  setItem: (key, value) => void kept.set(key, value),
  removeItem: (key) => void kept.delete(key),
});
const later = (kept) => Object.fromEntries(Object.entries(storage(kept)).map(([name, work]) => [name, typeof work === "function" ? async (...all) => work(...all) : work]));

for (const [kind, make] of [["plain", storage], ["asynchronous", later]])
  test(`a place that is kept (${kind}): the next reader goes on there, with the text`, async () => {
    const store = make();
    for await (const event of follow(URL_OF_STREAM, { fetch: scripted(silent), storage: store })) if (event.text === "a") break;
    assert.deepEqual([...store.kept.keys()], [`midstream:${URL_OF_STREAM}`]);
    const restarting = () => streaming([sse("2-0", "restarted", { attempt: 2, base: 1, reason: "worker_lost" }) + token("2-2", "B") + sse("2-3", "done", DONE)]);
    const fetch = scripted(restarting);
    const { events, text } = await collect({ fetch, storage: store });
    assert.equal(fetch.requests[0].headers["last-event-id"], "1-1");
    assert.equal(events[0].text, "a", "the text of before knows where its tokens end");
    assert.equal(text, "aB");
    assert.equal(store.kept.size, 0, "what has ended is not kept");
  });

test("a storage that is full, forbidden, or holds another's data costs no event", async () => {
  const throwing = () => { throw new DOMException("no", "QuotaExceededError"); };
  for (const store of [
    { getItem: throwing, setItem: throwing, removeItem: throwing },
    storage(new Map([[`midstream:${URL_OF_STREAM}`, "not ours"]])),
    storage(new Map([[`midstream:${URL_OF_STREAM}`, '{"cursor":"1-1"}']])),
    storage(new Map([[`midstream:${URL_OF_STREAM}`, '{"cursor":"1-1","marks":7}']])),
  ])
    assert.equal((await collect({ fetch: scripted(broken, rest), storage: store })).text, "ab");
});

test("what is gone is not kept; what only failed is", async () => {
  for (const [status, size] of [[410, 0], [400, 1]]) {
    const store = storage();
    await assert.rejects(collect({ fetch: scripted(broken, () => refused(status)), storage: store }), { status });
    assert.equal(store.kept.size, size);
  }
});

test("the place is written once a second, and when the page is hidden", () =>
  inPage({ document: { hidden: false } }, async (happens) => {
    const store = storage();
    let writes = 0;
    const { setItem } = store;
    store.setItem = (key, value) => ((writes += 1), setItem(key, value));
    const many = Array.from({ length: 50 }, (_, index) => token(`1-${index + 1}`, "x"));
    const following = follow(URL_OF_STREAM, { storage: store, fetch: scripted((init) => streaming(many, { end: "silence", signal: init.signal })) });
    for (let index = 0; index < 50; index++) await following.next();
    assert.equal(writes, 1);
    globalThis.document.hidden = true;
    happens("visibilitychange");
    assert.equal(writes, 2);
    assert.equal(JSON.parse([...store.kept.values()][0]).cursor, "1-50");
    happens("online");
    await following.next();
    await following.return();
  }));
