"""Pushed entries of several tokens: the very next one is taken as it is, at less cost; all others as before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.facades.responses.events import RESPONSES
from gateway.faces import NATIVE, Face
from gateway.following.followed_streams import FollowedStreams
from gateway.following.tail import Tail
from gateway.following.tails import Tails
from shared.ids import EventId, new_stream_id
from shared.settings import Settings


class Pushed:
    """One stream whose log was read up to `1-3`, and what the gateway does with what is pushed then."""

    def __init__(self, *faces: Face) -> None:
        self.reads: list[EventId] = []
        self.told_of: list[Tail] = []
        log = SimpleNamespace(send_read=lambda stream_id, after, *_, **__: self.reads.append(after))
        nobody: Any = SimpleNamespace(push=lambda *_: None)
        self._tails = Tails(
            FollowedStreams(lambda *_: None),
            cast(Any, log),
            lambda *_: nobody,
            Settings.from_environment({}),
            on_new=self.told_of.append,
        )
        self._tails._loop = cast(Any, SimpleNamespace(time=lambda: 7.0))
        for face in faces:
            self.tail = self._tails.hold(STREAM_ID, face)
        self.tail.set_ready()
        self.tail.attempt, self.tail.offset = 1, 3
        for ring in self.tail.rings:
            ring.begin_at(EventId(1, 3), ring.encoder)
        self.tail.arm()

    def push(self, *messages: bytes) -> None:
        self._tails._on_push([[b"smessage", self.tail.channel, message] for message in messages])

    @property
    def bodies(self) -> list[bytes]:
        return [ring.body(0) if ring.end else b"" for ring in self.tail.rings]


STREAM_ID = new_stream_id()


@pytest.mark.parametrize(
    ("batched", "one_by_one"),
    [
        ([b'1-5 b ["a","b"]'], [b"1-4 t a", b"1-5 t b"]),
        ([b'1-6 b ["\xc3\xa4","\\n","\\u001f"]', b"1-7 t c"], [b"1-4 t \xc3\xa4", b"1-5 t \n", b"1-6 t \x1f", b"1-7 t c"]),
        ([b"1-4 t a", b'1-6 b ["b","c"]', b'1-8 b ["d","e"]'], [b"1-%d t %b" % pair for pair in enumerate((b"a", b"b", b"c", b"d", b"e"), 4)]),
        ([b'1-5 b ["a",{"delta":{"role":"assistant"}}]', b'1-7 b ["b","c"]'], [b"1-4 t a", b'1-5 d {"delta":{"role":"assistant"}}', b"1-6 t b", b"1-7 t c"]),
    ],
)  # fmt: skip
async def test_a_batch_that_is_next_is_its_tokens(batched: list[bytes], one_by_one: list[bytes]) -> None:
    several, single = Pushed(NATIVE, RESPONSES), Pushed(NATIVE, RESPONSES)
    several.push(*batched)
    single.push(*one_by_one)
    assert several.bodies == single.bodies
    assert several.tail.last == single.tail.last
    assert several.tail.next_id == single.tail.next_id
    assert [ring.cursor_at(ring.end) for ring in several.tail.rings] == [several.tail.last] * 2
    assert several.tail.heard_at == 7.0
    assert several.told_of
    assert not several.reads


@pytest.mark.parametrize(
    "message",
    [
        b'1-6 b ["b","c"]',  # a hole before it
        b'1-4 b ["b","c"]',  # the first of its tokens is there already
        b'2-2 b ["b","c"]',  # of another attempt
        b'01-5 b ["b","c"]',  # no id as Redis writes it
        b"1-3 b []",
        b"1-5 b [1,2]",
        b'1-5 b {"a":1}',
        b'1-5 b "ab"',
        b'1-5 b ["b",',
        b'1-5 b ["b","\\ud800"]',
    ],
)
async def test_a_batch_that_is_not_next_or_cannot_be_read_leaves_the_rings_as_they_are(message: bytes) -> None:
    pushed = Pushed(NATIVE)
    pushed.push(message)
    assert pushed.bodies == [b""]
    assert pushed.tail.last == EventId(1, 3)
    assert pushed.reads == ([] if message.startswith(b"1-3") else [EventId(1, 3)])


async def test_no_batch_is_taken_while_the_log_is_read() -> None:
    pushed = Pushed(NATIVE)
    pushed.push(b"1-9 t later", b'1-5 b ["a","b"]')
    assert pushed.bodies == [b""]
    assert pushed.tail.again


async def test_a_ring_that_cannot_show_a_token_of_a_batch_breaks_alone() -> None:
    pushed = Pushed(NATIVE, RESPONSES)
    native, responses = pushed.tail.rings

    def fails(ids: Any, values: Any) -> Any:
        raise RuntimeError("a bug")

    responses.encoder = cast(
        Any, SimpleNamespace(tokens=fails, token=fails, other=lambda event: b"end", give_up=lambda failed: b"end")
    )
    pushed.push(b'1-5 b ["a","b"]', b'1-7 b ["c","d"]')
    assert pushed.tail.broken == (responses,)
    assert responses.broken == EventId(1, 4)
    assert native.cursor_at(native.end) == EventId(1, 7)
    assert pushed.bodies[0].count(b"token") == 4
