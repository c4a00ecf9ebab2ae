// A chat that cannot lose a token. Each answer is a stream. The tokens that this page has and the id of the last one are kept
// together in sessionStorage, so that after a reload in mid-answer the page continues at the exact token.

import { $, call, cancel, capital, count, duration, el, follow, heardOf, place, reason, reasonAgain, say } from "./lib.js";

const KEPT = "midstream.chat";
const KEEP_MS = 250;
const CUT_MS = 1500;
const TURNS_MAX = 50;
const MODEL_KEPT = "midstream.model";
const MODELS_MAX = 500;
const NO_CHAT = /embed|whisper|tts|dall-e|moderation|transcribe|image|rerank|realtime|sora/i; // names of models that are not for chats
const SILENCE_MS = 3000; // after so long without a token the page finds out what the stream waits for
const BEAT_SECONDS = 2.6; // the most between two heartbeats of a worker, which sends one every two seconds
const HINT_MS = 4000;
const NEAR_END_PX = 160; // so near the end of the page, it scrolls as the answer grows

/**
 * turn: { prompt, key, body, id, tokens, cursor, end, story, cuts, connections, oddities }
 * `tokens` has one text per event, since `base` of `restarted` counts events; `cuts`: after how many tokens connections were lost.
 */
let turns = [];
let views = [];
let reader = null;
let keeper = 0;
let connected = false;
let leaving = false; // the page is being closed: the end of its connection is not shown
let begun = false; // a worker has begun the answer
let heardAt = 0;
let looking = false;
let hintUntil = 0;

// --- keeping

