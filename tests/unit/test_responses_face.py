"""Logs as events of the Responses API: valid in the SDK's types, numbered without a hole, the same at every reading."""

from __future__ import annotations

import json
from typing import Any, get_args

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

from gateway.facades.responses.events import RESPONSES
from gateway.faces import GAP, encode
from shared import events
from shared.events import Accepted, Entry, Event, Policies
from shared.ids import FIRST_ID, EventId, new_stream_id
from shared.lifecycle import fold
from shared.sse import Decoder

ID = new_stream_id(1_800_000_000.0)
REQUEST: dict[str, Any] = {"model": "a-model", "messages": [{"role": "user", "content": "a question"}]}
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 5,
    "total_tokens": 8,
    "completion_tokens_details": {"reasoning_tokens": 2},
}
_TYPES: dict[str, type[BaseModel]] = {
    get_args(one.model_fields["type"].annotation)[0]: one for one in get_args(get_args(ResponseStreamEvent)[0])
}


def log_of(*items: Any, facade: dict[str, Any] | None = None, request: dict[str, Any] | None = None) -> list[Event]:
    """Returns a log from texts, deltas, and (field, value) for other entries; (RESTARTED, …) begins another attempt."""
    accepted = Accepted(request or REQUEST, Policies(), 1_800_000_000.0, "anonymous", {"a": "b"}, facade or {})
    log = [
        Event(FIRST_ID, events.ACCEPTED, accepted.stored()),
        Event(EventId(1, 0), events.STARTED, orjson.dumps({"attempt": 1, "model": "the-model", "time": 1.0})),
    ]
    for one in items:
        attempt, offset = log[-1].id
        if isinstance(one, str):
            log.append(Event(EventId(attempt, offset + 1), events.TOKEN, one.encode()))
        elif isinstance(one, dict):
            log.append(Event(EventId(attempt, offset + 1), events.DELTA, orjson.dumps(one)))
        elif one[0] == events.RESTARTED:
            value = {"attempt": attempt + 1, "model": "the-model", "time": 1.0, **one[1]}
            log.append(Event(EventId(attempt + 1, 0), events.RESTARTED, orjson.dumps(value)))
        else:
            log.append(Event(EventId(attempt, offset + 1), one[0], orjson.dumps(one[1])))
    return log


def done(reason: str = "stop") -> tuple[bytes, dict[str, Any]]:
    return events.DONE, {"finish_reason": reason, "usage": USAGE, "time": 1_800_000_009.5}


def call(index: int, arguments: str, call_id: str | None = None, name: str | None = None) -> dict[str, Any]:
    opening = {} if call_id is None else {"id": call_id, "type": "function"}
    function = {"arguments": arguments, **({} if name is None else {"name": name})}
    return {"delta": {"tool_calls": [{"index": index, **opening, "function": function}]}}


def events_from(log: list[Event]) -> list[dict[str, Any]]:
    """Returns the events of a log. Checks each against the SDK's type, and all of them with its stream helper."""
    encoder, decoder, found = RESPONSES.encoder(ID), Decoder(), []
    helper = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in log:
        for message in decoder.feed(encode(encoder, event)):
            data = json.loads(message.data)
            assert message.event == data["type"]
            typed = _TYPES[data["type"]].model_validate(data)
            helper.handle_event(typed)  # type: ignore[arg-type]  # any of them
            found.append(data)
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    assert encoder.next_number == len(found)
    if encoder.ended:
        assert encoder.snapshot() == found[-1]["response"]
    Response.model_validate(encoder.snapshot())
    return found


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [one["type"].removeprefix("response.") for one in found]


def test_text() -> None:
    found = events_from(log_of("Hel", "lö\n", '"', done()))
    assert kinds(found) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    response = found[-1]["response"]
    assert found[0]["response"]["status"] == found[1]["response"]["status"] == "in_progress"
    assert (response["status"], response["model"], response["completed_at"]) == (
        "completed",
        "the-model",
        1_800_000_009,
    )
    assert response["id"] == f"resp_{ID}"
    assert response["created_at"] == 1_800_000_000
    assert response["metadata"] == {"a": "b"}
    assert Response.model_validate(response).output_text == 'Hellö\n"'
    assert response["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 8,
    }


def test_a_response_in_the_background_is_queued_first() -> None:
    found = events_from(log_of(facade={"api": "responses", "background": True, "previous": "resp_x", "store": True}))
    assert kinds(found) == ["created", "queued", "in_progress"]
    assert [one["response"]["status"] for one in found] == ["queued", "queued", "in_progress"]
    assert found[0]["response"]["previous_response_id"] == "resp_x"


