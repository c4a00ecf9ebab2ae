// The overview page: shows all streams and processes, from one snapshot a second.

import { Chart } from "./chart.js";
import { subscribe } from "./feed.js";
import { $, bytes, cancel, capital, count, duration, el, ms, percent, rate, reason, say, short, shortNode } from "./lib.js";
import { KeptList } from "./kept.js";
import { StreamPanel } from "./stream.js";

const ENDED_SHOWN = 5;
const UNLISTED_MS = 4000; // heartbeats of workers are up to two seconds old
const STREAM_ID = /^[0-9a-z]{36}$/;

// --- numbers

class Tiles {
  #shown = new Map();

  show(name, value, below) {
    let tile = this.#shown.get(name);
    if (!tile) {
      const [big, under] = [el("dd"), el("dd", { class: "sub" })];
      $("tiles").append(el("div", {}, el("dt", {}, name), big, under));
      this.#shown.set(name, (tile = { big, under }));
    }
    say(tile.big, value);
    say(tile.under, below);
  }
}

const tiles = new Tiles();
const charts = {
  tokens: new Chart("Tokens per second", ["generated", "delivered"], { least: 10, format: rate }),
  streams: new Chart("Streams and readers", ["running", "readers", "waiting"], { least: 4, format: count }),
  lag: new Chart("Lag (99th percentile)", ["to socket", "loop", "Redis"], { least: 5, format: ms }),
};
$("charts").append(...Object.values(charts).map((chart) => chart.figure));

function showNumbers(now) {
  const { streams, redis, lag } = now;
  const per = now.per_second;
  const gateways = now.processes.filter((one) => one.kind === "gateway" && !one.silent);
  const readersMax = gateways.reduce((sum, one) => sum + one.readers_max, 0);
  const waiting = streams.waiting ? `${count(streams.waiting)} waiting, ${duration(streams.oldest_waiting_seconds)} the oldest` : "none waiting";
  tiles.show("Streams running", redis.up ? count(streams.running) : "–", redis.up ? waiting : (redis.refusal ?? "not known: Redis is away"));
  tiles.show("Readers", count(now.readers), `of ${count(readersMax)} possible`);
  tiles.show("Tokens/s generated", rate(per.tokens_generated), `${count(now.totals.tokens_generated)} so far`);
  tiles.show("Tokens/s delivered", rate(per.tokens_delivered), `${count(now.totals.resumes)} resumes so far`);
  const toSocket = lag.append_to_socket;
  tiles.show("Append to socket", ms(toSocket?.p50_ms), toSocket ? `99 % within ${ms(toSocket.p99_ms)}` : "measured when streams end");
  const without = redis.refusal ? ["refuses", redis.refusal] : ["away", "readers wait, nothing is lost"];
  tiles.show("Redis", ...(redis.up ? [bytes(redis.memory_bytes), `${bytes(redis.headroom_bytes)} left`] : without));
}

const drawn = {
  tokens: ({ per_second }) => [per_second.tokens_generated ?? 0, per_second.tokens_delivered ?? 0],
  streams: ({ streams, readers }) => [streams.running, readers, streams.waiting],
  lag: ({ lag }) => [lag.append_to_socket?.p99_ms, lag.event_loop?.p99_ms, lag.redis?.p99_ms],
};

/** Fills the charts with the gateway's samples of the last two minutes. */
function showHistory(samples) {
  for (const [name, values] of Object.entries(drawn)) charts[name].set(samples.map((sample) => ({ time: sample.time, values: values(sample) })));
}

// --- tables

/** Table rows whose elements stay while their texts change, so that focus and selection are kept. */
class Rows {
  #rows = new Map();

  constructor(body, make) {
    this.body = body;
    this.make = make;
  }

