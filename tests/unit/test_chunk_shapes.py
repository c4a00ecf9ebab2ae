"""For any chunk of a provider, the stored values have the shapes that docs/reference/log-format.md promises."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from producer import chunk_shapes as shapes
from producer.chunk_reader import ChunkReader
from producer.lenient_json import VALUES_MAX
from producer.provider import ProviderError, Unavailable
from shared.events import Entry, Item, encode_items, events_of
from shared.ids import EventId
from shared.metrics import PROVIDER_ODDITY_KINDS

CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOKEN = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1, "bytes": None}]}
WHOLE: dict[str, Any] = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "system_fingerprint": "fp",
    "service_tier": "default",
    "usage": {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": None},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "cost": 0.5,
    },
    "choices": [
        {
            "index": 0,
            "delta": {
                "role": "assistant",
                "content": "a",
                "refusal": "r",
                "reasoning_content": "hm",
                "reasoning": "hm",
                "reasoning_details": [{"type": "reasoning.text", "text": "hm"}],
                "tool_calls": [CALL, {**CALL, "index": 1, "id": "d"}],
                "function_call": {"name": "f", "arguments": "{}"},
                "annotations": [{"type": "url_citation"}],
                "audio": {"id": "a", "data": "AA==", "transcript": "t", "expires_at": 1},
                "foreign": {"x": [1]},
            },
            "logprobs": {"content": [TOKEN], "refusal": None},
            "finish_reason": "stop",
            "stop_reason": 7,
        },
        {"index": 1, "delta": {"content": "b"}, "logprobs": None, "finish_reason": "length", "matched": 1},
    ],
}


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Yields the path of every place in a JSON value."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, inner in below for deeper in paths(inner, (*path, key)))]


PATHS = paths(WHOLE)[1:]


def placed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Returns the chunk with another value at one place."""
    chunk: Any = json.loads(json.dumps(WHOLE))
    within = chunk
    for key in path[:-1]:
        within = within[key]
    within[path[-1]] = value
    return chunk  # type: ignore[no-any-return]


def deep(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"x": value}
    return value


ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**70, -(2**70), 1.5, math.nan, math.inf, "", "text", "0", "1", "-1", "9" * 400,
    "\ud83d", "\udc00\ud83d", "null", "x" * 100_000, [], [None], [1], ["a"], [[]], [{}], [[{}]], {}, {"a": None}, {"\ud83d": "\udc00"},
    {"index": True, "function": "f"}, [{"index": -1, "id": 5, "function": {"name": 1, "arguments": {"a": 2**70, "b": "\ud83d"}}}],
    {"type": "text", "text": "a"}, deep(40), deep(200), deep(900), [deep(300)],
]  # fmt: skip


def shape_of(delta: dict[str, Any]) -> None:
    """Raises AssertionError if a stored delta has not the shape of log-format.md."""
    assert type(delta["delta"]) is dict
    assert type(delta.get("index", 1)) is int
    assert 1 <= delta.get("index", 1) <= 127
    reason = delta.get("finish_reason", "stop")
    assert type(reason) is str
    assert 1 <= len(reason) <= 64
    fields = delta["delta"]
    content = fields.get("content", "")
    assert type(content) is str or all(type(part) is dict for part in content)
    for name in ("refusal", "reasoning_content", "reasoning"):
        assert type(fields.get(name, "")) is str
    for name in ("reasoning_details", "annotations"):
        assert type(fields.get(name, [])) is list
        assert all(type(item) is dict for item in fields.get(name, []))
    for call in fields.get("tool_calls", []):
        assert type(call) is dict
        assert type(call["index"]) is int
        assert 0 <= call["index"] <= 1023
        assert all(type(call.get(name, "")) is str for name in ("id", "type"))
        function_of(call.get("function", {}))
    function_of(fields.get("function_call", {}))
    audio = fields.get("audio", {})
    assert type(audio) is dict
    assert all(type(audio.get(name, "")) is str for name in ("id", "data", "transcript"))
    logprobs = delta.get("logprobs", {})
    assert type(logprobs) is dict
    for name in ("content", "refusal"):
        for token in logprobs.get(name) or []:
            token_of(token)
            assert type(token.get("top_logprobs")) in (list, type(None))  # in one of these it would be a foreign field
            for top in token.get("top_logprobs") or []:
                token_of(top)


