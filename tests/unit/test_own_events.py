"""Own events: what may be one, how it is stored, and how each face shows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.api.text import TEXT
from gateway.api.websocket import FACE as WEBSOCKET
from gateway.facades.ai_sdk.stream_parts import AI_SDK
from gateway.facades.openai.chat_chunks import ChatFace
from gateway.facades.responses.events import RESPONSES
from gateway.faces import NATIVE, NDJSON, PROMPT, Face, encode
from producer.yields import Delta, Finish, NotYieldable, Progress, item_of
from shared import events
from shared.errors import Unreadable
from shared.events import Accepted, Entry, Event, Item, Policies, encode_items, events_of, text_of
from shared.ids import FIRST_ID, EventId, new_stream_id
from shared.lifecycle import fold
from shared.own_events import BYTES_MAX, RESERVED, OwnEvent, own_event

TOOL = {"event": "tool", "data": {"name": "look", "city": "Zürich"}}
STORED = orjson.dumps(TOOL)
STARTED = b'{"attempt":1,"model":"m","worker":"w","time":1.0}'


@pytest.mark.parametrize(
    "name", ["", "1st", "two words", "a\nb", "ünder", "x" * 65, None, 7, *sorted(RESERVED), "midstream.x"]
)
def test_a_name_that_readers_could_not_tell_apart_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="name"):
        own_event(name, {})


@pytest.mark.parametrize("name", ["t", "tool", "tool-call", "agent.step_2", "Done", "x" * 64])
def test_any_other_name_is_one(name: str) -> None:
    assert orjson.loads(bytes(own_event(name, None))) == {"event": name, "data": None}


@pytest.mark.parametrize(
    "data",
    ["x" * BYTES_MAX, object(), {1: 2}, {"half": "\ud83d"}, 2**70, [[]] * 40_000, orjson.loads("[" * 240 + "]" * 240)],
    ids=["too large", "no JSON", "a key that is no text", "half a pair", "a number of 70 bits", "many", "too deep"],
)
def test_data_that_no_reader_could_be_sent_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="'tool'"):
        own_event("tool", data)


def test_stored_alone_and_among_others() -> None:
    own, delta = own_event("tool", TOOL["data"]), b'{"delta":{"refusal":"no"}}'
    assert encode_items([own]) == (b"e", STORED)
    items: list[Item] = ["a", own, delta, own]
    entry = Entry(EventId(1, 4), *encode_items(items))
    assert entry.field == events.BATCH
    carried = events_of(entry)
    assert [event.id.offset for event in carried] == [1, 2, 3, 4]
    assert [(event.field, event.value) for event in carried] == [
        (b"t", b"a"),
        (b"e", STORED),
        (b"d", delta),
        (b"e", STORED),
    ]
    assert "".join(text_of(event.field, event.value) for event in carried) == "a"


@pytest.mark.parametrize(
    "stored",
    [
        {"event": "done", "data": 1},
        {"event": "a b"},
        {"event": 7, "data": 1},
        {"data": 1},
        {"event": "x\ny", "data": ""},
    ],
)
@pytest.mark.parametrize("batch", [False, True])
def test_one_of_another_writer_that_cannot_be_shown_counts_as_an_empty_delta(stored: Any, batch: bool) -> None:
    value = orjson.dumps([stored] if batch else stored)
    (event,) = events_of(Entry(EventId(1, 1), b"b" if batch else b"e", value))
    assert event.field == events.DELTA
    assert orjson.loads(event.value)["delta"] == {}


@pytest.mark.parametrize("value", [b"{", b"[]", b"7", b'"tool"', b""])
def test_what_is_no_object_is_unreadable(value: bytes) -> None:
    with pytest.raises(Unreadable):
        events_of(Entry(EventId(1, 1), b"e", value))


def test_another_writers_bytes_become_one_line_in_order() -> None:
    (event,) = events_of(Entry(EventId(1, 1), b"e", b'{"more": 1,\n "data": {"a": 1},\n "event": "tool"}'))
    assert event.value == b'{"event":"tool","data":{"a":1}}'


def shown(face: Face, *carried: Event) -> bytes:
    """Returns what a face shows of a stream with these increments, after its beginning."""
    encoder = face.encoder(new_stream_id())
    accepted = Accepted({"model": "m", "messages": []}, Policies(None, "continue"), 0.0, "anonymous", {}).stored()
    encode(encoder, Event(FIRST_ID, events.ACCEPTED, accepted))
    encode(encoder, Event(EventId(1, 0), events.STARTED, STARTED))
    return b"".join(encode(encoder, event) for event in carried)


OWN = Event(EventId(1, 2), events.OWN, STORED)
DATA = orjson.dumps(TOOL["data"])


@pytest.mark.parametrize(
    ("face", "wanted"),
    [
        (NATIVE, b"event: tool\ndata: %b\nid: 1-2\n\n" % DATA),
        (NDJSON, b'{"id":"1-2","event":"tool","data":%b}\n' % DATA),
        (WEBSOCKET, b'{"id":"1-2","event":"tool","data":%b}' % DATA),
        (PROMPT, b"event: tool\ndata: %b\nid: " % DATA),
        (TEXT, b""),
        (AI_SDK, b'data: {"type":"data-tool","data":%b}\n\n' % DATA),
        (ChatFace("m"), b'"delta":{},"logprobs":null,"finish_reason":null}],"midstream":%b}\nid: 1-2\n\n' % STORED),
        (RESPONSES, b'event: keepalive\ndata: {"type":"keepalive","midstream":%b,"sequence_number":2}' % STORED),
    ],
    ids=["native", "ndjson", "websocket", "prompt", "text", "ai_sdk", "chat", "responses"],
)
def test_every_face_shows_it(face: Face, wanted: bytes) -> None:
    body = shown(face, OWN)
    assert wanted in body
    assert bool(wanted) == bool(body)


def test_parts_of_a_message_keep_their_order() -> None:
    """The AI SDK appends a text to its open part: the text behind an own event needs a part of its own."""
    before, after = Event(EventId(1, 1), events.TOKEN, b"a"), Event(EventId(1, 3), events.TOKEN, b"b")
    parts = [orjson.loads(line[6:]) for line in shown(AI_SDK, before, OWN, after).split(b"\n\n") if line]
    kinds = [part["type"] for part in parts]
    assert kinds == ["text-start", "text-delta", "text-end", "data-tool", "text-start", "text-delta"]
    assert parts[0]["id"] != parts[4]["id"]


def test_text_is_taken_back_only_where_it_stood_behind_what_is_kept() -> None:
    """Own events count as increments: a new attempt that keeps one token and one event takes nothing of that token back."""
    restarted = b'{"attempt":2,"model":"m","worker":"w","time":1.0,"base":2,"reason":"worker_lost"}'
    token, again = Event(EventId(1, 1), events.TOKEN, b"a"), Event(EventId(2, 0), events.RESTARTED, restarted)
    assert shown(TEXT, token, OWN, again) == b"a"


def test_a_history_gives_back_what_was_yielded_in_order() -> None:
    accepted = Accepted({"model": "m", "messages": []}, Policies(None, "continue"), 0.0, "anonymous", {}).stored()
    delta = {"delta": {"reasoning_content": "Hm."}}
    log = [Entry(FIRST_ID, events.ACCEPTED, accepted), Entry(EventId(1, 0), events.STARTED, STARTED)]
    log.append(Entry(EventId(1, 4), *encode_items(["a", "b", OwnEvent(STORED), "c"])))
    log.append(Entry(EventId(1, 5), *encode_items([orjson.dumps(delta)])))
    assert fold(log).yielded() == ["ab", TOOL, "c", delta]


@pytest.mark.parametrize(
    ("yielded", "item"),
    [
        ("a", "a"),
        ("", None),
        ("half \ud83d", "half �"),
        (Delta({"reasoning_content": "Hm."}), b'{"delta":{"reasoning_content":"Hm."}}'),
        (Progress(), Progress()),
        (Finish("length", {"total_tokens": 3}), Finish("length", {"total_tokens": 3})),
        (Finish("x" * 100, {"total_tokens": "many"}), Finish("stop", {})),
        ({"event": "tool"}, b'{"event":"tool","data":null}'),
    ],
)
def test_what_may_be_yielded(yielded: Any, item: Any) -> None:
    assert item_of(yielded) == item


@pytest.mark.parametrize(
    "yielded",
    [
        7,
        None,
        b"bytes",
        ["a"],
        {"data": 1},
        {"event": "done", "data": 1},
        {"event": "tool", "data": 1, "id": 7},
        "x" * ((1 << 20) + 1),
        Delta({}),
        Delta({"tool_calls": [{"index": "one"}]}),
        Delta({"content": 7}),
        Delta({"x": object()}),
        Delta(7),  # type: ignore[arg-type]
    ],
    ids=lambda yielded: repr(yielded).partition(" at 0x")[0][:40],
)
def test_what_may_not_be_yielded_is_refused_in_words(yielded: Any) -> None:
    with pytest.raises(NotYieldable, match=r"\w+ \w+"):
        item_of(yielded)


@pytest.mark.parametrize("page", ["how-to/your-own-generator.md", "reference/log-format.md"])
def test_the_reserved_names_are_documented(page: str) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / page).read_text()
    (listed,) = re.findall(r"(?:are reserved: |events \()((?:`\w+`,?\s*)+)", text)
    assert set(re.findall(r"\w+", listed)) == RESERVED
