"""Chunks that are like an earlier one: read without a parser, and never otherwise than by it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.alike_chunks import AlikeChunks
from producer.chunk_reader import ChunkReader
from shared.events import Item

CHOICE = {"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}
CHUNK: dict[str, Any] = {"id": "c-1", "object": "chat.completion.chunk", "choices": [CHOICE], "usage": None}


def event(chunk: Any, ending: str = "\n\n", *, ascii_only: bool = False) -> bytes:
    return f"data: {json.dumps(chunk, ensure_ascii=ascii_only)}{ending}".encode()


def with_text(text: str, chunk: dict[str, Any] = CHUNK, **choice: Any) -> dict[str, Any]:
    return {**chunk, "choices": [{**chunk["choices"][0], "delta": {"content": text}, **choice}]}


def remembering(remembered: bytes, text: str = "Hello") -> AlikeChunks:
    alike = AlikeChunks()
    alike.remember(remembered, text)
    return alike


@pytest.mark.parametrize("ending", ["\n\n", "\r\n\r\n"])
def test_events_that_differ_in_their_text_alone_are_read(ending: str) -> None:
    alike = remembering(event(CHUNK, ending))
    assert alike.texts(event(with_text(" world", ascii="x"), ending)) is None, "another field"
    assert alike.texts(event(with_text(" world"), ending)) == [" world"]
    several = b"".join(event(with_text(text), ending) for text in ("a", "ü€😀", "data: {}"))
    assert alike.texts(several) == ["a", "ü€😀", "data: {}"]


@pytest.mark.parametrize(
    "data",
    [
        event(with_text('say "no"')),
        event(with_text("back\\slash")),
        event(with_text("two\nlines")),
        event(with_text("")),
        event(with_text("ü"), ascii_only=True),
        event({**with_text("x"), "id": "c-2"}),
        event(with_text("x", finish_reason="stop")),
        event(with_text("x"))[:-1],
        event(with_text("x")) + b"data: [DONE]\n\n",
        event(with_text("x")) + event(with_text('"')),
        event(with_text("x")) + b": comment\n\n" + event(with_text("y")),
        event(with_text("x"), "\r\n\r\n"),
        event(with_text("\x7f")),
        event(with_text("x")).replace(b"x", b"\xff"),
        event(with_text("x")).replace(b"x", b"\t"),
        event(CHUNK)[:40],
        b"",
    ],
)
def test_what_is_not_alike_is_left_to_the_parser(data: bytes) -> None:
    assert remembering(event(CHUNK)).texts(data) is None


@pytest.mark.parametrize(
    ("remembered", "text"),
    [
        (event(with_text("x", finish_reason="stop")), "x"),
        (event(with_text("x", logprobs={"content": []})), "x"),
        (event(with_text("x", index=1)), "x"),
        (event({**with_text("x"), "usage": {"total_tokens": 1}}), "x"),
        (event({**with_text("x"), "error": {"message": "no"}}), "x"),
        (event({**CHUNK, "choices": [CHOICE, CHOICE]}), "Hello"),
        (event({**CHUNK, "choices": [{**CHOICE, "delta": {"content": "x", "role": "assistant"}}]}), "x"),
        (event({"id": "Hello", **{key: CHUNK[key] for key in ("choices", "usage")}}), "Hello"),
        (event(with_text('a"b')), 'a"b'),
        (event(CHUNK) + event(CHUNK), "Hello"),
        (event(CHUNK)[:-1], "Hello"),
        (event(CHUNK, "\r\n\n"), "Hello"),
        (b"event: message\n" + event(CHUNK), "Hello"),
        (b"data: {}\n" + event(CHUNK), "Hello"),
        (b'data: {"choices": [{"delta": {"content": "Hello"}, "delta": {"content": "Hello"}}]}\n\n', "Hello"),
        (event({**CHUNK, "padding": "x" * 5000}), "Hello"),
        (b'data: {"choices": [{"delta": {"content": "Hello"}}], "bad": NaN}\n\n', "Hello"),
    ],
)
def test_what_says_more_than_its_text_is_not_remembered(remembered: bytes, text: str) -> None:
    assert remembering(remembered, text).texts(remembered.replace(text.encode(), b"other")) is None


def test_one_that_was_of_no_use_is_not_replaced_at_each_event() -> None:
    alike = remembering(event({**CHUNK, "padding": "a"}))
    alike.remember(event(CHUNK), "Hello")
    assert alike.texts(event(CHUNK)) is None, "it has just been remembered another"
    for _ in range(20):
        alike.remember(event(CHUNK), "Hello")
    assert alike.texts(event(CHUNK)) == ["Hello"]
    alike.remember(event({**CHUNK, "id": "c-2"}), "Hello")
    assert alike.texts(event({**CHUNK, "id": "c-2"})) == ["Hello"], "the one before was of use"


_TEXTS = st.text(st.sampled_from('ab "\\\n\x7fü€\U0001f600\u2028data:{}'), max_size=6)
_CHUNKS = st.one_of(
    st.builds(with_text, _TEXTS),
    st.builds(with_text, _TEXTS),
    st.builds(lambda text: with_text(text, finish_reason="stop"), _TEXTS),
    st.builds(lambda text: {**with_text(text), "id": "c-2"}, _TEXTS),
    st.just({"choices": [], "usage": {"total_tokens": 3}}),
)
_EVENTS = st.one_of(
    st.builds(event, _CHUNKS, st.sampled_from(["\n\n", "\n\n", "\r\n\r\n", "\n"]), ascii_only=st.booleans()),
    st.just(b": comment\n\n"),
)


class Parsed(AlikeChunks):
    """Remembers nothing: all is parsed."""

    __slots__ = ()

    def remember(self, event: bytes, text: str) -> None:
        pass


@given(st.lists(_EVENTS, max_size=12), st.data())
def test_the_items_are_those_of_the_parser(events: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(events)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=4)))
    packets = data.draw(
        st.sampled_from([events, [whole], [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]])
    )
    readers = ChunkReader(), ChunkReader()
    readers[1]._alike = Parsed()
    items: list[list[Item]] = [[], []]
    for index, reader in enumerate(readers):
        for packet in packets:
            items[index] += reader.feed(packet)
        items[index] += reader.end()
    assert items[0] == items[1]
    assert str(readers[0].finish()) == str(readers[1].finish())
    assert readers[0].about == readers[1].about
