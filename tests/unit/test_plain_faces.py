"""The faces for JSON lines, WebSocket frames and bare text, and the choice between them by `Accept`. No I/O."""

from __future__ import annotations

import json
import timeit
from typing import Any

import httpx
import orjson
import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from gateway.api.text import TEXT
from gateway.api.websocket import FACE
from gateway.facades.ai_sdk.stream_parts import AI_SDK
from gateway.facades.openai.chat_chunks import ChatFace
from gateway.facades.responses.events import RESPONSES
from gateway.faces import NATIVE, NDJSON, PROMPT, Face, encode, gap_event
from gateway.http.accept import NDJSON as LINES
from gateway.http.accept import SSE, preferred
from gateway.http.accept import TEXT as PLAIN
from gateway.http.websocket_connection import frame
from shared import events
from shared.events import Accepted, Event, Policies
from shared.ids import EventId

STARTED = Event(EventId(1, 0), events.STARTED, b'{"attempt":1,"model":"m","worker":"w","time":1.0}')
ACCEPTED = Event(
    EventId(0, 1), events.ACCEPTED, Accepted({"model": "m", "messages": []}, Policies(), 1.0, "", {}).stored()
)
RESTARTED = Event(
    EventId(2, 0),
    events.RESTARTED,
    orjson.dumps({"attempt": 2, "model": "m", "base": 0, "reason": "a\u2028b", "worker": "w", "time": 1.0}),
)
DONE = Event(EventId(1, 9), events.DONE, b'{"finish_reason":"stop","usage":null,"time":2.0}')
TEXTS = ["", "word", "ä ✓ 𝄞", '"quoted" \\ \n \r \t \x00', "one\u0085two\u2028three\u2029four’s", "x" * 70_000]


def token(offset: int, text: str, attempt: int = 1) -> Event:
    return Event(EventId(attempt, offset), events.TOKEN, text.encode())


def delta(offset: int, **of: Any) -> Event:
    return Event(EventId(1, offset), events.DELTA, orjson.dumps({"delta": of}))


ODD = [
    ACCEPTED,
    STARTED,
    delta(1, content="a\u2028b", tool_calls=[{"index": 0, "id": "c\u2029", "function": {"name": "n\u0085"}}]),
    Event(
        EventId(1, 2), events.FAILED, orjson.dumps({"code": "c", "message": "m\u2028\u2029\u0085", "retryable": False})
    ),
]


def shown(face: Face, *log: Event) -> bytes:
    encoder = face.encoder("stream")
    return b"".join(encode(encoder, event) for event in log)


@pytest.mark.parametrize("text", TEXTS)
def test_a_json_line_is_one_line_for_every_client(text: str) -> None:
    """Also for clients that split at every line end that Unicode has, as httpx does."""
    body = shown(NDJSON, STARTED, token(1, text), delta(2, reasoning_content=text), DONE)
    lines = body.split(b"\n")
    assert lines.pop() == b""
    assert list(httpx.Response(200, content=body).iter_lines()) == [line.decode() for line in lines]
    parsed = [json.loads(line) for line in lines]
    assert [one["id"] for one in parsed] == ["1-0", "1-1", "1-2", "1-9"]
    assert parsed[1] == {"id": "1-1", "event": "message", "data": {"token": text}}
    assert parsed[2]["data"] == {"delta": {"reasoning_content": text}}


FACES: list[Face] = [NATIVE, PROMPT, ChatFace("m\u2028"), RESPONSES, AI_SDK]


@pytest.mark.parametrize("face", FACES, ids=lambda face: type(face).__name__)
def test_an_event_is_read_alike_however_its_lines_are_found(face: Face) -> None:
    """Readers that split at Unicode's line ends (httpx, requests) get the lines that the standard's readers get."""
    body = shown(face, ACCEPTED, STARTED, *(token(offset, text) for offset, text in enumerate(TEXTS, 1)))
    body += shown(face, *ODD)
    assert body.decode().splitlines() == body.decode().split("\n")[:-1]


@pytest.mark.parametrize("face", FACES, ids=lambda face: type(face).__name__)
def test_runs_of_tokens_are_read_alike_too(face: Face) -> None:
    encoder = face.encoder("stream")
    for event in (ACCEPTED, STARTED):
        encode(encoder, event)
    ids = [b"1-%d" % offset for offset in range(1, len(TEXTS) + 1)]
    body = b"".join(encoder.tokens(ids, [text.encode() for text in TEXTS])).decode()
    assert body.splitlines() == body.split("\n")[:-1]


@pytest.mark.parametrize("face", [NATIVE, PROMPT, ChatFace("m")], ids=lambda face: type(face).__name__)
def test_whoever_has_an_id_has_its_event(face: Face) -> None:
    """`id:` is the last line of each event, also of those that are encoded together."""
    encoder = face.encoder("stream")
    log = [STARTED, token(1, "a"), delta(2, reasoning_content="b"), delta(3, index=1), RESTARTED, DONE]
    pieces = [piece for event in log for piece in encode(encoder, event).split(b"\n\n") if piece]
    pieces += [piece.removesuffix(b"\n\n") for piece in encoder.tokens([b"2-1", b"2-2"], [b"a", b"b"])]
    with_id = [piece for piece in pieces if b"\nid: " in piece]
    assert not any(piece.startswith(b"id: ") for piece in pieces)
    assert all(piece.split(b"\n")[-1].startswith(b"id: ") for piece in with_id)
    assert len(with_id) >= 6


