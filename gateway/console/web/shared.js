// One connection to the gateway for all tabs, in a SharedWorker. The browser ends it with the last tab.

import { Feed } from "./feed.js";

const ports = new Set(); // the port of a crashed tab stays, which does no harm
const feed = new Feed((news) => ports.forEach((port) => port.postMessage(news)));

self.onconnect = ({ ports: [port] }) => {
  port.onmessage = ({ data }) => {
    if (data === "bye") ports.delete(port);
    else {
      ports.add(port);
      feed.known().forEach((news) => port.postMessage(news));
    }
  };
};
