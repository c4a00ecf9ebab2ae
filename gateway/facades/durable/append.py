"""`POST`: appends messages to a stream, closes it, or both (sections 5.2 and 5.2.1). What an append costs, each message costs."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway import metrics
from gateway.facades.durable import answers, headers
from gateway.facades.durable.found import Found, path_of
from gateway.facades.durable.messages import bytes_message, json_messages
from gateway.facades.durable.services import NOTED_BYTES, DurableServices
from gateway.http.bodies import received
from gateway.http.connection import Receive, Scope
from gateway.http.problems import Problem, full
from shared.errors import LogFull
from shared.written_log import Append as ToAppend
from shared.written_log import AppendReply, Messages, Producer, ended_as, media_type_of

_FULL = {
    "bytes": "the stream would have more bytes than one may have",
    "messages": "the stream would have more messages than one may have",
    "producers": "the stream has had as many idempotent producers as it may have: keep a Producer-Id and raise its epoch",
}


class Append:
    """Appends to written streams."""

    def __init__(self, services: DurableServices) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Any) -> None:
        services = self._services
        path, fields = path_of(scope), headers.headers_of(scope)
        producer, is_closing = headers.producer_of(fields), headers.closes(fields)
        end = ended_by(fields) if is_closing else None
        async with received(Request(scope, receive), services.settings.append_bytes_max) as body:
            append = _append_of(fields, body, producer, end)

            async def use(found: Found) -> Response | None:
                return await self._append(found, append)

            answer = await services.finder.until_found(path, use)
        await answer(scope, receive, send)

    async def _append(self, found: Found, append: ToAppend) -> Response | None:
        """Returns the answer; None if there is no such log. Raises Problem for all that is refused."""
        services, written = self._services, found.written
        if written is None:
            raise _generated()
        services.quotas.check(written.owner)
        if append.messages.number:
            services.rates.take(found.stream_id)
        if append.end is not None and written.has_own_life:
            await services.streams.enter(found.stream_id)
        try:
            reply = await services.streams.answered(services.log.append, found.stream_id, append, services.bounds)
        except LogFull:
            raise full() from None
        if reply is None:
            return None
        if reply.status != "appended":
            return _not_appended(reply, append)
        metrics.appended(append.messages.number, len(append.messages.value))
        size_bytes: int = reply.details[1]
        if append.end is not None:
            found.has_ended = True
            services.streams.look_soon(found.stream_id)
        renewed = services.finder.renew(found)
        if renewed or size_bytes - found.noted_bytes >= NOTED_BYTES:
            found.noted_bytes = size_bytes
            services.quotas.note(written, size_bytes)
        outcome = append.end[0].decode() if append.end is not None else ""
        answer_headers = {**answers.place_headers(reply.tail, outcome), "stream-readers": str(reply.details[0])}
        if append.producer is None:
            return answers.empty(204, answer_headers)
        status = 200 if append.messages.number else 204
        return answers.empty(status, {**answer_headers, **_producer_headers(append.producer)})


def messages_of(media_type: str, body: bytes) -> Messages:
    """Returns the messages in a body. Raises Problem 400, 413."""
    if media_type == "application/json" and body:
        return json_messages(body)
    return bytes_message(body)


def ended_by(fields: headers.Headers) -> tuple[bytes, bytes]:
    """Returns the terminal entry of a request that closes its stream. Raises Problem 400."""
    return ended_as(headers.outcome_of(fields))


def _append_of(
    fields: headers.Headers, body: bytes, producer: Producer | None, end: tuple[bytes, bytes] | None
) -> ToAppend:
    """Returns what a request appends. Raises Problem 400, 413."""
    if not body:
        if end is None:
            raise Problem(400, "the body is empty: send what is to be appended, or Stream-Closed: true")
        return ToAppend(producer=producer, end=end)  # only closes: its content type does not matter
    content_type = fields.get("content-type", "")
    if not content_type:
        raise Problem(400, "Content-Type is missing: it must be the stream's")
    media_type = media_type_of(content_type)
    messages = messages_of(media_type, body)
    if not messages.number:
        raise Problem(400, "the array is empty: there is nothing to append")
    return ToAppend(messages, media_type, headers.stream_seq_of(fields), producer, end)


def _not_appended(reply: AppendReply, append: ToAppend) -> Response:
    """Returns the answer to an append that was made before. Raises Problem for one that is refused."""
    producer, place = append.producer, answers.place_headers(reply.tail)
    match reply.status:
        case "generated":
            raise _generated()
        case "duplicate":
            assert producer is not None
            known = {"producer-epoch": str(producer.epoch), "producer-seq": reply.text()}
            return answers.empty(204, {**answers.place_headers(reply.tail, reply.text(1)), **known})
        case "closed":
            if not append.messages.number and producer is None:
                return answers.empty(204, answers.place_headers(reply.tail, reply.text()))
            raise answers.closed(reply.tail, reply.text())
        case "stale":
            detail = "a newer epoch of this producer has written: another program has taken its place"
            raise Problem(403, detail, headers={"producer-epoch": reply.text()})
        case "first":
            raise Problem(400, "a new Producer-Epoch begins with Producer-Seq: 0")
        case "gap":
            assert producer is not None
            expected = {"producer-expected-seq": reply.text(), "producer-received-seq": str(producer.sequence)}
            raise Problem(409, f"Producer-Seq {reply.text()} comes next", headers=expected)
        case "type":
            raise Problem(409, f"the stream's Content-Type is {reply.text()}, not {append.media_type}", headers=place)
        case "seq":
            raise Problem(409, f"Stream-Seq must be above {reply.text()!r}, byte by byte", headers=place)
        case "full":
            raise Problem(413, f"{_FULL[reply.text()]}; close it and make another", headers=place)
    raise AssertionError(reply)


def _generated() -> Problem:
    return Problem(
        405, "a worker writes this stream, nobody else can append to it", headers={"allow": "GET, HEAD, DELETE"}
    )


def _producer_headers(producer: Producer) -> dict[str, str]:
    return {"producer-epoch": str(producer.epoch), "producer-seq": str(producer.sequence)}
