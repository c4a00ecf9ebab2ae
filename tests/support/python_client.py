"""midstream.client for tests: a recorded stream in which everything happens, a scripted gateway, and both faces used alike.

gateway = Scripted(broken, lambda request: refused(503), rest)
collected = await Face("async", gateway).follow()
collected.text, collected.lost, gateway.requests
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2

from midstream.client import AsyncClient, Client, Lost, StreamEvent

Kind = Literal["sync", "async"]
KINDS: tuple[Kind, ...] = ("sync", "async")
SERVER = "http://gateway.test"
STREAM = "s1"
DONE = {"finish_reason": "stop", "truncated": False, "usage": None}

_GRUESSE = "Grüße 👋🏽"
EVERYTHING: list[tuple[str, str, Any, str]] = [
    ("1-0", "started", {"attempt": 1, "model": "m"}, ""),
    ("1-1", "message", {"token": "Grüße"}, "Grüße"),
    ("1-2", "message", {"token": " 👋🏽"}, _GRUESSE),
    ("1-3", "message", {"delta": {"content": ",\u2028x"}}, f"{_GRUESSE},\u2028x"),
    ("1-4", "message", {"delta": {"content": "another choice"}, "index": 1}, f"{_GRUESSE},\u2028x"),
    ("1-5", "tool", {"call": 7}, f"{_GRUESSE},\u2028x"),
    ("1-6", "message", {"token": " lost"}, f"{_GRUESSE},\u2028x lost"),
    ("2-0", "restarted", {"attempt": 2, "base": 2, "reason": "worker_lost"}, _GRUESSE),
    ("", "live", {"offset": 2}, _GRUESSE),
    ("2-3", "message", {"token": "\r\n"}, f"{_GRUESSE}\r\n"),
    ("", "gap", {"requested": "2-4", "first_available": "2-6"}, f"{_GRUESSE}\r\n"),
    ("2-6", "message", {"delta": {"reasoning": "hm"}}, f"{_GRUESSE}\r\n"),
    ("2-7", "message", {"token": "end"}, f"{_GRUESSE}\r\nend"),
    ("3-0", "restarted", {"attempt": 3, "base": 6, "reason": "provider_stalled"}, f"{_GRUESSE}\r\n"),
    ("3-7", "message", {"token": "."}, f"{_GRUESSE}\r\n."),
    ("3-8", "done", DONE, f"{_GRUESSE}\r\n."),
]
"""A stream in which everything happens, by hand: id, name, data, the text after it."""
EXPECTED = [(event_id, text) for event_id, _, _, text in EVERYTHING if event_id]
PRELUDE = ":\nretry: 0\n"


def sse(event_id: str, name: str, data: Any) -> str:
    """Returns one event as a gateway writes it."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    head = f"id: {event_id}\n" if event_id else ""
    head += "" if name == "message" else f"event: {name}\n"
    return f"{head}data: {text}\n\n"


def token(event_id: str, text: str) -> str:
    return sse(event_id, "message", {"token": text})


def recorded_after(last_id: str) -> bytes:
    """Returns the bytes that a gateway sends to a reader that has this id; "" has nothing."""
    first = [row[0] for row in EVERYTHING].index(last_id) + 1 if last_id else 0
    return (PRELUDE + "".join(sse(*row[:3]) + ":\n" for row in EVERYTHING[first:])).encode()


def with_ids(events: Sequence[StreamEvent]) -> list[tuple[str, str]]:
    """Returns id and text of the events that have an id: to be compared with `EXPECTED`."""
    return [(event.id, event.text) for event in events if event.id is not None]


class Pieces(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that comes in these pieces, and then ends, or breaks off."""

    def __init__(self, pieces: Sequence[str | bytes], *, cut: bool = False) -> None:
        self._pieces, self._cut = pieces, cut
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            yield piece.encode() if isinstance(piece, str) else piece
        if self._cut:
            raise httpx2.ReadError("terminated")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


Script = Callable[[httpx2.Request], httpx2.Response]


def streaming(*pieces: str | bytes, cut: bool = False, content_type: str = "text/event-stream") -> Script:
    """Answers with an event stream of these pieces."""
    return lambda _: httpx2.Response(200, headers={"content-type": content_type}, stream=Pieces(pieces, cut=cut))


def refused(status: int, body: str = "", headers: Mapping[str, str] | None = None) -> Script:
    return lambda _: httpx2.Response(status, headers=headers, content=body.encode())


def answering(body: Any) -> Script:
    return lambda _: httpx2.Response(200, json=body)


def unreachable(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("no route", request=request)


class Scripted:
    """A gateway that answers each request with the next script, and further ones with the last."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        return self._scripts[min(len(self.requests), len(self._scripts)) - 1](request)

    def sent(self, header: str) -> list[str | None]:
        """Returns the value of a header in each request."""
        return [request.headers.get(header) for request in self.requests]


@dataclass
class Collected:
    """What `follow` yielded."""

    events: list[StreamEvent] = field(default_factory=list)
    """Without the losses."""
    lost: list[Lost] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.events[-1].text

    def take(self, event: StreamEvent) -> None:
        if isinstance(event, Lost):
            self.lost.append(event)
        else:
            self.events.append(event)


class Face:
    """One of the two clients. `gateway`: a server's URL, or a function from a request to its response."""

    def __init__(self, kind: Kind, gateway: str | Scripted, **options: Any) -> None:
        self._kind, self._gateway, self._options = kind, gateway, options

    async def follow(
        self, stream: str = STREAM, *, until: Callable[[Collected], bool] | None = None, **options: Any
    ) -> Collected:
        """Collects a stream's events to its end, or until there are enough."""
        return await self._collect("follow", stream, until=until, **options)

    async def ask(self, request: Any) -> Collected:
        return await self._collect("ask", request)

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Returns what a method of the client returns."""
        if self._kind == "sync":
            return await asyncio.to_thread(
                lambda: self._with_client(lambda client: getattr(client, name)(*arguments, **options))
            )
        async with self._async_client() as client:
            return await getattr(client, name)(*arguments, **options)

    async def _collect(
        self, name: str, argument: Any, *, until: Callable[[Collected], bool] | None = None, **options: Any
    ) -> Collected:
        collected = Collected()

        def read(client: Client) -> None:
            for event in getattr(client, name)(argument, **options):
                collected.take(event)
                if until is not None and until(collected):
                    return

        if self._kind == "sync":
            await asyncio.to_thread(self._with_client, read)
            return collected
        async with self._async_client() as client, aclosing(getattr(client, name)(argument, **options)) as events:
            async for event in events:
                collected.take(event)
                if until is not None and until(collected):
                    break
        return collected

    def _with_client(self, work: Callable[[Client], Any]) -> Any:
        if isinstance(self._gateway, str):
            with Client(self._gateway, **self._options) as client:
                return work(client)
        with httpx2.Client(transport=httpx2.MockTransport(self._gateway)) as http:
            return work(Client(SERVER, http=http, **self._options))

    def _async_client(self) -> AsyncClient:
        if isinstance(self._gateway, str):
            return AsyncClient(self._gateway, **self._options)
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(self._gateway))
        return AsyncClient(SERVER, http=http, **self._options)
