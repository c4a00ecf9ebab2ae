// An AG-UI agent behind Midstream: `connect` goes on with a thread's run after a reload, `abortRun` stops it wherever it is generated.
import { HttpAgent } from "@ag-ui/client";
import { Observable } from "rxjs";
import { cancel, create, follow } from "../../clients/js/midstream.js";

export class MidstreamAgent extends HttpAgent {
  /** `url`: of /v1/streams. `storage` keeps which stream a thread's newest run is. The other options are HttpAgent's. */
  constructor({ storage = globalThis.localStorage, ...config }) {
    Object.assign(super(config), { storage });
  }
  run(input) {
    return this.events(async (options) => {
      const request = { messages: input.messages, ag_ui: input, midstream: { on_interrupt: "continue" } };
      const { url } = await create(this.url, request, { ...options, idempotencyKey: input.runId });
      this.storage.setItem(`ag-ui:${this.threadId}`, url);
      return url;
    });
  }
  connect() {
    return this.events(async () => this.storage.getItem(`ag-ui:${this.threadId}`));
  }
  async abortRun() {
    const url = this.storage.getItem(`ag-ui:${this.threadId}`);
    if (url) await cancel(url, { headers: this.headers }); // every reader then gets the end of the run
  }
  events(begin) {
    return new Observable((reader) => {
      const leaving = new AbortController(), options = { signal: leaving.signal, headers: this.headers };
      const read = async () => {
        const url = await begin(options);
        if (url) for await (const { type, name, data, code = type, message = type } of follow(url, options))
          if (name === "ag-ui") reader.next(data);
          else if (["failed", "cancelled"].includes(type)) reader.next({ type: "RUN_ERROR", message, code });
      };
      read().then(() => reader.complete(), (error) => reader.error(error));
      return () => leaving.abort();
    });
  }
}
