# mypy: ignore-errors
"""An agent of OpenAI's Agents SDK that writes its own stream: python examples/openai_agents_writer.py "Will it rain?" """

import asyncio
import sys
from os import getenv

from agents import Agent, Runner, function_tool, set_default_openai_api, set_tracing_disabled

from midstream.client import AsyncClient

set_default_openai_api("chat_completions")  # for a server that has no Responses API; without this line it works, too
set_tracing_disabled(True)


@function_tool
def weather(city: str) -> str:
    """Returns the weather in a city."""
    return f"18 degrees and rain in {city}"


async def main(question, url, key):
    agent = Agent(name="weather", model="gpt-4o-mini", tools=[weather])
    async with AsyncClient(url, token=key) as client:
        stream = await client.create_external()
        print(stream.url, flush=True)
        async with client.write(stream.id) as answer:
            async for event in Runner.run_streamed(agent, question).stream_events():
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                    await answer.token(event.data.delta)
                elif event.type == "run_item_stream_event" and event.item.type == "tool_call_output_item":
                    await answer.event("tool", {"name": "weather", "result": event.item.output})


asyncio.run(main(sys.argv[1], getenv("MIDSTREAM_URL", "http://127.0.0.1:8000"), getenv("MIDSTREAM_API_KEY")))
