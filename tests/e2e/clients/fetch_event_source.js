// followed(URL): as an application would follow a stream with this library. Its promise holds all that was received.
import { fetchEventSource } from '@microsoft/fetch-event-source';

class Again extends Error {}

globalThis.followed = async (url) => {
  const received = [];
  let ended = false, connections = 0;
  await fetchEventSource(url, {
    openWhenHidden: true,
    async onopen(response) {
      connections += 1;
      if (response.status === 204) ended = true; // there is nothing more
      else if (!response.ok) throw new Error(`status ${response.status}`);
    },
    onmessage(one) {
      received.push([one.id, one.event || 'message', one.data]);
      ended ||= ['done', 'failed', 'cancelled'].includes(one.event);
    },
    onclose() {
      if (!ended) throw new Again(); // the gateway sends its readers away now and then: come back
    },
    onerror(error) {
      if (!(error instanceof Again || error instanceof TypeError)) throw error; // a TypeError is the network's
    },
  });
  return { received, connections };
};
