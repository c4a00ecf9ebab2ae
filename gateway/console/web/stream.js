// One stream's life: what is known of it, and as a timeline. From its state and its receipt; its text only if asked for.

import { call, count, duration, el, follow, rate, say, short } from "./lib.js";

const REFRESH_MS = 2000;
const SETTLED_SECONDS = 8; // gateways note their connections for some seconds after the end
const CONNECTIONS_SHOWN = 40;
const OUTCOMES = {
  completed: "to the end",
  disconnected: "its connection broke off",
  rotated: "asked to come back, for its age",
  drained: "sent elsewhere, its gateway stopped",
  slow: "too slow",
  error: "ended by an error or a kill",
};

const REASONS = {
  worker_lost: "its worker was lost",
  provider_unavailable: "the provider broke off",
  provider_stalled: "the provider fell silent",
  provider_timeout: "the provider took too long",
};

export class StreamPanel {
  id = "";
  #section;
  #parts;
  #timer = 0;
  #reader = null;
  #state = null;
  #receipt = null;

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
      said: el("div", { class: "said", hidden: true, tabindex: "0", role: "region", "aria-label": "The answer" }),
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
      parts.said,
    );
    this.#parts = parts;
  }

  /** Show a stream; none for "". */
  show(id) {
    if (id === this.id) return;
    this.id = id;
    this.#reader?.close();
    this.#reader = this.#state = this.#receipt = null;
    clearTimeout(this.#timer);
    this.#section.hidden = !id;
    if (!id) return;
    const { title, chip, cancel, follow: show, facts, timeline, said, note } = this.#parts;
    say(title, `Stream ${short(id)}`);
    say(chip, "");
    chip.className = "chip";
    for (const part of [cancel, show, said]) part.hidden = true;
    for (const part of [facts, timeline, said]) part.replaceChildren();
    say(note, "");
    void this.refresh();
    this.#section.scrollIntoView({ block: "nearest", behavior: "smooth" });
    title.focus({ preventScroll: true });
  }

  complain(text) {
    this.#parts.note.classList.add("bad");
    say(this.#parts.note, text);
  }

  /** Ask for its state and its receipt, and again as long as something may change. */
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

  /** A snapshot of everything: when this stream has begun anew or has ended, the receipt is asked for at once. */
  hear({ streams }) {
    const row = [...streams.newest, ...streams.ended].find((one) => one.id === this.id);
    const state = this.#state;
    if (!row || !state || state.ended_at) return;
    if (row.attempt !== state.attempt || (row.ended_at && !state.ended_at)) void this.refresh();
    else {
      state.tokens = Math.max(row.tokens, state.tokens);
      this.#draw(row.tokens_per_second);
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
  }

  #drawFacts(perSecond) {
    const [state, receipt] = [this.#state, this.#receipt];
    const usage = state.usage ?? receipt.generated.usage;
    const end = state.ended_at ?? Date.now() / 1000;
    const facts = [
      ["Asked", new Date(state.created_at * 1000).toLocaleTimeString()],
      ["Waited", state.started_at ? duration(Math.max(0, state.started_at - state.created_at)) : "waits"],
      [state.ended_at ? "Took" : "Runs for", duration(Math.max(0, end - (state.started_at ?? state.created_at)))],
      ["Model", state.model ?? "–"],
      ["Tokens", perSecond > 0 ? `${count(state.tokens)}, ${rate(perSecond)} per s` : count(state.tokens)],
      ["Delivered", count(receipt.delivered.tokens) + (state.ended_at ? `, ${count(receipt.undelivered_tokens)} to nobody` : " as last noted")],
    ];
    if (state.finish_reason) facts.push(["Finished by", state.truncated ? `${state.finish_reason}: cut off` : state.finish_reason]);
    if (state.cancelled_by) facts.push(["Cancelled by", state.cancelled_by]);
    if (usage) facts.push(["Billed", `${count(usage.prompt_tokens)} in, ${count(usage.completion_tokens)} out`]);
    if (state.error) facts.push(["Error", `${state.error.code}: ${state.error.message}`, "broad"]);
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
    const row = (what, told, bars) =>
      el("li", {}, el("span", { class: "what" }, what), " ", el("span", { class: "told" }, told), track(bars, at));
    const clock = (time) => `at ${Math.max(0, time - begin).toFixed(1)} s`;
    const rows = [];
    const attempts = receipt.generated.attempts;
    const firstStart = attempts[0]?.started_at ?? state.ended_at ?? now;
    if (firstStart - begin > 0.05 || !attempts.length)
      rows.push(row("Waiting", `${duration(firstStart - begin)} for a worker`, [{ kind: "wait", from: begin, to: firstStart }]));
    attempts.forEach((one, index) => {
      const to = attempts[index + 1]?.started_at ?? state.ended_at ?? now;
      const open = index === attempts.length - 1 && !state.ended_at;
      const tokens = open ? Math.max(one.tokens, state.tokens) : one.tokens;
      const kind = open ? "open" : one.outcome === "completed" ? "good" : "bad";
      const how = open ? "goes on" : (REASONS[one.outcome] ?? one.outcome ?? "ended");
      rows.push(row(`Attempt ${one.attempt}`, `${clock(one.started_at)} by ${one.worker}: ${count(tokens)} tokens, ${how}`, [{ kind, from: one.started_at, to }]));
    });
    for (const one of connections.slice(-CONNECTIONS_SHOWN)) {
      const resumed = one.from !== "0-0";
      const where = resumed ? `resumed after ${one.from}` : "from the beginning";
      const how = one.outcome ? (OUTCOMES[one.outcome] ?? one.outcome) : "is connected";
      rows.push(
        row("Reader", `${clock(one.opened_at)} ${where}, to ${one.to}, ${count(one.tokens)} tokens; ${how} (${one.gateway})`, [
          { kind: one.closed_at || one.outcome ? "reader" : "reader open", from: one.opened_at, to: one.closed_at ?? state.ended_at ?? now, mark: one.outcome === "disconnected" },
        ]),
      );
    }
    if (!connections.length) rows.push(el("li", { class: "told" }, "No reader yet."));
    if (connections.length > CONNECTIONS_SHOWN) rows.push(el("li", { class: "told" }, `The newest ${CONNECTIONS_SHOWN} of ${count(connections.length)} connections.`));
    this.#parts.timeline.replaceChildren(...rows);
    say(this.#parts.from, "asked");
    say(this.#parts.to, `${state.ended_at ? state.status : "now"}, ${(end - begin).toFixed(1)} s`);
  }

  // --- the answer, for whoever asks to see it

  #follow() {
    const { said, note, follow: show } = this.#parts;
    const tokens = [];
    show.hidden = true;
    said.hidden = false;
    said.replaceChildren();
    if (!this.#state?.ended_at) say(note, "While you read along, you count as a reader of this stream.");
    this.#reader = follow(this.id, "", {
      event(name, _, data) {
        if (name === "message") {
          tokens.push(data.token ?? data.delta?.content ?? "");
          said.append(tokens.at(-1));
        } else if (name === "restarted") {
          tokens.length = Math.min(tokens.length, data.base);
          said.replaceChildren(tokens.join(""));
        }
      },
      gone: (error) => this.complain(error.message),
    });
    said.focus();
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
