// All tabs' one connection to the gateway. The browser ends it with the last tab; which tab opened it does not matter.

import { Feed } from "./feed.js";

const ports = new Set(); // of a tab that crashed, one stays, and takes nothing
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
