// Functions of both pages. Everything is shown as text nodes, never as HTML: strangers wrote the texts and names.

const BASE = new URL(".", document.baseURI); // so that the pages work behind a proxy that serves them under another path
const ENDS = new Set(["done", "failed", "cancelled"]);
const NAMED = ["started", "restarted", "live", "gap", ...ENDS];
const REOPEN_MS = 2000;

export const $ = (id) => document.getElementById(id);

/** Returns the URL of one of the gateway's paths. */
export const at = (path) => new URL(path, BASE);

/** Makes an element; strings among its children become text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Sets an element's text only if it has changed: less work for the browser, and screen readers do not repeat it. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Makes a request to the gateway and returns the JSON. Throws an Error with `status` and the gateway's message. */
export async function call(path, { method = "GET", body, headers = {} } = {}) {
  const response = await fetch(at(path), {
    method,
    headers: body === undefined ? headers : { ...headers, "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const answer = await response.json().catch(() => ({}));
  const message = answer.detail ?? answer.error?.message ?? `the gateway answered ${response.status}`; // OpenAI's paths have OpenAI's errors
  if (!response.ok) throw Object.assign(new Error(message), { status: response.status });
  return answer;
}

export const cancel = (id) => call(`v1/streams/${id}/cancel`, { method: "POST" });

/**
 * Follows a stream from the event after `last` to its end, across any number of connections.
 * `on.event(name, id, data)` gets each event, tokens as "message"; `on.open()` and `on.lost()`: the connection is open or lost;
 * `on.gone(error)`: the stream does not exist any more; `on.over(state)`: it had ended, and this page has all of it.
 */
export function follow(id, last, on) {
  let source = null;
  let timer = 0;
  let ended = false;

  function close() {
    clearTimeout(timer);
    source?.close();
    source = null;
  }

  function open() {
    const url = at(`v1/streams/${id}/events`);
    if (last) url.searchParams.set("last_event_id", last);
    const opened = (source = new EventSource(url));
    opened.onopen = () => opened === source && on.open?.();
    for (const name of ["message", ...NAMED])
      opened.addEventListener(name, (event) => {
        if (opened !== source) return;
        if (event.lastEventId) last = event.lastEventId;
        on.event(name, event.lastEventId, JSON.parse(event.data));
        if (ENDS.has(name)) {
          ended = true;
          close();
        }
      });
    opened.onerror = () => {
      if (opened !== source || ended) return;
      on.lost?.();
      if (opened.readyState === EventSource.CLOSED) void afterRefusal(); // else the browser reconnects by itself
    };
  }

  /** Called when the browser has given up: after 204 (the stream had ended), 404, 410, or when the gateway was full or unreachable. */
  async function afterRefusal() {
    const refused = source;
    try {
      const state = await call(`v1/streams/${id}`);
      if (source !== refused) return;
      if (state.ended_at) {
        ended = true;
        close();
        on.over?.(state);
        return;
      }
    } catch (error) {
      if (source !== refused) return;
      if (error.status === 404 || error.status === 410) {
        close();
        on.gone?.(error);
        return;
      }
    }
    timer = setTimeout(open, REOPEN_MS);
  }

  open();
  return {
    close,
    /** Closes the connection, and reconnects after a while with the last id. */
    cut(milliseconds) {
      close();
      timer = setTimeout(open, milliseconds);
    },
  };
}

// --- numbers, as people read them

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const count = (n) => (n >= 1e6 ? `${tenth.format(n / 1e6)} M` : whole.format(n ?? 0));
export const rate = (n) => (n > 0 && n < 10 ? tenth.format(n) : count(n));
export const percent = (share) => `${whole.format(share * 100)} %`;
export const ms = (n) => (n === undefined ? "–" : n >= 1000 ? `${tenth.format(n / 1000)} s` : n >= 10 ? `${whole.format(n)} ms` : `${tenth.format(n)} ms`);

export function duration(seconds) {
  if (seconds < 100) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

export function bytes(n) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 1000 && unit < units.length - 1) {
    n /= 1000;
    unit += 1;
  }
  return `${n < 10 && unit ? tenth.format(n) : whole.format(n)} ${units[unit]}`;
}

/** Shortens an id of 36 characters: its beginning is the time of creation, its end distinguishes streams of the same second. */
export const short = (id) => `${id.slice(0, 12)}…${id.slice(-4)}`;

/** Returns a shortened id as an element: where there is little room, the style sheet hides the time. */
export const shortNode = (id) => el("span", { class: "id" }, el("span", { class: "when" }, id.slice(0, 12)), `…${id.slice(-4)}`);

// --- tokens

const offsetOf = (id) => Number(id.split("-")[1] ?? 0);

/**
 * Put a token's text where its id says that it stands; false if it is there already. Between two tokens there may be events of a
 * generator of the operator's own, whose names an EventSource is not told: they count, and have no text.
 */
export function place(tokens, id, text) {
  const before = offsetOf(id) - 1;
  if (before < tokens.length) return false;
  while (tokens.length < before) tokens.push("");
  tokens.push(text);
  return true;
}

// --- failures, in words

const FAILURES = {
  provider_unavailable: "the provider is overloaded, cannot be reached, or broke off",
  provider_timeout: "the provider took too long",
  provider_stalled: "the provider fell silent",
  provider_refused: "the provider refused the request",
  provider_unreadable: "the provider's answer could not be read",
  content_filtered: "the provider's content filter stopped it",
  generator_error: "the generator raised an error",
  log_full: "there was no room left for the answer",
  queue_timeout: "no worker was free in time",
  worker_lost: "its worker stopped in the middle of it",
  writer_lost: "its writer, a program of yours, fell silent",
  attempts_exhausted: "it was interrupted too often",
  internal_error: "its worker had an internal error",
  unreadable: "its log cannot be read",
};

/** Describes why an answer failed or was started again, by its failure code; an unknown code is shown without underscores. */
export const reason = (code) => FAILURES[code] ?? String(code ?? "unknown").replaceAll("_", " ");

export const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

/** Describes why an attempt was followed by another. */
export const reasonAgain = (code) => ({ worker_lost: "its worker died or was stopped", writer_replaced: "another writer went on", provider_unavailable: "the provider broke off" })[code] ?? reason(code);

// --- which processes run

const DOUBT_SECONDS = 4.5; // processes send a heartbeat every two seconds; if two are missing, the process may be dead
const REMEMBERED_SECONDS = 10; // after Redis was restarted empty, all heartbeats are back within two seconds
const there = new Map(); // for each process, the time of its last good snapshot

/** Returns { there, at, seconds }: whether a process runs; the time of its last heartbeat and its age, null if they are not known. */
export function heardOf(snapshot, name) {
  const { time, redis, processes } = snapshot;
  const process = processes.find((process) => process.name === name);
  for (const [other, at] of there) if (time - at > REMEMBERED_SECONDS) there.delete(other);
  if (!process) return { there: there.has(name), at: null, seconds: null };
  // While Redis does not answer, missing heartbeats mean nothing.
  const isThere = !redis.up || (!process.silent && process.heard_seconds < DOUBT_SECONDS);
  if (isThere) there.set(name, time);
  return { there: isThere, at: time - process.heard_seconds, seconds: process.heard_seconds };
}
