// cuts.mjs URL: follows an ended stream through a proxy that cuts the gateway's response after 0, 1, 2 … bytes, its head included.
// Each time the events must be those of the whole response. Prints { bytes, requests, wrong }.
import { once } from "node:events";
import net from "node:net";
import process from "node:process";
import { follow } from "../../../clients/js/midstream.js";

const AT_ONCE = 200; // a third of them wait a second, since the cut came before `retry:`
const target = new URL(process.argv[2]);
const cut = new Set();
let requests = 0;

const proxy = net.createServer((near) => {
  const far = net.connect(Number(target.port), target.hostname);
  let left = Infinity; // bytes of the response that still get through
  near.on("error", () => {}).on("close", () => far.destroy());
  far.on("error", () => {}).on("close", () => near.end());
  near.on("data", (request) => {
    requests += 1;
    const place = /[?&]cut=(\d+)/.exec(request.toString("latin1"))?.[1];
    left = place === undefined || cut.has(place) ? Infinity : Number(place);
    cut.add(place);
    far.write(request);
    if (left === 0) near.destroy();
  });
  far.on("data", (response) => {
    if (response.length < left) near.write(response);
    else near.end(response.subarray(0, left)), far.destroy();
    left -= response.length;
  });
});
proxy.listen(0, "127.0.0.1");
await once(proxy, "listening");

async function read(query) {
  const events = [];
  for await (const { type, id, text } of follow(`http://127.0.0.1:${proxy.address().port}${target.pathname}${query}`)) if (id) events.push([type, id, text]);
  return JSON.stringify(events);
}

const bytes = await new Promise((resolve) => {
  const socket = net.connect(Number(target.port), target.hostname, () => socket.write(`GET ${target.pathname} HTTP/1.1\r\nHost: ${target.host}\r\nConnection: close\r\n\r\n`));
  let length = 0;
  socket.on("data", (data) => (length += data.length)).on("close", () => resolve(length));
});
const whole = await read("");
const wrong = [];
let place = 0;
const work = async () => {
  while (place < bytes) {
    const mine = place++;
    const events = await read(`?cut=${mine}`);
    if (events !== whole) wrong.push([mine, events]);
  }
};
await Promise.all(Array.from({ length: AT_ONCE }, work));
console.log(JSON.stringify({ bytes, requests, whole: JSON.parse(whole), wrong: wrong.slice(0, 3) }));
process.exit(0);