def test_reasoning_is_an_item_before_the_message() -> None:
    found = events_from(
        log_of({"delta": {"reasoning_content": "Let me "}}, {"delta": {"reasoning": "see."}}, "An", " answer", done())
    )
    assert kinds(found)[2:10] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
    ]
    thought, message = found[-1]["response"]["output"]
    assert (thought["type"], thought["content"]) == ("reasoning", [{"type": "reasoning_text", "text": "Let me see."}])
    assert message["content"][0]["text"] == "An answer"


def test_a_refusal_is_a_part_of_the_message() -> None:
    found = events_from(log_of("I", {"delta": {"refusal": "will not."}}, done()))
    (message,) = found[-1]["response"]["output"]
    assert [part["type"] for part in message["content"]] == ["output_text", "refusal"]
    assert message["content"][1] == {"type": "refusal", "refusal": "will not."}
    assert [one["content_index"] for one in found if one["type"].startswith("response.refusal")] == [1, 1]


def test_calls_whose_pieces_alternate() -> None:
    found = events_from(
        log_of(
            "Let me look.",
            call(0, "", "call_a", "weather"),
            call(1, '{"ci', "call_b", "time"),
            call(0, '{"city":'),
            call(1, 'ty":"Y"}'),
            call(0, '"X"}'),
            done("tool_calls"),
        )
    )
    message, first, second = found[-1]["response"]["output"]
    assert message["status"] == "completed"
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_a", "weather", '{"city":"X"}')
    assert (second["call_id"], second["name"], second["arguments"]) == ("call_b", "time", '{"city":"Y"}')
    ended = [one for one in found if one["type"] == "response.function_call_arguments.done"]
    assert [(one["output_index"], one["arguments"]) for one in ended] == [
        (1, '{"city":"X"}'),
        (2, '{"city":"Y"}'),
    ]


def test_a_call_of_a_new_attempt_under_the_same_id() -> None:
    restarted = (events.RESTARTED, {"base": 0, "reason": "worker_lost"})
    found = events_from(
        log_of(call(0, '{"x', "call_0", "f"), restarted, call(0, '{"x":', "call_0", "f"), call(0, "1}"), done())
    )
    (item,) = found[-1]["response"]["output"]
    assert item["arguments"] == '{"x":1}'


def test_log_probabilities_are_with_the_delta_and_with_the_part() -> None:
    probable = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": [{"token": "Ho", "logprob": -2.0}]}
    found = events_from(log_of({"delta": {"content": "Hi"}, "logprobs": {"content": [probable]}}, " you", done()))
    delta = next(one for one in found if one["type"] == "response.output_text.delta")
    assert delta["logprobs"][0]["top_logprobs"][0]["token"] == "Ho"
    part = found[-1]["response"]["output"][0]["content"][0]
    assert part["text"] == "Hi you"
    assert part["logprobs"] == delta["logprobs"]


def test_an_answer_that_was_cut_off() -> None:
    found = events_from(log_of("Hel", call(0, '{"ha', "call_a", "one"), done("length")))
    response = found[-1]["response"]
    assert found[-1]["type"] == "response.incomplete"
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [one["status"] for one in response["output"]] == ["completed", "incomplete"]
    assert "response.function_call_arguments.done" not in [one["type"] for one in found], "half a call looks whole"
    found = events_from(log_of("Hel", done("content_filter")))
    assert found[-1]["response"]["incomplete_details"] == {"reason": "content_filter"}


def test_a_failed_response_keeps_its_text() -> None:
    failed = {"code": "provider_unavailable", "message": "it broke off", "retryable": True, "time": 1.0}
    found = events_from(log_of("Hel", (events.FAILED, failed)))
    assert kinds(found)[-2:] == ["error", "failed"]
    assert (found[-2]["code"], found[-2]["message"]) == ("provider_unavailable", "it broke off")
    response = found[-1]["response"]
    error = {"code": "server_error", "message": "it broke off", "type": "provider_unavailable"}
    assert (response["status"], response["error"]) == ("failed", error)
    assert response["output"][0]["status"] == "incomplete"
    for code, status, wanted in (
        ("provider_unavailable", 429, "rate_limit_exceeded"),
        ("content_filtered", None, "invalid_prompt"),
        ("provider_refused", 400, "invalid_prompt"),
        ("provider_refused", 401, "server_error"),
    ):
        refused = {**failed, "code": code, **({} if status is None else {"status": status})}
        assert events_from(log_of((events.FAILED, refused)))[-1]["response"]["error"]["code"] == wanted


def test_cancelled_and_deleted() -> None:
    for field in (events.CANCELLED, events.DELETED):
        found = events_from(log_of("Hel", (field, {"by": "client", "time": 1.0})))
        assert (found[-1]["type"], found[-1]["response"]["status"]) == ("response.incomplete", "cancelled")
        assert found[-1]["response"]["incomplete_details"] is None
    alone = RESPONSES.encoder(ID)
    assert encode(alone, Event(EventId(0, 1), events.DELETED, b"")) == b""
    assert not alone.exists


