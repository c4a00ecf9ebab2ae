// The panel of one stream: facts and a timeline, from its state and its receipt; its text only on demand.

import { call, capital, count, duration, el, follow, heardOf, place, rate, reason, reasonAgain, say, short } from "./lib.js";

const REFRESH_MS = 2000;
const SETTLED_SECONDS = 8; // gateways report their connections for some seconds after the end
const REVEAL_MS = 3000; // for so long the panel is kept in view while the tables above it fill
const CONNECTIONS_SHOWN = 40;
const OUTCOMES = {
  completed: "to the end",
  disconnected: "its connection broke off",
  rotated: "closed for its age, to reconnect",
  drained: "closed to reconnect, since its gateway stopped",
  slow: "too slow",
  error: "ended by an error or a kill",
};

const ENDS = ["completed", "failed", "cancelled"];
const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const MOVES = ["wheel", "touchmove", "pointerdown", "keydown"]; // input that moves the page: the user decides what is in view

export class StreamPanel {
  id = "";
  #section;
  #parts;
  #timer = 0;
  #reader = null;
  #state = null;
  #receipt = null;
  #snapshot = null;
  #revealUntil = 0;

  constructor(section, { confirmCancel }) {
    this.#section = section;
    const button = (text, onclick, more = {}) => el("button", { type: "button", onclick, ...more }, text);
    const parts = {
      title: el("h2", { id: "stream-title", tabindex: "-1" }),
      chip: el("span", { class: "chip" }),
      cancel: button("Cancel", () => confirmCancel(this.id), { class: "danger" }),
      follow: button("Show the answer", () => this.#follow()),
      facts: el("dl", { class: "facts" }),
      timeline: el("ol", { class: "timeline", "aria-label": "Timeline" }),
      from: el("span"),
      to: el("span"),
      answer: el("div", { class: "said", hidden: true, tabindex: "0", role: "region", "aria-label": "The answer" }),
      note: el("p", { class: "note", role: "status" }),
    };
    const close = button("Close", () => (location.hash = ""));
    section.append(
      el("div", { class: "head" }, parts.title, parts.chip, el("div", { class: "actions" }, parts.follow, parts.cancel, close)),
      parts.note,
      parts.facts,
      el("h3", {}, "Timeline"),
      parts.timeline,
      el("div", { class: "axis", "aria-hidden": "true" }, parts.from, parts.to),
      parts.answer,
    );
    this.#parts = parts;
    for (const name of MOVES) addEventListener(name, () => (this.#revealUntil = 0), { passive: true });
  }

  /** Shows a stream; hides the panel for "". */
  show(id) {
    if (id === this.id) return;
    this.id = id;
    this.#reader?.close();
    this.#reader = this.#state = this.#receipt = null;
    clearTimeout(this.#timer);
    this.#section.hidden = !id;
    if (!id) return;
    const { title, chip, cancel, follow: show, facts, timeline, answer, note } = this.#parts;
    say(title, `Stream ${short(id)}`);
    say(chip, "");
    chip.className = "chip";
    for (const part of [cancel, show, answer]) part.hidden = true;
    for (const part of [facts, timeline, answer]) part.replaceChildren();
    say(note, "");
    void this.refresh();
    this.#revealUntil = performance.now() + REVEAL_MS;
    this.#reveal();
    title.focus({ preventScroll: true });
  }

  /** Scrolls the page so that a panel just opened is in view, from its top on. */
  #reveal() {
    if (performance.now() > this.#revealUntil) return;
    const { top, bottom } = this.#section.getBoundingClientRect();
    if (top < 0 || bottom > innerHeight) this.#section.scrollIntoView({ block: "start", behavior: CALM.matches ? "auto" : "smooth" });
  }

  complain(text) {
    this.#parts.note.classList.add("bad");
    say(this.#parts.note, text);
  }

  /** Reads the stream's state and receipt, again and again as long as they may change. */
  async refresh() {
    const { id } = this;
    if (!id) return;
    clearTimeout(this.#timer);
    try {
      const [state, receipt] = await Promise.all([call(`v1/streams/${id}`), call(`v1/streams/${id}/receipt`)]);
      if (id !== this.id) return;
      [this.#state, this.#receipt] = [state, receipt];
      this.#draw();
      if (state.ended_at && Date.now() / 1000 - state.ended_at > SETTLED_SECONDS) return;
    } catch (error) {
      if (id !== this.id) return;
      this.complain(error.message);
      if (error.status === 404 || error.status === 410) return;
    }
    this.#timer = setTimeout(() => this.refresh(), REFRESH_MS);
  }

  /** Takes a snapshot of the overview. If it shows a new attempt or the end of this stream, the receipt is read at once. */
  hear(snapshot) {
    this.#snapshot = snapshot;
    const { streams } = snapshot;
    const row = [...streams.newest, ...streams.ended].find((one) => one.id === this.id);
    const state = this.#state;
    this.#reveal();
    if (!state || state.ended_at) return;
    if (row && (row.attempt !== state.attempt || row.ended_at)) void this.refresh();
    else {
      if (row) state.tokens = Math.max(row.tokens, state.tokens);
      this.#draw(row?.tokens_per_second);
    }
  }

  // --- drawing

  #draw(perSecond = 0) {
    const { chip, cancel, follow: show, note } = this.#parts;
    const state = this.#state;
    chip.className = `chip ${state.status}`;
    say(chip, state.status);
    cancel.hidden = Boolean(state.ended_at);
    show.hidden = this.#reader !== null;
    if (note.classList.contains("bad") && this.#receipt) {
      note.classList.remove("bad");
      say(note, "");
    }
    this.#drawFacts(perSecond);
    this.#drawTimeline();
    this.#reveal();
  }

  #drawFacts(perSecond) {
    const [state, receipt] = [this.#state, this.#receipt];
    const usage = state.usage ?? receipt.generated.usage;
    const end = state.ended_at ?? Date.now() / 1000;
    const facts = [
      ["Asked", new Date(state.created_at * 1000).toLocaleString()],
      ["Waited", state.started_at ? duration(Math.max(0, state.started_at - state.created_at)) : "waits"],
      [state.ended_at ? "Took" : "Runs for", duration(Math.max(0, end - (state.started_at ?? state.created_at)))],
      ["Model", state.model ?? "–"],
      ["Tokens", perSecond > 0 ? `${count(state.tokens)}, ${rate(perSecond)} per s` : count(state.tokens)],
      ["Delivered", count(receipt.delivered.tokens) + (state.ended_at ? `, ${count(receipt.undelivered_tokens)} to nobody` : " as last noted")],
    ];
    if (state.finish_reason) facts.push(["Finished by", state.truncated ? `${state.finish_reason}: cut off` : state.finish_reason]);
    if (state.cancelled_by) facts.push(["Cancelled by", state.cancelled_by]);
    if (usage) facts.push(["Billed", `${count(usage.prompt_tokens)} in, ${count(usage.completion_tokens)} out`]);
    if (state.error) facts.push(["Failure", `${capital(reason(state.error.code))}: ${state.error.message}`, "broad bad"]);
    for (const [name, value] of Object.entries(state.metadata ?? {})) facts.push([name, value, "broad"]);
    facts.push(["Id", this.id, "broad mono"]);
    this.#parts.facts.replaceChildren(...facts.map(([name, value, kind = ""]) => el("div", { class: kind.split(" ")[0] }, el("dt", {}, name), el("dd", { class: kind }, String(value)))));
  }

  #drawTimeline() {
    const [state, receipt] = [this.#state, this.#receipt];
    const begin = state.created_at;
    const connections = receipt.delivered.connections;
    const now = Date.now() / 1000;
    const end = Math.max(state.ended_at ?? now, ...connections.map((one) => one.closed_at ?? 0), begin + 0.1);
    const at = (time) => Math.min(100, Math.max(0, ((time - begin) / (end - begin)) * 100));
    const row = (title, text, bars) =>
      el("li", {}, el("span", { class: "what" }, title), " ", el("span", { class: "told" }, text), track(bars, at));
    const clock = (time) => `at ${Math.max(0, time - begin).toFixed(1)} s`;
    const rows = [];
    const attempts = receipt.generated.attempts;
    const firstStart = attempts[0]?.started_at ?? state.ended_at ?? now;
    if (firstStart - begin > 0.05 || !attempts.length)
      rows.push(row("Waiting", `${duration(firstStart - begin)} for a worker`, [{ kind: "wait", from: begin, to: firstStart }]));
    attempts.forEach((one, index) => {
      const next = attempts[index + 1]?.started_at ?? state.ended_at ?? now;
      const open = index === attempts.length - 1 && !state.ended_at;
      const { to, text, silent } = open ? this.#attemptNow(one, now) : this.#attemptOver(one, next, clock);
      const tokens = open ? Math.max(one.tokens, state.tokens) : one.tokens;
      const kind = open ? (silent ? "bad" : "open") : one.outcome === "completed" ? "good" : "bad";
      const bars = [{ kind, from: one.started_at, to }, ...(silent ? [{ kind: "silence", from: to, to: next }] : [])];
      const first = one.first_token_at;
      const mark = first ? `, first token ${clock(first)}` : "";
      rows.push(row(`Attempt ${one.attempt}`, `${clock(one.started_at)} by ${one.worker}: ${count(tokens)} tokens, ${text}${mark}`, first ? [...bars, { kind: "first", from: first, to: first }] : bars));
    });
    for (const one of connections.slice(-CONNECTIONS_SHOWN)) {
      const resumed = one.from !== "0-0";
      const where = resumed ? `resumed after ${one.from}` : "from the beginning";
      const { to, text, open } = this.#connectionNow(one, state, now, clock);
      rows.push(
        row("Reader", `${clock(one.opened_at)} ${where}, to ${one.to}, ${count(one.tokens)} tokens; ${text} (${one.gateway})`, [
          { kind: open ? "reader open" : "reader", from: one.opened_at, to, mark: !open && one.outcome !== "completed" },
        ]),
      );
    }
    if (state.ended_at) {
      const by = { client: "a client", disconnect: "Midstream, since its last reader had gone", writer: "the program that wrote it" }[state.cancelled_by] ?? state.cancelled_by;
      const title = state.cancelled_by ? "Cancelled" : capital(state.status);
      const text = clock(state.ended_at) + (by ? ` by ${by}` : "") + (state.error ? `: ${reason(state.error.code)}` : "");
      rows.push(el("li", {}, el("span", { class: "what" }, title), " ", el("span", { class: "told" }, text)));
    }
    if (!connections.length) rows.push(el("li", { class: "told" }, "No reader yet."));
    if (connections.length > CONNECTIONS_SHOWN) rows.push(el("li", { class: "told" }, `The newest ${CONNECTIONS_SHOWN} of ${count(connections.length)} connections.`));
    this.#parts.timeline.replaceChildren(...rows);
    say(this.#parts.from, "asked");
    say(this.#parts.to, `${state.ended_at ? state.status : "now"}, ${(end - begin).toFixed(1)} s`);
  }

  /** Describes an attempt that is over: where its bar ends, a text, and whether silence followed. */
  #attemptOver(attempt, next, clock) {
    const how = ENDS.includes(attempt.outcome) ? attempt.outcome : attempt.outcome ? reasonAgain(attempt.outcome) : "ended";
    const heardAt = attempt.last_heard_at;
    if (heardAt === null || heardAt === undefined || heardAt >= next) return { to: next, text: how, silent: false };
    const to = Math.max(heardAt, attempt.started_at);
    return { to, text: `${how}: last heard of ${clock(to)}, then ${duration(next - to)} of silence`, silent: true };
  }

  /** Describes the present attempt: it goes on, unless its worker's heartbeats are missing. */
  #attemptNow(attempt, now) {
    const heard = this.#snapshot && heardOf(this.#snapshot, attempt.worker);
    if (!heard || heard.there) return { to: now, text: "goes on", silent: false };
    const to = Math.max(heard.at ?? attempt.started_at, attempt.started_at);
    const since = heard.at === null ? "for more than a minute" : `for ${duration(heard.seconds)}`;
    const others = this.#snapshot.processes.some((one) => one.kind === "worker" && heardOf(this.#snapshot, one.name).there);
    return { to, text: `its worker has not been heard of ${since}; ${others ? "another one takes over" : "no other one runs"}`, silent: true };
  }

  /** Describes a connection: where its bar ends, a text, and whether it is open. If its gateway was killed, it ends at the last report. */
  #connectionNow(connection, state, now, clock) {
    const { outcome, closed_at: closedAt, opened_at: openedAt } = connection;
    const notedAt = connection.noted_at ?? openedAt;
    if (closedAt) return { to: closedAt, text: OUTCOMES[outcome] ?? outcome, open: false };
    const heard = this.#snapshot && heardOf(this.#snapshot, connection.gateway);
    if (outcome) return { to: notedAt, text: `${OUTCOMES[outcome] ?? outcome}; last noted ${clock(notedAt)}`, open: false };
    if (!heard || heard.there) return { to: state.ended_at ?? now, text: "is connected", open: true };
    const to = Math.max(notedAt, Math.min(heard.at ?? 0, state.ended_at ?? now));
    return { to, text: `its gateway is gone: last sign of life ${clock(to)}`, open: false };
  }

  // --- the answer's text, on demand

  #follow() {
    const { answer, note, follow: show } = this.#parts;
    const tokens = [];
    show.hidden = true;
    answer.hidden = false;
    answer.replaceChildren();
    if (!this.#state?.ended_at) say(note, "While this page shows the answer, it counts as a reader of the stream.");
    this.#reader = follow(this.id, "", {
      event(name, id, data) {
        if (name === "message") {
          const text = data.token ?? data.delta?.content ?? "";
          if (place(tokens, id, text)) answer.append(text);
        } else if (name === "restarted") {
          tokens.length = Math.min(tokens.length, data.base);
          answer.replaceChildren(tokens.join(""));
        }
      },
      gone: (error) => this.complain(error.message),
    });
    answer.focus();
  }
}

function track(bars, at) {
  const drawn = el("div", { class: "track", "aria-hidden": "true" });
  for (const { kind, from, to, mark } of bars) {
    const bar = el("i", { class: kind });
    bar.style.left = `${at(from)}%`;
    bar.style.width = `${Math.max(0, at(to) - at(from))}%`;
    drawn.append(bar);
    if (mark) {
      const cut = el("b");
      cut.style.left = `${at(to)}%`;
      drawn.append(cut);
    }
  }
  return drawn;
}
