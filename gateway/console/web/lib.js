// What both pages need. Everything that is shown goes through text nodes: texts and names were written by strangers.

const BASE = new URL(".", document.baseURI); // the pages work under any path that a proxy strips
const ENDS = new Set(["done", "failed", "cancelled"]);
const NAMED = ["started", "restarted", "live", "gap", ...ENDS];
const REOPEN_MS = 2000;

export const $ = (id) => document.getElementById(id);

/** The URL of one of the gateway's paths. */
export const at = (path) => new URL(path, BASE);

/** An element; strings among its children become text. */
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

/** Set a text only where it has changed: no work for the browser, no noise for a screen reader. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** JSON of the gateway. Throws an Error with `status` and what the gateway said. */
export async function call(path, { method = "GET", body, headers = {} } = {}) {
  const response = await fetch(at(path), {
    method,
    headers: body === undefined ? headers : { ...headers, "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const told = await response.json().catch(() => ({}));
  const why = told.detail ?? told.error?.message ?? `the gateway answered ${response.status}`; // OpenAI's paths have OpenAI's errors
  if (!response.ok) throw Object.assign(new Error(why), { status: response.status });
  return told;
}

export const cancel = (id) => call(`v1/streams/${id}/cancel`, { method: "POST" });

/**
 * Follow a stream from after `last` to its end, across any number of connections.
 * `on.event(name, id, data)` gets each event, tokens as "message"; `on.open()`, `on.lost()`: the connection;
 * `on.gone(error)`: there is no such stream any more; `on.over(state)`: it had ended where we were already.
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
      opened.addEventListener(name, (told) => {
        if (opened !== source) return;
        if (told.lastEventId) last = told.lastEventId;
        on.event(name, told.lastEventId, JSON.parse(told.data));
        if (ENDS.has(name)) {
          ended = true;
          close();
        }
      });
    opened.onerror = () => {
      if (opened !== source || ended) return;
      on.lost?.();
      if (opened.readyState === EventSource.CLOSED) void afterRefusal(); // else the browser comes back by itself
    };
  }

  /** The browser has given up: 204 (it had ended), 404, 410, or a gateway that was full or away. */
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
    /** Drop the connection, and come back after a while with the last id. */
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

/** Ids are unguessable, so long: their beginning is the time of their making, their end tells apart those of the same second. */
export const short = (id) => `${id.slice(0, 12)}…${id.slice(-4)}`;

/** The same as a node: where there is little room, the style sheet hides the time. */
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
  content_filtered: "the provider's filter stepped in",
  generator_error: "the generator raised an error",
  log_full: "there was no room left for the answer",
  queue_timeout: "no worker was free in time",
  worker_lost: "its worker stopped in the middle of it",
  attempts_exhausted: "it was broken off too often",
  internal_error: "its worker met something unforeseen",
  unreadable: "its log cannot be read",
};

/** Why an answer failed, or was begun anew, by its code; a code of a later version is shown without its underscores. */
export const reason = (code) => FAILURES[code] ?? String(code ?? "unknown").replaceAll("_", " ");

export const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

/** Why an attempt was followed by another. */
export const reasonAgain = (code) => ({ worker_lost: "its worker died or was stopped", provider_unavailable: "the provider broke off" })[code] ?? reason(code);

// --- who is there

const DOUBT_SECONDS = 4.5; // a process says each two seconds that it is there; two missed, and it may be dead
const REMEMBERED_SECONDS = 10; // a Redis that was restarted empty hears of everybody again within two seconds
const there = new Map(); // by name, when a process was last there

/** { there, at, seconds }: whether a process is there; when it was last heard of, and how long ago, null where nobody remembers. */
export function heardOf(snapshot, name) {
  const { time, redis, processes } = snapshot;
  const process = processes.find((one) => one.name === name);
  for (const [other, at] of there) if (time - at > REMEMBERED_SECONDS) there.delete(other);
  if (!process) return { there: there.has(name), at: null, seconds: null };
  // While Redis is away nobody is heard of, which says nothing.
  const isThere = !redis.up || (!process.silent && process.heard_seconds < DOUBT_SECONDS);
  if (isThere) there.set(name, time);
  return { there: isThere, at: time - process.heard_seconds, seconds: process.heard_seconds };
}
