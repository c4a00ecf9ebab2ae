"""Answers as real providers send them (tests/recordings/odd): what they say, and what is reported as odd."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from producer.chunk_reader import ChunkReader
from producer.finish import GRACE_SECONDS, UNSURE_GRACE_SECONDS
from producer.provider import Finish, ProviderError
from shared.events import Item
from tests.support.replay_server import ODD, Gathering, body_of


def data(*chunks: Any) -> bytes:
    return b"".join(b"data: " + (it if type(it) is bytes else json.dumps(it).encode()) + b"\n\n" for it in chunks)


def chunk(delta: Any = None, finish_reason: Any = None, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish_reason, **choice}]}


def heard(body: bytes, step: int = 0) -> tuple[list[Item], Finish | None, list[str]]:
    """Reads a body, whole or in pieces of `step` bytes. Raises the error in it."""
    odd: list[str] = []
    reader = ChunkReader(odd.append)
    items: list[Item] = []
    for begin in range(0, len(body), step or len(body) or 1):
        if not reader.ended:
            items += reader.feed(body[begin : begin + (step or len(body))])
    if not reader.ended:
        items += reader.end()
    if reader.error is not None:
        raise reader.take_error()
    return items, reader.finish(), sorted(set(odd))


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("name", sorted(ODD))
def test_it_says_what_its_provider_meant(name: str, step: int) -> None:
    wanted = ODD[name]
    items, finish, odd = heard(body_of(name), step)
    gathering = Gathering()
    for item in items:
        gathering.add({"content": item} if isinstance(item, str) else orjson.loads(item)["delta"])
    assert finish is not None
    said = gathering.content(finish.reason, finish.usage)
    assert (said.text, said.reasoning, said.refusal) == (wanted["text"], wanted["reasoning"], wanted["refusal"])
    assert [list(call) for call in said.calls or ()] == wanted["calls"]
    assert said.finish_reason == wanted["finish_reason"]
    assert list(said.usage or ()) == wanted["usage"]
    assert finish.about.get("choice", {}).get("native_finish_reason", finish.reason) == wanted.get(
        "native", finish.reason
    )
    assert odd == wanted["odd"]


@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_a_mark_change_nothing(line_end: bytes, mark: bytes) -> None:
    body = body_of("openrouter-comments")
    plain = heard(body)
    for step in (0, 1, 13):
        items, finish, odd = heard(mark + body.replace(b"\n", line_end), step)
        assert (items, finish) == plain[:2]
        assert odd == sorted([*plain[2], *(["byte_order_mark"] if mark else [])])


def test_text_beside_fields_of_the_providers_own_is_a_token() -> None:
    items, _, _ = heard(data(chunk({"content": "a", "token_id": 7, "own": {"x": [1]}}), chunk({}, "stop")))
    assert items == ["a"]


@pytest.mark.parametrize(
    ("delta", "items"),
    [
        ({"content": [{"type": "output_text", "text": "a"}, "b"]}, ["ab"]),
        ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]}, [{"reasoning_content": "hm", "content": "a"}]),
        ({"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}]}, [{"reasoning_content": "hm"}]),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, [{"refusal": "no"}]),
        ({"content": {"type": "text", "text": "a"}}, ["a"]),
        ({"content": [{"type": "image_url", "image_url": {"url": "u"}}]}, [{"content_parts": [{"type": "image_url", "image_url": {"url": "u"}}]}]),
        ({"function_call": {"name": "f", "arguments": {"x": 1}}}, [{"f": '{"x":1}'}]),
        ({"tool_calls": [{"id": "a", "function": "f"}]}, [{"f": ""}]),
    ],
)  # fmt: skip
def test_what_a_delta_of_another_shape_becomes(delta: dict[str, Any], items: list[Any]) -> None:
    found: list[Any] = []
    for item in heard(data(chunk(delta), b"[DONE]"))[0]:
        shown: Any = item if isinstance(item, str) else orjson.loads(item)["delta"]
        if "tool_calls" in shown:
            shown = {call["function"]["name"]: call["function"]["arguments"] for call in shown["tool_calls"]}
        found.append(shown)
    assert found == items


ERRORS: list[tuple[bytes, str, bool, int | None]] = [
    # what came behind "Good", the words, whether it is tried again, its status
    (data(chunk({"content": ""}, "error", error={"code": 502, "message": "idle timeout"})), "idle timeout", True, 502),
    (data(chunk({}, "error")), "finish_reason is error", True, None),
    (data(chunk({}, "network_error")), "network_error", True, None),
    (data({"error": {"code": 402, "message": "no credits"}, "choices": []}), "no credits", False, 402),
    (data({"error": {"code": "429", "message": "slow down"}}), "slow down", True, 429),
    (data({"error": {"message": "quota", "type": "insufficient_quota"}}), "quota", False, 429),
    (data({"error": {"message": "too long", "type": "BadRequestError", "code": 400}}), "too long", False, 400),
    (data({"error": "`inputs` must be shorter", "error_type": "validation"}), "`inputs` must be shorter", False, 422),
    (data({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}), "Overloaded", True, 529),
    (data([{"error": {"code": 400, "message": "Unknown name", "status": "INVALID_ARGUMENT"}}]), "Unknown name", False, 400),
    (data({"object": "error", "message": "no such model", "code": 404}), "no such model", False, 404),
    (data({"code": 429, "message": "exhausted"}), "exhausted", True, 429),
    (data({"detail": [{"loc": ["body"], "msg": "wrong"}]}), '"msg":"wrong"', True, None),
    (data({"base_resp": {"status_code": 1004, "status_msg": "no key"}, "choices": None}), "no key", True, None),
    (b'event: error\ndata: {"code":400,"details":"logprobs of 21"}\n\n', "logprobs of 21", False, 400),
    (b"event: error\ndata: it is broken\n\n", "it is broken", True, None),
    (b'error: {"code":400,"message":"context size","type":"invalid_request_error"}\n\n', "context size", False, 400),
    (b"error: it is broken\n", "it is broken", True, None),
    (b'{"error":{"message":"raw","code":503}}\n', "raw", True, 503),
    (b"upstream error: read ECONNRESET\n", "upstream error: read ECONNRESET", True, None),
    (data(b"upstream gone"), "upstream gone", True, None),
]  # fmt: skip
BODIES: list[tuple[bytes, str, bool, int | None]] = [
    (b'{"error":{"message":"The model does not exist","type":"invalid_request_error","code":"model_not_found"}}', "does not exist", False, 404),
    (b'{\n  "error": {\n    "message": "no",\n    "code": 401\n  }\n}\n', "no", False, 401),
    (b'[{\n  "error": {\n    "message": "no",\n    "status": "PERMISSION_DENIED"\n  }\n}]\n', "no", False, 403),
    (b'{"message":"exhausted","code":429}', "exhausted", True, 429),
    (b"<!DOCTYPE html><html><head><title>Blocked &amp; gone</title></head><body>x</body></html>", "Blocked & gone", False, None),
    (b"<html>\r\n<body><h1>Sign in</h1>\r\n<p>first</p></body></html>", "Sign in first", False, None),
    (b"no healthy upstream", "no healthy upstream", True, None),
    (b"", "without a finish_reason", True, None),
    (data(b"[DONE]"), "without a finish_reason", True, None),
]  # fmt: skip


def error_of(body: bytes, step: int) -> ProviderError:
    reader = ChunkReader()
    for begin in range(0, len(body), step):
        if not reader.ended:
            reader.feed(body[begin : begin + step])
    if not reader.ended:
        reader.end()
    if reader.error is None:
        assert reader.finish() is None
        return reader.broken_off()
    return reader.take_error()


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize(
    ("body", "words", "retryable", "status"),
    [*[(data(chunk({"content": "Good"})) + it[0], *it[1:]) for it in ERRORS], *BODIES],
)
def test_an_error_has_the_providers_words_however_it_is_sent(
    body: bytes, words: str, retryable: bool, status: int | None, step: int
) -> None:
    error = error_of(body, step)
    assert words in str(error)
    assert (error.retryable, error.status) == (retryable, status)
    assert len(str(error)) < 1000


@pytest.mark.parametrize("body", [b"<html>" + b"x" * 100_000, b'{"error":"' + b"x" * 100_000 + b'"}', b"x" * 100_000])
def test_an_errors_words_are_bounded(body: bytes) -> None:
    error = error_of(body, 10_000)
    assert len(str(error)) < 600
    assert len(orjson.dumps(error.error)) < 2000


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        (data(chunk({"content": "a"})), False),
        (data(chunk({"content": "a"})) + b'data: {"choices":[{"delta":{"conte', False),
        (data(chunk({"content": "a"}), {"choices": [], "usage": {"total_tokens": 1}}), False),
        (data(chunk({"content": "a"}, "null")), False),
        (data(chunk({"content": "a"}, "stop")), True),
        (data(chunk({"content": "a"}), chunk({"content": "b"}, index=1), chunk({}, "stop")), False),
        (data(chunk({"content": "a"}), chunk({"content": "b"}, "stop", index=1), chunk({}, "stop")), True),
        (data(chunk({"content": "a"}), chunk({}, "stop"))[:-2], True),
    ],
)
def test_without_done_an_answer_is_whole_if_each_choice_has_ended(body: bytes, whole: bool) -> None:
    assert (heard(body)[1] is not None) == whole


def test_a_half_character_that_stays_alone_is_replaced() -> None:
    half, text = b'{"choices":[{"delta":{"content":"a\\ud83d"}}]}', chunk({"content": "b"})
    assert heard(data(half, text, b"[DONE]"))[0] == ["a", "\ufffdb"]
    assert heard(data(half, b"[DONE]"))[0] == ["a"]
    both = (
        b'{"choices":[{"delta":{"reasoning_content":"\\ud83d"}}]}',
        b'{"choices":[{"delta":{"reasoning_content":"\\ude00"}}]}',
    )
    assert [orjson.loads(item)["delta"] for item in heard(data(*both, b"[DONE]"))[0]] == [{"reasoning_content": "😀"}]


def test_chunks_as_lines_of_json_are_read() -> None:
    lines = [chunk({"content": "a"}), chunk({"content": "b"}), chunk({}, "stop")]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    for step in (0, 1):
        items, finish, odd = heard(body, step)
        assert (items, finish and finish.reason, odd) == (["a", "b"], "stop", ["not_an_event"])


def test_a_usage_of_zeros_does_not_replace_one() -> None:
    usages = ({"total_tokens": 8}, {"prompt_tokens": 0, "total_tokens": 0})
    body = data(chunk({"content": "a"}, "stop"), *({"choices": [], "usage": usage} for usage in usages))
    finish = heard(body)[1]
    assert finish is not None
    assert finish.usage == usages[0]


@pytest.mark.parametrize(
    ("chunks", "choices", "seconds"),
    [
        ([chunk({"content": "a"})], 1, None),
        ([chunk({"content": "a"}, "null")], 1, None),
        ([chunk({"content": "a"}), chunk({}, "stop")], 1, GRACE_SECONDS),
        ([chunk({"content": "a"}), chunk({"content": "b"}, "stop")], 1, GRACE_SECONDS),
        ([chunk({"content": "a"}, "stop")], 1, UNSURE_GRACE_SECONDS),
        ([chunk({"content": "a"}, "stop"), chunk({"content": "b"}, "stop")], 1, UNSURE_GRACE_SECONDS),
        ([chunk({"content": "a"}), chunk({}, "stop")], 2, UNSURE_GRACE_SECONDS),
        ([chunk({"content": "a"}), chunk({"content": "a"}, index=1), chunk({}, "stop")], 2, None),
        ([chunk({"content": "a"}), chunk({}, "stop", index=1), chunk({}, "stop")], 2, GRACE_SECONDS),
    ],
)
def test_how_long_a_silence_may_last_behind_a_finish_reason(
    chunks: list[Any], choices: int, seconds: float | None
) -> None:
    reader = ChunkReader(choices=choices)
    for one in chunks:
        reader.feed(data(one))
    assert reader.grace_seconds == seconds