function keep() {
  clearTimeout(keeper);
  keeper = 0;
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(turns));
  } catch {
    // Too much for the browser's storage: keep only the ids; the answers are then read from their beginning.
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

// --- showing

function addView(turn) {
  const view = { answer: el("div", { class: "answer" }), story: el("ul", { class: "story", "aria-label": "What happened to the answer" }) };
  $("turns").append(
    el("article", { class: "turn" }, el("h2", { class: "unseen" }, turn.prompt === null ? "An answer" : "Question and answer"), turn.prompt === null ? null : el("p", { class: "asked" }, turn.prompt), view.answer, view.story),
  );
  views.push(view);
  redraw(turn, view);
}

/** Draws the whole answer: at the beginning, and when tokens were taken back. */
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

/** Adds a line to the list of what happened to the answer. */
function tell(kind, text) {
  const turn = current();
  turn.story.push([kind, text]);
  redraw(turn, views.at(-1));
  keepSoon();
}

/** Shows the present state, which screen readers also read aloud; `kind`: live, lost, bad or "". */
function showState(kind, text) {
  $("status").className = `link ${kind}`;
  say($("status"), text);
}

const isBusy = () => Boolean(current() && !current().end);
const tokensOf = (turn) => `${count(turn.tokens.length)} ${turn.tokens.length === 1 ? "token" : "tokens"}`;

function showControls() {
  const turn = current();
  const busy = isBusy();
  $("cut").hidden = $("stop").hidden = !busy || !turn.id;
  $("look").hidden = !turn?.id;
  if (turn?.id) $("look").href = `./#${turn.id}`;
  $("anew").hidden = !turn || busy;
  $("controls").hidden = !turn;
  $("send").disabled = busy;
  $("intro").hidden = turns.length > 0;
  $("cut").disabled = !connected;
  showProgress();
}

const END_STATES = {
  done: ["", "The answer is complete"],
  failed: ["bad", "The answer failed"],
  cancelled: ["", "The answer was stopped"],
  refused: ["bad", "The question was refused"],
  gone: ["bad", "This answer is gone"],
};

function showEnd() {
  if (current()?.end) showState(...(END_STATES[current().end.name] ?? END_STATES.done));
}

// If the end of the page is in view, it stays in view as the page grows: by a token, a line below it, the bar itself.
let atEnd = true, lastTop = 0;
const page = document.documentElement;
const toEnd = () => page.scrollTo(0, page.scrollHeight);
// Only scrolling up leaves the end. Between `toEnd` and its event the page may have grown by more than that, if the browser is busy.
addEventListener("scroll", () => {
  const isUp = page.scrollTop < lastTop;
  lastTop = page.scrollTop;
  atEnd = page.scrollHeight - page.clientHeight - lastTop < NEAR_END_PX || (atEnd && !isUp);
}, { passive: true });
new ResizeObserver(() => atEnd && toEnd()).observe($("main"));

// --- following

function take(name, id, data) {
  const [turn, view] = [current(), views.at(-1)];
  heardAt = performance.now();
  if (name === "message") {
    const text = data.token ?? data.delta?.content ?? "";
    if (place(turn.tokens, id, text)) view.answer.append(text);
    else turn.oddities += 1; // it came twice
    showProgress();
    if (performance.now() > hintUntil) showState("live", "Answering");
  } else if (name === "started") {
    begun = true;
    showState("live", "A worker has it; no token yet");
  } else if (name === "restarted") {
    begun = true;
    const dropped = Math.max(0, turn.tokens.length - data.base);
    turn.tokens.length = Math.min(turn.tokens.length, data.base);
    turn.cuts = turn.cuts.filter((cut) => cut <= data.base);
    const how = data.base ? `continues after token ${count(data.base)}` : "starts again";
    const taken = dropped ? `; ${count(dropped)} ${dropped === 1 ? "token is" : "tokens are"} taken back` : "";
    tell("", `⟳ ${capital(reasonAgain(data.reason))}. Attempt ${data.attempt} ${how}${taken}.`);
    showState("live", `Attempt ${data.attempt} ${how}`);
    showProgress();
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
  showState("lost", "The connection was lost; reconnecting");
  showControls();
}

/** If no token has come for a while, shows what the answer waits for, from the overview. */
async function findOut() {
  const turn = current();
  if (!connected || looking || !isBusy() || performance.now() - heardAt < SILENCE_MS) return;
  looking = true;
  const before = heardAt;
  try {
    const snapshot = await call("v1/overview");
    if (turn === current() && connected && isBusy() && heardAt === before) showState(...waitsFor(turn, snapshot));
  } catch {
    // If the gateway cannot be reached, the lost connection shows it.
  } finally {
    looking = false;
  }
}

function waitsFor(turn, snapshot) {
  const { streams, processes, redis } = snapshot;
  const row = streams.newest.find((one) => one.id === turn.id);
  const workers = processes.filter((one) => one.kind === "worker" && heardOf(snapshot, one.name).there);
  if (!redis.up) return ["lost", redis.refusal ? `Redis refuses: ${redis.refusal}` : "Redis is away: the answer waits, nothing is lost"];
  if (row?.status === "waiting" && !begun) return workers.length ? ["", "Waits for a worker"] : ["lost", "No worker runs: it waits for one"];
  const heard = row?.worker ? heardOf(snapshot, row.worker) : null;
  if (heard && !heard.there) return ["lost", `Its worker has died: ${workers.length ? "another one takes over" : "no other one runs"}`];
  if (heard && heard.seconds > BEAT_SECONDS) return ["lost", "Nothing is heard of its worker: it may have died"];
  return ["", "No token comes: its worker is there, and waits for the model"];
}

/** Shows the number of tokens; not read aloud, since it changes all the time. */
function showProgress() {
  const turn = current();
  const silent = isBusy() && connected ? performance.now() - heardAt : 0;
  const parts = turn?.tokens.length ? [tokensOf(turn)] : [];
  if (silent > SILENCE_MS) parts.push(`silent for ${duration(Math.floor(silent / 1000)).replace(".0", "")}`);
  say($("progress"), parts.join(", "));
}
setInterval(showProgress, 1000);
setInterval(findOut, 1000);

function listen() {
  const turn = current();
  reader = follow(turn.id, turn.cursor, {
    event: take,
    open() {
      connected = true;
      heardAt = performance.now();
      turn.connections += 1;
      showState("live", turn.connections > 1 ? "Connected again" : "Connected; waits for a worker");
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
      tell("bad", `✘ ${capital(error.message)}`);
      showEnd();
      showControls();
    },
  });
}

/** Called when the answer has ended: compares the text on this page with the one that the server has. */
async function conclude() {
  const turn = current();
  connected = false;
  reader?.close();
  const { end } = turn;
  const over = turn.connections === 1 ? "one connection" : `${count(turn.connections)} connections`;
  showEnd();
  showControls();
  if (end.name === "failed") tell("bad", `✘ It failed: ${reason(end.code)}${end.message ? `. ${capital(end.message)}` : ""}`);
  try {
    const state = await call(`v1/streams/${turn.id}`);
    const same = state.text === turn.tokens.join("") && !turn.oddities;
    const whole = "none lost, none doubled, and the text equals what the server keeps.";
    if (!same) tell("bad", `✘ ${tokensOf(turn)} over ${over}: the text differs from what the server keeps.`);
    else if (end.name === "done") tell("good", `✔ ${tokensOf(turn)} over ${over}: ${whole}`);
    else if (end.name === "cancelled" || turn.tokens.length) tell("", `${end.name === "cancelled" ? `■ It was stopped${end.by === "disconnect" ? ", since nobody read it" : ""}. ` : ""}${tokensOf(turn)} had come over ${over}: ${whole}`);
  } catch (error) {
    tell("bad", `${tokensOf(turn)} over ${over}; the text could not be compared with the server's: ${error.message}`);
  }
  if (end.truncated) tell("", "The answer hit its length limit.");
  keep();
  showControls();
}

// --- asking

async function ask(turn) {
  begun = false;
  showState("", "Asking");
  await modelsKnown;
  turn.body.model ??= $("model").value || undefined; // chosen now, and kept if the page is reloaded
  keep();
  try {
    // If the page is reloaded before the answer to this request, the key makes the repeated request find the same stream.
    const created = await call("v1/streams", { method: "POST", body: turn.body, headers: { "idempotency-key": turn.key } });
    turn.id = created.id;
    history.replaceState(null, "", `#${turn.id}`);
    keep();
    listen();
  } catch (error) {
    turn.end = { name: "refused" };
    tell("bad", `✘ ${capital(error.message)}`);
    showEnd();
  }
  showControls();
}

function bodyFor(prompt) {
  const messages = turns.flatMap((turn) => (turn.prompt === null ? [] : [{ role: "user", content: turn.prompt }, { role: "assistant", content: turn.tokens.join("") }]));
  const body = { messages: [...messages.filter((one) => one.content), { role: "user", content: prompt }], midstream: { on_interrupt: $("on-interrupt").value } };
  if (simulated) {
    body.simulate = { tokens: $("tokens").valueAsNumber || 300, tokens_per_second: $("pace").valueAsNumber || 20 };
    if ($("break").value) body.simulate.fail_after = $("break").valueAsNumber;
  }
  return body;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value.trim();
  if (!prompt || isBusy()) return;
  const body = bodyFor(prompt);
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  turns.push(fresh({ prompt, key, body }));
  turns = turns.slice(-TURNS_MAX);
  $("prompt").value = "";
  addView(current());
  keep();
  showControls();
  atEnd = true;
  toEnd();
  void ask(current());
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault(); // while an answer arrives, nothing is sent and the typed text stays
    if (!isBusy()) $("ask").requestSubmit();
    else if ($("prompt").value.trim()) {
      hintUntil = performance.now() + HINT_MS;
      showState("live", "This answer still comes: stop it, or send when it has ended");
    }
  }
});
$("cut").addEventListener("click", () => {
  reader.cut(CUT_MS);
  lost();
});
$("stop").addEventListener("click", () => cancel(current().id).catch((error) => tell("bad", `It could not be stopped: ${error.message}`)));
$("anew").addEventListener("click", () => {
  turns = [];
  views = [];
  $("turns").replaceChildren();
  history.replaceState(null, "", location.pathname);
  keep();
  showState("", "");
  showControls();
  $("prompt").focus();
});
addEventListener("beforeunload", () => (leaving = true));
addEventListener("pagehide", keep);
addEventListener("pageshow", (event) => event.persisted && location.reload()); // from the back-forward cache: its connection is gone

