"""An OpenAI-compatible server that answers each request with a recorded body, byte by byte: the model names which.

async with ReplayServer() as server:
    server.url                                      # what OPENAI_BASE_URL wants
    "model": "openai-refusal"                       # in a request: tests/recordings/openai-refusal.txt
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

RECORDINGS = Path(__file__).resolve().parents[1] / "recordings"


def recorded() -> list[str]:
    """The names of all recordings."""
    return sorted(one.stem for one in RECORDINGS.glob("*.txt"))


@dataclass
class Said:
    """What a recording says, put together chunk by chunk in the plainest way; None: of this a face may say nothing."""

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
    """Deltas, as the Chat Completions API has them, added up."""

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

    def said(self, finish_reason: str | None, usage: dict[str, Any] | None) -> Said:
        calls = [(name, function, arguments) for _, (name, function, arguments) in sorted(self.calls.items())]
        tokens = None if usage is None else (usage["prompt_tokens"], usage["completion_tokens"])
        return Said(self.text, self.reasoning, self.refusal, calls, finish_reason, tokens)


def said_in(name: str) -> Said:
    gathering, finish_reason, usage = Gathering(), None, None
    for line in (RECORDINGS / f"{name}.txt").read_text().splitlines():
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            gathering.add(choice["delta"])
            finish_reason = choice["finish_reason"] or finish_reason
    return gathering.said(finish_reason, usage)


class ReplayServer:
    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.partition("content-length:")[2].split()[0])
            name = json.loads(await reader.readexactly(length))["model"]
            body = (RECORDINGS / f"{name}.txt").read_bytes()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            for place in range(len(body)):
                writer.write(body[place : place + 1])
                await writer.drain()
                await asyncio.sleep(0)  # a turn of the loop: each byte is a write of its own
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client left
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
