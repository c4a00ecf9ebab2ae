"""Signed tokens and their keys, and how credentials are taken out of a request."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gateway.access import owners
from gateway.access.credentials import take_credentials
from gateway.access.given_tokens import is_over_tls
from gateway.access.owners import Owners
from gateway.access.sessions import Sessions
from gateway.access.signing import SigningKeys
from gateway.access.stream_tokens import StreamTokens
from gateway.http.cors import Cors
from gateway.http.principal import NOBODY, Principal, principal
from shared.errors import Unusable
from shared.ids import new_stream_id
from shared.settings import Settings

NEW, OLD = "new-key-0123456789abcdef-0123456789", "old-key-0123456789abcdef-0123456789"
SETTINGS = Settings(log_ttl_seconds=1000, ended_ttl_seconds=100)
Headers = list[tuple[bytes, bytes]]


def request(query: bytes = b"", headers: Headers | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "http", "scheme": "http", "query_string": query, "headers": headers or [], **more}


class KnownKeys:
    """Knows every principal."""

    is_for_urls = False

    def start(self) -> None: ...

    async def close(self) -> None: ...

    async def principal_of(self, token: str) -> Principal | None:
        return None

    async def knows(self, who: Principal) -> bool:
        return True


# --- keys


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("", "is not set"),
        (" , ", "is not set"),
        ("short", "less than 32 characters"),
        (f"{NEW},short", "less than 32 characters"),
        (f"{NEW},{OLD},{OLD}x", "3 keys"),
    ],
)
def test_keys_that_do_not_do_are_refused_without_being_shown(setting: str, message: str) -> None:
    with pytest.raises(Unusable, match=message) as refused:
        SigningKeys(setting)
    assert "short" not in str(refused.value)
    assert NEW not in str(refused.value)


async def test_a_key_is_replaced_without_a_moment_in_which_tokens_fail() -> None:
    stream_id = new_stream_id()
    old, both, new = (StreamTokens(SigningKeys(keys), SETTINGS) for keys in (OLD, f"{NEW},{OLD}", NEW))
    assert await both.principal_of(old.token(stream_id)) is not None
    assert await new.principal_of(both.token(stream_id)) is not None
    assert await new.principal_of(old.token(stream_id)) is None
    assert await old.principal_of(new.token(stream_id)) is None


def test_a_key_is_in_no_repr() -> None:
    assert NEW not in repr(Settings(token_keys=NEW))
    assert NEW not in repr(SigningKeys(NEW))
    assert NEW not in StreamTokens(SigningKeys(NEW), SETTINGS).token(new_stream_id())


# --- tokens


async def test_a_token_is_for_one_stream_and_as_long_as_it_can_be_read() -> None:
    tokens, stream_id = StreamTokens(SigningKeys(NEW), SETTINGS), new_stream_id()
    who = await tokens.principal_of(tokens.token(stream_id))
    assert who == Principal(
        f"stream:{stream_id}", frozenset({"read", "cancel"}), stream_id, tokens.last_moment(stream_id)
    )
    assert abs(tokens.last_moment(stream_id) - time.time() - 1100) < 2
    assert tokens.token(stream_id) == tokens.token(stream_id)
    narrow = await tokens.principal_of(tokens.token(stream_id, ["read"], time.time() + 5))
    assert narrow is not None
    assert narrow.scopes == {"read"}
    assert await tokens.principal_of(tokens.token(stream_id, ["read"], time.time() - 1)) is None
    assert tokens.token(stream_id, expires_at=time.time() + 10_000) == tokens.token(stream_id)  # never longer


@pytest.mark.parametrize(
    "fields", ["rc", "rc.1.x", "rc.9999999999.short", f"x.9999999999.{'0' * 36}", f"rc.²999999999.{'0' * 36}", f"rc..{'0' * 36}", f"rc.{'9' * 99}.{'0' * 36}"]
)  # fmt: skip
async def test_signed_nonsense_is_no_token(fields: str) -> None:
    keys = SigningKeys(NEW)
    assert await StreamTokens(keys, SETTINGS).principal_of(keys.signed("mst1", fields)) is None
    assert await Sessions(keys, []).principal_of(keys.signed("mss1", fields)) is None


async def test_a_session_keeps_name_and_scopes_and_is_no_token() -> None:
    keys = SigningKeys(NEW)
    who = Principal("key:Zoë's, 50% = ∞", frozenset({"read", "admin"}))
    sessions, tokens = Sessions(keys, [KnownKeys()]), StreamTokens(keys, SETTINGS)
    assert await Sessions(keys, []).principal_of(sessions.token(who)) is None  # its key was revoked
    found = await sessions.principal_of(sessions.token(who))
    assert found is not None
    assert (found.name, found.scopes) == (who.name, who.scopes)
    assert await tokens.principal_of(sessions.token(who)) is None
    assert await sessions.principal_of(tokens.token(new_stream_id())) is None


# --- taken out


@pytest.mark.parametrize(
    ("query", "token", "left"),
    [
        (b"access_token=t", "t", b""),
        (b"a=1&access_token=t&b=2", "t", b"a=1&b=2"),
        (b"access%5ftoken=t&a=1", "t", b"a=1"),
        (b"%61ccess_token=t%2Eu", "t.u", b""),
        (b"access_token=one&access_token=two", "two", b""),
        (b"access_token", "", b""),
        (b"access_token=", "", b""),
        (b"access_tokens=t&xaccess_token=u&a=%00", None, b"access_tokens=t&xaccess_token=u&a=%00"),
        (b"%%%&a=%zz", None, b"%%%&a=%zz"),
        (b"", None, b""),
    ],
)
def test_the_query_s_token_is_taken_out(query: bytes, token: str | None, left: bytes) -> None:
    scope = request(query)
    assert take_credentials(scope, ()).query == token
    assert scope["query_string"] == left


def test_headers_with_credentials_are_taken_out() -> None:
    headers = [(b"authorization", b"Bearer t"), (b"accept", b"*/*"), (b"cookie", b"a=1; midstream_token=u; user=v")]
    scope = request(headers=headers)
    found = take_credentials(scope, {"midstream_token"})
    assert (found.header, found.cookies) == ("t", {"midstream_token": "u"})
    assert scope["headers"] == [(b"accept", b"*/*")]


@pytest.mark.parametrize(
    ("cookie", "found"),
    [
        (b"t=1", {"t": "1"}),
        (b't="1"', {"t": "1"}),
        (b"t=1; t=2", {"t": "1"}),
        (b" t=1 ;;=;x", {"t": "1"}),
        (b"T=1; tt=2; t", {}),
        (b"t=", {}),
        (b"t=" + b"x" * 20_000, {}),
        (b"t=\xff", {"t": "\xff"}),
    ],
)
def test_cookies(cookie: bytes, found: dict[str, str]) -> None:
    assert take_credentials(request(headers=[(b"cookie", cookie)]), {"t"}).cookies == found


# --- whose page


@pytest.mark.parametrize(
    ("origins", "headers", "counts"),
    [
        ("", [], True),
        ("", [(b"sec-fetch-site", b"same-origin")], True),
        ("", [(b"sec-fetch-site", b"none")], True),
        ("", [(b"sec-fetch-site", b"same-site")], False),
        ("", [(b"sec-fetch-site", b"cross-site")], False),
        ("", [(b"origin", b"http://here"), (b"host", b"here")], True),
        ("", [(b"origin", b"http://there"), (b"host", b"here")], False),
        ("https://app.example", [(b"origin", b"https://app.example"), (b"sec-fetch-site", b"same-site")], True),
        ("https://app.example", [(b"origin", b"https://evil.example"), (b"sec-fetch-site", b"cross-site")], False),
        ("*", [(b"origin", b"https://evil.example"), (b"sec-fetch-site", b"cross-site")], False),
        ("*", [(b"sec-fetch-site", b"cross-site")], False),
    ],
)
def test_whose_cookies_count(origins: str, headers: Headers, counts: bool) -> None:
    assert Cors(origins).lets_cookies_count(request(headers=headers)) is counts


def test_pages_of_listed_origins_may_send_cookies_and_those_of_all_may_not() -> None:
    scope = request(headers=[(b"origin", b"https://app.example")])
    allowed = (b"access-control-allow-credentials", b"true")
    assert allowed in Cors("https://app.example").headers(scope)
    assert allowed not in Cors("*").headers(scope)


@pytest.mark.parametrize(
    ("scheme", "forwarded", "tls"),
    [("http", None, False), ("https", None, True), ("wss", None, True), ("http", b"https", True), ("http", b"HTTPS, http", True), ("http", b"http, https", False)],
)  # fmt: skip
def test_over_tls(scheme: str, forwarded: bytes | None, tls: bool) -> None:
    headers = [] if forwarded is None else [(b"x-forwarded-proto", forwarded)]
    assert is_over_tls(request(headers=headers) | {"scheme": scheme}) is tls


# --- owners


def test_owners_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "_REMEMBERED_MAX", 3)
    reset = principal.set(Principal("key:a", frozenset({"read"})))
    remembered = Owners(checked=True)
    for number in range(4):
        remembered.remember(f"s{number}", "key:a")
        assert remembered.allows("s0")  # used again and again: the others go first
    assert [remembered.allows(f"s{number}") for number in range(4)] == [True, False, True, True]
    principal.set(NOBODY)
    assert not remembered.allows("s0")
    principal.reset(reset)
