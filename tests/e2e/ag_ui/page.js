// A page with one thread. After a reload it goes on with the thread's run.
import { MidstreamAgent } from "../../../examples/ag-ui/midstream_agent.js";

const messages = [{ id: "q", role: "user", content: "Tell me about rivers." }];
window.seen = [];
const headers = { Authorization: `Bearer ${new URLSearchParams(location.search).get("key")}` };
window.agent = new MidstreamAgent({ url: "/v1/streams", threadId: "thread-1", initialMessages: messages, headers });
const subscriber = { onEvent: ({ event }) => void seen.push(event.type), onRunErrorEvent: ({ event }) => (window.failure = event.code) };
const ended = (promise) => promise.then(() => (window.ended = true), (error) => (window.ended = String(error)));
window.start = () => ended(agent.runAgent({}, subscriber));
window.resume = () => ended(agent.connectAgent({}, subscriber));
window.text = () => agent.messages.filter(({ role }) => role === "assistant").map(({ content }) => content ?? "").join("");
