"""For any content of a log: no face raises an exception, and each reader gets exactly one end."""

from __future__ import annotations

import dataclasses
from base64 import b64decode
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.api.text import TEXT
from gateway.api.websocket import FACE as WEBSOCKET
from gateway.facades.ai_sdk.stream_parts import AI_SDK, AI_SDK_REPLAY
from gateway.facades.durable.face import DurableFace, Form
from gateway.facades.openai.chat_chunks import ChatFace
from gateway.facades.openai.chat_whole import completion
from gateway.facades.openai.errors import failure_problem
from gateway.facades.responses.events import RESPONSES, ResponsesEncoder
from gateway.faces import NATIVE, NDJSON, PROMPT, Encoder, Face, FramingFace, encode
from gateway.following.pages import EncodedPage
from gateway.following.ring import FramedRing, Ring
from gateway.following.token_runs import TokenRun, parts
from shared import events
from shared.deltas import NESTED_MAX
from shared.errors import Unreadable
from shared.event_log import RawEntry
from shared.events import Accepted, Entry, Event, Policies, entry_of, events_of
from shared.ids import BEGINNING, EventId, new_stream_id
from shared.lifecycle import History, fold_into
from shared.receipt import Generated, StreamNotes, receipt
from shared.sse import Decoder

STREAM_ID = new_stream_id()
REQUEST: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ACCEPTED = Accepted(REQUEST, Policies(None, "continue"), 1.0, "p", {"k": "v"}).stored()
STARTED = b'{"attempt":1,"model":"m","worker":"w","time":2.0}'
DONE = b'{"finish_reason":"stop","usage":{"prompt_tokens":1},"time":3.0}'
FACES: list[Face] = [
    NATIVE,
    NDJSON,
    PROMPT,
    TEXT,
    WEBSOCKET,
    ChatFace("m", 2, include_usage=True, tells_restarts=True),
    RESPONSES,
    AI_SDK,
    AI_SDK_REPLAY,
    *map(DurableFace, Form),
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    [
        *(
            "delta",
            "index",
            "logprobs",
            "finish_reason",
            "content",
            "tool_calls",
            "function",
            "id",
            "name",
            "arguments",
        ),
        *("refusal", "reasoning_content", "top_logprobs", "token", "bytes", "usage", "prompt_tokens_details", "type"),
    ]
)
"""Names of fields that our code reads."""
looked_at = st.recursive(
    json_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


def log_of(*entries: tuple[bytes, bytes], end: bytes = DONE) -> list[RawEntry]:
    """Returns a log with one attempt that has these entries."""
    raw: list[RawEntry] = [(b"0-1", (events.ACCEPTED, ACCEPTED)), (b"1-0", (events.STARTED, STARTED))]
    raw += [(b"1-%d" % offset, entry) for offset, entry in enumerate(entries, start=1)]
    return [*raw, (b"1-%d" % (len(entries) + 1), (events.DONE, end))]


def shown(face: Face, raw: list[RawEntry]) -> bytes:
    """Returns a ring's bytes of a log. With a stateless face a page ends in the same way, and also reports holes."""
    encoder = face.encoder(STREAM_ID)
    ring = (
        FramedRing(face, encoder, BEGINNING, lambda: True)
        if isinstance(face, FramingFace)
        else Ring(face, encoder, BEGINNING)
    )
    for part in parts(raw, BEGINNING):
        if isinstance(part, TokenRun):
            ring.extend(part)
        else:
            for event in part.events:
                ring.append(event)
    assert ring.broken is None, face
    body = ring.body(0) if ring.end else b""
    if not face.stateful:
        page = EncodedPage(face, STREAM_ID, list(parts(raw, BEGINNING))).after(BEGINNING)
        last = b"" if isinstance(face, FramingFace) or not ring.end else ring.encoded[-1]
        assert (page.body if page else b"").endswith(last)
        assert page is None or page.body.count(b"streamClosed") == body.count(b"streamClosed")
    return body


def check_all(raw: list[RawEntry]) -> History:
    """Checks that every face gives one end for this log, and that its state and whole answers can be made."""
    ends = [
        part.field for part in parts(raw, BEGINNING) if not isinstance(part, TokenRun) and part.field in events.TERMINAL
    ]
    bodies = {face: shown(face, raw) for face in FACES}
    entries = [entry_of(event_id, fields) for event_id, fields in raw]
    history = History()
    fold_into(history, entries)
    orjson.dumps(history.state(STREAM_ID))
    generated = Generated()
    fold_into(generated, entries)
    orjson.dumps(receipt(STREAM_ID, generated, StreamNotes([])))
    encoder = ResponsesEncoder(STREAM_ID)
    for part in parts(raw, BEGINNING):
        if isinstance(part, TokenRun):
            list(encoder.tokens(part.ids, part.values))
        else:
            for event in part.events:
                encode(encoder, event)
    orjson.dumps(encoder.snapshot())
    assert len(ends) == int(history.ended)
    if history.status == "completed":
        orjson.dumps(completion(STREAM_ID, history))
    elif history.status == "failed":
        assert failure_problem(history.terminal or {}).status >= 400
    if ends and ends != [events.DELETED]:
        named = b"event: " + ends[0] + b"\n"
        assert bodies[NATIVE].count(named) == 1
        assert bodies[AI_SDK].count(b"data: [DONE]\n\n") == 1
        assert bodies[RESPONSES].count(b"\nevent: response.completed\n") + bodies[RESPONSES].count(
            b"event: response.incomplete\n"
        ) + bodies[RESPONSES].count(b"event: response.failed\n") == int(encoder.exists)
        for message in bodies[NATIVE].split(b"\n\n")[:-1]:
            (data,) = [line[6:] for line in message.split(b"\n") if line.startswith(b"data: ")]
            orjson.loads(data)
        for line in bodies[NDJSON].splitlines():
            orjson.loads(line)
        for form in Form:
            assert bodies[DurableFace(form)].count(b'"streamClosed":true,"streamOutcome":"%b"' % ends[0]) == 1
        orjson.loads(bodies[DurableFace(Form.GENERATED)].split(b"\ndata:")[1].split(b"\n")[0])
    return history


@settings(max_examples=150)
@given(st.lists(st.binary(max_size=12) | json_values.map(orjson.dumps), max_size=4), st.booleans())
def test_any_bytes_as_messages(values: list[bytes], together: bool) -> None:
    """A message may have any content; a line that is not JSON is an empty delta."""
    lines = [value.replace(b"\n", b" ") for value in values]
    raw = log_of(*((events.RAW, value) for value in values))
    if together and lines:
        raw[2:] = [
            (b"1-%d" % len(lines), (events.JSON, b"\n".join(lines))),
            (b"1-%d" % (len(lines) + 1), (events.DONE, DONE)),
        ]
    history = check_all(raw)
    assert (history.status, len(history.items)) == ("completed", len(values))
    for face in map(DurableFace, Form):
        page = EncodedPage(face, STREAM_ID, list(parts(raw, BEGINNING))).after(BEGINNING)
        assert page is not None
        assert page.body == shown(face, raw)
    shown_whole = shown(DurableFace(Form.BYTES), raw)
    if values and not together:
        (first, _) = Decoder().feed(shown_whole) if b"".join(values) else (None, None)
        assert first is None or b64decode(first.data) == b"".join(values)


def nested(levels: int) -> bytes:
    return b'{"delta":{"content":"kept","deep":' + b"[" * levels + b"]" * levels + b"}}"


@settings(max_examples=150)
@given(st.lists(looked_at, min_size=1, max_size=3), st.booleans())
@example([{"delta": {"tool_calls": [None]}}], False)
@example([{"delta": {"tool_calls": [{"index": [], "id": 1, "function": "f"}]}}], True)
@example([{"delta": {"content": "a"}, "logprobs": 5}, {"delta": {}, "logprobs": {"content": [1]}}], True)
@example([{"delta": {"content": "a"}, "index": "0"}, {"delta": {"content": "a"}, "index": [1]}], False)
@example([{"delta": {"content": "a"}, "finish_reason": {"a": 1}}], False)
@example([{"delta": 5}], False)
def test_any_json_as_a_delta(deltas: list[Any], batch: bool) -> None:
    """Every object is a delta; any other value makes the log unreadable."""
    objects = all(isinstance(one, dict) for one in deltas)
    if batch:
        raw = log_of()
        last = len(deltas)
        raw[2:] = [
            (b"1-%d" % last, (events.BATCH, orjson.dumps(deltas))),
            (b"1-%d" % (last + 1), (events.DONE, DONE)),
        ]
        objects = all(isinstance(one, dict | str) for one in deltas)
    else:
        raw = log_of(*((events.DELTA, orjson.dumps(one)) for one in deltas))
    history = check_all(raw)
    assert history.status == ("completed" if objects else "failed")


@settings(max_examples=100)
@given(json_values | looked_at, st.sampled_from(["finish_reason", "usage", "provider", "choice", "time"]))
@example({"prompt_tokens": "many", "prompt_tokens_details": [1], "completion_tokens_details": 5}, "usage")
@example(["length"], "finish_reason")
def test_any_json_in_a_terminal_event(value: Any, name: str) -> None:
    end = orjson.dumps({"finish_reason": "stop", "usage": None, "time": 1.0, name: value})
    assert check_all(log_of((events.TOKEN, b"x"), end=end)).status == "completed"


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.tuples(st.integers(0, 3), st.integers(0, 6)) | st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 9)),
            st.lists(
                st.sampled_from([*events.COUNTED, *events.TERMINAL, events.ACCEPTED, events.STARTED, events.RESTARTED])
                | st.binary(max_size=4),
                min_size=0,
                max_size=3,
            ),
            st.binary(max_size=6) | looked_at.map(orjson.dumps) | st.sampled_from([ACCEPTED, STARTED, DONE]),
        ),
        max_size=6,
    ),
    st.booleans(),
)
def test_any_bytes_as_entries(entries: list[tuple[tuple[int, int], list[bytes], bytes]], begins: bool) -> None:
    raw: list[RawEntry] = log_of()[:2] if begins else []
    known = {event_id for event_id, _ in raw}
    for place, fields, value in sorted(entries, key=lambda entry: entry[0]):
        event_id = b"%d-%d" % place
        if event_id not in known and place > (1, 0):
            known.add(event_id)
            raw.append((event_id, (*fields, value)))  # type: ignore[arg-type]  # what Redis may send, and our types deny
    check_all(raw)


