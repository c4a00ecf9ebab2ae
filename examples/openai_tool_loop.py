# mypy: ignore-errors
"""An agent that calls tools, with OpenAI's SDK: midstream up --provider examples.openai_tool_loop:answer

Each step is noted as an event: a worker that takes over goes on behind the last one, and calls no tool again.
"""

import json

from openai import AsyncOpenAI

TOOLS = {"weather": lambda city: f"18 degrees and rain in {city}"}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
OFFERED = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
client = AsyncOpenAI()


async def answer(request, so_far):
    model, messages = request["model"], request["messages"] + [event["data"] for event in so_far.events]
    text = so_far.items[-1] if so_far and isinstance(so_far.items[-1], str) else ""
    while True:
        results = {message.get("tool_call_id") for message in messages}
        for call in [call for message in messages for call in message.get("tool_calls") or ()]:
            if call["id"] not in results:
                result = TOOLS[call["function"]["name"]](**json.loads(call["function"]["arguments"]))
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
                yield {"event": "result", "data": messages[-1]}
        sent = [*messages, {"role": "assistant", "content": text}] if text else messages
        stream, calls = await client.chat.completions.create(model=model, messages=sent, tools=OFFERED, stream=True), {}
        async for delta in (choice.delta async for chunk in stream for choice in chunk.choices):
            text += delta.content or ""
            yield delta.content or ""
            for piece in delta.tool_calls or ():
                name = piece.function.name
                new = {"id": piece.id, "type": "function", "function": {"name": name, "arguments": ""}}
                calls.setdefault(piece.index, new)["function"]["arguments"] += piece.function.arguments or ""
        if not calls:
            return
        messages.append({"role": "assistant", "content": text, "tool_calls": list(calls.values())})
        text = ""
        yield {"event": "calls", "data": messages[-1]}
