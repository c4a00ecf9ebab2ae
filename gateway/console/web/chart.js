// Lines over the last two minutes, drawn as SVG: the style sheet colours them, in light and in dark.

import { el } from "./lib.js";

const SECONDS = 120;
const GAP_SECONDS = 10; // a longer gap between samples interrupts the line; an unwatched gateway samples every 2 to 8 s
const HEIGHT = 130;
const TOP = 8;
const BOTTOM = 20;
const RIGHT = 44;

function drawn(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Rounds up to one of 1, 2, 4, 10, 20, 40, …: half of each is a round number, too. */
function roundUp(number) {
  const power = 10 ** Math.floor(Math.log10(number));
  return [1, 2, 4, 10].find((step) => step * power >= number) * power;
}

export class Chart {
  #samples = [];
  #names;
  #least;
  #format;
  #svg = drawn("svg", { role: "img" });
  #values;
  #title;

  /** `least`: the least upper end of the scale; `format`: turns a value into text. */
  constructor(title, names, { least, format }) {
    this.#title = title;
    this.#names = names;
    this.#least = least;
    this.#format = format;
    this.#values = names.map(() => el("b"));
    const legend = names.map((name, index) => el("li", {}, `${name} `, this.#values[index]));
    this.figure = el("figure", {}, el("figcaption", {}, el("h2", {}, title), el("ul", { class: "legend" }, ...legend)), this.#svg);
    new ResizeObserver(() => this.#draw()).observe(this.#svg);
  }

  /** Replaces all samples. A sample has `time` in seconds and `values`: one for each name, undefined if there is none. */
  set(samples) {
    this.#samples = [...samples];
    this.#show();
  }

  /** Adds a sample, unless it is not newer than the newest one. */
  add(time, values) {
    if (this.#samples.length && this.#samples.at(-1).time >= time) return;
    this.#samples.push({ time, values });
    while (this.#samples[0].time < time - SECONDS - GAP_SECONDS) this.#samples.shift();
    this.#show();
  }

  #show() {
    const values = this.#samples.at(-1)?.values ?? [];
    this.#values.forEach((node, index) => (node.textContent = values[index] === undefined ? "–" : this.#format(values[index])));
    this.#draw();
  }

  #draw() {
    const width = this.#svg.clientWidth;
    const last = this.#samples.at(-1);
    if (!width || !last) return;
    const most = Math.max(this.#least, ...this.#samples.flatMap(({ values }) => values.filter((value) => value !== undefined)));
    const top = roundUp(most);
    const x = (time) => (width - RIGHT) * (1 - (last.time - time) / SECONDS);
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
    const parts = [];
    for (const value of [0, top / 2, top]) {
      parts.push(drawn("line", { class: "grid", x1: 0, x2: width - RIGHT, y1: y(value), y2: y(value) }));
      parts.push(drawn("text", { x: width - RIGHT + 6, y: y(value) + 4 }, this.#format(value)));
    }
    for (const [seconds, text, anchor] of [[SECONDS, "2 min ago", "start"], [SECONDS / 2, "1 min", "middle"], [0, "now", "end"]])
      parts.push(drawn("text", { x: x(last.time - seconds), y: HEIGHT - 4, "text-anchor": anchor }, text));
    this.#names.forEach((_, index) => {
      for (const run of this.#runs(index)) {
        const points = run.map(([time, value]) => `${Math.max(0, x(time)).toFixed(1)},${y(value).toFixed(1)}`);
        if (index === 0 && run.length > 1) {
          const corners = [`${Math.max(0, x(run[0][0])).toFixed(1)},${y(0)}`, ...points, `${x(run.at(-1)[0]).toFixed(1)},${y(0)}`];
          parts.push(drawn("polygon", { class: "area", points: corners.join(" ") }));
        }
        parts.push(drawn("polyline", { class: `series s${index}`, points: (points.length > 1 ? points : [points[0], points[0]]).join(" ") }));
      }
    });
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.#svg.setAttribute("aria-label", `${this.#title}: ${this.#names.map((name, index) => `${name} ${this.#values[index].textContent}`).join(", ")}`);
    this.#svg.replaceChildren(...parts);
  }

  /** Yields the pieces of one series that have no gap. */
  *#runs(index) {
    let run = [];
    for (const { time, values } of this.#samples) {
      const value = values[index];
      if (run.length && (value === undefined || time - run.at(-1)[0] > GAP_SECONDS)) {
        yield run;
        run = [];
      }
      if (value !== undefined) run.push([time, value]);
    }
    if (run.length) yield run;
  }
}
