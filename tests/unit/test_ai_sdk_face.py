from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.facades.ai_sdk.stream_parts import AI_SDK, AI_SDK_REPLAY
from gateway.faces import encode, gap_event
from shared import events
from shared.events import Accepted, Event, Policies
from shared.ids import FIRST_ID, EventId, new_stream_id

STREAM_ID = new_stream_id()
Log = list[tuple[bytes, Any]]
"""Fields and values in order; `numbered` adds the ids."""

started = (events.STARTED, {"attempt": 1, "model": "m", "worker": "w", "time": 1.0})


def done(reason: str = "stop", usage: Any = None) -> tuple[bytes, Any]:
    return events.DONE, {"finish_reason": reason, "usage": usage, "time": 2.0}


def token(text: str) -> tuple[bytes, Any]:
    return events.TOKEN, text


def delta(**fields: Any) -> tuple[bytes, Any]:
    return events.DELTA, {"delta": fields}


def call(index: int, call_id: str | None = None, name: str | None = None, arguments: str = "") -> tuple[bytes, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return delta(tool_calls=[{"index": index, **({"id": call_id} if call_id else {}), "function": function}])


def restarted(base: int) -> tuple[bytes, Any]:
    return events.RESTARTED, {"attempt": 2, "model": "m", "base": base, "reason": "worker_lost", "time": 1.5}


def numbered(log: Log, *, on_interrupt: str = "restart", facade: dict[str, Any] | None = None) -> list[Event]:
    accepted = Accepted(
        {"messages": []}, Policies(60.0, on_interrupt), 0.0, "anonymous", {}, facade or {"api": "ai_sdk"}
    )
    listed, attempt, offset = [Event(FIRST_ID, events.ACCEPTED, accepted.stored())], 0, 0
    for field, value in log:
        if field in (events.STARTED, events.RESTARTED):
            attempt, offset = attempt + 1, value.get("base", 0)
            event_id = EventId(attempt, 0)
        else:
            offset += 1
            event_id = EventId(max(1, attempt), offset)
        listed.append(Event(event_id, field, value.encode() if field == events.TOKEN else orjson.dumps(value)))
    return listed


def body_of(listed: Iterable[Event]) -> bytes:
    encoder = AI_SDK.encoder(STREAM_ID)
    return b"".join(encode(encoder, event) for event in listed)


def parts_of(log: Log, **options: Any) -> list[Any]:
    """Returns the parts that a client gets, between `start` (which is checked) and [DONE]."""
    body = body_of(numbered(log, **options)).decode()
    lines = body.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    payloads = [line.removeprefix("data: ") for line in lines]
    if "[DONE]" in payloads:
        assert payloads.index("[DONE]") == len(payloads) - 1
        payloads.pop()
    parts = [orjson.loads(payload) for payload in payloads]
    assert parts[0]["type"] == "start"
    return parts[1:]


def message_of(parts: list[Any]) -> list[tuple[str, str]]:
    """Assembles the message's parts as the SDK does. AssertionError if a part grows that is not open, or opens twice."""
    message: list[tuple[str, str]] = []
    open_parts: dict[str, int] = {}
    step = 0
    for part in parts:
        kind, _, phase = part["type"].partition("-")
        if part["type"] == "start-step":
            step = len(message)
        elif part["type"] == "reset-step":
            del message[step:]
            open_parts.clear()
        elif kind in ("text", "reasoning"):
            if phase == "start":
                assert part["id"] not in open_parts
                open_parts[part["id"]] = len(message)
                message.append((kind, ""))
            elif phase == "delta":
                at = open_parts[part["id"]]
                message[at] = (kind, message[at][1] + part["delta"])
            else:
                del open_parts[part["id"]]
    assert not open_parts or parts[-1]["type"] not in ("finish", "abort")
    return message


def test_an_answer() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "completion_tokens_details": {}}
    assert parts_of([started, token('He"'), token("lö"), done("length", usage)]) == [
        {"type": "start-step"},
        {"type": "text-start", "id": "text-1"},
        {"type": "text-delta", "id": "text-1", "delta": 'He"'},
        {"type": "text-delta", "id": "text-1", "delta": "lö"},
        {"type": "text-end", "id": "text-1"},
        {"type": "finish-step"},
        {
            "type": "finish",
            "finishReason": "length",
            "messageMetadata": {"usage": {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5}},
        },
    ]


