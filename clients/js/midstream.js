/**
 * A client of Midstream's native API for browsers, Node 18+, Deno, Bun and React Native. No dependency, no build step.
 *
 *   Patience ────► Exchange ───► decoder ─────► Answer ─────► event
 *   the pauses     a request,    bytes to       messages to   what `follow` yields
 *   between tries  watched       messages       events
 */

const STALL_MS = 40_000; // the gateway sends a comment every 15 s: when two have failed to come, the connection is dead
const RETRY_MS = 1_000; // between two tries, until the server has sent `retry:`
const RETRY_MS_MAX = 30_000;
const FOLLOW_MS_MAX = 86_400_000; // a log lives a day: when nobody has answered for so long, there is nothing left to follow
const CALL_MS_MAX = 60_000; // what a person waits for a button at most
const SAVE_MS = 1_000; // between two writes to a storage, each of the whole text
const EVENT_CHARACTERS_MAX = 16 << 20; // far above a gateway's events: a server that sends no line end must not fill the memory
const DETAIL_CHARACTERS_MAX = 500; // of an error page

const TERMINAL = ["done", "failed", "cancelled"];
const NAMED = ["started", "restarted", "live", "gap", ...TERMINAL];
const WAKING = ["online", "visibilitychange", "pageshow", "pagehide"];

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
  const patience = new Patience(options, FOLLOW_MS_MAX);
  // What fails in the storage (it is full, or forbidden) costs a repetition, and no event.
  const stored = (method, value) => (async () => options.storage?.[method](`midstream:${stream}`, value))().catch(() => {});
  const found = parsed(await stored("getItem"));
  const answer = new Answer(Array.isArray(found?.marks) ? found : { cursor: options.after });
  let [savedAt, atEnd, over, exchange] = [0, false, false];
  const save = async (leastMs) => {
    if (!options.storage || over || !answer.cursor || Date.now() - savedAt < leastMs) return;
    savedAt = Date.now();
    await stored("setItem", JSON.stringify(answer));
  };
  const onWake = ({ type }) => {
    if (type === "pagehide" || globalThis.document?.visibilityState === "hidden") save(0);
    if (type === "online" || exchange.silentMs() > exchange.stallMs / 2) exchange.abort(new StreamError("the network changed", { atOnce: true }));
    patience.wake?.();
  };
  try {
    for (let heard = false; ; ) {
      exchange = new Exchange(options);
      WAKING.forEach((type) => globalThis.addEventListener?.(type, onWake)); // adding it again has no effect
      let decode, failure;
      const next = async () => {
        if (decode) return decode(await exchange.read());
        const headers = { accept: "text/event-stream", ...(answer.cursor && !atEnd && { "last-event-id": answer.cursor }) };
        const response = await exchange.open(at(stream, "/events", atEnd && "from=now"), { headers }, patience);
        if (response.status === 204 && !atEnd) return (atEnd = true) && []; // nothing is left; `from=now` has the terminal event
        const type = response.headers.get("content-type");
        if (!/^text\/event-stream/i.test(type)) throw new StreamError(`${type} is no event stream`, { retryable: heard && !atEnd }); // a hotel's page
        if (!response.body?.getReader) throw new StreamError("this fetch cannot stream; another can be given", { retryable: false });
        heard = true;
        decode = decoder((milliseconds) => (patience.retryMs = milliseconds));
        exchange.reader = response.body.getReader();
        return [];
      };
      for (let messages; (messages = await next().catch((error) => void (failure = exchange.failure ?? error))); ) {
        for (const message of messages) {
          const event = answer.event(message);
          if (!event) continue;
          if (event.id) patience.failures = 0;
          if ((over = TERMINAL.includes(event.type))) await stored("removeItem");
          yield event;
          if (over) return;
        }
        await save(SAVE_MS);
      }
      exchange.close();
      if ((over = [404, 410].includes(failure.status))) await stored("removeItem");
      const wait_ms = patience.waitAfter(failure);
      yield { type: "lost", error: failure, wait_ms, text: answer.text };
      await patience.wait(wait_ms, !failure.retryAfterMs);
    }
  } finally {
    WAKING.forEach((type) => globalThis.removeEventListener?.(type, onWake));
    exchange.close();
    await save(0);
  }
}

