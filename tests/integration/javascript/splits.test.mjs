// However bytes are split and wherever a connection is cut, nothing is lost and nothing comes twice.
import assert from "node:assert/strict";
import test from "node:test";
import { collect, dice, EXPECTED, hurried, plain, recordedAfter, scripted, split, streaming, withIds } from "./support.mjs";

const SPLITS = 10_000;
const SEED = Number(process.env.SEED ?? 1);

const whole = recordedAfter("");
/** The forms that the standard allows for one stream. In the JSON of the events no line end stands unescaped. */
const FORMS = ["\n", "\r\n", "\r"].map((end) => Buffer.from("\ufeff" + whole.toString().replaceAll("\n", end)));

test("10,000 random splits", async () => {
  const random = dice(SEED);
  const expected = JSON.stringify([EXPECTED, []]);
  for (let round = 0; round < SPLITS; round++) {
    const form = FORMS[round % FORMS.length];
    const places = Array.from({ length: 1 + Math.floor(random() * 12) }, () => Math.floor(random() * form.length)).sort((a, b) => a - b);
    const { events, lost } = await collect({ fetch: async () => plain(split(form, places)) });
    assert.equal(JSON.stringify([withIds(events), lost]), expected, `SEED=${SEED}, round ${round}, places ${places}`);
  }
});

test("byte by byte", async () => {
  for (const form of FORMS) {
    const { events } = await collect({ fetch: scripted(() => streaming([...form].map((byte) => Uint8Array.of(byte)))) });
    assert.deepEqual(withIds(events), EXPECTED);
  }
});

for (const end of ["close", "cut"])
  test(`cut at every byte (${end})`, async () => {
    const cutAt = async (place) => {
      const fetch = scripted(
        () => streaming([whole.subarray(0, place)], { end }),
        ({ headers }) => streaming([recordedAfter(headers["last-event-id"])]),
      );
      const { events, lost } = await collect({ fetch });
      assert.deepEqual(withIds(events), EXPECTED, `cut at ${place}`);
      assert.equal(lost.length, fetch.requests.length - 1);
    };
    await hurried(() => Promise.all([...whole.keys()].map(cutAt)));
  });

test("cut after each next byte, at every connection", async () => {
  let place = 0;
  const fetch = scripted(({ headers }) => streaming([recordedAfter(headers["last-event-id"]).subarray(0, ++place)], { end: "cut" }));
  await hurried(async () => assert.deepEqual(withIds((await collect({ fetch })).events), EXPECTED));
});

test("a server that begins again with what the client has", async () => {
  const fetch = scripted(() => streaming([whole.subarray(0, 700)], { end: "cut" }), () => streaming([whole]));
  assert.deepEqual(withIds((await collect({ fetch })).events), EXPECTED);
});

test("each rule of the standard", async () => {
  const body =
    ": a comment\nid: 1-1\ndata: {\ndata:\"token\":\ndata:  \"a\"}\nunknown: x\n\n" + // several data lines; one space is taken off
    "data\n\n" + // one empty data line: an event
    "event: named\n\n" + // no data: no event, and its name is forgotten
    "id: 1-3\nid: 1-8\0\ndata: {\"token\":\"b\"}\n\n" + // an id with NUL is ignored
    "id: 1-4\n\n" + // no event, but an id
    "retry: 1\nretry: 0x\nretry\nretry: 1e9\nevent:own\ndata: not JSON\n\n" +
    "id: 1-9\ndata: {\"token\":\"not dispatched\"}\n";
  const fetch = scripted(() => streaming([body]), () => streaming(['id: 1-5\nevent: failed\ndata: {"code":"log_full"}\n\n']));
  const { events, lost } = await collect({ fetch });
  assert.equal(fetch.requests[1].headers["last-event-id"], "1-4");
  assert.ok(lost[0].wait_ms <= 1.5, "retry: 1");
  assert.deepEqual(
    events.map(({ type, id, name, data, text, code }) => [type, id, name ?? code, data, text]),
    [
      ["token", "1-1", undefined, undefined, "a"],
      ["event", undefined, "message", "", "a"],
      ["token", "1-3", undefined, undefined, "ab"],
      ["event", undefined, "own", "not JSON", "ab"],
      ["failed", "1-5", "log_full", undefined, "ab"],
    ],
  );
});

test("a long line in small pieces is read in linear time; one without an end is given up", async () => {
  const piece = "x".repeat(1024);
  const long = ['id: 1-1\ndata: {"token":"', ...Array(8192).fill(piece), '"}\n\n', "id: 1-2\nevent: done\ndata: {}\n\n"];
  const { text } = await collect({ fetch: scripted(() => streaming(long)) });
  assert.equal(text.length, 8192 * 1024);
  for (const endless of ["", "\ndata: "]) {
    const flood = new ReadableStream({ pull: (controller) => controller.enqueue(Buffer.from(endless + "x".repeat(1 << 20))) });
    const fetch = scripted(() => new Response(flood, { headers: { "content-type": "text/event-stream" } }));
    await assert.rejects(collect({ fetch }), { name: "StreamError", message: "event too long", retryable: false });
  }
});
