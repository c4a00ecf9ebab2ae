"""The Durable Streams face without a gateway: bodies to messages, frames, offsets, headers."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.facades.ai_sdk.stream_parts import AI_SDK, AI_SDK_REPLAY
from gateway.facades.durable import headers
from gateway.facades.durable.durable import DurableStreams
from gateway.facades.durable.face import DurableFace, Form, MessageEncoder, UiEncoder, face_of
from gateway.facades.durable.messages import MESSAGES_MAX, json_messages
from gateway.facades.durable.offsets import cursor_floor, cursor_now, event_id_of, offset_of
from gateway.faces import End, encode
from gateway.http.problems import Problem
from shared import events
from shared.events import Event
from shared.ids import ID_PART_MAX, EventId
from shared.settings import Settings
from shared.sse import Decoder
from shared.written_log import WrittenStream
from tests.unit.test_ai_sdk_face import STREAM_ID, Log, call, delta, done, numbered, restarted, started, token
from tests.unit.test_openapi import NOBODY

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(values=st.lists(JSON, min_size=1, max_size=6), indent=st.sampled_from([None, 1, "\t"]), ascii_only=st.booleans())
def test_an_array_becomes_its_elements_as_they_are_written(values: list[Any], indent: Any, ascii_only: bool) -> None:
    body = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
    field, value, number = json_messages(body)
    lines = value.split(b"\n")
    assert (field, number) == (events.JSON, len(values) == len(lines) and len(lines))
    assert [json.loads(line) for line in lines] == values
    assert all(line in body.replace(b"\n", b" ") for line in lines)


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (b'{"a": 1}', [b'{"a": 1}']),
        (b' [1.0e2, 12345678901234567890123, "\\u00e9"] ', [b"1.0e2", b"12345678901234567890123", b'"\\u00e9"']),
        (b'["a,]\\"[{", [1,\r\n2]]', [b'"a,]\\"[{"', b"[1,  2]"]),
        (b"[[[1]]]", [b"[[1]]"]),
    ],
)
def test_messages_pass_unchanged(body: bytes, lines: list[bytes]) -> None:
    assert json_messages(body).value.split(b"\n") == lines


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"[1] 2", 400), (b'"\xff"', 400), (b"[%b1]" % (b"1," * MESSAGES_MAX), 413)]
)
def test_bodies_that_are_refused(body: bytes, status: int) -> None:
    with pytest.raises(Problem) as refused:
        json_messages(body)
    assert refused.value.status == status


PLACES = st.builds(EventId, st.integers(0, 10**10 - 1), st.integers(0, ID_PART_MAX))


@given(first=PLACES, second=PLACES)
def test_offsets_sort_as_ids_do(first: EventId, second: EventId) -> None:
    assert event_id_of(offset_of(first)) == first
    assert (offset_of(first) < offset_of(second)) == (first < second)


@pytest.mark.parametrize("offset", ["", "0", "1-57", "now ", "1_57", "0000000001_00000000000000057", "../x", "-2"])
def test_offsets_that_are_refused(offset: str) -> None:
    with pytest.raises(Problem):
        event_id_of(offset)


def test_a_cursor_is_above_the_one_that_the_client_has() -> None:
    now = int(cursor_now(0))
    assert cursor_floor("0") == cursor_floor("x") == cursor_floor(str(now - 2)) == 0
    assert int(cursor_now(cursor_floor(str(now + 5)))) > now + 5


@pytest.mark.parametrize(
    ("form", "messages", "data"),
    [
        (Form.JSON, [b'{"a":1}', b"[2]"], '[{"a":1},[2]]'),
        (Form.TEXT, [b"one\n", b" two\r\nthree\rfour"], "one\n two\nthree\nfour"),
        (Form.TEXT, ["é".encode()[:1], "é".encode()[1:]], "é"),
        (Form.BYTES, [b"\x00\xff", b"\n"], "AP8K"),
    ],
)
@pytest.mark.parametrize("ends", [False, True])
def test_a_frame_is_one_data_and_one_control_event(form: Form, messages: list[bytes], data: str, ends: bool) -> None:
    encoder = MessageEncoder()
    stored = [Event(EventId(1, offset), events.RAW, message) for offset, message in enumerate(messages, 1)]
    pieces = [encoder.other(event) for event in stored]
    if ends:
        pieces.append(encoder.other(Event(EventId(1, 9), events.FAILED, b"{}")))
    frame = DurableFace(form).frame(pieces, EventId(1, 2), is_newest=True)
    first, second = Decoder().feed(frame)
    control = orjson.loads(second.data)
    assert (first.event, first.data, second.event) == ("data", data, "control")
    assert control.pop("streamNextOffset") == "0000000001_0000000000000002"
    if ends:
        assert control == {"streamClosed": True, "streamOutcome": "failed"}
        assert isinstance(pieces[-1], End)
        assert pieces[-1] == b""
    else:
        assert control.pop("streamCursor").isdigit()
        assert control == {"upToDate": True}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stream-ttl": "1.5"}, "whole number"),
        ({"stream-ttl": "61"}, "60 seconds at most"),
        ({"stream-ttl": "1", "stream-expires-at": "2030-01-01T00:00:00Z"}, "exclude each other"),
        ({"stream-expires-at": "2030-01-01T00:00:00"}, "RFC 3339"),
        ({"stream-expires-at": "2999-01-01T00:00:00Z"}, "60 seconds from now"),
    ],
)
def test_lives_that_are_refused(fields: dict[str, str], words: str) -> None:
    with pytest.raises(Problem, match=words):
        headers.life_of(fields, 60)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"producer-id": "p"}, "belong together"),
        ({"producer-id": "", "producer-epoch": "0", "producer-seq": "0"}, "empty"),
        ({"producer-id": "p" * 256, "producer-epoch": "0", "producer-seq": "0"}, "255"),
        ({"producer-id": "p", "producer-epoch": "-1", "producer-seq": "0"}, "Producer-Epoch"),
        ({"producer-id": "p", "producer-epoch": "0", "producer-seq": str(2**53)}, "Producer-Seq"),
    ],
)
def test_producers_that_are_refused(fields: dict[str, str], words: str) -> None:
    with pytest.raises(Problem, match=words):
        headers.producer_of(fields)


ANSWER: Log = [
    started,
    delta(reasoning_content="hm"),
    token("He"),
    (events.OWN, {"event": "step", "data": [1]}),
    call(0, "c1", "look", '{"at":'),
    call(0, arguments="1}"),
    restarted(2),
    token("llo, \u2028 \u00e9"),
    done("tool_calls"),
]


@pytest.mark.parametrize("replay", [False, True])
def test_as_ui_has_the_parts_that_the_ai_sdk_gets(replay: bool) -> None:
    facade = {"api": "ai_sdk", "message": "mine", "before": [{"type": "start-step"}, {"type": "finish-step"}]}
    listed = numbered(ANSWER, on_interrupt="continue", facade=facade)
    of_sdk = (AI_SDK_REPLAY if replay else AI_SDK).encoder(STREAM_ID)
    expected = [message.data for event in listed for message in Decoder().feed(encode(of_sdk, event))]
    assert expected.pop() == "[DONE]"
    encoder = UiEncoder(STREAM_ID, replay=replay)
    pieces = [encode(encoder, event) for event in listed]
    assert isinstance(pieces[-1], End)
    assert pieces[-1].outcome == "done"
    frame = DurableFace(Form.GENERATED).frame(pieces, listed[-1].id, is_newest=True)
    data, _ = Decoder().feed(frame)
    assert [json.dumps(part) for part in json.loads(data.data)] == [json.dumps(json.loads(part)) for part in expected]


def test_a_part_that_cannot_be_shown_ends_the_parts() -> None:
    encoder = UiEncoder(STREAM_ID, replay=False)
    end = encoder.give_up(Event(EventId(1, 1), events.FAILED, b'{"message": "damaged"}'))
    assert [part["type"] for part in json.loads(b"[%b]" % end)] == ["error", "finish"]


def test_only_generated_answers_have_ui_parts() -> None:
    written = WrittenStream(STREAM_ID, "anonymous", "application/json", None, None, 0)
    with pytest.raises(Problem, match="generated answers"):
        face_of(written, "ui")


def test_each_operation_needs_its_scope() -> None:
    durable = DurableStreams(NOBODY, NOBODY, NOBODY, NOBODY, NOBODY, Settings(), NOBODY, NOBODY)
    scopes = {route.method: route.scope for route in durable.routes}
    # Not cancel: an access token has that, and the right to one answer is no right to delete it.
    assert scopes == {"PUT": "write", "POST": "write", "GET": "read", "DELETE": "write"}
