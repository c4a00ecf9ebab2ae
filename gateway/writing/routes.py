"""The requests of external writers: `POST /v1/streams/{id}/attempts` and `POST /v1/streams/{id}/events`.

A body of JSON is checked whole before anything of it is appended. A body of the type application/x-ndjson may take as long as the
stream: each line is appended as it comes, at most one append is under way, and lines that come meanwhile share the next entry.
While it is silent the log is looked at, so that its writer learns of a cancel at once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

import orjson
from starlette.requests import Request

from gateway.api.follow import Subscribe, stream_of
from gateway.api.requests import LEASE_SECONDS_LEAST, LEASE_SECONDS_MOST, seconds
from gateway.delivery.delivery import Delivery
from gateway.http.accept import NDJSON
from gateway.http.bodies import VALUES_MAX, parse_body, received
from gateway.http.connection import Connection, Receive, Scope
from gateway.http.cursor import cursor_of
from gateway.http.exchange import json_response
from gateway.http.problems import Problem, stopping
from gateway.http.routes import OperationsOf, Route, route_for
from gateway.metrics import refused
from gateway.writing.lines import EVENT_BYTES_MAX, End, WrongLine, event_of
from gateway.writing.writes import Answer, Writes
from shared.events import Item
from shared.ids import EventId

operations = OperationsOf("gateway.writing.operations")

BODY_BYTES_MAX = 1 << 20
"""Of one body of JSON, which is in memory as a whole; what is longer goes as lines."""
LINE_BYTES_MAX = EVENT_BYTES_MAX + 1024
_LOOK_SECONDS = 0.25
"""How often the log is looked at while a body is silent: a cancel is seen within that. Also how often its lease is renewed."""
_PROGRESS_SECONDS = 1.0
_WRITER_CHARACTERS_MAX = 128
_MODEL_CHARACTERS_MAX = 256


class WriterApi:
    """All requests of external writers."""

    def __init__(self, writes: Writes, subscribe: Subscribe, delivery: Delivery) -> None:
        self._writes = writes
        self._subscribe = subscribe
        self._delivery = delivery
        stream = "/v1/streams/{stream_id:path}"
        self.routes = (
            Route("POST", stream + "/events", self.append, operations.APPEND, "write"),
            Route("POST", stream + "/attempts", self.begin, operations.BEGIN_ATTEMPT, "write"),
        )

    def route(self, scope: Scope) -> Route | None:
        return route_for(self.routes, scope)

    async def begin(self, scope: Scope, receive: Receive, send: Any) -> None:
        """`POST /v1/streams/{id}/attempts`"""
        stream_id = stream_of(scope)
        lease_seconds = _lease_seconds(scope)
        async with received(Request(scope, receive), BODY_BYTES_MAX) as body:
            wanted = parse_body(body) if body.strip() else {}
        unknown = sorted(set(wanted) - {"writer", "model", "keep"})
        if unknown:
            raise Problem(400, f"{unknown[0][:64]!r} is not known; there are keep, model, writer", param=unknown[0])
        writer = _text("writer", wanted.get("writer"), _WRITER_CHARACTERS_MAX)
        model = _text("model", wanted.get("model"), _MODEL_CHARACTERS_MAX)
        keep = wanted.get("keep")
        if keep is not None and not (type(keep) is int and keep >= 0):
            raise Problem(400, "keep must be a whole number of events", param="keep")
        answer = await self._writes.begin(
            stream_id, writer or f"http-{secrets.token_hex(6)}", model=model, keep=keep, lease_seconds=lease_seconds
        )
        await json_response(answer.body())(scope, receive, send)

    async def append(self, scope: Scope, receive: Receive, send: Any) -> None:
        """`POST /v1/streams/{id}/events`"""
        stream_id = stream_of(scope)
        after, lease_seconds = cursor_of(_header(scope, b"last-event-id")), _lease_seconds(scope)
        if _header(scope, b"content-type").partition(";")[0].strip().lower() == NDJSON:
            body = _LongBody(self._writes, stream_id, after, lease_seconds)
            await self._append_lines(body, scope, receive, send)
            return
        async with received(Request(scope, receive), BODY_BYTES_MAX) as whole:
            items, end = _events_of(whole)
        answer = await self._writes.append(stream_id, items, end, after=after, lease_seconds=lease_seconds)
        await json_response(answer.body())(scope, receive, send)

    async def _append_lines(self, body: _LongBody, scope: Scope, receive: Receive, send: Any) -> None:
        if _header(scope, b"content-encoding").strip().lower() not in ("", "identity"):
            raise Problem(415, "lines are appended as they come: send them without a Content-Encoding")
        self._subscribe.take_place()  # the connection lasts as long as a reader's
        connection = Connection.of(scope)
        connection.has_a_long_body()
        progress = _Progress(scope, receive, send) if NDJSON in _header(scope, b"accept").lower() else None
        try:
            if not await self._until_ended(body, connection, receive, progress):
                return  # the client has gone; its lease decides
            result: Answer | Problem = await body.final()
        except Problem as problem:
            problem.members = {**body.members(), **problem.members}
            result = problem
        if progress is not None:
            await progress.finish(result)
        elif isinstance(result, Problem):
            refused(result.status)
            await result.response()(scope, receive, send)
        else:
            await json_response(result.body())(scope, receive, send)
        connection.no_more_body()

    async def _until_ended(
        self, body: _LongBody, connection: Connection, receive: Receive, progress: _Progress | None
    ) -> bool:
        """Appends the lines of a body until it, or its stream, has ended. False if the client has gone."""
        while True:
            message: dict[str, Any] | None = None
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    message = await receive()
            except TimeoutError:
                await body.look()
            if message is not None:
                if message["type"] == "http.disconnect":
                    return False
                await body.take(message["body"])
                if body.ended or not message["more_body"]:
                    return True
            if self._delivery.draining:
                raise stopping()
            if progress is not None and not connection.flow.write_paused and body.answer is not None:
                await progress.show(body.answer)


class _LongBody:
    """A body of lines that are appended as they come."""

    def __init__(self, writes: Writes, stream_id: str, after: EventId | None, lease_seconds: float | None) -> None:
        self._writes = writes
        self._stream_id = stream_id
        self._after = after
        """The place after which the next line goes; None: at the end of the log, wherever that is."""
        self._lease_seconds = lease_seconds
        self._rest = b""
        self._lines = 0
        self._renewed_at = 0.0
        self.answer: Answer | None = None
        self.ended = False

    async def take(self, part: bytes) -> None:
        """Appends the lines that are whole now. Raises Problem; the lines before the one at fault are in the log."""
        *lines, self._rest = (self._rest + part).split(b"\n")
        await self._append(lines)
        if len(self._rest) > LINE_BYTES_MAX:
            raise Problem(413, f"line {self._lines + 1} has more than {LINE_BYTES_MAX} bytes")

    async def final(self) -> Answer:
        """Appends a last line without a line end. Returns the state of the stream."""
        if not self.ended:
            rest, self._rest = self._rest, b""
            await self._append([rest])
        if self.answer is None:
            await self._write([], None, renew=True)
        assert self.answer is not None
        return self.answer

    async def look(self) -> None:
        """Looks whether the stream goes on. Raises Problem 409 if it does not."""
        await self._write([], None, renew=False)

    def members(self) -> dict[str, Any]:
        """Returns how far the body was appended, for the problem with which it ends."""
        return {} if self.answer is None else {"last_event_id": str(self.answer.place.last)}

    async def _append(self, lines: list[bytes]) -> None:
        items: list[Item] = []
        end: End | None = None
        wrong: Problem | None = None
        for line in lines:
            self._lines += 1
            if not line.strip():
                continue  # a sign of life
            try:
                if len(line) > LINE_BYTES_MAX:
                    raise WrongLine(f"it has more than {LINE_BYTES_MAX} bytes")
                event = event_of(orjson.loads(line))
            except (WrongLine, orjson.JSONDecodeError) as error:
                wrong = Problem(400, f"line {self._lines}: {error}", members={"line": self._lines})
                break
            if isinstance(event, End):
                end = event
                break
            items.append(event)
        now = time.monotonic()
        renew = now - self._renewed_at > _LOOK_SECONDS
        if items or end is not None or renew:
            await self._write(items, end, renew=renew)
            self._renewed_at = now if renew else self._renewed_at
        if wrong is not None:
            raise wrong
        self.ended = end is not None

    async def _write(self, items: list[Item], end: End | None, *, renew: bool) -> None:
        self.answer = await self._writes.append(
            self._stream_id,
            items,
            end,
            after=self._after,
            lease_seconds=self._lease_seconds,
            renew=renew,
            may_wait=True,
        )
        if self._after is not None:
            self._after = self.answer.place.increment


class _Progress:
    """An answer of lines: how far the body has been appended, each second, and how it ended."""

    def __init__(self, scope: Scope, receive: Receive, send: Any) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._shown_at = 0.0
        self._begun = False

    async def show(self, answer: Answer) -> None:
        """Sends a line of progress, if a second has gone by since the last."""
        now = time.monotonic()
        if now - self._shown_at >= _PROGRESS_SECONDS:
            self._shown_at = now
            await self._line(answer.body(), more=True)

    async def finish(self, result: Answer | Problem) -> None:
        """Sends the last line: the stream's state, or the problem document in `error`."""
        if isinstance(result, Problem):
            refused(result.status)
            if not self._begun:
                await result.response()(self._scope, self._receive, self._send)
                return
        body = {"error": orjson.loads(result.body())} if isinstance(result, Problem) else result.body()
        await self._line(body, more=False)

    async def _line(self, body: dict[str, Any], *, more: bool) -> None:
        if not self._begun:
            self._begun = True
            headers = [
                (b"content-type", NDJSON.encode()),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": orjson.dumps(body) + b"\n", "more_body": more})


def _events_of(body: bytes) -> tuple[list[Item], End | None]:
    """Returns the increments and the end in a body of JSON: one event, an array of them, or nothing. Raises Problem 400, 413."""
    if not body.strip():
        return [], None
    if len(body) > VALUES_MAX and body.count(b"[") + body.count(b"{") + body.count(b",") > VALUES_MAX:
        raise Problem(413, f"the body has more than {VALUES_MAX} commas, brackets and braces, which is the limit")
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON in UTF-8: {error}") from None
    items: list[Item] = []
    end: End | None = None
    for index, event in enumerate(parsed if isinstance(parsed, list) else [parsed]):
        if end is not None:
            raise Problem(400, f"event {index}: nothing may follow the end")
        try:
            checked = event_of(event)
        except WrongLine as error:
            raise Problem(400, f"event {index}: {error}" if isinstance(parsed, list) else str(error)) from None
        if isinstance(checked, End):
            end = checked
        else:
            items.append(checked)
    return items, end


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "").strip()


def _lease_seconds(scope: Scope) -> float | None:
    given = _header(scope, b"stream-lease")
    if not given:
        return None
    lease_seconds = seconds("Stream-Lease", given, LEASE_SECONDS_MOST)
    if lease_seconds < LEASE_SECONDS_LEAST:
        raise Problem(
            400, f"Stream-Lease must be a number of seconds from {LEASE_SECONDS_LEAST} to {LEASE_SECONDS_MOST}"
        )
    return lease_seconds


def _text(name: str, value: Any, characters_max: int) -> str | None:
    if value is not None and not (isinstance(value, str) and 1 <= len(value) <= characters_max):
        raise Problem(400, f"{name} must be a text of 1 to {characters_max} characters", param=name)
    return value
