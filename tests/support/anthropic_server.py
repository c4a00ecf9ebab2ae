"""A small server of Anthropic's Messages API, streaming: a model that calls `weather` for one city after the other."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.support.http_server import HttpServer, Request, response
from tests.support.tool_model import CITIES, LAST_WORDS


class AnthropicServer(HttpServer):
    """POST /v1/messages. The answer follows from how many tool results it is given, as `ToolModel`'s does."""

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert request.path == "/v1/messages", request.path
        body = json.loads(request.body)
        assert body["stream"], "only streamed answers"
        blocks = [block for message in body["messages"] for block in message["content"] if isinstance(block, dict)]
        results = sum(block["type"] == "tool_result" for block in blocks)
        events = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in _events(results)]
        writer.write(response(200, "text/event-stream", "".join(events).encode()))


def _events(results: int) -> list[dict[str, Any]]:
    """Returns the events of one message (docs of Anthropic's API, "Streaming messages")."""
    usage = {"input_tokens": 3, "output_tokens": 1}
    message = {"id": "msg", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}
    texts = LAST_WORDS if results == len(CITIES) else ["Let ", "me ", "look."]
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}} for text in texts),
        {"type": "content_block_stop", "index": 0},
    ]
    if results < len(CITIES):
        block = {"type": "tool_use", "id": f"call_{results}", "name": "weather", "input": {}}
        pieces = json.dumps({"city": CITIES[results]})
        halves = pieces[:7], pieces[7:]
        events += [
            {"type": "content_block_start", "index": 1, "content_block": block},
            *(
                {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": half}}
                for half in halves
            ),
            {"type": "content_block_stop", "index": 1},
        ]
    stop = {"stop_reason": "tool_use" if results < len(CITIES) else "end_turn", "stop_sequence": None}
    return [*events, {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 9}}, {"type": "message_stop"}]