/** Requests an answer at the address of `/v1/streams`. However often it is tried, there is one generation. */
export async function create(url, request, options = {}) {
  const key = options.idempotencyKey ?? globalThis.crypto?.randomUUID?.() ?? [1, 2, 3].map(() => Math.random().toString(36)).join("");
  const headers = { "content-type": "application/json", "idempotency-key": key };
  const created = await call(resolved(url), options, { method: "POST", headers, body: JSON.stringify(request) });
  return { ...created, url: at(resolved(url), `/${created.id}`) };
}

/** Stops the answer, and returns its state. */
export const cancel = (url, options) => call(at(streamOf(url), "/cancel"), options, { method: "POST" });

/** Returns what was generated, and what was delivered over which connection. */
export const receipt = (url, options) => call(at(streamOf(url), "/receipt"), options);

/** Returns the state and the text; with `waitSeconds` when the stream has ended or the time is up. */
export function state(url, { waitSeconds, ...options } = {}) {
  if (waitSeconds) options.stallMs = waitSeconds * 1000 + STALL_MS;
  return call(at(streamOf(url), "", waitSeconds && `wait=${waitSeconds}`), options);
}

async function call(url, options = {}, init = {}) {
  for (const patience = new Patience(options, CALL_MS_MAX); ; ) {
    const exchange = new Exchange(options);
    try {
      return await (await exchange.open(url, init, patience)).json();
    } catch (error) {
      await patience.wait(patience.waitAfter(exchange.failure ?? error));
    } finally {
      exchange.close();
    }
  }
}

const resolved = (url) => (/^[a-z]+:/i.test(url) ? `${url}` : new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href).href);
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
class Exchange {
  controller = new AbortController();
  aborted = new Promise((_, reject) => (this.reject = reject));
  waitsSince = Date.now();
  silentMs = () => Date.now() - this.waitsSince;

  constructor(options) {
    this.options = options;
    this.stallMs = options.stallMs ?? STALL_MS;
    this.aborted.catch(() => {});
    const check = () => this.silentMs() > this.stallMs && this.abort(new StreamError(`nothing came for ${this.stallMs / 1000} s`));
    this.timer = setInterval(check, this.stallMs / 8); // one long timer would stand still while a laptop sleeps
    this.stop = () => this.abort(options.signal.reason ?? new Error("aborted"));
    options.signal?.addEventListener("abort", this.stop);
    if (options.signal?.aborted) this.stop();
  }

  /** Returns a successful response. Throws StreamError for any other. */
  async open(url, init, patience) {
    const { token, headers, fetch = globalThis.fetch } = this.options;
    this.waitsSince = Date.now();
    const request = async () => {
      const bearer = await token?.(patience.refused);
      const all = { ...headers, ...init.headers, ...(bearer && { authorization: `Bearer ${bearer}` }) };
      return fetch(url, { cache: "no-store", ...init, headers: all, signal: this.controller.signal });
    };
    const response = await Promise.race([request(), this.aborted]); // `token` heeds no signal, nor does every `fetch`
    if (response.ok) return Object.assign(patience, { refused: false, acceptedAt: Date.now() }) && response;
    const text = await Promise.race([response.text(), this.aborted]);
    const problem = parsed(text);
    const detail = [problem?.detail, problem?.error?.message, text].find((found) => typeof found === "string");
    const after = response.headers.get("retry-after") ?? 0; // seconds or a date (RFC 9110, section 10.2.3)
    const retryAfterMs = Math.max(0, after >= 0 ? after * 1000 : Date.parse(after) - Date.now()) || 0;
    throw new StreamError(`${response.status}: ${detail}`.slice(0, DETAIL_CHARACTERS_MAX), { status: response.status, retryAfterMs });
  }

  /** Returns the next bytes of the body. Throws where it ends. */
  async read() {
    this.waitsSince = Date.now();
    const { done, value } = await this.reader.read();
    this.waitsSince = Infinity;
    if (done) throw new StreamError("the response ended before its stream");
    return value;
  }

  abort(error) {
    this.failure ??= error;
    this.reject(error);
    this.controller.abort(error);
    this.reader?.cancel().catch(() => {}); // where a fetch heeds no signal: ends a read that waits
  }

  close() {
    clearInterval(this.timer);
    this.options.signal?.removeEventListener("abort", this.stop);
    this.abort(new StreamError("closed"));
  }
}

