// What all routes share: where Midstream is, and what is passed on of its answers.
const GATEWAY = process.env.MIDSTREAM_URL ?? "http://127.0.0.1:8000";
const PASSED = ["content-type", "cache-control", "x-accel-buffering"]; // with cache-control's no-transform, Next.js compresses nothing

export const gateway = (path, init) => fetch(`${GATEWAY}/v1/streams${path}`, { cache: "no-store", ...init });

export function passOn(answer) {
  const headers = PASSED.filter((name) => answer.headers.has(name)).map((name) => [name, answer.headers.get(name)]);
  return new Response(answer.body, { status: answer.status, headers });
}
