// followed(URL): event-source-polyfill with no code of its own beside listeners. Its promise holds all that was received.
import { EventSourcePolyfill } from 'event-source-polyfill';

globalThis.followed = (url) =>
  new Promise((resolve) => {
    const received = [];
    let connections = 0;
    const source = new EventSourcePolyfill(url);
    source.onopen = () => (connections += 1);
    for (const event of ['message', 'started', 'restarted', 'done', 'failed', 'cancelled', 'accepted', 'gap'])
      source.addEventListener(event, (one) => {
        received.push([one.lastEventId, event, one.data]);
        if (one.data !== '[DONE]' && !['done', 'failed', 'cancelled'].includes(event)) return;
        source.close();
        const urls = () => performance.getEntriesByType('resource').map((one) => one.name);
        setTimeout(() => resolve({ received, connections, urls: urls() }), 500); // the last request is listed once it is over
      });
  });
