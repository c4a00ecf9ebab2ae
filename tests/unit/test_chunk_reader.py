"""The items that the bytes of an OpenAI-compatible provider become."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer import event_stream
from producer.chunk_reader import ChunkReader
from producer.provider import ProviderError, Refused, Unavailable
from shared.events import Entry, Item, encode_items, events_of
from shared.ids import EventId


def chunk(delta: Any, **choice: Any) -> bytes:
    """Returns a chunk as Python's json writes it: a lone surrogate is escaped, as in JavaScript."""
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, **choice}]}).encode() + b"\n\n"


def read(*parts: bytes) -> list[Item]:
    reader = ChunkReader()
    items = [item for part in parts for item in reader.feed(part)]
    if reader.error is not None:
        raise reader.error
    return items


def test_plain_text_becomes_tokens() -> None:
    assert read(chunk({"content": "a"}), chunk({"content": "b", "role": "assistant"}), chunk({"content": "ü"})) == [
        "a",
        "b",
        "ü",
    ]


@pytest.mark.parametrize(
    "delta",
    [
        {},
        None,
        {"role": "assistant"},
        {"role": "assistant", "content": ""},
        {"content": ""},
        {"content": None},
        {"role": "assistant", "content": "", "refusal": None, "tool_calls": []},
    ],
)
def test_an_empty_delta_is_not_a_token(delta: Any) -> None:
    assert read(chunk(delta), chunk(delta, finish_reason=None)) == []


@pytest.mark.parametrize(
    "delta",
    [
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}]},
        {"reasoning_content": "hm"},
        {"refusal": "no"},
        {"content": "a", "reasoning_content": "hm"},
        {"audio": {"data": "AA=="}},
    ],
)
def test_other_deltas_are_kept_as_the_provider_sent_them(delta: dict[str, Any]) -> None:
    [item] = read(chunk(delta))
    assert isinstance(item, bytes)
    assert orjson.loads(item) == {"delta": delta}


def test_further_choices_are_kept_with_their_end() -> None:
    reader = ChunkReader()
    items = reader.feed(chunk({"content": "b"}, index=1) + chunk({}, index=1, finish_reason="length"))
    assert [orjson.loads(item) for item in items] == [
        {"delta": {"content": "b"}, "index": 1},
        {"delta": {}, "index": 1, "finish_reason": "length"},
    ]
    assert reader.finish_reason is None, "the first choice goes on"
    reader.feed(chunk({}, finish_reason="stop"))
    assert reader.finish_reason == "stop"


def test_the_end_and_the_usage_are_read() -> None:
    reader = ChunkReader()
    usage = {"total_tokens": 3}
    assert reader.feed(chunk({"content": "a"}, finish_reason="stop")) == ["a"]
    assert reader.feed(b"data: " + orjson.dumps({"choices": [], "usage": usage}) + b"\n\n") == []
    assert not reader.complete
    assert reader.feed(b"data: [DONE]\n\n" + chunk({"content": "after"})) == []
    assert (reader.finish_reason, reader.usage, reader.complete) == ("stop", usage, True)


STREAM = b"".join(
    [
        b": comment\n\nevent: x\nid: 1\n",
        chunk({"role": "assistant"}),
        chunk({"content": "a\n\n"}),
        chunk({"content": "ü😀"}).replace(b"\n", b"\r\n"),
        b'data:{"choices":[{"delta":{"content":"' + "ö".encode() + b'"}}]}\n\n',
        chunk({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}),
        chunk({"content": "b"}, index=1),
        chunk({}, finish_reason="stop"),
        b"data: [DONE]\n\n",
    ]
)


def without_ids(items: list[Item]) -> list[Item]:
    """Items without the ids that are made up for calls."""
    return [re.sub(rb'"call_[0-9a-f]{24}"', b'""', item) if isinstance(item, bytes) else item for item in items]


@given(st.lists(st.integers(0, len(STREAM))))
def test_cuts_at_any_place_change_nothing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    parts = [STREAM[a:b] for a, b in pairwise(edges)]
    whole, in_pieces = without_ids(read(STREAM)), without_ids(read(*parts))
    assert len(whole) == 5
    assert in_pieces == whole


