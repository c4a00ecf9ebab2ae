"""Parsers of what comes from outside, with arbitrary input: credentials, cookies, places in a stream, pushed messages.

Others have theirs beside their tests: event streams and chunks of providers, bodies, event ids, JWTs, API keys, damaged logs.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.access.credentials import QUERY_NAME, SESSION_COOKIE, STREAM_COOKIE, take_credentials
from gateway.access.sessions import Sessions
from gateway.access.signing import SigningKeys
from gateway.access.stream_tokens import StreamTokens
from gateway.console.login import _key_in
from gateway.faces import NATIVE
from gateway.following.followed_streams import FollowedStreams
from gateway.following.tails import Tails
from gateway.http.cursor import after_bytes_of, last_event_id, place_of, stream_and_place_of
from gateway.http.exchange import query_of
from gateway.http.principal import Principal
from gateway.http.problems import Problem
from shared.event_log import EventLog
from shared.ids import EventId, new_stream_id
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from shared.settings import Settings

KEYS = SigningKeys("0123456789abcdef" * 2)
STREAM_TOKENS, SESSIONS = StreamTokens(KEYS, Settings()), Sessions(KEYS, [])
STREAM = new_stream_id()
TOKEN = STREAM_TOKENS.token(STREAM)
SESSION = SESSIONS.token(Principal("key:root", frozenset({"admin"})))
NAMES = (STREAM_COOKIE, SESSION_COOKIE)

header_values = st.binary(max_size=60)
cookie_headers = st.lists(
    st.sampled_from([b"=", b";", b"; ", b" ", b'"', b",", b"\xff", b"\0", *(name.encode() for name in NAMES)])
    | st.binary(max_size=8),
    max_size=12,
).map(b"".join)
queries = st.lists(
    st.sampled_from([b"=", b"&", b"%61ccess_token", b"access_token", b"access+token", b"%", b"%ff", b"last_event_id"])
    | st.binary(max_size=6),
    max_size=12,
).map(b"".join)


def scope_of(headers: list[tuple[bytes, bytes]], query: bytes = b"") -> dict[str, Any]:
    return {"type": "http", "headers": headers, "query_string": query}


def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a call returns, or the Problem that it raises."""
    try:
        return call(*arguments)
    except Problem as problem:
        return problem


def result_of(work: Coroutine[Any, Any, Any]) -> Any:
    """Returns the result of a coroutine that waits for nothing."""
    with pytest.raises(StopIteration) as stopped:
        work.send(None)
    return stopped.value.value


# --- credentials


@given(
    st.lists(st.tuples(st.sampled_from([b"authorization", b"cookie"]), header_values | cookie_headers), max_size=4),
    queries,
)
@example([(b"cookie", b"midstream_token=; midstream_token=a")], b"")
@example([], b"%61ccess%5ftoken=a&access_token")
def test_no_credential_is_left_in_a_request(headers: list[tuple[bytes, bytes]], query: bytes) -> None:
    scope = scope_of([(b"host", b"x"), *headers], query)
    found = take_credentials(scope, NAMES)
    assert scope["headers"] == [(b"host", b"x")]
    assert take_credentials(scope, NAMES).query is None
    parsed = attempt(query_of, scope)
    assert parsed.status == 400 if isinstance(parsed, Problem) else QUERY_NAME not in parsed
    assert found.cookies.keys() <= set(NAMES)
    assert all(found.cookies.values())


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40))
def test_a_token_is_found_wherever_it_may_stand(token: str) -> None:
    scope = scope_of(
        [(b"authorization", b"Bearer " + token.encode())], b"a=b&access_token=%b&c" % quote(token, safe="").encode()
    )
    found = take_credentials(scope, NAMES)
    assert (found.header, found.query, scope["query_string"]) == (token, token, b"a=b&c")


def tampered(token: str) -> st.SearchStrategy[str]:
    """Yields tokens that differ from this one in one place, or are cut."""
    places = st.integers(0, len(token) - 1)
    changed = st.tuples(places, st.characters(max_codepoint=300)).map(
        lambda at: token[: at[0]] + at[1] + token[at[0] + 1 :]
    )
    return st.one_of(changed, places.map(lambda at: token[:at]), st.text(max_size=5).map(lambda text: token + text))


@given(st.one_of(tampered(TOKEN), tampered(SESSION), st.text(max_size=100)))
@example(TOKEN.replace(".rc.", ".r.", 1))
@example(TOKEN.replace("mst1", "mss1", 1))
@example(f"mst1..rc.{int(time.time()) + 60}.{STREAM}.")
def test_no_other_token_than_the_signed_one_is_let_in(token: str) -> None:
    if token not in (TOKEN, SESSION):
        assert result_of(STREAM_TOKENS.principal_of(token)) is None
        assert result_of(SESSIONS.principal_of(token)) is None


