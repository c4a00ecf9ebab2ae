// What the tests of the JavaScript client share: a gateway as a `fetch`, and ways to look at what `follow` yields.
import { follow } from "../../../clients/js/midstream.js";

export const URL_OF_STREAM = "http://gateway.test/v1/streams/s1";

const utf8 = new TextEncoder();
export const bytes = (text) => (typeof text === "string" ? utf8.encode(text) : text);

/** A response whose body comes in these pieces. `end`: what follows them: "close", "cut", or "silence" until the signal aborts. */
export function streaming(pieces, { end = "close", signal, type = "text/event-stream; charset=utf-8", heeds = true } = {}) {
  let index = 0;
  const body = new ReadableStream({
    start: (controller) => heeds && signal?.addEventListener("abort", () => controller.error(signal.reason)),
    pull(controller) {
      if (index < pieces.length) controller.enqueue(bytes(pieces[index++]));
      else if (end === "close") controller.close();
      else if (end === "cut") controller.error(new TypeError("terminated"));
      else return new Promise(() => {});
    },
  });
  return new Response(body, { headers: { "content-type": type } });
}

/** What `follow` needs of such a response and no more: ten times as fast as a real one. */
export function plain(pieces) {
  const left = pieces.values();
  const reader = { read: async () => left.next(), cancel: async () => {} };
  return { ok: true, status: 200, headers: new Map([["content-type", "text/event-stream"]]), body: { getReader: () => reader } };
}

export const refused = (status, { headers = {}, body = "" } = {}) =>
  new Response(status === 204 ? null : body, { status, headers: { "content-type": "application/problem+json", ...headers } });

/** A `fetch` that answers with one script after the other, and the last again and again. It notes all requests in `requests`. */
export function scripted(...scripts) {
  const requests = [];
  const fetch = async (url, init) => {
    requests.push({ url, ...init });
    init.signal?.throwIfAborted();
    return scripts[Math.min(requests.length, scripts.length) - 1](init, url);
  };
  return Object.assign(fetch, { requests });
}

/** One event as a gateway writes it. */
export const sse = (id, name, data) =>
  `${id ? `id: ${id}\n` : ""}${name === "message" ? "" : `event: ${name}\n`}data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`;

export const token = (id, text) => sse(id, "message", { token: text });
export const DONE = { finish_reason: "stop", truncated: false, usage: null };

/** Collects what `follow` yields, without the "lost" ones. */
export async function collect(options, url = URL_OF_STREAM) {
  const events = [];
  const lost = [];
  for await (const event of follow(url, options)) (event.type === "lost" ? lost : events).push(event);
  return { events, lost, text: events.at(-1)?.text };
}

/** A stream in which everything happens, by hand: [id, name, data, the text after it]. */
export const EVERYTHING = [
  ["1-0", "started", { attempt: 1, model: "m" }, ""],
  ["1-1", "message", { token: "Grüße" }, "Grüße"],
  ["1-2", "message", { token: " 👋🏽" }, "Grüße 👋🏽"],
  ["1-3", "message", { delta: { content: ",\u2028x" } }, "Grüße 👋🏽,\u2028x"],
  ["1-4", "message", { delta: { content: "another choice" }, index: 1 }, "Grüße 👋🏽,\u2028x"],
  ["1-5", "tool", { call: 7 }, "Grüße 👋🏽,\u2028x"],
  ["1-6", "message", { token: " lost" }, "Grüße 👋🏽,\u2028x lost"],
  ["2-0", "restarted", { attempt: 2, base: 2, reason: "worker_lost" }, "Grüße 👋🏽"],
  ["", "live", { offset: 2 }, "Grüße 👋🏽"],
  ["2-3", "message", { token: "\r\n" }, "Grüße 👋🏽\r\n"],
  ["", "gap", { requested: "2-4", first_available: "2-6" }, "Grüße 👋🏽\r\n"],
  ["2-6", "message", { delta: { reasoning: "hm" } }, "Grüße 👋🏽\r\n"],
  ["2-7", "message", { token: "end" }, "Grüße 👋🏽\r\nend"],
  ["3-0", "restarted", { attempt: 3, base: 6, reason: "provider_stalled" }, "Grüße 👋🏽\r\n"],
  ["3-7", "message", { token: "." }, "Grüße 👋🏽\r\n."],
  ["3-8", "done", DONE, "Grüße 👋🏽\r\n."],
];

const PRELUDE = ":\nretry: 0\n";
const RECORDED = EVERYTHING.map(([id, name, data], index) => ({ id, bytes: bytes((index ? "" : PRELUDE) + sse(id, name, data) + ":\n") }));

/** The bytes that a gateway sends to a reader that has this id. */
export function recordedAfter(lastId) {
  const index = lastId ? RECORDED.findIndex((event) => event.id === lastId) + 1 : 0;
  return Buffer.concat([bytes(index ? PRELUDE : ""), ...RECORDED.slice(index).map((event) => event.bytes)]);
}

/** The events with an id, as `collect` must have seen them: each once and in order, and with the right text. */
export const withIds = (events) => events.filter((event) => event.id).map((event) => [event.id, event.text]);
export const EXPECTED = EVERYTHING.filter(([id]) => id).map(([id, , , text]) => [id, text]);

/** Runs with timers that end at once, and returns the pauses that were asked for. */
export async function hurried(run) {
  const setTimeoutOf = globalThis.setTimeout;
  const pauses = [];
  globalThis.setTimeout = (work, milliseconds) => (pauses.push(milliseconds), setTimeoutOf(work, 0));
  try {
    await run();
  } finally {
    globalThis.setTimeout = setTimeoutOf;
  }
  return pauses;
}

/** A generator of random numbers from 0 to 1 (mulberry32). */
export function dice(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** Splits bytes at these places. */
export const split = (whole, places) => [0, ...places].map((from, index) => whole.subarray(from, places[index]));