@pytest.mark.parametrize("levels", [100, NESTED_MAX, 252, 300, 900, 1020])
@pytest.mark.parametrize("batch", [False, True])
def test_deep_deltas(levels: int, batch: bool) -> None:
    value = nested(levels)
    raw = log_of((events.BATCH, b"[" + value + b"]") if batch else (events.DELTA, value))
    history = check_all(raw)
    assert (history.status, history.text) == ("completed", "kept")


def test_an_unknown_kind_of_entry_is_an_empty_delta() -> None:
    raw = log_of((events.TOKEN, b"a"), (b"later", b"\xff"), (events.TOKEN, b"b"))
    history = check_all(raw)
    assert (history.status, history.text, len(history.items)) == ("completed", "ab", 3)
    assert b'data: {"delta":{}}\nid: 1-2\n\n' in shown(NATIVE, raw)


def replaced(index: int, event_id: bytes, *fields: bytes) -> list[RawEntry]:
    raw = log_of((events.TOKEN, b"a"), (events.TOKEN, b"b"))
    raw[index] = (event_id, fields)  # type: ignore[assignment]
    return raw


def without(index: int) -> list[RawEntry]:
    raw = log_of((events.TOKEN, b"a"))
    del raw[index]
    return raw


def value_without(value: bytes, name: str, instead: Any = None) -> bytes:
    stored = orjson.loads(value)
    del stored[name]
    return orjson.dumps(stored if instead is None else {**stored, name: instead})


