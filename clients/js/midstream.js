/**
 * A client of Midstream's native API for browsers, Node 18+, Deno, Bun and React Native. No dependency, no build step.
 *
 *   patience ────► exchange ───► decoder ─────► answer ─────► event
 *   the pauses     a request,    bytes to       messages to   what `follow` yields
 *   between tries  watched       messages       events
 */

const STALL_MS = 40_000; // the gateway sends a comment every 15 s: when two have failed to come, the connection is dead
const RETRY_MS = 1_000; // between two tries, until the server has sent `retry:`
const RETRY_MS_MAX = 30_000;
const RETRY_MS_MIN = 100; // from the second try in a row that brings no event, even where the server says `retry: 0`
const FOLLOW_MS_MAX = 86_400_000; // a log lives a day: when nobody has answered for so long, there is nothing left to follow
const CALL_MS_MAX = 60_000; // what a person waits for a button at most
const SAVE_MS = 1_000; // between two writes to a storage, each of the whole text
const EVENT_CHARACTERS_MAX = 16 << 20; // far above a gateway's events: a server that sends no line end must not fill the memory
const DETAIL_CHARACTERS_MAX = 500; // of an error page

const TERMINAL = ["done", "failed", "cancelled"];
const NAMED = ["started", "restarted", "live", "gap", ...TERMINAL];
const WAKING = ["online", "visibilitychange", "pagehide"];

/** A request that failed. `status`: of HTTP, 0 without one. `retryable`: whether the request may succeed later. */
export class StreamError extends Error {
  constructor(message, { status = 0, ...others } = {}) {
    super(message);
    Object.assign(this, { name: "StreamError", status, retryable: !status || status > 499 || [408, 425, 429].includes(status), ...others });
  }
}

/** Yields a stream's events; the last is `done`, `failed` or `cancelled`. Throws StreamError, or the signal's reason. */
export async function* follow(url, options = {}) {
  const stream = streamOf(url);
  const patience = patienceOf(options, FOLLOW_MS_MAX);
  // What fails in the storage (it is full, or forbidden) costs a repetition, and no event.
  const stored = (method, value) => (async () => options.storage?.[method](`midstream:${stream}`, value))().catch(() => {});
  const found = parsed(await stored("getItem"));
  const answer = answerOf(Array.isArray(found?.marks) ? found : { cursor: options.after });
  let savedAt = 0, atEnd, over, exchange;
  const save = async (leastMs) => {
    if (!options.storage || over || !answer.now().cursor || Date.now() - savedAt < leastMs) return;
    savedAt = Date.now();
    await stored("setItem", JSON.stringify(answer.now()));
  };
  const onWake = ({ type }) => {
    if (type === "pagehide" || globalThis.document?.hidden) save(0);
    if (type === "online" || exchange.silent()) exchange.abort(new StreamError("network changed", { atOnce: true }));
    patience.wake();
  };
  try {
    for (let heard = false; ; ) {
      exchange = exchangeOf(options);
      WAKING.forEach((type) => globalThis.addEventListener?.(type, onWake)); // adding it again has no effect
      let decode, failure, body;
      const next = async () => {
        if (decode) return decode(await exchange.read(body));
        if ((options.fetch ?? fetch).polyfill) throw new StreamError("this fetch cannot stream", { retryable: false }); // whatwg-fetch, React Native's
        // Not event streams alone: so asks an EventSource, which a full gateway answers with an empty one instead of 503.
        const { cursor } = answer.now();
        const headers = { accept: "text/event-stream, application/problem+json", ...(cursor && !atEnd && { "last-event-id": cursor }) };
        const response = await exchange.open(at(stream, "/events", atEnd && "from=now"), { headers }, patience);
        if (response.status === 204 && !atEnd) return (atEnd = true) && []; // nothing is left; `from=now` has the terminal event
        const type = response.headers.get("content-type");
        if (!/^text\/event-stream/i.test(type)) throw new StreamError(`${type} is no event stream`, { retryable: heard && !atEnd }); // a hotel's page
        body = response.body;
        if (!body?.getReader) throw new StreamError("this fetch cannot stream", { retryable: false });
        heard = true;
        decode = decoder(patience.retry);
        return [];
      };
      for (let messages; (messages = await next().catch((error) => void (failure = error))); ) {
        for (const message of messages) {
          const event = answer.event(message);
          if (!event) continue;
          if (event.id) patience.failures = 0;
          over = TERMINAL.includes(event.type);
          yield event;
          if (over) return;
        }
        await save(SAVE_MS);
      }
      exchange.close();
      if (decode) patience.heardAt = Date.now();
      over = [404, 410].includes(failure.status);
      const wait_ms = patience.waitAfter(failure);
      yield { type: "lost", error: failure, wait_ms, text: answer.now().text };
      await patience.wait(wait_ms, !failure.retryAfterMs);
    }
  } finally {
    WAKING.forEach((type) => globalThis.removeEventListener?.(type, onWake));
    exchange.close();
    await (over ? stored("removeItem") : save(0));
  }
}

