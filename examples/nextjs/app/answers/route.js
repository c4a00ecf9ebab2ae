import { gateway, passOn } from "../gateway";

export async function POST(request) {
  const { question } = await request.json(); // check here who asks, and note whose answer it is
  return passOn(await gateway("", { method: "POST", body: JSON.stringify({ messages: [{ role: "user", content: question }] }) }));
}
