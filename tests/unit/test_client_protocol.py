"""The core of midstream.client, driven by hand: bytes in, events and decisions out."""

from __future__ import annotations

import asyncio
import random
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest

from midstream.client import (
    AsyncWriter,
    Done,
    StreamError,
    StreamEvent,
    Token,
    Writer,
    WriterState,
    async_writer,
    sync_writer,
)
from midstream.client.outbox import WAITING_BYTES_MAX, Outbox
from midstream.client.protocol import Call, Following, Options, address
from tests.support.python_client import EXPECTED, SERVER, STREAM, recorded_after, sse, token, with_ids

_SPLITS = 10_000
_WHOLE = recorded_after("")
_FORMS = [("\ufeff" + _WHOLE.decode().replace("\n", end)).encode() for end in ("\n", "\r\n", "\r")]
"""The forms that the standard allows for one stream. In the events' JSON no line end stands unescaped."""
_STREAMING = {"content-type": "text/event-stream; charset=utf-8"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def read(following: Following, *parts: bytes) -> list[StreamEvent]:
    """One accepted response with these parts of a body."""
    assert following.accepts(200, _STREAMING)
    return [event for part in parts for event in following.receive(part)]


def following(*, after: str = "", give_up_seconds: float | None = None, clock: Clock | None = None) -> Following:
    options = Options(SERVER, give_up_seconds=give_up_seconds)
    return Following(options, STREAM, after=after, clock=clock or Clock())


def last_event_id(one: Following) -> str:
    return one.request().headers.get("last-event-id", "")


def test_random_splits() -> None:
    dice = random.Random(1)
    for round_ in range(_SPLITS):
        form = _FORMS[round_ % len(_FORMS)]
        places = sorted(dice.choices(range(len(form)), k=dice.randint(1, 12)))
        parts = [form[a:b] for a, b in pairwise([0, *places, len(form)])]
        assert with_ids(read(following(), *parts)) == EXPECTED, (round_, places)


@pytest.mark.parametrize("form", _FORMS, ids=["LF", "CRLF", "CR"])
def test_byte_by_byte(form: bytes) -> None:
    assert with_ids(read(following(), *(form[i : i + 1] for i in range(len(form))))) == EXPECTED


def test_cut_at_every_byte() -> None:
    for place in range(len(_WHOLE)):
        one = following()
        events = read(one, _WHOLE[:place])
        if not one.over:
            one.lost(StreamError("cut"))
            events += read(one, recorded_after(last_event_id(one)))
        assert with_ids(events) == EXPECTED, place
        assert one.over


def test_cut_after_each_next_byte_at_every_connection() -> None:
    one, place, events = following(), 0, []
    while not one.over:
        place += 1
        events += read(one, recorded_after(last_event_id(one))[:place])
    assert with_ids(events) == EXPECTED
    assert place > 50


def test_a_server_that_begins_again_with_what_the_client_has() -> None:
    one = following()
    assert with_ids(read(one, _WHOLE[:700]) + read(one, _WHOLE)) == EXPECTED


def test_an_event_without_an_id_is_handed_out_wherever_it_stands() -> None:
    one = following()
    read(one, token("1-1", "a").encode())
    own = sse("", "own", "not JSON")
    events = read(one, (own + token("1-1", "a") + own + token("1-2", "b") + own + own).encode())
    assert [(event.type, event.id, event.text) for event in events] == [
        ("event", None, "a"),
        ("event", None, "a"),
        ("token", "1-2", "ab"),
        ("event", None, "ab"),
        ("event", None, "ab"),
    ]
    assert (events[0].data, last_event_id(one)) == ("not JSON", "1-2")


def test_earlier_events_keep_their_text() -> None:
    events = read(following(), _WHOLE)
    assert with_ids(list(reversed(events))) == EXPECTED[::-1], "in whatever order they are looked at"


def test_an_event_costs_no_copy_of_the_text() -> None:
    body = "".join(token(f"1-{n}", "x" * 1000) for n in range(1, 5001)).encode()
    events = read(following(), body)
    assert len({id(event.so_far._pieces) for event in events}) == 1
    assert [len(events[n].text) for n in (4999, 0, 2499)] == [5_000_000, 1000, 2_500_000]


def test_after_an_event_the_text_begins_behind_it() -> None:
    one = following(after="1-1")
    restarted = sse("2-0", "restarted", {"attempt": 2, "base": 1, "reason": "worker_lost"})
    body = token("1-2", "b") + restarted + token("2-2", "B") + sse("2-3", "done", {})
    assert [event.text for event in read(one, body.encode())] == ["b", "", "B", "B"]


def test_fields_that_are_not_known_are_kept_in_the_data() -> None:
    (event,) = read(following(), sse("1-1", "done", {"finish_reason": "stop", "new": 1}).encode())
    assert event == Done("stop", id="1-1")
    assert event.data["new"] == 1


def test_events_can_be_matched() -> None:
    match read(following(), token("1-1", "a").encode()):
        case [Token(text)]:
            assert text == "a"
        case other:
            pytest.fail(str(other))


@pytest.mark.parametrize(
    "body",
    [
        sse("1-0", "started", {"attempt": 1}),
        sse("2-0", "restarted", "x"),
        sse("1-1", "failed", [1]),
        sse("1-1", "done", "null"),
    ],
)
def test_an_event_that_cannot_be_read_is_an_error(body: str) -> None:
    with pytest.raises(StreamError, match="cannot be read") as raised:
        read(following(), token("1-0", "a").encode(), body.encode())
    assert not raised.value.retryable


def test_an_endless_line_is_an_error() -> None:
    one = following()
    with pytest.raises(StreamError, match="longer than") as raised:
        read(one, *[b"x" * (1 << 20)] * 20)
    assert not raised.value.retryable


def test_the_pause_doubles_is_jittered_and_starts_again_after_an_event() -> None:
    one = following()
    read(one, b"retry: 400\n")
    error = StreamError("away")
    least = [0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    pauses = [one.pause_after(error) for _ in least]
    assert all(a <= pause <= 1.5 * a for a, pause in zip(least, pauses, strict=True)), pauses
    assert len({pause / a for a, pause in zip(least, pauses, strict=True)}) > 5
    read(one, sse("", "live", {"offset": 0}).encode())
    assert one.pause_after(error) >= 30.0, "that it was accepted is no progress"
    read(one, token("1-1", "a").encode())
    assert one.pause_after(error) <= 0.6
    for _ in range(2000):
        assert one.pause_after(error) <= 45.0


def test_retry_0_is_not_taken_for_a_wish_to_be_flooded() -> None:
    one = following()
    read(one, b"retry: 0\n")
    assert one.pause_after(StreamError("away")) == 0
    assert one.pause_after(StreamError("away")) >= 0.2


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("7", 7.0, 10.5),
        ("0.5", 1.0, 1.5),
        ("in an hour", 3500.0, 5400.0),
        ("-5", 1.0, 1.5),
        ("nonsense", 1.0, 1.5),
        ("inf", 1.0, 1.5),
        ("nan", 1.0, 1.5),
    ],
)
def test_retry_after(value: str, least: float, most: float) -> None:
    if value == "in an hour":
        value = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    one = following()
    error = one.refusal(503, {"retry-after": value}, b"")
    assert least <= one.pause_after(error) <= most


