// A chat that cannot lose a token. Each answer is a stream of its own; what this page has of it, and up to which id, is kept
// together in sessionStorage, so that a page that was reloaded in mid-answer goes on at the exact token.

import { $, call, cancel, count, el, follow, say } from "./lib.js";

const KEPT = "midstream.chat";
const KEEP_MS = 250;
const CUT_MS = 1500;
const TURNS_MAX = 50;

/**
 * turn: { prompt, key, body, id, tokens, cursor, end, story, cuts, connections, oddities }
 * `tokens` has one text per event, since `restarted` counts in them; `cuts`: after how many a connection was lost.
 */
let turns = [];
let views = [];
let reader = null;
let keeper = 0;
let connected = false;
let leaving = false; // the page: then the end of its connection is no news

// --- keeping

function keep() {
  clearTimeout(keeper);
  keeper = 0;
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(turns));
  } catch {
    // Too much for the browser: the ids alone will do, and the answers are read from their beginning.
    const ids = turns.slice(-TURNS_MAX).map((turn) => ({ ...turn, tokens: [], cursor: "", end: null, cuts: [] }));
    try {
      sessionStorage.setItem(KEPT, JSON.stringify(ids));
    } catch {
      sessionStorage.removeItem(KEPT);
    }
  }
}

function keepSoon() {
  keeper ||= setTimeout(keep, KEEP_MS);
}

const fresh = (more) => ({ prompt: null, key: "", body: null, id: "", tokens: [], cursor: "", end: null, story: [], cuts: [], connections: 0, oddities: 0, ...more });
const current = () => turns.at(-1);
const offsetOf = (cursor) => Number(cursor.split("-")[1] ?? 0);

// --- showing

function addView(turn) {
  const view = { answer: el("div", { class: "answer" }), story: el("ul", { class: "story", "aria-label": "What the answer went through" }) };
  $("turns").append(
    el("article", { class: "turn" }, el("h2", { class: "unseen" }, turn.prompt === null ? "An answer" : "Question and answer"), turn.prompt === null ? null : el("p", { class: "asked" }, turn.prompt), view.answer, view.story),
  );
  views.push(view);
  redraw(turn, view);
}

/** The whole answer anew: at the beginning, and when tokens were taken back. */
function redraw(turn, view) {
  view.answer.replaceChildren();
  let from = 0;
  for (const cut of turn.cuts.filter((one) => one <= turn.tokens.length)) {
    view.answer.append(turn.tokens.slice(from, cut).join(""), el("span", { class: "cut", title: `the connection was lost here, after token ${cut}` }));
    from = cut;
  }
  view.answer.append(turn.tokens.slice(from).join(""));
  view.answer.classList.toggle("busy", !turn.end);
  view.story.hidden = !turn.story.length;
  view.story.replaceChildren(...turn.story.map(([kind, text]) => el("li", { class: kind }, text)));
}

/** Add to an answer's story; `briefly`: for the status line, which is read aloud. */
function tell(kind, text, briefly = text) {
  const turn = current();
  turn.story.push([kind, text]);
  redraw(turn, views.at(-1));
  say($("status"), briefly);
  keepSoon();
}

function showControls() {
  const turn = current();
  const busy = Boolean(turn && !turn.end);
  $("cut").hidden = $("stop").hidden = !busy || !turn.id;
  $("look").hidden = !turn?.id;
  if (turn?.id) $("look").href = `./#${turn.id}`;
  $("anew").hidden = !turn || busy;
  $("send").disabled = busy;
  $("intro").hidden = turns.length > 0;
  $("cut").disabled = !connected;
  $("link").className = `link ${connected ? "live" : busy ? "lost" : ""}`;
  say($("link"), connected ? "connected" : busy ? "not connected" : "idle");
}

function scrollAlong() {
  const page = document.documentElement;
  if (page.scrollHeight - page.clientHeight - page.scrollTop < 160) page.scrollTop = page.scrollHeight;
}

// --- following

function take(name, id, data) {
  const [turn, view] = [current(), views.at(-1)];
  if (name === "message") {
    const text = data.token ?? data.delta?.content ?? "";
    // An id says which token this is: one that is not the next would be one lost, or one doubled.
    if (offsetOf(id) !== turn.tokens.length + 1) turn.oddities += 1;
    turn.tokens.push(text);
    view.answer.append(text);
    say($("link"), `connected, token ${count(turn.tokens.length)}`);
    scrollAlong();
  } else if (name === "restarted") {
    const dropped = Math.max(0, turn.tokens.length - data.base);
    turn.tokens.length = Math.min(turn.tokens.length, data.base);
    turn.cuts = turn.cuts.filter((cut) => cut <= data.base);
    tell("", `⟳ Attempt ${data.attempt}, since the last one ended by ${data.reason}: ${count(dropped)} tokens are dropped, ${count(data.base)} stand.`);
  } else if (name === "gap") {
    turn.oddities += 1;
    tell("bad", `Events from ${data.requested} to before ${data.first_available} are gone.`);
  } else if (name === "done" || name === "failed" || name === "cancelled") {
    turn.end = { name, ...data };
  }
  if (id) turn.cursor = id;
  if (turn.end) void conclude();
  else keepSoon();
}

