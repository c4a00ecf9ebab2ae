"""Compares entries that are read many at once with the same entries read one by one."""

from __future__ import annotations

import random

import pytest

from gateway.api.text import TEXT
from gateway.api.websocket import FACE as WEBSOCKET
from gateway.facades.ai_sdk.stream_parts import AI_SDK
from gateway.facades.openai.chat_chunks import ChatFace
from gateway.facades.responses.events import RESPONSES
from gateway.faces import NATIVE, NDJSON, PROMPT, Face, json_strings
from gateway.following.ring import Ring
from gateway.following.token_runs import TokenRun, run_of_batch, runs
from shared import events
from shared.event_log import RawEntry
from shared.events import Accepted, Entry, Event, Policies
from shared.ids import BEGINNING, EventId, new_stream_id

STREAM_ID = new_stream_id()
_ACCEPTED = Accepted({"model": "m"}, Policies(), 1.0, "p", {}).stored()
_STARTED = b'{"attempt":1,"model":"m","time":1.0,"base":0,"reason":"r"}'
_TEXTS = [
    "a",
    " word",
    "",
    '"',
    "\\",
    "\n",
    "\r\n",
    "\x1f",
    "\\u001f",
    "\\",
    "\x1f\x1f",
    "é",
    "\u2028",
    "😀",
    "\x00",
    "\x7f",
]


def _log(seed: int) -> list[RawEntry]:
    choose = random.Random(seed)
    raw: list[RawEntry] = [(b"0-1", (events.ACCEPTED, _ACCEPTED))]
    for attempt in range(1, choose.randint(2, 4)):
        field = events.STARTED if attempt == 1 else events.RESTARTED
        raw.append((b"%d-0" % attempt, (field, _STARTED)))
        offset = 0
        for _ in range(choose.randint(0, 30)):
            offset += 1 if choose.random() < 0.97 else 3
            value = choose.choice(_TEXTS).encode()
            kind = choose.random()
            if kind < 0.85:
                raw.append((b"%d-%d" % (attempt, offset), (events.TOKEN, value)))
            elif kind < 0.95:
                raw.append((b"%d-%d" % (attempt, offset), (events.DELTA, b'{"delta":{"role":"assistant"}}')))
            else:
                offset += 1
                raw.append((b"%d-%d" % (attempt, offset), (events.BATCH, b'["x","y"]')))
    return raw


@pytest.mark.parametrize("seed", range(80))
def test_token_runs_equal_their_entries(seed: int) -> None:
    raw = _log(seed)[random.Random(seed).randint(0, 3) :]
    wanted = [event for event_id, fields in raw for event in events.events_of(Entry(EventId.of(event_id), *fields))]
    found: list[Event] = []
    before: TokenRun | None = None
    for run in runs(raw):
        if isinstance(run, Entry):
            found += events.events_of(run)
            before = None
            continue
        assert before is None or run.first != (
            before.last.attempt,
            before.last.offset + 1,
        )  # it is as long as it can be
        before = run
        ids = [EventId.of(event_id) for event_id in run.ids]
        assert (ids[0], ids[-1]) == (run.first, run.last)
        found += [Event(one, events.TOKEN, value) for one, value in zip(ids, run.values, strict=True)]
    assert found == wanted


@pytest.mark.parametrize(
    "items", [b'["a","b"]', b'["\\ud83d\\ude00","\\u001f"]', b'["a",{"delta":{"role":"assistant"}}]']
)
def test_a_batch(items: bytes) -> None:
    entry = Entry(EventId(3, 12), events.BATCH, items)
    run = run_of_batch(entry)
    if b"{" in items:
        assert run is None
    else:
        assert run is not None
        assert [(one.id, one.value) for one in events.events_of(entry)] == [
            (EventId.of(event_id), value) for event_id, value in zip(run.ids, run.values, strict=True)
        ]


def test_consecutive_batches_are_one_run() -> None:
    raw: list[RawEntry] = [
        (b"1-3", (events.BATCH, b'["a","b","c"]')),
        (b"1-4", (events.TOKEN, b"d")),
        (b"1-6", (events.BATCH, b'["e","f"]')),
    ]
    (run,) = runs(raw)
    assert isinstance(run, TokenRun)
    assert (run.first, run.last, b"".join(run.values)) == ((1, 1), (1, 6), b"abcdef")


def test_a_plain_page_is_one_run() -> None:
    raw: list[RawEntry] = [(b"2-%d" % offset, (events.TOKEN, b"x")) for offset in range(7, 300)]
    assert list(runs(raw)) == [
        TokenRun(EventId(2, 7), EventId(2, 299), tuple(event_id for event_id, _ in raw), (b"x",) * 293)
    ]
    assert list(runs([])) == []


@pytest.mark.parametrize("count", [0, 1, 2, 50])
@pytest.mark.parametrize("seed", range(10))
def test_json_strings(seed: int, count: int) -> None:
    choose = random.Random(seed)
    texts = [choose.choice(_TEXTS).encode() for _ in range(count)]
    assert json_strings(texts) == [json_strings([text])[0] for text in texts]
    assert [b'"%b"' % text for text in json_strings(texts)] == [_one(text) for text in texts]


def _one(text: bytes) -> bytes:
    _, _, encoded = NATIVE.encoder("s").token(b"1-1", text).partition(b'{"token":')
    return encoded.removesuffix(b"}\nid: 1-1\n\n")


@pytest.mark.parametrize(
    "face",
    [NATIVE, PROMPT, NDJSON, TEXT, WEBSOCKET, ChatFace("100 %b"), RESPONSES, AI_SDK],
    ids=lambda face: type(face).__name__,
)
def test_every_face_encodes_a_run_like_single_tokens(face: Face) -> None:
    ids = [b"1-%d" % offset for offset in range(1, len(_TEXTS) + 1)]
    values = [text.encode() for text in _TEXTS]
    one, many = face.encoder(STREAM_ID), face.encoder(STREAM_ID)
    assert list(many.tokens(ids, values)) == [
        one.token(event_id, value) for event_id, value in zip(ids, values, strict=True)
    ]


@pytest.mark.parametrize("seed", range(40))
def test_a_ring_treats_a_run_like_its_tokens(seed: int) -> None:
    one, many = (Ring(NATIVE, NATIVE.encoder("s"), BEGINNING) for _ in range(2))
    for run in runs(_log(seed)):
        if isinstance(run, Entry):
            for event in events.events_of(run):
                one.append(event)
                many.append(event)
        else:
            many.extend(run)
            for offset, value in enumerate(run.values, run.first.offset):
                one.append(Event(EventId(run.first.attempt, offset), events.TOKEN, value))
    assert (one.encoded, one.end) == (many.encoded, many.end)
    assert [one.cursor_at(position) for position in range(one.end + 1)] == [
        many.cursor_at(position) for position in range(one.end + 1)
    ]