def test_it_gives_up_when_nobody_has_been_heard_for_so_long() -> None:
    clock = Clock()
    one = following(give_up_seconds=60.0, clock=clock)
    read(one, token("1-1", "a").encode())
    clock.now += 3600.0  # one connection, an hour long
    assert list(one.receive(token("1-2", "b").encode()))
    one.pause_after(StreamError("cut"))
    clock.now += 58.0
    clock.now += one.pause_after(StreamError("unreachable"))
    assert clock.now == 1000.0 + 3600.0 + 60.0, "the last try is at the very end"
    with pytest.raises(StreamError, match="unreachable"):
        one.pause_after(StreamError("unreachable"))


def test_the_time_that_the_reader_takes_does_not_count() -> None:
    clock = Clock()
    one = following(give_up_seconds=60.0, clock=clock)
    assert one.accepts(200, _STREAMING)
    for _ in one.receive(token("1-1", "a").encode()):
        clock.now += 3600.0
    assert one.lost(StreamError("cut")).wait_seconds <= 1.5


@pytest.mark.parametrize(
    ("server", "stream", "url"),
    [
        ("http://h:1", "abc", "http://h:1/v1/streams/abc"),
        ("http://h:1/", "http://h:1/v1/streams/abc/events", "http://h:1/v1/streams/abc"),
        ("http://h:1/", "/v1/streams/abc/events?tenant=7", "http://h:1/v1/streams/abc?tenant=7"),
        ("https://h/prefix", "abc", "https://h/prefix/v1/streams/abc"),
        ("http://h", "http://H/v1/overview/events", "http://H/v1/overview/events"),
        ("http://h", "a b?", "http://h/v1/streams/a%20b%3F"),
        ("http://h", "", "http://h/v1/streams"),
    ],
)
def test_the_address_of_a_stream(server: str, stream: str, url: str) -> None:
    assert address(server, stream) == url