function lost() {
  const turn = current();
  if (!connected || turn.end || leaving) return;
  connected = false;
  turn.cuts.push(turn.tokens.length);
  tell("", `✂ The connection was lost after token ${count(turn.tokens.length)}.`);
  showControls();
}

function listen() {
  const turn = current();
  reader = follow(turn.id, turn.cursor, {
    event: take,
    open() {
      connected = true;
      turn.connections += 1;
      if (turn.connections > 1) tell("", `↻ Connected again, going on after ${turn.cursor || "the beginning"}.`);
      else say($("status"), "The answer is on its way.");
      showControls();
    },
    lost,
    over(state) {
      turn.end = { name: { completed: "done" }[state.status] ?? state.status, ...state.error };
      void conclude();
    },
    gone(error) {
      turn.end = { name: "gone" };
      connected = false;
      tell("bad", error.message);
      showControls();
    },
  });
}

/** The answer has ended: compare what came here with what the server keeps. */
async function conclude() {
  const turn = current();
  connected = false;
  reader?.close();
  const over = turn.connections === 1 ? "one connection" : `${count(turn.connections)} connections`;
  const how = { done: "", failed: ` It failed: ${turn.end.message ?? turn.end.code}`, cancelled: " It was cancelled." }[turn.end.name] ?? "";
  showControls();
  try {
    const state = await call(`v1/streams/${turn.id}`);
    const same = state.text === turn.tokens.join("") && !turn.oddities;
    const words = `${count(turn.tokens.length)} tokens over ${over}: `;
    if (same) tell("good", `✔ ${words}none lost, none doubled, and the text equals what the server keeps.${how}`, `The answer has ended.${how}`);
    else tell("bad", `✘ ${words}the text is not what the server keeps.${how}`);
  } catch (error) {
    tell("bad", `${count(turn.tokens.length)} tokens over ${over}; the server could not be asked: ${error.message}`);
  }
  if (turn.end.truncated) tell("", "The answer hit its length limit.");
  keep();
  showControls();
}

// --- asking

async function ask(turn) {
  try {
    // The key makes a repeated request, from a page that was reloaded too early, find the first one's stream.
    const created = await call("v1/streams", { method: "POST", body: turn.body, headers: { "idempotency-key": turn.key } });
    turn.id = created.id;
    history.replaceState(null, "", `#${turn.id}`);
    keep();
    listen();
  } catch (error) {
    turn.end = { name: "refused" };
    tell("bad", error.message);
  }
  showControls();
}

function bodyFor(prompt) {
  const messages = turns.flatMap((turn) => (turn.prompt === null ? [] : [{ role: "user", content: turn.prompt }, { role: "assistant", content: turn.tokens.join("") }]));
  const body = { messages: [...messages.filter((one) => one.content), { role: "user", content: prompt }], midstream: { on_interrupt: $("on-interrupt").value } };
  if ($("model").value.trim()) body.model = $("model").value.trim();
  if (simulated) body.simulate = { tokens: $("tokens").valueAsNumber || 300, tokens_per_second: $("pace").valueAsNumber || 20 };
  return body;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value.trim();
  if (!prompt || $("send").disabled) return;
  const body = bodyFor(prompt);
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  turns.push(fresh({ prompt, key, body }));
  turns = turns.slice(-TURNS_MAX);
  $("prompt").value = "";
  addView(current());
  keep();
  showControls();
  scrollAlong();
  void ask(current());
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("cut").addEventListener("click", () => {
  reader.cut(CUT_MS);
  lost();
});
$("stop").addEventListener("click", () => cancel(current().id).catch((error) => tell("bad", error.message)));
$("anew").addEventListener("click", () => {
  turns = [];
  views = [];
  $("turns").replaceChildren();
  history.replaceState(null, "", location.pathname);
  keep();
  say($("status"), "");
  showControls();
  $("prompt").focus();
});
addEventListener("beforeunload", () => (leaving = true));
addEventListener("pagehide", keep);
addEventListener("pageshow", (event) => event.persisted && location.reload()); // from the back-forward cache: its connection is gone

// --- beginning, or going on

let simulated = false;
call("v1/overview").then(({ processes }) => {
  const workers = processes.filter((one) => one.kind === "worker" && !one.silent);
  simulated = workers.length > 0 && workers.every((one) => one.provider === "simulated");
  for (const label of document.querySelectorAll(".simulated")) label.hidden = !simulated;
}, () => {});

try {
  turns = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
} catch {
  turns = [];
}
const linked = location.hash.slice(1);
if (/^[0-9a-z]{36}$/.test(linked) && current()?.id !== linked) turns = [fresh({ id: linked })]; // a link to somebody's answer
turns.forEach(addView);
if (current() && !current().end) {
  if (current().id) {
    const turn = current();
    if (turn.connections) {
      turn.cuts.push(turn.tokens.length);
      tell("", `⟲ This page was loaded anew after token ${count(turn.tokens.length)}.`);
    }
    listen();
  } else void ask(current());
}
showControls();
scrollAlong();
