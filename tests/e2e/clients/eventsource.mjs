// node eventsource.mjs URL [PACKAGE]: an EventSource with no code of its own beside listeners, until it has given up for good.
const module = await import(process.argv[3] ?? 'eventsource');
const EventSource = module.EventSource ?? module.default;

const print = (value) => console.log(JSON.stringify(value));
const source = new EventSource(process.argv[2]);
const named = ['started', 'restarted', 'done', 'failed', 'cancelled', 'live', 'gap'];
source.onopen = () => print({ opened: true });
for (const event of ['message', ...named])
  source.addEventListener(event, (one) => print({ id: one.lastEventId, event, data: one.data }));
source.onerror = (error) => {
  const status = error.code ?? error.status;
  if (source.readyState === EventSource.CLOSED || status === 204) print({ closed: true, status }); // version 2 closes next
};
