// node ndjson.mjs URL: lines of JSON with fetch and nothing else. A connection that ends early is opened again.
const print = (value) => console.log(JSON.stringify(value));
const terminal = ['done', 'failed', 'cancelled'];
let lastId = process.argv[3] ?? '', retry = 100, ended = false;

while (!ended) {
  try {
    const headers = { accept: 'application/x-ndjson', ...(lastId && { 'last-event-id': lastId }) };
    const response = await fetch(process.argv[2], { headers });
    print({ status: response.status, type: response.headers.get('content-type') });
    if (response.status === 204) break;
    let buffered = '';
    for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
      const lines = (buffered + text).split('\n');
      buffered = lines.pop();
      for (const line of lines) {
        const one = JSON.parse(line); // every line, without a look at whether there is anything in it
        print(one);
        lastId = one.id ?? lastId;
        if (one.event === 'retry') retry = one.data.milliseconds;
        ended ||= terminal.includes(one.event);
      }
    }
    if (buffered.trim()) print({ cut: buffered });
  } catch (error) {
    print({ error: error.cause?.code ?? String(error) });
  }
  if (!ended) await new Promise((go) => setTimeout(go, retry));
}