def test_the_message_id_is_the_stream_s_or_that_of_the_continued_message() -> None:
    for facade, message_id in (({}, f"msg_{STREAM_ID}"), ({"message": "mine"}, "mine")):
        body = body_of(numbered([], facade={"api": "ai_sdk", **facade}))
        metadata = {"streamId": STREAM_ID}
        assert orjson.loads(body.removeprefix(b"data: ")) == {
            "type": "start",
            "messageId": message_id,
            "messageMetadata": metadata,
        }


def test_earlier_steps_are_sent_only_on_resumption() -> None:
    before = [{"type": "start-step"}, {"type": "finish-step"}]
    listed = numbered([started, token("a")], facade={"api": "ai_sdk", "message": "mine", "before": before})
    encoder = AI_SDK_REPLAY.encoder(STREAM_ID)
    body = b"".join(encode(encoder, event) for event in listed)
    again = b'data: {"type":"start-step"}\n\ndata: {"type":"finish-step"}\n\n'
    assert body.count(again) == 1
    assert body.replace(again, b"") == body_of(listed)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content-filter"),
        ("tool_calls", "tool-calls"),
        ("function_call", "tool-calls"),
        ("eos", "other"),
    ],
)
def test_finish_reasons(theirs: str, ours: str) -> None:
    assert parts_of([started, token("a"), done(theirs)])[-1] == {"type": "finish", "finishReason": ours}


def test_reasoning_text_and_refusals_are_separate_parts() -> None:
    log = [
        started,
        delta(reasoning_content="hm"),
        delta(reasoning=" so"),
        token("a"),
        delta(content="b"),
        delta(refusal="no"),
        delta(reasoning_content="x", content="y"),
        done(),
    ]
    assert message_of(parts_of(log)) == [
        ("reasoning", "hm so"),
        ("text", "abno"),
        ("reasoning", "x"),
        ("text", "y"),
    ]


def test_tool_calls() -> None:
    log = [
        started,
        token("wait"),
        call(0, "c0", "look"),
        call(0, arguments='{"at":'),
        call(1, "c1", "now"),
        call(0, arguments='"x"}'),
        done("tool_calls"),
    ]
    assert parts_of(log)[3:] == [
        {"type": "text-end", "id": "text-1"},
        {"type": "tool-input-start", "toolCallId": "c0", "toolName": "look"},
        {"type": "tool-input-delta", "toolCallId": "c0", "inputTextDelta": '{"at":'},
        {"type": "tool-input-start", "toolCallId": "c1", "toolName": "now"},
        {"type": "tool-input-delta", "toolCallId": "c0", "inputTextDelta": '"x"}'},
        {"type": "tool-input-available", "toolCallId": "c0", "toolName": "look", "input": {"at": "x"}},
        {"type": "tool-input-available", "toolCallId": "c1", "toolName": "now", "input": {}},
        {"type": "finish-step"},
        {"type": "finish", "finishReason": "tool-calls"},
    ]


def test_a_call_without_an_id_gets_one_and_one_without_a_name_waits_for_it() -> None:
    log = [started, call(0, arguments="{"), call(0, name="a", arguments="}"), call(1, "never"), done("tool_calls")]
    call_id = f"call_{STREAM_ID}_1"
    assert parts_of(log)[1:-2] == [
        {"type": "tool-input-start", "toolCallId": call_id, "toolName": "a"},
        {"type": "tool-input-delta", "toolCallId": call_id, "inputTextDelta": "{}"},
        {"type": "tool-input-available", "toolCallId": call_id, "toolName": "a", "input": {}},
    ]