def deep_request() -> bytes:
    return ACCEPTED.replace(b'"messages":', b'"tools":' + b"[" * 400 + b"]" * 400 + b',"messages":')


DAMAGED: dict[str, list[RawEntry]] = {
    "no field": replaced(2, b"1-1"),
    "no value": replaced(2, b"1-1", b"t"),
    "two fields": replaced(2, b"1-1", b"t", b"a", b"t", b"b"),
    "three parts": replaced(2, b"1-1", b"t", b"a", b"u"),
    "no name": replaced(2, b"1-1", b"", b"a"),
    "a text that is no UTF-8": replaced(2, b"1-1", b"t", b"\xff\xfe"),
    "half a letter": replaced(2, b"1-1", b"t", b"\xc3"),
    "a delta that is no JSON": replaced(2, b"1-1", b"d", b"{"),
    "a delta that is a list": replaced(2, b"1-1", b"d", b"[]"),
    "several that are an object": replaced(2, b"1-1", b"b", b'{"a":1}'),
    "several that are none": replaced(2, b"1-1", b"b", b"[]"),
    "several, of which one is a number": replaced(2, b"1-1", b"b", b"[1]"),
    "several, of which one is null": replaced(2, b"1-1", b"b", b"[null]"),
    "more than the offset says": replaced(2, b"1-1", b"b", b'["x","y","z"]'),
    "the same offsets again": replaced(3, b"1-2", b"b", b'["x","y"]'),
    "accepted is no JSON": replaced(0, b"0-1", b"accepted", b"{"),
    "accepted is a list": replaced(0, b"0-1", b"accepted", b"[]"),
    "accepted is not there": without(0),
    "accepted that is nested too deeply": replaced(0, b"0-1", b"accepted", deep_request()),
    "accepted at another place": replaced(0, b"0-2", b"accepted", ACCEPTED),
    "accepted twice": replaced(2, b"1-1", b"accepted", ACCEPTED),
    "started is no JSON": replaced(1, b"1-0", b"started", b"\xff"),
    "started without a model": replaced(1, b"1-0", b"started", value_without(STARTED, "model")),
    "started with a model of another type": replaced(1, b"1-0", b"started", value_without(STARTED, "model", [1])),
    "started at a text": replaced(1, b"1-0", b"started", value_without(STARTED, "time", "now")),
    "started is not there": without(1),
    "restarted without a base": replaced(2, b"2-0", b"restarted", STARTED),
    "done is null": replaced(4, b"1-3", b"done", b"null"),
    "done is no JSON": replaced(4, b"1-3", b"done", b"nul"),
    "done without a usage": replaced(4, b"1-3", b"done", value_without(DONE, "usage")),
    "failed without a code": replaced(4, b"1-3", b"failed", b'{"message":"m","retryable":true}'),
    "failed with a code of another type": replaced(4, b"1-3", b"failed", b'{"code":1,"message":"m","retryable":true}'),
    "cancelled by a number": replaced(4, b"1-3", b"cancelled", b'{"by":1}'),
    "a token of no attempt": replaced(1, b"0-2", b"t", b"a"),
    "another attempt's token": replaced(3, b"5-7", b"t", b"a"),
    "an attempt in the middle": replaced(3, b"2-1", b"started", STARTED),
    "an id that is too large": replaced(4, b"18446744073709551615-3", b"done", DONE),
}