def test_entries_behind_the_end_become_no_events() -> None:
    log = log_of("Hel", (events.CANCELLED, {"by": "client", "time": 1.0}), done())
    assert kinds(events_from(log))[-1] == "incomplete"


def test_a_new_attempt_ends_the_open_item_and_begins_another() -> None:
    found = events_from(log_of("Hel", (events.RESTARTED, {"base": 0, "reason": "worker_lost"}), "Good", " day", done()))
    abandoned = next(one for one in found if one["type"] == "response.output_item.done")
    assert (abandoned["item"]["status"], abandoned["item"]["content"][0]["text"]) == ("incomplete", "Hel")
    (message,) = found[-1]["response"]["output"]
    assert message["id"] != abandoned["item"]["id"]
    assert message["content"][0]["text"] == "Good day"


def test_an_attempt_that_goes_on_keeps_the_item_open() -> None:
    log = log_of("Hel")
    restarted = {"attempt": 2, "base": 1, "reason": "worker_lost", "model": "the-model", "time": 1.0}
    log.append(Event(EventId(2, 0), events.RESTARTED, orjson.dumps(restarted)))
    log.append(Event(EventId(2, 2), events.TOKEN, b"lo"))
    log.append(Event(EventId(2, 3), events.DONE, orjson.dumps(done()[1])))
    found = events_from(log)
    assert kinds(found).count("output_item.added") == 1
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == "Hello"


def test_a_gap_is_an_error_event() -> None:
    found = events_from(log_of("Hel", (GAP, {"requested": "1-2", "first_available": "1-9"}), "x", done()))
    (error,) = [one for one in found if one["type"] == "error"]
    assert error["code"] == "events_missing"


def test_a_long_text_is_whole() -> None:
    words = [f"{number} " for number in range(5000)]
    assert events_from(log_of(*words, done()))[-1]["response"]["output"][0]["content"][0]["text"] == "".join(words)


def test_the_request_of_another_api_is_described() -> None:
    request = {
        **REQUEST,
        "max_tokens": 7,
        "temperature": 0.5,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        "reasoning_effort": "low",
    }
    response = events_from(log_of(done(), request=request))[-1]["response"]
    assert (response["max_output_tokens"], response["temperature"], response["store"]) == (7, 0.5, True)
    assert response["tools"] == [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}]
    assert response["tool_choice"] == {"type": "function", "name": "f"}
    assert response["text"]["format"] == {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    assert response["reasoning"]["effort"] == "low"


_WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
_SAID = st.one_of(
    _WORDS,
    _WORDS,
    st.builds(lambda text: {"delta": {"reasoning_content": text}}, _WORDS),
    st.builds(lambda text: {"delta": {"content": text}, "logprobs": {"content": [{"token": text}]}}, _WORDS),
    st.builds(lambda text: {"delta": {"refusal": text}}, _WORDS),
    st.builds(lambda place, text: call(place, text, f"call_{place}", "f"), st.integers(0, 2), _WORDS),
    st.builds(lambda text: {"delta": {"content": text}, "index": 1}, _WORDS),
    st.just((events.RESTARTED, {"base": 0, "reason": "worker_lost"})),
)
_ENDS = st.sampled_from(
    [
        done(),
        done("length"),
        (events.CANCELLED, {"by": "client", "time": 1.0}),
        (events.FAILED, {"code": "worker_lost", "message": "gone", "retryable": True, "time": 1.0}),
    ]
)


@settings(max_examples=60)
@given(st.lists(_SAID, max_size=12), _ENDS)
def test_any_log_becomes_valid_events(items: list[Any], end: tuple[bytes, dict[str, Any]]) -> None:
    log = log_of(*items, end)
    found = events_from(log)
    response = Response.model_validate(found[-1]["response"])
    native = fold(Entry(*event) for event in log)
    assert response.output_text == native.text
    standing = {one.id for one in response.output}
    deltas = [
        one["delta"] for one in found if one["type"] == "response.output_text.delta" and one["item_id"] in standing
    ]
    assert "".join(deltas) == native.text
    begun = [one["item"]["id"] for one in found if one["type"] == "response.output_item.added"]
    ended = [one["item"]["id"] for one in found if one["type"] == "response.output_item.done"]
    assert len(set(begun)) == len(begun)
    assert sorted(begun) == sorted(ended)
    first, second = RESPONSES.encoder(ID), RESPONSES.encoder(ID)
    assert [encode(first, event) for event in log] == [encode(second, event) for event in log]
