// node eventsource.mjs URL: an EventSource with no code of its own beside listeners, until it has given up for good.
import { EventSource } from 'eventsource';

const print = (value) => console.log(JSON.stringify(value));
const source = new EventSource(process.argv[2]);
const named = ['started', 'restarted', 'done', 'failed', 'cancelled', 'live', 'gap'];
source.onopen = () => print({ opened: true });
for (const event of ['message', ...named])
  source.addEventListener(event, (one) => print({ id: one.lastEventId, event, data: one.data }));
source.onerror = (error) => {
  if (source.readyState === EventSource.CLOSED) print({ closed: true, status: error.code });
};