/** Requests an answer at the address of `/v1/streams`. However often it is tried, there is one generation. */
export async function create(url, request, options = {}) {
  const key = options.idempotencyKey ?? globalThis.crypto?.randomUUID?.() ?? "" + Math.random() + Math.random();
  const headers = { "content-type": "application/json", "idempotency-key": key };
  const streams = resolved(url);
  const created = await call(streams, options, { method: "POST", headers, body: JSON.stringify(request) });
  return { ...created, url: at(streams, `/${created.id}`) };
}

/** Stops the answer, and returns its state. */
export const cancel = (url, options) => call(at(streamOf(url), "/cancel"), options, { method: "POST" });

/** Returns what was generated, and what was delivered over which connection. */
export const receipt = (url, options) => call(at(streamOf(url), "/receipt"), options);

/** Returns the state and the text; with `waitSeconds` when the stream has ended or the time is up. */
export const state = (url, { waitSeconds = 0, ...options } = {}) =>
  call(at(streamOf(url), "", waitSeconds && `wait=${waitSeconds}`), options, {}, waitSeconds * 1000);

/** `waitMs`: what the server may take by agreement. */
async function call(url, options = {}, init = {}, waitMs = 0) {
  for (const patience = patienceOf(options, CALL_MS_MAX + waitMs); ; ) {
    const exchange = exchangeOf(options, waitMs);
    try {
      return await exchange.open(url, init, patience, (response) => response.json());
    } catch (error) {
      await patience.wait(patience.waitAfter(error));
    } finally {
      exchange.close();
    }
  }
}

