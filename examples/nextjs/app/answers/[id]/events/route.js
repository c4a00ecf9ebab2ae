import { gateway, passOn } from "../../../gateway";

const COME_BACK = () => new Response("retry: 1000\n\n", { headers: { "content-type": "text/event-stream" } });

export async function GET(request, { params }) {
  const { id } = await params; // check here whose answer it is
  const last = request.headers.get("last-event-id");
  const headers = { accept: "text/event-stream", ...(last && { "last-event-id": last }) };
  try {
    const answer = await gateway(`/${encodeURIComponent(id)}/events`, { headers, signal: request.signal }); // who leaves is noticed
    return answer.status < 500 ? passOn(answer) : COME_BACK();
  } catch {
    return COME_BACK(); // an error status would end the browser's EventSource for good
  }
}