def test_truncated_tool_input_is_an_error() -> None:
    wrong = parts_of([started, call(0, "c0", "a", '{"b":'), done("length")])[-3]
    assert (wrong["type"], wrong["input"]) == ("tool-input-error", '{"b":')
    assert "a is not complete JSON" in wrong["errorText"]


def test_a_restart_takes_everything_back() -> None:
    log = [started, token("wrong"), call(0, "c0", "a", "{"), restarted(0), token("right"), call(0, "c0", "a"), done()]
    parts = parts_of(log)
    assert message_of(parts) == [("text", "right")]
    assert [part["type"] for part in parts].count("reset-step") == 1
    assert [part["input"] for part in parts if part["type"] == "tool-input-available"] == [{}]


def test_a_restart_before_the_first_token_is_not_sent() -> None:
    assert parts_of([started, restarted(0), token("a"), done()]) == parts_of([started, token("a"), done()])


def test_a_continued_attempt_takes_nothing_back() -> None:
    log = [started, token("a"), token("b"), restarted(2), token("c"), done()]
    assert parts_of(log, on_interrupt="continue") == parts_of([started, token("a"), token("b"), token("c"), done()])


def test_an_attempt_that_keeps_some_tokens_repeats_them() -> None:
    log = [
        started,
        delta(reasoning="r"),
        token("a"),
        token("b"),
        restarted(2),
        token("c"),
        restarted(3),
        token("d"),
        done(),
    ]
    parts = parts_of(log, on_interrupt="continue")
    assert message_of(parts) == [("reasoning", "r"), ("text", "acd")]
    assert [part["type"] for part in parts].count("reset-step") == 1


@pytest.mark.parametrize(("by", "reason"), [("client", "stopped by the user"), ("disconnect", "every reader had left")])
def test_cancelled(by: str, reason: str) -> None:
    parts = parts_of([started, token("a"), (events.CANCELLED, {"by": by, "time": 2.0})])
    assert parts[-2:] == [{"type": "text-end", "id": "text-1"}, {"type": "abort", "reason": reason}]


def test_deleted_while_a_client_reads() -> None:
    encoder = AI_SDK.encoder(STREAM_ID)
    assert b'{"type":"abort"' in encode(encoder, Event(EventId(2, 0), events.DELETED, b""))


def test_failed() -> None:
    failed = (events.FAILED, {"code": "provider_stalled", "message": "it is gone", "retryable": True, "time": 2.0})
    assert parts_of([started, token("a"), failed])[-4:] == [
        {"type": "text-end", "id": "text-1"},
        {"type": "error", "errorText": "it is gone"},
        {"type": "finish-step"},
        {"type": "finish", "finishReason": "error"},
    ]
    assert parts_of([failed]) == [
        {"type": "error", "errorText": "it is gone"},
        {"type": "finish", "finishReason": "error"},
    ]


def test_a_gap_is_sent_but_is_not_a_part_of_the_message() -> None:
    encoder = AI_SDK.encoder(STREAM_ID)
    part = orjson.loads(encode(encoder, gap_event(EventId(1, 3), EventId(1, 5))).removeprefix(b"data: "))
    assert part == {"type": "data-gap", "data": {"requested": "1-3", "first_available": "1-5"}, "transient": True}


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["index", "id", "function", "name", "arguments"]), inner, max_size=4)
    ),
    max_leaves=12,
)
odd_deltas = st.dictionaries(
    st.sampled_from(["content", "reasoning", "refusal", "tool_calls"]), anything | st.lists(anything, max_size=3)
).map(lambda delta: (events.DELTA, {"delta": delta}))


@given(st.lists(st.builds(token, st.text(max_size=4)) | odd_deltas | st.just(restarted(0)), max_size=12))
def test_any_log_becomes_valid_parts_in_order(log: Log) -> None:
    message_of(parts_of([started, *log, done()]))