@pytest.mark.parametrize("raw", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_log_has_failed(raw: list[RawEntry]) -> None:
    history = check_all(raw)
    assert (history.status, history.state(STREAM_ID)["error"]["code"]) == ("failed", "unreadable")
    assert b'"code":"unreadable"' in shown(NATIVE, raw)
    (failed,) = [line for line in shown(NATIVE, raw).split(b"\n\n") if b"event: failed" in line]
    EventId.parse(failed.rpartition(b"\nid: ")[2].strip().decode())  # a client may resume with it


def test_an_entry_with_too_large_an_id_is_damage() -> None:
    with pytest.raises(Unreadable):
        events_of(Entry(EventId(10**16, 0), events.DONE, DONE))


def test_a_hole_is_a_gap_and_not_damage() -> None:
    raw = log_of((events.TOKEN, b"a"))
    raw[2:] = [(b"1-5000000000", (events.TOKEN, b"a")), (b"1-5000000001", (events.DONE, DONE))]
    history = History()
    fold_into(history, (entry_of(event_id, fields) for event_id, fields in raw))
    assert history.status == "completed"


@dataclasses.dataclass(unsafe_hash=True)
class FailingFace:
    """A face whose encoder raises an exception for one text, as a bug would."""

    name = "sse"
    at: bytes
    stateful = False
    media_type = b"text/plain"
    keep_alive = b""
    cut_unless_done = False
    resumable = True

    def encoder(self, stream_id: str) -> Encoder:
        return _Failing(self.at)

    def prelude(self, retry_milliseconds: int) -> bytes:
        return b""

    def live(self, offset: int) -> bytes:
        return b""

    def epilogue(self, retry_milliseconds: int) -> bytes:
        return b"retry;"


class _Failing(Encoder):
    def __init__(self, at: bytes) -> None:
        self._at = at

    def token(self, event_id: bytes, value: bytes) -> bytes:
        if value.decode() == self._at.decode():
            raise LookupError("as it should")
        return event_id + b";"

    def other(self, event: Event) -> bytes:
        return b"" if event.field == events.ACCEPTED else event.field + b"@%d-%d;" % event.id


@pytest.mark.parametrize("bad", range(1, 8))
def test_a_ring_whose_encoder_fails_ends_there(bad: int) -> None:
    values = tuple(b"v%d" % offset for offset in range(1, 8))
    ids = tuple(b"1-%d" % offset for offset in range(1, 8))
    ring = Ring(FailingFace(b"v%d" % bad), _Failing(b"v%d" % bad), EventId(1, 0))
    ring.extend(TokenRun(EventId(1, 1), EventId(1, 7), ids, values))
    ring.append(Event(EventId(1, 8), events.TOKEN, b"x"))
    assert ring.broken == EventId(1, bad)
    assert ring.body(0) == b"".join(one + b";" for one in ids[: bad - 1]) + b"failed@1-%d;" % bad
    assert ring.cursor_at(ring.end) == EventId(1, bad)


@pytest.mark.parametrize("remembering", [RESPONSES, AI_SDK], ids=["responses", "ai"])
def test_an_encoder_that_cannot_close_its_parts_still_encodes_the_end(remembering: Face) -> None:
    encoder: Any = remembering.encoder(STREAM_ID)
    for part in parts(log_of((events.TOKEN, b"a"))[:3], BEGINNING):
        for event in (
            part.events if not isinstance(part, TokenRun) else [Event(part.first, events.TOKEN, part.values[0])]
        ):
            encode(encoder, event)
    encoder._calls = [object()] if remembering is RESPONSES else {}
    encoder._kind = None if remembering is RESPONSES else object()
    failed = Event(EventId(1, 2), events.FAILED, b'{"code":"unreadable","message":"m","retryable":false}')
    end = encoder.give_up(failed)
    assert (b"response.failed" in end) if remembering is RESPONSES else end.endswith(b"data: [DONE]\n\n")


def test_arguments_that_are_nested_too_deeply_are_an_input_error() -> None:
    """The model writes a call's arguments as text; the AI SDK wants them parsed."""
    deep = '{"a":' + "[" * 900 + "]" * 900 + "}"
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": deep}}
    raw = log_of((events.DELTA, orjson.dumps({"delta": {"tool_calls": [call]}})))
    check_all(raw)
    assert b'"type":"tool-input-error"' in shown(AI_SDK, raw)
    assert b'"type":"finish"' in shown(AI_SDK, raw)


def test_tool_calls_of_odd_shapes() -> None:
    """Pieces of tool calls in other shapes than the documented one."""
    odd: list[Any] = [
        None,
        5,
        {"function": 5},
        {"index": "0", "id": 7, "function": {"name": ["f"], "arguments": {"a": 1}}},
    ]
    (event,) = events_of(Entry(EventId(1, 1), events.DELTA, orjson.dumps({"delta": {"tool_calls": odd}})))
    assert orjson.loads(event.value)["delta"]["tool_calls"] == [{}, {"function": {"arguments": '{"a":1}'}}]
    good = b'{"delta":{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]}}'
    assert events_of(Entry(EventId(1, 1), events.DELTA, good)) == [Event(EventId(1, 1), events.DELTA, good)]


def test_json_of_several_lines_becomes_one_line() -> None:
    raw = log_of((events.DELTA, b'{"delta":\r\n\n{"role":"x"}\n\n}'))
    assert b'data: {"delta":{"role":"x"}}\nid: 1-1\n\n' in shown(NATIVE, raw)
    check_all(raw)
