# mypy: ignore-errors
"""A Pydantic AI agent that writes its own stream: python examples/pydantic_ai_writer.py "Will it rain?" (pip install '.[frameworks]')"""

import asyncio
import sys
from os import getenv

from pydantic_ai import Agent, FunctionToolResultEvent, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta

from midstream.client import AsyncClient

agent = Agent("openai-chat:gpt-4o-mini")


@agent.tool_plain
def weather(city: str) -> str:
    """Returns the weather in a city."""
    return f"18 degrees and rain in {city}"


async def main(question, url, key):
    async with AsyncClient(url, token=key) as client:
        stream = await client.create_external()
        print(stream.url, flush=True)
        async with client.write(stream.id) as answer, agent.run_stream_events(question) as events:
            async for event in events:
                if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
                    await answer.token(event.part.content)
                elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
                    await answer.token(event.delta.content_delta)
                elif isinstance(event, FunctionToolResultEvent):
                    await answer.event("tool", {"name": event.part.tool_name, "result": event.part.content})


asyncio.run(main(sys.argv[1], getenv("MIDSTREAM_URL", "http://127.0.0.1:8000"), getenv("MIDSTREAM_API_KEY")))
