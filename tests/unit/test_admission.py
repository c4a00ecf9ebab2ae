"""Who is let in: the credential, the scope, the owner of a stream; where authentication is off; and where a gateway does not start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from gateway.access.admission import Admission
from gateway.access.mode import is_authentication_on
from gateway.access.owners import Owners
from gateway.access.sessions import Sessions
from gateway.access.signing import SigningKeys
from gateway.access.stream_tokens import StreamTokens
from gateway.http.principal import ANONYMOUS, NOBODY, SCOPES, Principal, principal, require
from gateway.http.problems import Problem
from gateway.http.routes import Route
from shared.errors import Unusable
from shared.settings import Settings

READER = Principal("key:reader", frozenset({"read"}))
ADMIN = Principal("key:admin", frozenset({"read", "admin"}))


class Keys:
    """An authenticator of these tokens."""

    is_for_urls = False

    async def principal_of(self, token: str) -> Principal | None:
        return {"reader": READER, "admin": ADMIN}.get(token)


def guarded() -> Admission:
    keys = SigningKeys("0" * 32)
    return Admission([Keys()], tokens=StreamTokens(keys, Settings()), sessions=Sessions(keys, []), user_cookie="user")


def route(scope: str) -> Route:
    return Route("GET", "/", cast(Any, None), cast(Any, None), scope)


def request(*values: bytes) -> dict[str, Any]:
    headers = [(b"authorization", value) for value in values]
    return {"type": "http", "headers": headers, "query_string": b""}


@pytest.fixture(autouse=True)
def nobody() -> Iterator[None]:
    before = principal.set(NOBODY)
    yield
    principal.reset(before)


def test_a_route_needs_a_scope_that_exists() -> None:
    with pytest.raises(ValueError, match="no scope"):
        route("everything")


@pytest.mark.parametrize("header", [b"Bearer reader", b"bearer reader", b"Bearer  reader "])
async def test_a_known_token_is_let_in(header: bytes) -> None:
    await guarded().admit(request(header), route("read"), with_cookies=True)
    assert principal.get() is READER


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ((), ""),
        ((b"Basic cmVhZGVyOg==",), "invalid_token"),
        ((b"Bearer",), "invalid_token"),
        ((b"Bearer ",), "invalid_token"),
        ((b"Bearer reader", b"Bearer admin"), "invalid_token"),
        ((b"Bearer " + b"x" * 9000,), "invalid_token"),
        ((b"Bearer stranger",), "invalid_token"),
        ((b"Bearer reader\xff",), "invalid_token"),
    ],
)
async def test_everybody_else_is_asked_for_a_credential(headers: tuple[bytes, ...], error: str) -> None:
    admission = guarded()
    for scope in sorted(SCOPES):
        with pytest.raises(Problem) as refused:
            await admission.admit(request(*headers), route(scope), with_cookies=True)
        challenge = refused.value.status_headers()["www-authenticate"]
        assert refused.value.status == 401
        assert challenge.startswith('Bearer realm="midstream"')
        assert (f'error="{error}"' in challenge) == bool(error)
    await admission.admit(request(*headers), route("open"), with_cookies=True)
    assert principal.get() is NOBODY


async def test_a_missing_scope_is_named() -> None:
    with pytest.raises(Problem) as refused:
        await guarded().admit(request(b"Bearer reader"), route("cancel"), with_cookies=True)
    assert refused.value.status == 403
    assert 'error="insufficient_scope", scope="cancel"' in refused.value.status_headers()["www-authenticate"]


async def test_nobody_is_asked_where_authentication_is_off() -> None:
    await Admission([Keys()]).admit(request(), route("admin"), with_cookies=True)
    assert principal.get() is ANONYMOUS


def test_who_has_not_been_admitted_may_do_nothing() -> None:
    with pytest.raises(Problem):
        require("read")


@pytest.mark.parametrize(
    ("who", "allowed"),
    [
        (READER, True),
        (ADMIN, True),
        (Principal("key:other", SCOPES - {"admin"}), False),
        (NOBODY, False),
        (Principal("stream", frozenset({"read"}), "s1"), True),
        (Principal("key:reader", SCOPES, "s2"), False),  # a right to one stream is none to the owner's others
    ],
)
def test_a_stream_is_its_owner_s(who: Principal, allowed: bool) -> None:
    principal.set(who)
    owners = Owners(checked=True)
    assert owners.allows_owner("s1", "key:reader") is allowed
    assert owners.allows("s1") is allowed
    assert Owners(checked=False).allows("s1")


def test_a_log_without_an_owner_is_an_admin_s() -> None:
    owners = Owners(checked=True)
    for who, allowed in ((READER, False), (ADMIN, True)):
        principal.set(who)
        assert owners.allows_owner("s1", None) is allowed


@pytest.mark.parametrize(
    ("auth", "address", "on"),
    [
        ("auto", "127.0.0.1", False),
        ("auto", "::1", False),
        ("auto", "localhost", False),
        ("auto", "0.0.0.0", None),
        ("auto", "::", None),
        ("auto", "10.0.0.9", None),
        ("auto", "gateway.internal", None),
        ("none", "0.0.0.0", False),
        ("required", "127.0.0.1", True),
        ("required", "0.0.0.0", True),
    ],
)
def test_where_authentication_is_on(auth: str, address: str, on: bool | None) -> None:
    settings = Settings(auth=auth)
    assert is_authentication_on(Settings(auth=auth, api_keys="x"), address) is (auth != "none")
    if on is None:
        with pytest.raises(Unusable, match=r"MIDSTREAM_AUTH=required .* MIDSTREAM_AUTH=none"):
            is_authentication_on(settings, address)
    else:
        assert is_authentication_on(settings, address) is on