@pytest.mark.parametrize(
    ("server", "stream"),
    [
        ("h:1", "abc"),
        ("ftp://h", "abc"),
        ("http://", "abc"),
        ("http://h:99999", "abc"),
        ("http://[h", "abc"),
        ("http://h?tenant=7", "abc"),
        ("http://h", "http://elsewhere/v1/streams/abc"),
        ("http://h", "https://h/v1/streams/abc"),
    ],
)
def test_what_is_no_address_of_the_server_is_an_error_at_once(server: str, stream: str) -> None:
    with pytest.raises(StreamError) as raised:
        address(server, stream)
    assert not raised.value.retryable


_BEGUN = WriterState(id=STREAM, status="running", attempt=1, last_event_id="1-0", tokens=0, listeners=0)
_MORE_THAN_MAY_WAIT = "x" * (WAITING_BYTES_MAX + 1)


@pytest.mark.parametrize("write", ["token", "event"])
async def test_a_write_that_is_not_stored_in_time_is_an_error(monkeypatch: pytest.MonkeyPatch, write: str) -> None:
    """Also one that only waits for room: else a program would fill its memory while the gateway hangs."""
    for module in (sync_writer, async_writer):
        monkeypatch.setattr(module, "STORED_SECONDS_MAX", 0.1)
    went_on: list[str] = []
    closed = threading.Event()

    def call(request: Call[WriterState]) -> WriterState:
        """Answers the beginning, and nothing after it."""
        if not request.request().url.endswith("/attempts"):
            closed.wait()
        return _BEGUN

    async def async_call(request: Call[WriterState]) -> WriterState:
        if not request.request().url.endswith("/attempts"):
            await asyncio.Event().wait()
        return _BEGUN

    def write_it() -> None:
        with Writer(Outbox(Options(SERVER), STREAM, lease_seconds=10), call) as writer:
            writer.token(_MORE_THAN_MAY_WAIT) if write == "token" else writer.event("step")
            went_on.append("sync")

    async def write_it_async() -> None:
        async with AsyncWriter(Outbox(Options(SERVER), STREAM, lease_seconds=10), async_call) as writer:
            await (writer.token(_MORE_THAN_MAY_WAIT) if write == "token" else writer.event("step"))
            went_on.append("async")

    with pytest.raises(StreamError, match="not stored within"):
        await asyncio.to_thread(write_it)
    closed.set()
    with pytest.raises(StreamError, match="not stored within"):
        await write_it_async()
    assert not went_on
