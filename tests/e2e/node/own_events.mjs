// OpenAI's own client for Node on an answer with events of a generator's own, which its accumulators must pass over.
import OpenAI from "openai";

const { baseURL } = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });

const told = { own: [] };
const chat = client.chat.completions.stream({ model: "steps", messages: [{ role: "user", content: "hello" }] });
chat.on("chunk", (chunk) => chunk.midstream && told.own.push(chunk.midstream));
told.text = (await chat.finalChatCompletion()).choices[0].message.content;

const response = client.responses.stream({ model: "steps", input: "hello" });
response.on("event", (event) => event.midstream && told.own.push(event.midstream));
told.outputText = (await response.finalResponse()).output_text;

console.log(JSON.stringify(told));