  show(items, key) {
    const wanted = new Set(items.map(key));
    for (const [name, row] of this.#rows)
      if (!wanted.has(name)) {
        row.element.remove();
        this.#rows.delete(name);
      }
    let before = this.body.firstElementChild;
    for (const item of items) {
      let row = this.#rows.get(key(item));
      if (!row) this.#rows.set(key(item), (row = this.make(item)));
      row.update(item);
      if (row.element === before) before = before.nextElementSibling;
      else this.body.insertBefore(row.element, before);
    }
  }
}

const metadataOf = (stream) => Object.entries(stream.metadata ?? {}).map(([name, text]) => `${name}=${text}`).join(", ");
const failureOf = ({ error }) => (error ? capital(reason(error.code)) + (error.status ? ` (${error.status})` : "") : "");

function streamRow({ id }) {
  const link = el("a", { href: `#${id}`, title: id, "aria-label": `Stream ${short(id)}` }, shortNode(id));
  const chip = el("span", { class: "chip" });
  // Shown below the id where there is no room for their columns.
  const belows = ["model", "metadata", "failure"].map((name) => el("span", { class: `below-${name}` }));
  const names = ["mid cut", "vast cut metadata", "number mid", "number tokens", "number", "number vast", "wide cut last"];
  const [model, metadata, age, tokens, perSecond, attempt, worker] = names.map((name) => el("td", { class: name }));
  const stop = el("button", { class: "small", type: "button", "aria-label": `Cancel stream ${short(id)}`, onclick: () => confirmCancel(id) }, "Cancel");
  const first = el("td", {}, link, el("span", { class: "below" }, ...belows));
  const cells = [first, el("td", {}, chip), model, metadata, age, tokens, perSecond, attempt, worker, el("td", { class: "mid" }, stop)];
  const element = el("tr", {}, ...cells);
  return {
    element,
    update(stream) {
      chip.className = `chip ${stream.status}`;
      say(chip, stream.status);
      const texts = [stream.model ?? "", metadataOf(stream), failureOf(stream)];
      [model, metadata, worker].forEach((cell, index) => {
        const text = texts[index] || (cell === worker ? (stream.worker ?? "") : "");
        say(cell, text);
        if (cell.title !== text) cell.title = text;
      });
      worker.classList.toggle("failure", Boolean(stream.error));
      worker.classList.toggle("mono", !stream.error);
      belows.forEach((node, index) => say(node, texts[index]));
      say(age, stream.ended_at ? `${duration(Math.max(0, latest.time - stream.ended_at))} ago` : duration(stream.age_seconds));
      say(tokens, count(stream.tokens));
      say(perSecond, stream.status === "running" ? rate(stream.tokens_per_second) : "");
      say(attempt, String(stream.attempt));
      stop.hidden = Boolean(stream.ended_at);
      element.classList.toggle("over", Boolean(stream.ended_at));
      element.classList.toggle("chosen", stream.id === panel.id);
    },
  };
}

function processRow(first) {
  const fill = el("i");
  const load = el("span");
  const [perSecond, cpu, memory, lag, up] = ["mid", "wide", "wide", "wide", "mid"].map((name) => el("td", { class: `number ${name}` }));
  const chip = el("span", { class: "chip" });
  const name = el("td", {}, `${first.kind} `, el("span", { class: "mono muted" }, first.name));
  const element = el("tr", {}, name, el("td", {}, el("span", { class: "gauge mid" }, fill), load), perSecond, cpu, memory, lag, up, el("td", {}, chip));
  return {
    element,
    update(one) {
      const [has, most] = one.kind === "worker" ? [one.running, one.capacity] : [one.readers, one.readers_max];
      fill.style.width = `${Math.min(100, (has / most) * 100)}%`;
      say(load, `${one.silent ? "had " : ""}${count(has)} ${one.kind === "worker" ? "answer" : "reader"}${has === 1 ? "" : "s"}`);
      say(perSecond, one.silent ? "" : rate(one.per_second.tokens_generated ?? one.per_second.tokens_delivered ?? 0));
      say(cpu, one.silent ? "" : percent(one.cpu));
      say(memory, bytes(one.memory_bytes));
      say(lag, one.silent ? "" : ms(one.lag.event_loop?.p99_ms));
      say(up, one.silent ? "" : duration(Math.max(0, latest.time - one.started_at)));
      const state = one.silent ? "silent" : one.draining ? "draining" : "ok";
      chip.className = `chip ${state}`;
      say(chip, one.silent ? `silent for ${duration(one.heard_seconds)}` : state);
      element.classList.toggle("over", one.silent);
    },
  };
}

const streamRows = new Rows($("streams"), streamRow);
const processRows = new Rows($("processes"), processRow);

/** Returns whether a stream matches all words of the search. */
function isWanted(stream) {
  const text = [stream.id, stream.status, stream.model, metadataOf(stream), stream.worker, stream.error?.code, failureOf(stream)].join(" ").toLowerCase();
  return wantedWords().every((word) => text.includes(word));
}
const wantedWords = () => $("wanted").value.toLowerCase().split(/\s+/).filter(Boolean);

let unlistedSince = 0;

/** Returns how many answers workers run although the queue has none: Redis was restarted empty. */
function unlisted({ streams, processes, redis }) {
  const atWorkers = processes.reduce((sum, one) => sum + (one.kind === "worker" && !one.silent ? one.running : 0), 0);
  if (!redis.up || streams.running || streams.waiting || !atWorkers) unlistedSince = 0;
  else unlistedSince ||= performance.now();
  return unlistedSince && performance.now() - unlistedSince > UNLISTED_MS ? atWorkers : 0;
}

function showTables(now) {
  const { streams, processes, redis, gateway, version } = now;
  const words = wantedWords();
  const known = [...streams.newest, ...streams.ended];
  const shown = words.length ? known.filter(isWanted) : [...streams.newest, ...streams.ended.slice(0, ENDED_SHOWN)];
  streamRows.show(shown, (one) => one.id);
  $("streams-table").classList.toggle("no-metadata", !shown.some(metadataOf));
  $("streams-table").classList.toggle("stale", !redis.up);
  const forgotten = unlisted(now);
  const without = redis.refusal ? "Redis refuses" : "Redis is away";
  const away = now.read_at ? `${without}: this is of ${new Date(now.read_at * 1000).toLocaleTimeString()}` : without;
  const more = streams.running + streams.waiting - streams.newest.length;
  const of = words.length ? `${count(shown.length)} of the ${count(known.length)} listed` : "";
  say($("streams-note"), [redis.up ? "" : away, of, !words.length && more > 0 ? `the newest ${streams.newest.length}, and ${count(more)} more` : ""].filter(Boolean).join("; "));
  $("streams-empty").hidden = shown.length > 0 && !forgotten;
  if (forgotten) fill($("streams-empty"), `Workers still run ${count(forgotten)} ${forgotten === 1 ? "answer that is" : "answers that are"} not in the queue: Redis has forgotten it. They go on.`);
  else if (!shown.length && words.length) fill($("streams-empty"), STREAM_ID.test($("wanted").value.trim()) ? "It is not in this list. Press Enter to open it." : "No listed stream matches.");
  else if (!shown.length && !redis.up) fill($("streams-empty"), `Whether anything runs is not known: ${without}.`);
  else if (!shown.length) fill($("streams-empty"), "Nothing runs now. ", ["a", { href: "chat" }, "Ask something"], ", and it appears here.");
  processRows.show(processes, (one) => one.name);
  const silent = processes.filter((one) => one.silent).length;
  say($("processes-note"), silent ? `${silent} silent: killed, frozen or cut off from Redis` : `this page shows data of ${gateway}, version ${version}`);
}

/** Fills an element with texts and elements, only if its text has changed. */
function fill(node, ...parts) {
  const text = parts.map((part) => (typeof part === "string" ? part : part[2])).join("");
  if (node.textContent !== text) node.replaceChildren(...parts.map((part) => (typeof part === "string" ? part : el(...part))));
}

$("wanted").addEventListener("input", () => latest && showTables(latest));
$("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const whole = $("wanted").value.trim();
  const rows = [...$("streams").querySelectorAll("a")];
  if (STREAM_ID.test(whole)) location.hash = whole;
  else if (rows.length === 1) location.hash = rows[0].hash;
});

