// Compiled by test_its_types, never run: `@ts-expect-error` fails where the next line is no mistake.
import { cancel, create, follow, receipt, state, StreamError } from "./midstream.js";
import type { End, FollowOptions, StreamEvent } from "./midstream.js";

const options: FollowOptions = { after: "1-2", storage: localStorage, token: async (refused) => (refused ? "fresh" : "kept"), fetch };

export async function everything(): Promise<End | undefined> {
  const { url } = await create("/v1/streams", { messages: [], temperature: 1, midstream: { on_interrupt: "continue" } }, { idempotencyKey: "k" });
  for await (const event of follow(url, options)) {
    const text: string = event.text;
    switch (event.type) {
      case "token":
        console.log(event.token, text);
        break;
      case "delta":
        console.log(event.delta.tool_calls, event.index);
        break;
      case "event":
        console.log(event.name, event.data);
        break;
      case "lost":
        console.log(event.error.message, event.wait_ms);
        break;
      case "restarted":
      case "gap":
      case "started":
      case "live":
        break;
      default:
        return event;
    }
    // @ts-expect-error: there is no such type of event
    if (event.type === "finished") return undefined;
  }
  await cancel(new URL(url), { signal: AbortSignal.timeout(1) });
  console.log((await receipt(url)).undelivered_tokens, (await state(url, { waitSeconds: 30 })).error?.code);
  // @ts-expect-error: a request has messages
  await create("/v1/streams", {});
  return undefined;
}

export const cutOff = (event: StreamEvent) => event.type === "done" && event.truncated;
export const gone = (error: unknown) => error instanceof StreamError && error.status === 410;
