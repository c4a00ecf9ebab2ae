"""An OpenAI-compatible server that answers each request with a recorded body, byte by byte: the model names which.

async with ReplayServer() as server:
    server.url                                      # what OPENAI_BASE_URL wants
    "model": "openai-refusal"                       # in a request: tests/recordings/openai-refusal.txt
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.http_server import Closed, HttpServer, Request, head

RECORDINGS = Path(__file__).resolve().parents[1] / "recordings"
ODD: dict[str, dict[str, Any]] = json.loads((RECORDINGS / "odd" / "expected.json").read_bytes())
"""What the odd recordings mean: they cannot be merged in the simplest way."""


def recorded() -> list[str]:
    """Returns the names of all recordings."""
    return sorted([*(path.stem for path in RECORDINGS.glob("*.txt")), *ODD])


def body_of(name: str) -> bytes:
    return (RECORDINGS / ("odd" if name in ODD else ".") / f"{name}.txt").read_bytes()


@dataclass
class Content:
    """The content of a recording, merged chunk by chunk in the simplest way. None: a face need not show this field."""

    text: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    calls: list[tuple[str, str, str]] | None = None
    """(id, name, arguments) of each tool call, in the order of their indexes."""
    finish_reason: str | None = None
    usage: tuple[int, int] | None = None
    """Tokens of the prompt and of the answer."""


@dataclass
class Gathering:
    """The sum of deltas of the Chat Completions API."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)

    def add(self, delta: dict[str, Any]) -> None:
        self.text += delta.get("content") or ""
        self.reasoning += delta.get("reasoning_content") or ""
        self.refusal += delta.get("refusal") or ""
        for call in delta.get("tool_calls") or ():
            known = self.calls.setdefault(call["index"], ["", "", ""])
            function = call.get("function") or {}
            for place, piece in enumerate((call.get("id"), function.get("name"), function.get("arguments"))):
                known[place] += piece or ""

    def content(self, finish_reason: str | None, usage: dict[str, Any] | None) -> Content:
        calls = [(name, function, arguments) for _, (name, function, arguments) in sorted(self.calls.items())]
        tokens = None if usage is None else (usage["prompt_tokens"], usage["completion_tokens"])
        return Content(self.text, self.reasoning, self.refusal, calls, finish_reason, tokens)


def content_of(name: str) -> Content:
    if name in ODD:
        odd = ODD[name]
        calls = [(call_id, function, arguments) for call_id, function, arguments in odd["calls"]]
        prompt_tokens, answer_tokens = odd["usage"]
        usage_tokens = (prompt_tokens, answer_tokens)
        return Content(odd["text"], odd["reasoning"], odd["refusal"], calls, odd["finish_reason"], usage_tokens)
    gathering, finish_reason, usage = Gathering(), None, None
    for line in (RECORDINGS / f"{name}.txt").read_text().splitlines():
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            gathering.add(choice["delta"])
            finish_reason = choice["finish_reason"] or finish_reason
    return gathering.content(finish_reason, usage)


class ReplayServer(HttpServer):
    @property
    def url(self) -> str:
        return f"{self.origin}/v1"

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = body_of(json.loads(request.body)["model"])
        writer.write(head(200, {"content-type": "text/event-stream", "connection": "close"}))
        for place in range(len(body)):
            writer.write(body[place : place + 1])
            await writer.drain()
            await asyncio.sleep(0)  # a turn of the loop: each byte is a write of its own
        raise Closed
