"""Code that the tests of the Responses API share: scripts for the provider, and results of OpenAI's client."""

from __future__ import annotations

from typing import Any

import openai

TEXT = ["Grü", "ße", ' "quoted"\n\n', " \u2028", " data: [DONE]", " 😀"]
SLOW = {"tokens": 60, "tokens_per_second": 40}
ENDLESS = {"tokens": 100_000, "tokens_per_second": 50}
CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city":"Zürich 😀"}'},
}


async def create(client: openai.AsyncOpenAI, script: dict[str, Any], **more: Any) -> Any:
    given = {"model": "some-model", "input": "say something", "extra_body": {"script": script}, **more}
    return await client.responses.create(**given)


async def all_of(stream: Any) -> list[Any]:
    events = [event async for event in stream]
    assert events == [type(event).model_validate(event.to_dict()) for event in events]
    return events


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")