@given(st.binary(max_size=60))
@example(b"&".join([b"a=b"] * 9 + [b"key=k"]))
@example(b"key=%zz;key=")
def test_a_login_form_has_a_key_or_none(form: bytes) -> None:
    assert isinstance(_key_in(form), str)


def test_the_key_of_a_login_form() -> None:
    assert (_key_in(b"key=+msk_a%2B&x"), _key_in(b"key=")) == ("msk_a+", "")


# --- places in a stream


@given(st.lists(st.tuples(st.just(b"last-event-id"), header_values), max_size=3), queries)
@example([(b"last-event-id", b"1-57\0")], b"")
@example([(b"last-event-id", b"9999999999999999-9999999999999999")], b"from=now")
@example([], b"LastEventId=1-%E2%80%A8")
@example([], b"last_event_id=1-" + b"9" * 17)
@example([], "last_event_id=１-１".encode("latin-1", "replace"))
def test_a_place_is_found_or_refused(headers: list[tuple[bytes, bytes]], query: bytes) -> None:
    scope = scope_of(headers, query)
    place = attempt(place_of, scope)
    if isinstance(place, Problem):
        assert (place.status, place.detail.isprintable()) == (400, True)
        return
    text = last_event_id(scope, query_of(scope))
    assert text == "" or EventId.parse(text) == place.after


@given(
    st.text(max_size=80)
    | st.tuples(st.sampled_from([STREAM, STREAM[:-1], STREAM.upper()]), st.text(max_size=9)).map("/".join)
)
def test_an_id_of_the_short_endpoint_is_one_or_is_refused(text: str) -> None:
    found = attempt(stream_and_place_of, text)
    if isinstance(found, Problem):
        assert (found.status, found.detail.isprintable()) == (400, True)
        return
    stream_id, place = found
    assert text == f"{stream_id}/{'' if place.after is None else text.rpartition('/')[2]}"


@given(st.text(max_size=20))
@example("²")
@example("١")
@example("1_000")
def test_a_number_of_bytes_is_one_or_is_refused(text: str) -> None:
    number = attempt(after_bytes_of, {"after_bytes": text})
    if isinstance(number, Problem):
        assert (number.status, number.detail.isprintable()) == (400, True)
        return
    assert number == int(text or 0) >= 0


# --- pushed messages


@pytest.fixture
async def tails(tmp_path: Path) -> AsyncIterator[Tails]:
    """Tails whose Redis is away, so that nothing comes but what a test pushes."""
    connection = partial(RespConnection, RedisAddress.parse(f"unix://{tmp_path}/none.sock"), reply_seconds=1.0)
    commands = connection(name="commands")
    log = EventLog(commands, log_ttl_seconds=60, ended_ttl_seconds=60, tombstone_ttl_seconds=60)
    commands.start()
    made = Tails(
        FollowedStreams(lambda stream_id, failed: None),
        log,
        lambda on_push, on_up: connection(name="subscriber", on_push=on_push, on_up=on_up),
        Settings(),
        on_new=lambda tail: None,
    )
    made.start()
    yield made
    await made.close()
    await commands.close()


messages = st.one_of(
    st.binary(max_size=20),
    st.tuples(
        st.sampled_from(
            [b"1-3", b"1-4", b"1-2", b"2-0", b"0-1", b"1--3", b"+1-3", b"1-3-1", b"\xd9\xa1-3", b"1_0-3", b""]
        ),
        st.sampled_from([b"t", b"d", b"e", b"b", b"done", b"failed", b"started", b"restarted", b"deleted", b"x", b""]),
        st.sampled_from(
            [b"a", b"\xff", b"{}", b"[]", b'["a","b"]', b'{"delta":{}}', b"null", b"1e999", b"", b"[" * 500]
        )
        | st.binary(max_size=8),
    ).map(b" ".join),
)


async def test_a_pushed_message_is_the_next_entry_or_is_passed_over(tails: Tails) -> None:
    @given(st.lists(messages, min_size=1, max_size=6))
    @example([b"1-3 t \xff", b"1-3 t a"])
    @example([b'1-3 b ["a",1]'])
    def check(pushed: list[bytes]) -> None:
        tail = tails.hold(new_stream_id())
        ring = tail.open_ring(NATIVE)
        tail.reach(EventId(1, 2))
        tail.set_ready()
        tail.arm()
        before = ring.end
        tails._on_push([[b"smessage", tail.channel, message] for message in pushed])
        for body in ring.encoded:
            body.decode()  # what readers are sent is UTF-8
        if tail.attempt == 1 and tail.ended is None:
            assert ring.end - before == tail.offset - 2
        if all(not message.startswith((b"1-3 ", b"1-4 ", b"2-0 ")) for message in pushed):
            assert (tail.last, ring.end) == (EventId(1, 2), before)
        tail.close_ring(ring)
        tail.release()

    check()
