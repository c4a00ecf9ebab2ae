"""The parser of a provider's event stream, beside one that others wrote."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import given, settings
from hypothesis import strategies as st

from producer import event_stream
from producer.event_stream import EventStream
from producer.provider import Unavailable
from shared.events import Item


class Recorded(EventStream):
    """Keeps what it takes: the JSON value and the type of each event, and the other lines."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, Any]] = []
        self.lines: list[bytes] = []
        self.marks = 0

    def take_data(self, data: bytes, items: list[Item], event_type: bytes = b"", *, is_whole: bool = False) -> bool:
        try:
            value = json.loads(data)
        except ValueError:
            if is_whole:
                raise
            return False
        self.events.append((event_type.decode() or "message", value))
        return True

    def take_line(self, line: bytes, items: list[Item]) -> None:
        self.lines.append(line)

    def found_mark(self) -> None:
        self.marks += 1


def parsed(body: bytes, cuts: list[int] = []) -> Recorded:  # noqa: B006
    stream = Recorded()
    for begin, end in pairwise([0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]):
        stream.parse(body[begin:end], [])
    stream.parse_end([])
    return stream


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('aé😀:\\"\u2028\x85\x0b ', max_size=4),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(["a", "data", ": b"]), below, max_size=3)
    ),
    max_leaves=6,
).map(lambda value: [value])
LINE_ENDS = st.sampled_from(["\n", "\r", "\r\n"])
ASIDE = st.sampled_from(["", ": comment", ":", "id: 1", "retry: 10", "unknown: x", "unknown", "id"])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A valid event stream whose events hold JSON, written in any of the ways that the standard allows."""
    text = draw(st.sampled_from(["", "\ufeff"]))
    for value in draw(st.lists(VALUES, max_size=5)):
        ends = draw(LINE_ENDS)
        lines = json.dumps(value, indent=draw(st.sampled_from([None, 0, 1])), ensure_ascii=draw(st.booleans())).split(
            "\n"
        )
        fields = [f"data:{draw(st.sampled_from(['', ' ']))}{line}" for line in lines]
        if draw(st.booleans()):
            fields.insert(0, draw(st.sampled_from(["event: error", "event:delta"])))
        for place in draw(st.lists(st.integers(0, len(fields)), max_size=2)):
            aside = draw(ASIDE)
            if aside:
                fields.insert(place, aside)
        text += ends.join(fields) + ends + ends
        text += draw(st.sampled_from(["", ends]))
    return text.encode()


def of_another_parser(body: bytes) -> list[tuple[str, Any]]:
    response = httpx.Response(
        200, headers={"content-type": "text/event-stream"}, content=body.removeprefix(b"\xef\xbb\xbf")
    )
    return [(event.event, json.loads(event.data)) for event in EventSource(response).iter_sse() if event.data]


@settings(max_examples=400)
@given(bodies(), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_stream_in_any_pieces_is_read_as_another_parser_reads_it(body: bytes, cuts: list[int]) -> None:
    whole = parsed(body)
    assert whole.events == of_another_parser(body)
    assert whole.marks == body.startswith(b"\xef\xbb\xbf")
    in_pieces = parsed(body, cuts)
    assert (in_pieces.events, in_pieces.lines, in_pieces.marks) == (whole.events, whole.lines, whole.marks)


@pytest.mark.parametrize(
    ("body", "values", "lines"),
    [
        (b"data: [1]\ndata: [2]\ndata:[3]\n", [[1], [2], [3]], []),
        (b"data: [1]\r\ndata: [2]\r\n", [[1], [2]], []),
        (b"data: [1]\n\ndata: [2]", [[1], [2]], []),
        (b"data: [1]\n\ndata: [\ndata: 2]", [[1], [2]], []),
        (b"data: [1]\n\nupstream error: reset\n", [[1]], [b"upstream error: reset"]),
        (b"\xef\xbb\xbf", [], []),
        (b"\xef\xbb", [], [b"\xef\xbb"]),
        (b"\xef\xbbdata: [1]", [], [b"\xef\xbbdata: [1]"]),
        (b"event: a\ndata: [\nevent: b\n", ValueError, []),
    ],
)
def test_what_the_standard_does_not_have(body: bytes, values: Any, lines: list[bytes]) -> None:
    """Events without blank lines, a body that ends in a line or an event, lines that are no fields."""
    for cuts in ([], list(range(len(body)))):
        if values is ValueError:
            with pytest.raises(ValueError, match="Expecting"):
                parsed(body, cuts)
            continue
        stream = parsed(body, cuts)
        assert [value for _, value in stream.events] == values
        assert stream.lines == lines


def test_an_endless_line_and_an_endless_event_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "LINE_BYTES_MAX", 1000)
    for body in (b"data: " + b"x" * 1000, b"data: [\n" * 20, b"data: [\n" + b"data:\n" * 20):
        with pytest.raises(Unavailable, match="1000 bytes"):
            parsed(body)