const resolved = (url) => new Request(url).url; // throws for an address that is none
const streamOf = (url) => resolved(url).replace(/\/events(?=[?#]|$)/, "");
const at = (url, path, query) =>
  url.replace(/^([^?#]*)(\??)/, (_, before, mark) => before + path + (query ? `?${query}${mark && "&"}` : mark));
const parsed = (text, otherwise) => {
  try {
    return JSON.parse(text);
  } catch {
    return otherwise;
  }
};

/** One request, ended when nothing has come for `stallMs`. The time that the reader itself takes does not count. */
function exchangeOf({ signal, token, headers, stallMs = STALL_MS, fetch = globalThis.fetch }, waitMs = 0) {
  stallMs += waitMs;
  const controller = new AbortController();
  let waitsSince = Date.now();
  let failure, fail, reader;
  const aborted = new Promise((_, reject) => (fail = reject));
  const abort = (error) => {
    failure ??= error;
    fail(error);
    controller.abort(error);
    reader?.cancel().catch(() => {}); // where a fetch heeds no signal: ends a read that waits
  };
  const silentFor = (milliseconds) => Date.now() - waitsSince > milliseconds;
  const check = () => silentFor(stallMs) && abort(new StreamError(`nothing came for ${stallMs / 1000} s`));
  const timer = setInterval(check, stallMs / 8); // one long timer would stand still while a laptop sleeps
  const stop = () => abort(signal.reason ?? new StreamError("aborted"));
  aborted.catch(() => {});
  signal?.addEventListener("abort", stop);
  if (signal?.aborted) stop();

  return {
    abort,
    silent: () => silentFor(stallMs / 2),
    /** Returns a successful response, or what `read` makes of it. Throws StreamError for any other. */
    open(url, init, patience, read = (response) => response) {
      const work = async () => {
        const bearer = await token?.(patience.refused);
        const all = { ...headers, ...init.headers, ...(bearer && { authorization: `Bearer ${bearer}` }) };
        const response = await fetch(url, { cache: "no-store", ...init, headers: all, signal: controller.signal });
        const { ok, status } = response;
        if (ok) return read(response, (patience.refused = false));
        const text = await response.text();
        const problem = parsed(text);
        const detail = [problem?.detail, problem?.error?.message, text].find((found) => typeof found === "string");
        const after = response.headers.get("retry-after") ?? 0; // seconds or a date (RFC 9110, section 10.2.3)
        const retryAfterMs = Math.max(0, after >= 0 ? after * 1000 : Date.parse(after) - Date.now()) || 0;
        throw new StreamError(`${status}: ${detail}`.slice(0, DETAIL_CHARACTERS_MAX), { status, retryAfterMs });
      };
      return Promise.race([work(), aborted]); // `token` heeds no signal, nor does every `fetch`
    },
    /** Returns the next bytes of a response's body. Throws where it ends. */
    async read(body) {
      reader ??= body.getReader();
      waitsSince = Date.now();
      const { done, value } = await reader.read();
      waitsSince = Infinity;
      if (done) throw failure ?? new StreamError("the response ended early");
      return value;
    },
    close() {
      clearInterval(timer);
      signal?.removeEventListener("abort", stop);
      abort();
    },
  };
}

/** How long to wait between two tries, and when to give up. */
function patienceOf({ signal, token, giveUpMs }, defaultMs) {
  let retryMs = RETRY_MS, end;
  return {
    retry: (milliseconds) => (retryMs = milliseconds),
    failures: 0, // since the last event
    refused: false, // the last token
    heardAt: Date.now(), // of a call: its beginning
    wake: () => end?.(),
    /** Returns the milliseconds until the next try. Throws what ends the tries. */
    waitAfter(error) {
      if (signal?.aborted) throw signal.reason ?? error;
      const { status, atOnce, retryAfterMs = 0, retryable } = error;
      if ([401, 403].includes(status) && token && !this.refused) {
        this.refused = true;
        return 0; // at once, with a fresh token; the second time it is final
      }
      const backOffMs = Math.min(RETRY_MS_MAX, (this.failures && Math.max(retryMs, RETRY_MS_MIN)) * 2 ** this.failures++);
      let waitMs = atOnce ? 0 : Math.max(backOffMs, retryMs, retryAfterMs) * (1 + Math.random() / 2);
      if (globalThis.navigator?.onLine === false) waitMs = Math.max(waitMs, RETRY_MS_MAX); // `online` ends it
      if (retryable === false || Date.now() + waitMs - this.heardAt > (giveUpMs ?? defaultMs)) throw error;
      return Math.min(waitMs, FOLLOW_MS_MAX); // a longer timer would fire at once
    },
    /** Resolves after this time; sooner where the signal ends it, or `wake` may. */
    wait(milliseconds, wakes) {
      return new Promise((resolve) => {
        const stop = () => resolve(clearTimeout(timer), signal?.removeEventListener("abort", stop));
        const timer = setTimeout(stop, milliseconds);
        signal?.addEventListener("abort", stop);
        end = wakes ? stop : undefined;
      });
    },
  };
}

/** Returns a function from bytes to messages: Server-Sent Events, however they are split (WHATWG HTML, section 9.2). */
function decoder(onRetry) {
  const utf8 = new TextDecoder(); // takes a BOM off
  let rest = "", afterCr, id, name, data, characters;
  const reset = () => ([id, name, data, characters] = [undefined, "message", undefined, 0]);
  reset();
  return (bytes) => {
    const messages = [];
    const text = utf8.decode(bytes, { stream: true });
    if (!text) return messages;
    const lines = text.slice(afterCr && text[0] === "\n" ? 1 : 0).split(/\r\n?|\n/);
    afterCr = text.endsWith("\r"); // its "\n" may be still to come
    lines[0] = rest + lines[0];
    rest = lines.pop();
    for (const line of lines) {
      const [, field, value] = /^([^:]*):? ?([^]*)$/.exec(line);
      if (!line) {
        if (data || id !== undefined) messages.push({ id, name, data: data?.join("\n") });
        reset();
      } else if (field === "data") characters += (data ??= []).push(value) && value.length + 1;
      else if (field === "event") name = value || "message";
      else if (field === "id" && !value.includes("\0")) id = value;
      else if (field === "retry" && /^\d+$/.test(value)) onRetry(+value);
    }
    if (rest.length + characters > EVENT_CHARACTERS_MAX) throw new StreamError("event too long", { retryable: false });
    return messages;
  };
}

/** The text as it stands, and the id of the last event in it. `marks`: [offset, length of the text up to it] of the increments. */
function answerOf({ cursor = "", text = "", marks = [] }) {
  /** Drops the increments after this offset. */
  const keep = (offset) => {
    while (marks.at(-1)?.[0] > offset) marks.pop();
    text = text.slice(0, marks.at(-1)?.[1] ?? 0);
  };
  return {
    now: () => ({ cursor, text, marks }),
    /** Returns a message as `follow` yields it; undefined where it has nothing new. */
    event({ id, name, data }) {
      const [attempt, offset] = placeOf(id);
      const [hadAttempt, hadOffset] = placeOf(cursor);
      const had = attempt < hadAttempt || (attempt === hadAttempt && offset <= hadOffset);
      if (had && !TERMINAL.includes(name)) return;
      cursor = id ?? cursor;
      if (data === undefined) return;
      const body = parsed(data, data); // an own event may be any text
      let type = NAMED.includes(name) ? name : "event";
      if (type === "restarted") keep(body.base);
      if (name === "message" && (body?.delta || typeof body?.token === "string")) {
        type = body.delta ? "delta" : "token";
        const piece = body.delta ? !body.index && body.delta.content : body.token; // of the first choice
        keep(offset - 1);
        if (typeof piece === "string") marks.push([offset, (text += piece).length]);
      }
      return { ...(type === "event" ? { name, data: body } : body), type, id, text };
    },
  };
}

const placeOf = (id) => (/(\d+)-(\d+)$/.exec(id) ?? []).slice(1).map(Number);