@pytest.mark.parametrize("code", [0xD83D, 0xDE00])
@pytest.mark.parametrize(
    "make",
    [
        lambda half: {"content": half},
        lambda half: {"content": half, "reasoning_content": half},
        lambda half: {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": half}}]},
        lambda half: {
            "tool_calls": [{"function": {"name": half, "arguments": half, "large": 2**70, "nan": float("nan")}}]
        },
    ],
)
def test_a_lone_surrogate_can_be_stored_and_read_back(code: int, make: Any) -> None:
    half = f"a{chr(code)}b"
    items = read(chunk(make(half)), chunk({"content": "after"}))
    for stored in ([items[0]], items):
        entry = Entry(EventId(1, len(stored)), *encode_items(stored))
        for event in events_of(entry):
            event.value.decode()
            assert event.field == b"t" or isinstance(orjson.loads(event.value), dict)


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert read(b'data: {"choices":[{"delta":{"content":"\\ud83d\\ude00"}}]}\n') == ["😀"]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        ({"message": "overloaded"}, Unavailable, "provider_unavailable"),
        ({"message": "m", "code": 503}, Unavailable, "provider_unavailable"),
        ({"message": "m", "code": 400}, Refused, "provider_refused"),
        ({"message": "m", "type": "invalid_request_error"}, Refused, "provider_refused"),
        ({"message": "m", "code": "content_filter"}, Refused, "content_filtered"),
        ("just text", Unavailable, "provider_unavailable"),
        (["odd"], Unavailable, "provider_unavailable"),
        ({"message": "m" * 100_000}, Unavailable, "provider_unavailable"),
    ],
)
def test_an_error_chunk_is_an_error(error: Any, kind: type[ProviderError], code: str) -> None:
    with pytest.raises(kind) as raised:
        read(b"data: " + orjson.dumps({"error": error}) + b"\n\n")
    assert raised.value.code == code
    assert len(str(raised.value)) < 1000


def test_items_before_an_error_are_kept() -> None:
    """One packet may bring items and an error."""
    reader = ChunkReader()
    error = b"data: " + orjson.dumps({"error": {"message": "overloaded"}}) + b"\n\n"
    assert reader.feed(chunk({"content": "a"}) + error + chunk({"content": "b"})) == ["a"]
    assert isinstance(reader.error, Unavailable)


def test_invalid_utf_8_is_replaced() -> None:
    [text, rest] = read(b'data: {"choices":[{"delta":{"content":"a\xf0\x9f"}}]}\n', chunk({"content": "rest"}))
    assert isinstance(text, str)
    assert (text[0], set(text[1:]), rest) == ("a", {"\ufffd"}, "rest")


def test_an_error_has_no_text_of_the_answer() -> None:
    with pytest.raises(Unavailable) as raised:
        read(b'data: {"choices":[{"delta":{"content":"a secret \n\n')
    assert "secret" not in str(raised.value)


def test_a_line_that_comes_byte_by_byte_is_not_copied_each_time() -> None:
    """8 MB in pieces of one byte must not take hours: copying the line for each piece would take 1 ms per piece."""
    reader = ChunkReader()
    began = time.process_time()
    for _ in range(200_000):
        reader.feed(b"x")
    assert time.process_time() - began < 2.0
    with_line = reader.feed(b"\n" + chunk({"content": "a"}))
    assert with_line == ["a"]


@pytest.mark.parametrize("payload", [b"{", b'{"choices":[{"delta":{"content":"a', b"[1,", b'{"a"\ndata: :}'])
def test_half_a_chunk_is_an_error(payload: bytes) -> None:
    with pytest.raises(Unavailable):
        read(b"data: " + payload + b"\n\n")


@pytest.mark.parametrize("payload", [b"", b" ", b": comment", b"ping", b"[1]", b'"text"', b"1", b"null", b"\xff"])
def test_what_is_no_chunk_at_all_is_passed_over(payload: bytes) -> None:
    for line_end in (b"\n", b"\n\n"):
        assert read(b"data: " + payload + line_end, chunk({"content": "a"})) == ["a"]


def test_an_endless_line_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "LINE_BYTES_MAX", 1000)
    with pytest.raises(Unavailable, match="1000 bytes"):
        read(b"data: " + b"x" * 1000)
