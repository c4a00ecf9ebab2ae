// The reference server of Durable Streams, in memory, for `python -m bench.appends`.
import { createRequire } from "node:module";

const { DurableStreamTestServer } = createRequire(`${process.argv[2]}/`)("@durable-streams/server");
const server = new DurableStreamTestServer({ port: 0, host: "127.0.0.1" });
console.log(await server.start());