// --- start of the page: a new chat, or the one that was kept

let simulated = false;
call("v1/overview").then(({ processes }) => {
  const workers = processes.filter((one) => one.kind === "worker" && !one.silent);
  simulated = workers.length > 0 && workers.every((one) => one.provider === "simulated");
  for (const label of document.querySelectorAll(".simulated")) label.hidden = !simulated;
  for (const label of document.querySelectorAll(".real")) label.hidden = simulated;
}, () => {});

/** Lists the provider's models. Selects the one that was chosen last, else the first whose name looks like a chat model's. */
const modelsKnown = call("v1/models").then(({ data }) => {
  const names = data.map((one) => one?.id).filter((name) => typeof name === "string").slice(0, MODELS_MAX);
  if (!names.length) return say($("models-note"), "The provider lists no model.");
  const chosen = [kept(MODEL_KEPT), "gpt-4o-mini"].find((name) => names.includes(name)) ?? names.find((name) => !NO_CHAT.test(name)) ?? names[0];
  $("model").replaceChildren(...names.map((name) => el("option", { value: name, selected: name === chosen }, name)));
}).catch((error) => {
  say($("models-note"), `The models are not known: ${error.message}`);
  $("models-note").classList.add("bad");
  $("options").open = true;
});
$("model").addEventListener("change", () => {
  try {
    localStorage.setItem(MODEL_KEPT, $("model").value);
  } catch {
    // No storage: the choice is not remembered.
  }
});

function kept(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

try {
  turns = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
} catch {
  turns = [];
}
const linked = location.hash.slice(1);
if (/^[0-9a-z]{36}$/.test(linked) && current()?.id !== linked) turns = [fresh({ id: linked })]; // a link to an answer
turns.forEach(addView);
showEnd();
if (current() && !current().end) {
  if (current().id) {
    const turn = current();
    if (turn.connections) {
      turn.cuts.push(turn.tokens.length);
      tell("", `⟲ The page was reloaded after token ${count(turn.tokens.length)}.`);
    }
    listen();
  } else void ask(current());
}
showControls();
toEnd();
