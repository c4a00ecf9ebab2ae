// The page of what runs now: one snapshot a second, from the gateway's own event stream.

import { Chart } from "./chart.js";
import { $, at, bytes, cancel, count, duration, el, ms, percent, rate, say, short } from "./lib.js";
import { StreamPanel } from "./stream.js";

const SILENT_MS = 5000; // a snapshot comes each second
const REOPEN_MS = 3000;
const ENDED_SHOWN = 5;

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
  lag: new Chart("Lag, 99 of 100 within", ["to socket", "loop", "Redis"], { least: 5, format: ms }),
};
$("charts").append(...Object.values(charts).map((chart) => chart.figure));

function showNumbers(now) {
  const { streams, redis, lag } = now;
  const per = now.per_second;
  const gateways = now.processes.filter((one) => one.kind === "gateway" && !one.silent);
  const readersMax = gateways.reduce((sum, one) => sum + one.readers_max, 0);
  const waiting = streams.waiting ? `${count(streams.waiting)} waiting, ${duration(streams.oldest_waiting_seconds)} the oldest` : "none waiting";
  tiles.show("Streams running", count(streams.running), redis.up ? waiting : redis.refusal ?? "not known: Redis is away");
  tiles.show("Readers", count(now.readers), `of ${count(readersMax)} possible`);
  tiles.show("Tokens/s generated", rate(per.tokens_generated), `${count(now.totals.tokens_generated)} so far`);
  tiles.show("Tokens/s delivered", rate(per.tokens_delivered), `${count(now.totals.resumes)} resumes so far`);
  const toSocket = lag.append_to_socket;
  tiles.show("Append to socket", ms(toSocket?.p50_ms), toSocket ? `99 % within ${ms(toSocket.p99_ms)}` : "known as streams end");
  tiles.show("Redis", redis.up ? bytes(redis.memory_bytes) : redis.refusal ? "refused" : "away", redis.up ? `${bytes(redis.headroom_bytes)} left` : redis.refusal ?? "readers wait, nothing is lost");
  charts.tokens.add(now.time, [per.tokens_generated ?? 0, per.tokens_delivered ?? 0]);
  charts.streams.add(now.time, [streams.running, now.readers, streams.waiting]);
  charts.lag.add(now.time, [lag.append_to_socket?.p99_ms, lag.event_loop?.p99_ms, lag.redis?.p99_ms]);
}

// --- tables

/** Rows that stay the same elements while their texts change: focus and selection survive each second. */
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

function streamRow({ id }) {
  const link = el("a", { href: `#${id}`, title: id }, short(id));
  const chip = el("span", { class: "chip" });
  const [age, tokens, perSecond, attempt, worker] = ["number mid", "number", "number", "number wide", "wide mono"].map((name) => el("td", { class: name }));
  const stop = el("button", { class: "small", type: "button", "aria-label": `Cancel stream ${short(id)}`, onclick: () => confirmCancel(id) }, "Cancel");
  const element = el("tr", {}, el("td", {}, link), el("td", {}, chip), age, tokens, perSecond, attempt, worker, el("td", { class: "mid" }, stop)); // on a phone: in the panel
  return {
    element,
    update(stream) {
      chip.className = `chip ${stream.status}`;
      say(chip, stream.status);
      say(age, stream.ended_at ? `${duration(Math.max(0, latest.redis.time - stream.ended_at))} ago` : duration(stream.age_seconds));
      say(tokens, count(stream.tokens));
      say(perSecond, stream.status === "running" ? rate(stream.tokens_per_second) : "");
      say(attempt, String(stream.attempt));
      say(worker, stream.worker ?? "");
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

function showTables({ streams, processes, gateway, version }) {
  streamRows.show([...streams.newest, ...streams.ended.slice(0, ENDED_SHOWN)], (one) => one.id);
  $("streams-empty").hidden = streams.newest.length + streams.ended.length > 0;
  const more = streams.running + streams.waiting - streams.newest.length;
  say($("streams-note"), more > 0 ? `the newest ${streams.newest.length}, and ${count(more)} more` : "");
  processRows.show(processes, (one) => one.name);
  const silent = processes.filter((one) => one.silent).length;
  say($("processes-note"), silent ? `${silent} silent: killed, frozen or cut off from Redis` : `${gateway} feeds this page, version ${version}`);
}

// --- cancelling, which cannot be undone, and here is done to somebody else's stream

const dialog = $("confirm");
let cancelling = "";

function confirmCancel(id) {
  cancelling = id;
  say($("confirm-text"), `${short(id)}: its worker stops, its provider's connection is closed, its readers are told. What is there of its answer stays.`);
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

function choose() {
  const id = location.hash.slice(1);
  panel.show(/^[0-9a-z]{36}$/.test(id) ? id : "");
  if (latest) showTables(latest);
}
addEventListener("hashchange", choose);

// --- news

let latest = null;
let heardAt = 0;

function link(state, text) {
  $("link").className = `link ${state}`;
  say($("link"), text);
}

function watch() {
  const source = new EventSource(at("v1/overview/events"));
  source.onmessage = ({ data }) => {
    heardAt = performance.now();
    latest = JSON.parse(data);
    link("live", "live");
    showNumbers(latest);
    showTables(latest);
    panel.hear(latest);
  };
  source.onerror = () => {
    link("lost", "connection lost; trying again");
    if (source.readyState === EventSource.CLOSED) setTimeout(watch, REOPEN_MS);
  };
}

setInterval(() => {
  if (heardAt && performance.now() - heardAt > SILENT_MS) link("lost", "no news; trying again");
}, 1000);
choose();
watch();