/** How long to wait between two tries, and when to give up. */
class Patience {
  failures = 0; // since the last event
  retryMs = RETRY_MS;
  refused = false; // the last token
  acceptedAt = Date.now();

  constructor(options, giveUpMs) {
    Object.assign(this, { giveUpMs, ...options });
  }

  /** Returns the milliseconds until the next try. Throws what ends the tries. */
  waitAfter(error) {
    if (this.signal?.aborted) throw this.signal.reason ?? error;
    if ([401, 403].includes(error.status) && this.token && !this.refused) {
      this.refused = true;
      return 0; // at once, with a fresh token; the second time it is final
    }
    const backOffMs = Math.min(RETRY_MS_MAX, this.retryMs * 2 ** this.failures++);
    let waitMs = error.atOnce ? 0 : Math.max(backOffMs, this.retryMs, error.retryAfterMs ?? 0) * (1 + Math.random() / 2);
    if (globalThis.navigator?.onLine === false) waitMs = Math.max(waitMs, RETRY_MS_MAX); // `online` ends it
    if (error.retryable === false || Date.now() + waitMs - this.acceptedAt > this.giveUpMs) throw error;
    return Math.min(waitMs, FOLLOW_MS_MAX); // a longer timer would fire at once
  }

  /** Resolves after this time; sooner where the signal ends it, or `wake` may. */
  wait(milliseconds, wakes) {
    return new Promise((resolve) => {
      const end = () => {
        clearTimeout(timer);
        this.signal?.removeEventListener("abort", end);
        resolve();
      };
      const timer = setTimeout(end, milliseconds);
      this.signal?.addEventListener("abort", end);
      this.wake = wakes && end;
    });
  }
}

/** Returns a function from bytes to messages: Server-Sent Events, however they are split (WHATWG HTML, section 9.2). */
function decoder(onRetry) {
  const utf8 = new TextDecoder(); // takes a BOM off
  let [rest, afterCr] = ["", false];
  let id, name, data, characters;
  const reset = () => ([id, name, data, characters] = [undefined, "message", [], 0]);
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
        if (data.length || id !== undefined) messages.push({ id, name, data: data.length ? data.join("\n") : undefined });
        reset();
      } else if (field === "data") characters += data.push(value) && value.length;
      else if (field === "event") name = value || "message";
      else if (field === "id" && !value.includes("\0")) id = value;
      else if (field === "retry" && /^\d+$/.test(value)) onRetry(Math.min(value, FOLLOW_MS_MAX));
    }
    if (rest.length + characters > EVENT_CHARACTERS_MAX) throw new StreamError("an event is too long", { retryable: false });
    return messages;
  };
}

/** The text as it stands, and the id of the last event in it. */
class Answer {
  constructor({ cursor = "", text = "", marks = [] }) {
    Object.assign(this, { cursor, text, marks }); // marks: [offset, length of the text up to it] of the increments with text
  }

  /** Drops the increments after this offset. */
  keep(offset) {
    while (this.marks.at(-1)?.[0] > offset) this.marks.pop();
    this.text = this.text.slice(0, this.marks.at(-1)?.[1] ?? 0);
  }

  /** Returns a message as `follow` yields it; undefined where it has nothing new. */
  event({ id, name, data }) {
    const [attempt, offset] = placeOf(id);
    const [hadAttempt, hadOffset] = placeOf(this.cursor);
    if (attempt < hadAttempt || (attempt === hadAttempt && offset <= hadOffset && !TERMINAL.includes(name))) return undefined;
    this.cursor = id ?? this.cursor;
    if (data === undefined) return undefined;
    const body = parsed(data, data); // an own event may be any text
    let type = NAMED.includes(name) ? name : "event";
    if (type === "restarted") this.keep(body.base);
    if (name === "message" && (body?.delta || typeof body?.token === "string")) {
      type = body.delta ? "delta" : "token";
      const piece = body.delta ? !body.index && body.delta.content : body.token; // of the first choice
      this.keep(offset - 1);
      if (typeof piece === "string") this.marks.push([offset, (this.text += piece).length]);
    }
    return { ...(type === "event" ? { name, data: body } : body), type, id, text: this.text };
  }
}

const placeOf = (id = "") => (/(\d+)-(\d+)$/.exec(id) ?? []).slice(1).map(Number);
