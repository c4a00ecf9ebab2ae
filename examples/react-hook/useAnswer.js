import { useCallback, useEffect, useState } from "react";
import { cancel, create, follow } from "../../clients/js/midstream.js";

/**
 * One answer at a time: `const { text, status, error, url, ask, stop } = useAnswer("/v1/streams");`
 * `status`: idle, waiting, streaming, lost (it comes back by itself), done, truncated, failed, cancelled.
 * `url`: keep it, and give it as `first` after a reload, to go on with the same answer.
 */
export function useAnswer(streams, { first = "", ...options } = {}) {
  const [url, setUrl] = useState(first);
  const [answer, setAnswer] = useState({ text: "", status: "idle" });

  useEffect(() => {
    if (!url) return undefined;
    const leaving = new AbortController();
    const fails = (error) => leaving.signal.aborted || setAnswer((had) => ({ ...had, status: "failed", error }));
    const read = async () => {
      for await (const event of follow(url, { ...options, signal: leaving.signal })) {
        const plain = ["lost", "done", "failed", "cancelled"].includes(event.type) ? event.type : "streaming";
        setAnswer({ text: event.text, status: event.truncated ? "truncated" : plain, error: event.type === "failed" ? event : undefined });
      }
    };
    read().catch(fails);
    return () => leaving.abort();
  }, [url]);

  const ask = useCallback(async (request) => {
    setUrl("");
    setAnswer({ text: "", status: "waiting" });
    const fails = (error) => setAnswer({ text: "", status: "failed", error });
    await create(streams, request, options).then((created) => setUrl(created.url), fails);
  }, [streams]);

  return { ...answer, url, ask, stop: () => url && cancel(url, options) };
}