def function_of(function: Any) -> None:
    assert type(function) is dict
    assert all(type(function.get(name, "")) is str for name in ("name", "arguments"))


def token_of(token: Any) -> None:
    assert type(token) is dict
    assert type(token.get("token")) in (str, type(None))
    assert type(token.get("logprob")) in (int, float, type(None))
    assert all(type(byte) is int for byte in token.get("bytes") or [])


def depth_of(value: Any) -> int:
    """Returns the depth of nesting of a JSON value."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


def held(items: list[Item]) -> None:
    """Stores items as a worker does, and reads them back as a gateway does."""
    batches: list[list[Item]] = [[item] for item in items]
    for batch in [*batches, items] if items else []:
        entry = Entry(EventId(1, len(batch)), *encode_items(batch))
        for event in events_of(entry):
            event.value.decode()
            if event.field == b"d":
                delta = orjson.loads(event.value)
                shape_of(delta)
                assert depth_of(delta) <= shapes.LEVELS_MAX + 2


def fed(payload: bytes) -> tuple[ChunkReader, list[str]]:
    """Returns a reader that was fed one chunk, and the odd fields that it reported. AssertionError if a stored shape is wrong."""
    odd: list[str] = []
    reader = ChunkReader(odd.append)
    held(reader.feed(b"data: " + payload + b"\n\n"))
    usage = reader.usage
    assert set(odd) <= {*PROVIDER_ODDITY_KINDS}
    assert reader.finish_reason is None or 1 <= len(reader.finish_reason) <= 64
    done = {"finish_reason": reader.finish_reason, "usage": usage, **reader.about}
    assert depth_of(json.loads(orjson.dumps(done))) <= shapes.LEVELS_MAX + 2
    assert len(orjson.dumps(done)) < 3 * shapes.ABOUT_BYTES_MAX + 1000
    for name in ("model", "system_fingerprint", "service_tier"):
        assert type(reader.about.get("provider", {}).get(name, "")) is str
    if usage is not None:
        for name, count in usage.items():
            if name.endswith("_tokens_details"):
                assert count is None or all(
                    number is None or (type(number) is int and number >= 0)
                    for key, number in count.items()
                    if key.endswith("_tokens")
                )
            elif name.endswith("_tokens"):
                assert count is None or (type(count) is int and 0 <= count <= 2**53)
    if reader.error is not None:
        error = reader.take_error()
        assert isinstance(error, ProviderError)
        assert len(str(error)) < 1000
        assert len(orjson.dumps(error.about())) < shapes.ABOUT_BYTES_MAX + 1000
    return reader, odd


def test_documented_values_are_kept() -> None:
    odd: list[str] = []
    whole = json.loads(orjson.dumps(WHOLE))
    del whole["choices"][0]["delta"]["function_call"], whole["choices"][0]["delta"]["foreign"]
    reader = ChunkReader(odd.append)
    first, second = (orjson.loads(item) for item in reader.feed(b"data: " + orjson.dumps(whole) + b"\n\n"))
    delta = dict(WHOLE["choices"][0]["delta"])
    del delta["role"], delta["function_call"], delta["foreign"]
    assert first == {"delta": delta, "logprobs": WHOLE["choices"][0]["logprobs"]}
    assert second == {"delta": {"content": "b"}, "index": 1, "finish_reason": "length", "matched": 1}
    assert (reader.finish_reason, reader.usage) == ("tool_calls", WHOLE["usage"])
    assert odd == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_an_odd_value_at_any_place_affects_no_other_value(path: tuple[Any, ...]) -> None:
    for value in ODD:
        fed(json.dumps(placed(path, value)).encode())


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=5)
    | st.sampled_from(["index", "function", "stop"]),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(
            st.sampled_from(sorted({str(key) for path in PATHS for key in path} | {"error", "message", "code"})),
            below,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.sampled_from(PATHS), JSON)
def test_any_json_at_any_place_affects_no_other_value(path: tuple[Any, ...], value: Any) -> None:
    fed(json.dumps(placed(path, value)).encode())


@settings(max_examples=200)
@given(JSON)
def test_any_json_is_read_or_is_an_error(value: Any) -> None:
    fed(json.dumps({"choices": value}).encode())
    fed(json.dumps({"error": value}).encode())
    fed(json.dumps(value).encode())


@settings(max_examples=200)
@given(st.binary(max_size=50), st.integers(0, 400))
@example(b"[" * 100_000, 0)
@example(b'{"a":' * 100_000, 0)
def test_any_bytes_are_read_or_are_an_error(noise: bytes, at: int) -> None:
    payload = orjson.dumps(WHOLE)
    fed((payload[:at] + noise + payload[at:]).replace(b"\n", b" "))


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("tool_calls", [None], None),
        ("tool_calls", [None, CALL], [CALL]),
        ("tool_calls", CALL, [CALL]),
        (
            "tool_calls",
            [{"id": "a", "function": "f"}],
            [{"id": "a", "type": "function", "index": 0, "function": {"name": "f", "arguments": ""}}],
        ),
        ("tool_calls", [{**CALL, "index": "1"}], [CALL]),
        ("tool_calls", [CALL, {**CALL, "id": "d", "index": True}], [CALL, {**CALL, "id": "d", "index": 1}]),
        ("tool_calls", [{"index": 0, "function": {"name": None, "arguments": {"city": "Rome"}}}], None),
        (
            "tool_calls",
            [{**CALL, "function": {"name": "f", "arguments": {"city": "Rome"}}}],
            [{**CALL, "function": {"name": "f", "arguments": '{"city":"Rome"}'}}],
        ),
        ("content", 5, "5"),
        ("content", True, None),
        ("content", [{"type": "text"}, "a", 1], "a"),
        ("reasoning_content", ["a"], None),
    ],
)
def test_odd_values_are_left_out_or_converted(field: str, value: Any, kept: Any) -> None:
    odd: list[str] = []
    items = ChunkReader(odd.append).feed(
        b"data: " + json.dumps({"choices": [{"delta": {field: value, "refusal": "r"}}]}).encode() + b"\n"
    )
    assert orjson.loads(items[0]) == {"delta": {"refusal": "r", **({} if kept is None else {field: kept})}}
    assert set(odd) - {"content_parts", "call_index"} == {field}


@pytest.mark.parametrize(
    ("value", "reason"),
    [("x" * 3_000_000, "x" * 64), (1, "1"), ({"type": "stop"}, '{"type":"stop"}'), (["\ud83d"], "unknown"), ("\ud83d", "\ufffd"), (0, None), ([], None)],
)  # fmt: skip
def test_a_finish_reason_is_a_short_text(value: Any, reason: str | None) -> None:
    reader, odd = fed(json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": value}]}).encode())
    assert reader.finish_reason == (None if reason is None else "stop")
    assert reader._first.word == (reason or "")
    assert set(odd) - {"invalid_json"} == (set() if reason is None else {"finish_reason"})


def test_at_most_128_choices_are_kept() -> None:
    odd: list[str] = []
    choices = [{"index": index, "delta": {"content": "a"}} for index in range(10_000)]
    assert len(ChunkReader(odd.append).feed(b"data: " + orjson.dumps({"choices": choices}) + b"\n")) == 128
    assert odd == ["choices"]


def test_a_line_that_would_need_too_much_memory_is_not_parsed() -> None:
    payload = b'data: {"choices":[' + b",".join([b"[]"] * (VALUES_MAX + 1)) + b"]}\n"
    tracemalloc.start()
    try:
        reader = ChunkReader()
        reader.feed(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(reader.error, Unavailable)
    assert peak < 4 * len(payload)


def test_other_fields_of_chunks_do_not_accumulate() -> None:
    """A provider that sends another field with each chunk, for ever."""
    reader = ChunkReader()
    for number in range(2000):
        reader.feed(b"data: " + orjson.dumps({"usage": {"total_tokens": 1}, f"field{number}": "x" * 100}) + b"\n")
    assert len(orjson.dumps(reader.about)) < 2 * shapes.ABOUT_BYTES_MAX


def test_a_usage_is_bounded_and_keeps_its_counts() -> None:
    """It stands in the receipt's line on the log."""
    reader = ChunkReader()
    details = {f"k{number}": number for number in range(1000)}
    chunk = {"choices": [], "usage": {"total_tokens": 8, "annotations": details, "prompt_tokens": 5}}
    reader.feed(b"data: " + orjson.dumps(chunk) + b"\n\n")
    assert reader.usage == {"total_tokens": 8, "prompt_tokens": 5}
