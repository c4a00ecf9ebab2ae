# mypy: ignore-errors
"""A tool loop with Anthropic's SDK that writes its own stream: python examples/anthropic_writer.py "Will it rain?" """

import asyncio
import sys
from os import getenv

from anthropic import AsyncAnthropic

from midstream.client import AsyncClient

TOOLS = {"weather": lambda city: f"18 degrees and rain in {city}"}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OFFERED = [{"name": "weather", "description": "Returns the weather in a city.", "input_schema": CITY}]


async def main(question, url, key):
    model, messages = AsyncAnthropic(), [{"role": "user", "content": question}]
    request = {"model": "claude-sonnet-4-5", "max_tokens": 1000, "tools": OFFERED, "messages": messages}
    async with AsyncClient(url, token=key) as client:
        stream = await client.create_external()
        print(stream.url, flush=True)
        async with client.write(stream.id) as answer:
            while True:
                async with model.messages.stream(**request) as reply:
                    async for text in reply.text_stream:
                        await answer.token(text)
                    message = await reply.get_final_message()
                results = []
                for call in [block for block in message.content if block.type == "tool_use"]:
                    result = TOOLS[call.name](**call.input)
                    await answer.event("tool", {"name": call.name, "result": result})
                    results.append({"type": "tool_result", "tool_use_id": call.id, "content": result})
                if not results:
                    break
                messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]


asyncio.run(main(sys.argv[1], getenv("MIDSTREAM_URL", "http://127.0.0.1:8000"), getenv("MIDSTREAM_API_KEY")))
