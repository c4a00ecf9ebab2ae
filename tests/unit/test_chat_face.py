"""Chat completion chunks: the chunks of each event, and the whole answer that all of them make."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.facades.openai.chat_chunks import ChatFace, chat_cursor, chat_face, resumed_chat_face, stream_id_of
from gateway.facades.openai.chat_whole import completion
from gateway.facades.openai.errors import (
    cancelled_problem,
    failure,
    failure_problem,
    failure_status,
    openai_error,
)
from gateway.faces import GAP, encode
from gateway.http.problems import Problem
from shared import events
from shared.events import Accepted, Entry, Event, Policies
from shared.ids import EventId, created_at
from shared.lifecycle import fold
from shared.sse import Decoder, Message

STREAM = "01m82g4k5c66h4kxepyg1ykthpcxk4ftc3a5"
DONE: dict[str, Any] = {"finish_reason": "stop", "usage": {"total_tokens": 3}, "time": 1.0}


def shown(field: bytes, value: Any, at: str = "1-5", **face: Any) -> list[Message]:
    raw = value if isinstance(value, bytes) else orjson.dumps(value)
    encoder = ChatFace("m", **face).encoder(STREAM)
    return list(Decoder().feed(encode(encoder, Event(EventId.parse(at), field, raw))))


def chunk(message: Message) -> dict[str, Any]:
    parsed: dict[str, Any] = orjson.loads(message.data)
    return parsed


def choice(**fields: Any) -> dict[str, Any]:
    return {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None, **fields}


def test_the_chunk_of_a_token() -> None:
    [message] = shown(events.TOKEN, ' "ü\n'.encode())
    assert message.id == "1-5"
    assert chunk(message) == {
        "id": f"chatcmpl-{STREAM}",
        "object": "chat.completion.chunk",
        "created": int(created_at(STREAM)),
        "model": "m",
        "choices": [choice(delta={"content": ' "ü\n'})],
    }


def test_every_chunk_has_a_null_usage_if_usage_was_requested() -> None:
    for field, value in (
        (events.TOKEN, b"a"),
        (events.DELTA, {"delta": {"refusal": "no"}}),
        (events.DELTA, {"delta": {"content": "a"}, "index": 1, "logprobs": {"content": []}}),
        (events.STARTED, {"attempt": 1, "model": "m"}),
    ):
        assert [chunk(one)["usage"] for one in shown(field, value, include_usage=True)] == [None]
        assert ["usage" in chunk(one) for one in shown(field, value)] == [False]


def test_the_start_has_the_role_of_every_choice() -> None:
    [message] = shown(events.STARTED, {"attempt": 1, "model": "other"}, "1-0", choices=2)
    first_delta = {"role": "assistant", "content": ""}
    assert chunk(message)["choices"] == [choice(delta=first_delta), choice(index=1, delta=first_delta)]
    assert chunk(message)["model"] == "m"


@pytest.mark.parametrize(
    "stored",
    [
        {"delta": {"reasoning_content": "hm"}},
        {"delta": {"tool_calls": [{"index": 3, "function": {"arguments": '"index":1,"logprobs":2'}}]}},
        {"delta": {"content": 'a","index":7}}'}, "index": 1},
        {"delta": {"content": "a"}, "logprobs": {"content": [{"token": "a", "logprob": -0.5}]}},
        {"delta": {"content": "a"}, "index": 2, "logprobs": {"content": []}},
        {"delta": {}, "index": 1, "finish_reason": "length", "stop_reason": 7},
        {"delta": {"x": {"logprobs": 1, "finish_reason": "no"}}},
        {"delta": {}, "logprobs": {"content": []}},
    ],
)
def test_a_delta_is_given_as_the_provider_sent_it(stored: dict[str, Any]) -> None:
    [message] = shown(events.DELTA, stored)
    assert chunk(message)["choices"] == [choice(**stored)]
    assert message.data.count('"finish_reason":') == 1 + orjson.dumps(stored["delta"]).count(b'"finish_reason":')


def test_each_chunk_of_the_end_has_its_own_id() -> None:
    done = {**DONE, "provider": {"system_fingerprint": "fp", "model": "m-2026", "choices": 1}, "choice": {"x": 1}}
    finish, usage, end = shown(events.DONE, done, include_usage=True)
    assert [finish.id, usage.id, end.id] == ["1-5.1", "1-5.2", "1-5"]
    assert chunk(finish)["choices"] == [choice(finish_reason="stop", x=1)]
    assert (chunk(finish)["system_fingerprint"], chunk(finish)["model"], chunk(finish)["usage"]) == ("fp", "m", None)
    assert (chunk(usage)["choices"], chunk(usage)["usage"]) == ([], {"total_tokens": 3})
    assert end.data == "[DONE]"
    assert [one.id for one in shown(events.DONE, done)] == ["1-5.1", "1-5"]


def test_a_failure_is_an_error_and_the_end() -> None:
    [message] = shown(events.FAILED, {"code": "worker_lost", "message": "m", "retryable": True, "time": 1.0})
    assert chunk(message) == {"error": {"message": "m", "type": "server_error", "param": None, "code": "worker_lost"}}
    for field, value in ((events.CANCELLED, {"by": "client", "time": 1.0}), (events.DELETED, b"")):
        [message] = shown(field, value)
        assert chunk(message)["error"]["code"] == "cancelled"


def test_a_restart_is_sent_only_if_tokens_may_be_taken_back() -> None:
    value = {"attempt": 2, "base": 3, "reason": "worker_lost", "model": "m", "worker": "w", "time": 1.0}
    assert shown(events.RESTARTED, value, "2-0") == []
    [message] = shown(events.RESTARTED, value, "2-0", tells_restarts=True)
    assert chunk(message)["midstream"] == {"restarted": {"attempt": 2, "base": 3, "reason": "worker_lost"}}
    assert chunk(message)["choices"] == [choice()]
    [gap] = shown(GAP, {"requested": "1-2", "first_available": "1-9"}, "1-8")
    assert (gap.id, chunk(gap)["midstream"]["gap"]["first_available"]) == ("", "1-9")
    assert shown(events.ACCEPTED, {}, "0-1") == []


def test_chat_faces_are_equal_if_their_options_and_resumption_are() -> None:
    request, policies = {"model": "m", "n": 2}, Policies(None, "fail")
    first = chat_face(request, policies, True)
    assert first == chat_face(dict(request), policies, True)
    assert first != chat_face(request, policies, False)
    accepted = Accepted(request, policies, 0.0, "p", {}, {"api": "chat", "include_usage": True})
    again = resumed_chat_face(accepted)
    assert (again.include_usage, again.choices, again.resumable, first.resumable) == (True, 2, True, False)
    assert again != first
    assert len({first, again}) == 2
    event = Event(EventId(1, 1), events.TOKEN, b"a")
    assert encode(first.encoder(STREAM), event) == encode(again.encoder(STREAM), event)


def test_cursors() -> None:
    assert chat_cursor("") == (None, 0)
    assert chat_cursor("1-57") == (EventId(1, 57), 0)
    assert chat_cursor("1-57.2") == (EventId(1, 57), 2)
    assert stream_id_of(f"chatcmpl-{STREAM}") == stream_id_of(STREAM) == STREAM
    for wrong in ("1-57.", "1-57.0", "1-57.12", ".1", "x", "1-57.²"):
        with pytest.raises(Problem, match="is not an event id") as raised:
            chat_cursor(wrong)
        assert raised.value.status == 400


@pytest.mark.parametrize(
    ("failed", "status"),
    [
        ({"code": "provider_refused", "status": 404}, 404),
        ({"code": "provider_refused"}, 400),
        ({"code": "provider_unavailable", "status": 529}, 529),
        ({"code": "provider_unavailable", "status": 200}, 502),
        ({"code": "provider_unavailable", "status": 9000}, 502),
        ({"code": "queue_timeout"}, 503),
        ({"code": "something_new"}, 502),
    ],
)
def test_the_status_of_a_failure(failed: dict[str, Any], status: int) -> None:
    failed |= {"message": "m"}
    assert failure_status(failed) == status
    response = openai_error(failure_problem(failed))
    assert response.status_code == status
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": "m", "type": kind, "param": None, "code": failed["code"]}
    assert orjson.loads(response.body) == {"error": error}


def test_the_provider_s_error_and_its_retry_after_are_passed_on() -> None:
    own = {"message": "theirs", "type": "t", "param": None, "code": None, "more": 1}
    failed = {"code": "provider_unavailable", "message": "m", "status": 429, "provider_error": own, "retry_after": 0.2}
    assert failure(failed) == own
    response = openai_error(failure_problem(failed))
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert openai_error(cancelled_problem("client")).headers["x-should-retry"] == "false"


# --- whole completions

PIECES = st.lists(
    st.one_of(
        st.text(max_size=3),
        st.builds(lambda text: {"delta": {"reasoning_content": text}}, st.text(max_size=3)),
        st.builds(lambda text, index: {"delta": {"content": text}, "index": index}, st.text(max_size=3), st.just(1)),
        st.builds(
            lambda text, index: {"delta": {"tool_calls": [{"index": index, "function": {"arguments": text}}]}},
            st.text(max_size=3),
            st.integers(0, 2),
        ),
        st.builds(
            lambda text: {"delta": {"content": text}, "logprobs": {"content": [{"token": text}]}}, st.text(max_size=3)
        ),
    ),
    max_size=12,
)


def whole_of(pieces: list[Any], **done: Any) -> dict[str, Any]:
    accepted = Accepted({"model": "m", "messages": []}, Policies(), 0.0, "p", {})
    started = orjson.dumps({"attempt": 1, "model": "m", "time": 1.0})
    entries = [Entry(EventId(0, 1), events.ACCEPTED, accepted.stored()), Entry(EventId(1, 0), events.STARTED, started)]
    for offset, piece in enumerate(pieces, start=1):
        plain = isinstance(piece, str)
        stored = piece.encode() if plain else orjson.dumps(piece)
        entries.append(Entry(EventId(1, offset), events.TOKEN if plain else events.DELTA, stored))
    entries.append(Entry(EventId(1, len(pieces) + 1), events.DONE, orjson.dumps({**DONE, **done})))
    return completion(STREAM, fold(entries))


@given(PIECES)
def test_merging_pieces_loses_and_adds_nothing(pieces: list[Any]) -> None:
    """Compares the merged message with a simple reading of the same pieces, field by field."""
    choices = {one["index"]: one for one in whole_of(pieces)["choices"]}
    texts = {0: "", 1: ""}
    reasoning, calls, logprobs = "", dict[int, str](), list[dict[str, str]]()
    for piece in pieces:
        delta: dict[str, Any] = {"content": piece} if isinstance(piece, str) else piece["delta"]
        texts[0 if isinstance(piece, str) else piece.get("index", 0)] += delta.get("content", "")
        reasoning += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", ()):
            calls[call["index"]] = calls.get(call["index"], "") + call["function"]["arguments"]
        logprobs += [] if isinstance(piece, str) else piece.get("logprobs", {}).get("content", [])
    message = choices[0]["message"]
    assert (message["content"] or "") == texts[0]
    assert (choices[1]["message"]["content"] if 1 in choices else "") == texts[1]
    assert message.get("reasoning_content", "") == reasoning
    assert [one["function"]["arguments"] for one in message.get("tool_calls", ())] == list(calls.values())
    assert (choices[0]["logprobs"] or {}).get("content", []) == logprobs


def test_merging_many_pieces_takes_linear_time() -> None:
    """Appending each of 40,000 pieces to a string would copy 80 GB."""
    pieces = [f"{number:100}" for number in range(40_000)]
    began = time.process_time()
    whole = whole_of([{"delta": {"reasoning_content": piece}} for piece in pieces])
    assert whole["choices"][0]["message"]["reasoning_content"] == "".join(pieces)
    assert time.process_time() - began < 3


def test_a_repeated_name_is_not_appended() -> None:
    pieces = [
        {"delta": {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]}},
        {"delta": {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}]}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}},
    ]  # fmt: skip
    [one] = whole_of(pieces, finish_reason="tool_calls")["choices"]
    assert one["message"]["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]
    assert (one["message"]["content"], one["finish_reason"]) == (None, "tool_calls")


def test_the_provider_s_other_fields_are_in_the_whole_answer() -> None:
    provider = {"system_fingerprint": "fp", "model": "m-2026", "service_tier": "flex"}
    whole = whole_of(["a"], provider=provider, choice={"stop_reason": 7})
    assert whole == {
        "id": f"chatcmpl-{STREAM}",
        "object": "chat.completion",
        "created": int(created_at(STREAM)),
        **provider,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": 7,
            }
        ],
        "usage": {"total_tokens": 3},
    }
