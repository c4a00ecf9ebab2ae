// The conformance suite of Durable Streams, with its requests spread over several gateways, in turn.
import { runConformanceTests } from "@durable-streams/server-conformance-tests";

const gateways = process.env.GATEWAYS.split(" ");
const fetchFrom = globalThis.fetch;
let requests = 0;
globalThis.fetch = (url, options) => {
  const gateway = gateways[requests++ % gateways.length];
  return fetchFrom(String(url).replace(gateways[0], gateway), options);
};

runConformanceTests({ baseUrl: gateways[0], longPollTimeoutMs: Number(process.env.LONG_POLL_MS) });
