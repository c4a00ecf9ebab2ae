// node eventsource.mjs PACKAGE: an EventSource with no code of its own beside listeners, until it has given up for good. The URL
// comes as a line of standard input, so that the answer may begin when Node.js has started.
import { createInterface } from 'node:readline/promises';

const module = await import(process.argv[2]);
const EventSource = module.EventSource ?? module.default;

const print = (value) => console.log(JSON.stringify(value));
const input = createInterface({ input: process.stdin });
print({ ready: true });
const source = new EventSource(await input.question(''));
input.close();
const named = ['started', 'restarted', 'done', 'failed', 'cancelled', 'live', 'gap'];
source.onopen = () => print({ opened: true });
for (const event of ['message', ...named])
  source.addEventListener(event, (one) => print({ id: one.lastEventId, event, data: one.data }));
source.onerror = (error) => {
  const status = error.code ?? error.status;
  if (source.readyState === EventSource.CLOSED || status === 204) print({ closed: true, status }); // version 2 closes next
};