// --- cancelling: it cannot be undone, and the stream may be somebody else's, so the page asks first

const dialog = $("confirm");
let cancelling = "";

function confirmCancel(id) {
  cancelling = id;
  say($("confirm-text"), `${short(id)}: its worker stops, the connection to the provider is closed, and readers are notified. The text so far is kept.`);
  dialog.showModal();
}
$("confirm-no").addEventListener("click", () => dialog.close());
$("confirm-yes").addEventListener("click", async () => {
  dialog.close();
  await cancel(cancelling).catch((error) => panel.complain(error.message));
  void panel.refresh();
});

// --- one stream

const panel = new StreamPanel($("stream"), { confirmCancel });
const kept = new KeptList();

function choose() {
  const id = location.hash.slice(1);
  const before = panel.id;
  panel.show(STREAM_ID.test(id) ? id : "");
  kept.choose(panel.id);
  if (latest) showTables(latest);
  if (before && !panel.id) (document.querySelector(`#streams a[href="#${before}"], #kept a[href="#${before}"]`) ?? $("wanted")).focus();
}
addEventListener("hashchange", choose);

// --- news

let latest = null;

choose();
subscribe(({ link, history, snapshot, sample }) => {
  if (link) {
    $("link").className = `link ${link[0]}`;
    say($("link"), link[1]);
  }
  if (history) showHistory(history);
  if (snapshot) {
    latest = snapshot;
    showNumbers(snapshot);
    for (const [name, values] of Object.entries(drawn)) charts[name].add(sample.time, values(sample));
    showTables(snapshot);
    panel.hear(snapshot);
    kept.show(snapshot.has_archive);
  }
});
