// The list of all streams, live and archived: a search form, and pages that go on behind an id.

import { $, call, count, duration, el, say, short, shortNode } from "./lib.js";

const PAGE = 20;
const FIELDS = { "kept-status": "status", "kept-model": "model", "kept-owner": "owner" };

export class KeptList {
  #after = null;
  #asked = 0;
  #chosen = "";

  constructor() {
    $("kept-find").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.search();
    });
    $("kept-more").addEventListener("click", () => void this.#page());
  }

  /** Shows the list, at its first call, if the gateways have an archive. */
  show(hasArchive) {
    if (!hasArchive || !$("kept").hidden) return;
    $("kept").hidden = false;
    void this.search();
  }

  /** Marks the row of a stream. */
  choose(id) {
    this.#chosen = id;
    for (const row of $("kept-rows").children) row.classList.toggle("chosen", row.dataset.id === id);
  }

  async search() {
    this.#after = null;
    await this.#page();
  }

  /** Asks for the next page; without a place for the first one, which replaces what is shown. */
  async #page() {
    const asked = ++this.#asked;
    const isFirst = this.#after === null;
    const query = new URLSearchParams({ limit: PAGE });
    if (!isFirst) query.set("after", this.#after);
    try {
      for (const [name, value] of wanted()) query.set(name, value);
      const page = await call(`v1/streams?${query}`);
      if (asked !== this.#asked) return; // another search has begun
      const rows = page.streams.map(rowOf);
      if (isFirst) $("kept-rows").replaceChildren(...rows);
      else $("kept-rows").append(...rows);
      this.#after = page.after;
      this.choose(this.#chosen);
      $("kept-more").hidden = page.after === null;
      $("kept-empty").hidden = $("kept-rows").childElementCount > 0;
      say($("kept-note"), page.after === null ? "" : "the newest; there are more");
      $("kept-note").classList.remove("bad");
    } catch (error) {
      if (asked !== this.#asked) return;
      say($("kept-note"), error.message);
      $("kept-note").classList.add("bad");
    }
  }
}

/** Yields the parameters of the search. Throws an Error for a field of the metadata without a text. */
function* wanted() {
  for (const [field, name] of Object.entries(FIELDS)) {
    const value = $(field).value.trim();
    if (value) yield [name, value];
  }
  const metadata = $("kept-metadata").value.trim();
  if (metadata) {
    const [key, ...text] = metadata.split("=");
    if (!key || !text.length) throw new Error("Metadata: write key=text");
    yield [`metadata.${key.trim()}`, text.join("=").trim()];
  }
  for (const name of ["from", "to"]) {
    const time = new Date($(`kept-${name}`).value).getTime(); // the field has the time of this browser's zone
    if (time) yield [name, String(time / 1000)];
  }
}

function rowOf(stream) {
  const { id } = stream;
  const metadata = Object.entries(stream.metadata).map(([name, text]) => `${name}=${text}`).join(", ");
  const took = stream.ended_at ? duration(Math.max(0, stream.ended_at - stream.created_at)) : "";
  const cells = [
    el("td", {}, el("a", { href: `#${id}`, title: id, "aria-label": `Stream ${short(id)}` }, shortNode(id))),
    el("td", {}, new Date(stream.created_at * 1000).toLocaleString()),
    el("td", {}, el("span", { class: `chip ${stream.status}` }, stream.status)),
    el("td", { class: "mid cut" }, stream.model ?? ""),
    el("td", { class: "mid cut" }, stream.owner),
    el("td", { class: "vast cut metadata", title: metadata }, metadata),
    el("td", { class: "number" }, count(stream.generated_tokens)),
    el("td", { class: "number wide" }, stream.delivered_tokens === null ? "" : count(stream.delivered_tokens)),
    el("td", { class: "number mid" }, took),
    el("td", { class: "wide" }, stream.archived ? "archive" : "Redis"),
  ];
  return el("tr", { "data-id": id }, ...cells);
}
