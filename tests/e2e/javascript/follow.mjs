// follow.mjs URL OPTIONS: prints each event of a stream as a line of JSON.
import process from "node:process";
import { follow } from "../../../clients/js/midstream.js";

for await (const event of follow(process.argv[2], JSON.parse(process.argv[3]))) console.log(JSON.stringify({ ...event, error: event.error?.message }));
