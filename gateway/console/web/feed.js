// Gets snapshots of all streams and processes, one a second, from the gateway, and the numbers of the last two minutes.
// A browser opens only six connections to a host: so all tabs share one, in a SharedWorker (shared.js), if the browser has that.

const SILENT_MS = 5000; // a snapshot comes each second
const DEAD_MS = 15000; // a connection that is silent for so long is closed
const REOPEN_MS = 3000;
const SAMPLES_SECONDS = 125;
const STARTED_MS = 5000; // if the shared worker is silent for so long, the page connects by itself

const sampleOf = ({ time, readers, streams, per_second, lag }) => ({ time, readers, per_second, lag, streams: { running: streams.running, waiting: streams.waiting } });

/** Follows the overview, and calls `tell` with { history } (an array of samples), { snapshot, sample } or { link: [state, text] }. */
export class Feed {
  #tell;
  #source = null;
  #heardAt = 0;
  #samples = [];
  #snapshot = null;
  #link = ["", "connecting"];
  #timer;

  constructor(tell) {
    this.#tell = tell;
    this.#open();
    this.#timer = setInterval(() => this.#look(), 1000);
  }

  /** Returns everything that a page needs which subscribes later. */
  known() {
    const sample = this.#snapshot && sampleOf(this.#snapshot);
    return [{ link: this.#link }, { history: this.#samples }, ...(sample ? [{ snapshot: this.#snapshot, sample }] : [])];
  }

  close() {
    clearInterval(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #open() {
    this.#source?.close();
    const source = (this.#source = new EventSource(new URL("../v1/overview/events?history=1", import.meta.url)));
    this.#heardAt = performance.now();
    source.addEventListener("history", ({ data }) => {
      this.#samples = JSON.parse(data);
      this.#tell({ history: this.#samples });
    });
    source.onmessage = ({ data }) => {
      this.#heardAt = performance.now();
      this.#snapshot = JSON.parse(data);
      const sample = sampleOf(this.#snapshot);
      this.#samples = [...this.#samples.filter(({ time }) => time < sample.time && time > sample.time - SAMPLES_SECONDS), sample];
      this.#say("live", "live");
      this.#tell({ snapshot: this.#snapshot, sample });
    };
    source.onerror = () => {
      if (source !== this.#source) return;
      this.#say("lost", "connection lost; trying again");
      if (source.readyState === EventSource.CLOSED) setTimeout(() => source === this.#source && this.#open(), REOPEN_MS);
    };
  }

  #look() {
    const silent = performance.now() - this.#heardAt;
    if (silent > SILENT_MS) this.#say("lost", "no data; trying again");
    if (silent > DEAD_MS && this.#source?.readyState !== EventSource.CONNECTING) this.#open();
  }

  #say(...link) {
    if (link.join() === this.#link.join()) return;
    this.#link = link;
    this.#tell({ link });
  }
}

/** Calls `tell` with all news: from the connection that all tabs share, or else from one of this page's own. */
export function subscribe(tell) {
  let own = null;
  let port = null;
  let heard = false;

  function alone() {
    if (own) return;
    port?.postMessage("bye");
    port?.close();
    port = null;
    own = new Feed(tell);
    own.known().forEach(tell);
  }

  try {
    const worker = new SharedWorker(new URL("shared.js", import.meta.url), { type: "module", name: "midstream" });
    worker.onerror = () => heard || alone();
    port = worker.port;
    port.onmessage = ({ data }) => {
      heard = true;
      if (!own) tell(data);
    };
    port.postMessage("here");
    setTimeout(() => heard || alone(), STARTED_MS);
  } catch {
    alone(); // this browser has no SharedWorker, or forbids it
  }
  addEventListener("pagehide", () => port?.postMessage("bye"));
  addEventListener("pageshow", ({ persisted }) => persisted && port?.postMessage("here")); // from the back-forward cache
}