def test_an_event_without_an_id_has_the_id_null() -> None:
    lines = NDJSON.live(7) + NDJSON.epilogue(2000) + shown(NDJSON, gap_event(EventId(1, 3), EventId(1, 8)))
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"id": None, "event": "live", "data": {"offset": 7}},
        {"id": None, "event": "retry", "data": {"milliseconds": 2000}},
        {"id": None, "event": "gap", "data": {"requested": "1-3", "first_available": "1-8"}},
    ]


def received(body: bytes) -> list[bytes]:
    """Returns the messages that a WebSocket client gets from these bytes."""
    client = ClientProtocol(parse_uri("ws://localhost/"), state=OPEN, max_size=None)
    client.receive_data(body)
    frames = client.events_received()
    assert all(isinstance(one, Frame) and one.fin for one in frames)
    return [bytes(one.data) for one in frames if isinstance(one, Frame)]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_a_frame_of_every_size(size: int) -> None:
    message = b"x" * size
    assert received(frame(message) * 2) == [message, message]


@pytest.mark.parametrize("text", TEXTS)
def test_websocket_messages_equal_json_lines(text: str) -> None:
    log = (STARTED, token(1, text), token(2, "y" * 72), token(3, "y" * 73), delta(4, refusal=text), DONE)
    messages = [json.loads(one) for one in received(shown(FACE, *log) + FACE.live(3) + FACE.epilogue(5))]
    lines = shown(NDJSON, *log) + NDJSON.live(3) + NDJSON.epilogue(5)
    assert messages == [json.loads(line) for line in lines.split(b"\n")[:-1]]


def restarted(attempt: int, base: int) -> Event:
    value = {"attempt": attempt, "base": base, "reason": "worker_lost", "model": "m", "worker": "w", "time": 1.0}
    return Event(EventId(attempt, 0), events.RESTARTED, orjson.dumps(value))


@pytest.mark.parametrize(
    ("log", "taken_back"),
    [
        ([STARTED, token(1, "a"), token(2, "b"), restarted(2, 0)], True),
        ([STARTED, token(1, "a"), token(2, "b"), restarted(2, 1)], True),
        ([STARTED, token(1, "a"), token(2, "b"), restarted(2, 2)], False),
        ([STARTED, restarted(2, 0)], False),
        ([STARTED, delta(1, reasoning_content="hm"), restarted(2, 0)], False),
        ([STARTED, token(1, "a"), delta(2, reasoning_content="hm"), restarted(2, 1)], False),
        ([STARTED, delta(1, content="a"), restarted(2, 0)], True),
        ([STARTED, token(1, "a"), restarted(2, 0), restarted(3, 0)], True),
    ],
)
def test_taken_back_text_ends_the_text_face(log: list[Event], taken_back: bool) -> None:
    assert (b"\xff" in shown(TEXT, *log)) is taken_back
    assert shown(TEXT, *log).count(b"\xff") <= 1


def test_the_text_face_has_only_text() -> None:
    log = [STARTED, delta(1, role="assistant"), token(2, "ä"), delta(3, content="b"), delta(4, refusal="c"), DONE]
    second = Event(EventId(1, 5), events.DELTA, b'{"delta":{"content":"of another choice"},"index":1}')
    assert shown(TEXT, *log, second) == "äb".encode()


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ([], SSE),
        ([""], SSE),
        (["*/*"], SSE),
        (["application/json"], SSE),
        (["text/*"], SSE),
        (["application/*"], LINES),
        (["application/x-ndjson"], LINES),
        (["Application/X-NDJSON ; charset=utf-8"], LINES),
        (["application/x-ndjson, text/event-stream"], SSE),
        (["application/x-ndjson, */*"], LINES),
        (["application/x-ndjson;q=0.9, */*"], SSE),
        (["application/x-ndjson;q=0.2, text/event-stream;q=0.1"], LINES),
        (["text/plain"], PLAIN),
        (["text/plain, application/x-ndjson"], LINES),
        (["text/plain, application/x-ndjson;q=0.9"], PLAIN),
        (["application/json, text/plain, */*"], SSE),
        (["text/event-stream;q=0, text/*"], PLAIN),
        (["text/plain;q=high"], PLAIN),
        (["text/plain;q=7, text/event-stream;q=nan"], SSE),
        (["text/plain;q=0"], SSE),
        (["text/html", "application/x-ndjson"], LINES),
        ([",;,=;q,,"], SSE),
        (["x/y," * 10_000], SSE),
    ],
)
def test_the_accept_header_chooses_the_face(accept: list[str], wanted: str) -> None:
    scope = {"headers": [(b"host", b"h"), *((b"accept", one.encode()) for one in accept)]}
    assert preferred(scope) == wanted


@pytest.mark.parametrize("face", [NDJSON, FACE, TEXT])
def test_a_token_costs_about_what_the_native_face_costs(face: Face) -> None:
    """A token is encoded once per face, for all readers. The bound is loose, since the machine has other work."""

    def seconds(of: Face) -> float:
        token_of = of.encoder("stream").token
        return timeit.timeit(lambda: token_of(b"1-12345", b" garden"), number=500)

    rounds = [(seconds(NATIVE), seconds(face)) for _ in range(60)]  # alternately, so that a disturbance affects both
    assert min(its for _, its in rounds) < 2 * min(native for native, _ in rounds)
