from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import sse
from shared.sse import Decoder, Message

END = b"\ndata: end\n\n"
"""Ends an unfinished line, since a carriage return at the very end might be followed by a line feed."""


def decoded(data: bytes, cuts: list[int] | None = None) -> tuple[list[Message], int | None]:
    decoder = Decoder()
    edges = [0, *sorted(cuts or []), len(data)]
    messages = [message for a, b in pairwise(edges) for message in decoder.feed(data[a:b])]
    return messages, decoder.retry_milliseconds


@pytest.mark.parametrize(
    ("data", "messages"),
    [
        (b"data: a\n\n", [("", "message", "a")]),
        (b"data:a\n\n", [("", "message", "a")]),
        (b"data:  a\n\n", [("", "message", " a")]),
        (b"data\n\n", [("", "message", "")]),
        (b"data: a\ndata: b\n\n", [("", "message", "a\nb")]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [("", "message", "a"), ("", "message", "b")]),
        (b"data: a\r\rdata: b\r\r:", [("", "message", "a"), ("", "message", "b")]),
        (b"id: 1\nevent: done\ndata: a\n\ndata: b\n\n", [("1", "done", "a"), ("1", "message", "b")]),
        (b"id: 1\ndata: a\n\nid\ndata: b\n\n", [("1", "message", "a"), ("", "message", "b")]),
        (b"id: 1\0\ndata: a\n\n", [("", "message", "a")]),
        (b": comment\n:\n\ndata: a\n\n", [("", "message", "a")]),
        (b"event: x\n\ndata: a\n\n", [("", "message", "a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("", "message", "a")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
        (b"unknown: 1\n data: a\ndata : b\n\n", []),
        (b"data: a\n", []),
        (b"data: \xff\n\n", [("", "message", "\ufffd")]),
        ("data: 😀: ü\n\n".encode(), [("", "message", "😀: ü")]),
    ],
)
def test_messages_of_a_stream(data: bytes, messages: list[tuple[str, str, str]]) -> None:
    assert decoded(data)[0] == messages
    assert decoded(data, list(range(len(data))))[0] == messages, "byte by byte"


lines = st.sampled_from(
    [
        b"data: a",
        b"data:b ",
        b"data",
        b"id: 7",
        b"id: 8\0",
        b"id",
        b"event: done",
        b"retry: 25",
        b"retry: x",
        b": c",
        b"",
    ]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6).map(lambda text: b"data: " + text.encode())


@given(
    st.booleans(),
    st.lists(st.tuples(lines, st.sampled_from([b"\n", b"\r", b"\r\n"]))),
    st.lists(st.integers(0, 400)),
)
def test_cuts_at_any_place_change_nothing(bom: bool, parts: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    data = b"\xef\xbb\xbf" * bom + b"".join(line + ending for line, ending in parts) + END
    assert decoded(data, [min(cut, len(data)) for cut in cuts]) == decoded(data)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_any_bytes_can_be_fed(data: bytes, cuts: list[int]) -> None:
    data += END
    assert decoded(data, [min(cut, len(data)) for cut in cuts]) == decoded(data)


@pytest.mark.parametrize(
    ("line", "milliseconds"),
    [("retry: 25", 25), ("retry:0", 0), ("retry: -1", None), ("retry: 1.5", None), ("retry: ²", None), ("retry", None)],
)
def test_a_retry_has_only_digits(line: str, milliseconds: int | None) -> None:
    assert decoded(line.encode() + b"\n")[1] == milliseconds


def test_a_retry_of_absurdly_many_digits_breaks_nothing() -> None:
    messages, _ = decoded(b"retry: " + b"9" * 5000 + b"\ndata: a\n\n")
    assert messages == [Message("", "message", "a")]


def test_comments_and_retry_are_not_events() -> None:
    assert decoded(sse.KEEP_ALIVE + sse.retry(1500) + sse.KEEP_ALIVE + b"data: a\n\n") == (
        [Message("", "message", "a")],
        1500,
    )


@pytest.mark.parametrize("before", [b"", b"data: ", b": ", b"data: a\n"])
@pytest.mark.parametrize("piece", [b"x" * 500, b"data: x\n" * 70], ids=["a long line", "many lines"])
def test_a_server_that_ends_no_event_does_not_fill_the_memory(before: bytes, piece: bytes) -> None:
    decoder = Decoder(event_bytes_max=5000)
    for part in [before, *[piece] * 9]:
        assert list(decoder.feed(part)) == []
    with pytest.raises(sse.EventTooLong, match="5000 bytes"):
        list(decoder.feed(piece * 100))


def test_a_long_line_in_small_pieces_is_joined_once() -> None:
    decoder = Decoder()
    list(decoder.feed(b"data: "))
    for _ in range(8192):
        list(decoder.feed(b"x" * 1024))
    assert all(len(part) <= 1024 for part in decoder._parts)
    (message,) = decoder.feed(b"\n\n")
    assert len(message.data) == 8192 * 1024
