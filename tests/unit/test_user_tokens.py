"""JWTs of an identity provider: what is let in, every way to forge one, and keys that change."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.access import user_tokens
from gateway.access.user_tokens import UserTokens
from gateway.http.problems import Problem
from shared.errors import Unusable
from shared.settings import Settings
from tests.support.waiting import wait_until

RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ISSUER, AUDIENCE = "https://login.example", "midstream"


def jwk(key: Any, key_id: str) -> dict[str, Any]:
    algorithm = (
        jwt.algorithms.ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else jwt.algorithms.RSAAlgorithm
    )
    public: dict[str, Any] = json.loads(algorithm.to_jwk(key.public_key()))
    return {**public, "kid": key_id, "use": "sig"}


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    all_claims = {"sub": "u-1", "iss": ISSUER, "aud": AUDIENCE, "exp": now + 60, "nbf": now, **changes}
    return {name: value for name, value in all_claims.items() if value is not None}


def token(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "rsa-1", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers=None if kid is None else {"kid": kid})


def unsigned(header: dict[str, Any], body: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(body).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def write(path: Path, text: str) -> None:
    path.write_text(text)


def write_keys(path: Path, *keys: dict[str, Any]) -> None:
    write(path, json.dumps({"keys": keys}))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    write_keys(path, jwk(RSA, "rsa-1"), jwk(EC, "ec-1"))
    return path


def settings_of(key_file: Path, **changes: Any) -> Settings:
    return Settings(**{"jwt_keys": str(key_file), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_leeway_seconds": 2, **changes})  # fmt: skip


@pytest_asyncio.fixture
async def users(key_file: Path) -> AsyncIterator[UserTokens]:
    tokens = UserTokens(settings_of(key_file))
    tokens.start()
    await tokens._has_keys.wait()
    yield tokens
    await tokens.close()


async def test_a_user_comes_in(users: UserTokens) -> None:
    for good in (token(), token(EC, "ES256", "ec-1"), token(aud=["other", AUDIENCE])):
        found = await users.principal_of(good)
        assert found is not None
        assert (found.name, sorted(found.scopes)) == ("user:u-1", ["cancel", "create", "read"])
        assert await users.principal_of(good) is found


_PUBLIC = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "wrong",
    [
        token(exp=1),
        token(nbf=int(time.time()) + 600),
        token(iss="https://evil.example"),
        token(aud="another-service"),
        token(aud=None),
        token(iss=None),
        token(exp=None),
        token(sub=None),
        token(sub=""),
        token(sub="line\nbreak"),
        token(sub="x" * 256),
        token(OTHER_RSA),
        token(OTHER_RSA, kid="unknown"),
        token(RSA, kid="ec-1"),
        token(RSA, kid=None),
        token(RSA, "RS512"),
        token(RSA, "PS256"),
        unsigned({"alg": "none", "kid": "rsa-1"}, claims()),
        unsigned({"alg": "None", "kid": "rsa-1"}, claims()),
        unsigned({"alg": "RS256", "kid": ["rsa-1"]}, claims()),
        unsigned({"alg": "RS256", "kid": "rsa-1", "jwk": jwk(OTHER_RSA, "rsa-1")}, claims(), b"x"),
        unsigned({"alg": ["RS256"], "kid": "rsa-1"}, claims(), b"x"),
        token()[:-4] + "AAAA",
        token() + "A",
        token().rpartition(".")[0] + ".",
        "eyJ.eyJ.x",
    ],
    ids=lambda _: "",
)
async def test_a_forged_token_is_none(users: UserTokens, wrong: str) -> None:
    assert await users.principal_of(wrong) is None


async def test_a_public_key_is_no_shared_secret(key_file: Path) -> None:
    users = UserTokens(settings_of(key_file, jwt_algorithms="RS256 HS256"))
    users.start()
    try:
        await users._has_keys.wait()
        header, body = ({"alg": "HS256", "typ": "JWT", "kid": "rsa-1"}, claims())
        signed = unsigned(header, body).rpartition(".")[0]
        signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
        forged = signature.sign(signed.encode(), _PUBLIC)
        assert await users.principal_of(f"{signed}.{base64.urlsafe_b64encode(forged).rstrip(b'=').decode()}") is None
    finally:
        await users.close()


async def test_an_expired_token_is_none_also_if_it_was_let_in_before(users: UserTokens) -> None:
    short = token(exp=int(time.time()) - 1)
    assert await users.principal_of(short) is not None, "within the leeway"

    async def is_refused() -> bool:
        return await users.principal_of(short) is None

    await wait_until(is_refused, what="the end of the leeway")


async def test_a_new_key_is_read_when_it_comes_but_not_for_each_stranger(
    users: UserTokens, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    read = user_tokens._read

    def counted(source: str) -> bytes:
        nonlocal reads
        reads += 1
        return read(source)

    monkeypatch.setattr(user_tokens, "_read", counted)
    old, new = token(), token(OTHER_RSA, kid="rsa-2")
    assert await users.principal_of(old) is not None
    write_keys(key_file, jwk(OTHER_RSA, "rsa-2"))
    for number in range(50):
        assert await users.principal_of(token(kid=f"made-up-{number}")) is None
    assert reads == 0, "the keys were read less than a minute ago"
    monkeypatch.setattr(user_tokens, "_UNKNOWN_KEY_SECONDS", 0.0)
    assert await users.principal_of(new) is not None
    assert reads == 1
    assert await users.principal_of(old) is None, "its key was taken away"


async def test_keys_that_cannot_be_read_take_none_away(
    users: UserTokens, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_tokens, "_UNKNOWN_KEY_SECONDS", 0.0)
    for content in ("", "[]", '{"keys": []}', '{"keys": [1, {"kty": "RSA"}]}', "x" * (2 << 20)):
        write(key_file, content)
        assert await users.principal_of(token(kid="unknown")) is None
        assert await users.principal_of(token()) is not None


async def test_before_the_keys_were_read_a_user_is_told_to_come_back(key_file: Path) -> None:
    with pytest.raises(Problem) as raised:
        await UserTokens(settings_of(key_file)).principal_of(token())
    assert raised.value.status == 503


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"jwt_issuer": ""}, "MIDSTREAM_JWT_ISSUER"),
        ({"jwt_audience": ""}, "MIDSTREAM_JWT_AUDIENCE"),
        ({"jwt_algorithms": "none"}, "MIDSTREAM_JWT_ALGORITHMS"),
        ({"jwt_scopes": "create,admin"}, "MIDSTREAM_JWT_SCOPES"),
        ({"jwt_keys": "http://login.example/jwks"}, "MIDSTREAM_JWT_KEYS"),
        ({"jwt_keys": "/nowhere/jwks.json"}, "MIDSTREAM_JWT_KEYS"),
    ],
)
def test_settings_that_would_let_in_too_many_are_refused(key_file: Path, changes: dict[str, Any], name: str) -> None:
    with pytest.raises(Unusable, match=name):
        UserTokens(settings_of(key_file, **changes))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(), st.binary().map(lambda raw: "eyJ" + base64.urlsafe_b64encode(raw).decode() + "..")))
async def test_any_text_is_taken(users: UserTokens, text: str) -> None:
    assert await users.principal_of(text) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6
)  # fmt: skip
claim_names = st.sampled_from(["sub", "iss", "aud", "exp", "nbf", "iat", "jti", "crit"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(claim_names, json_values, min_size=1, max_size=4))
async def test_a_provider_s_token_with_any_claims_is_a_user_or_none(users: UserTokens, odd: dict[str, Any]) -> None:
    """Its signature is right: what a provider lets its users choose, such as a name, must do no harm either."""
    try:
        signed = jwt.encode({**claims(), **odd}, EC, "ES256", headers={"kid": "ec-1"})
    except (TypeError, ValueError, OverflowError):
        return  # no such token can be made with this library
    found = await users.principal_of(signed)
    if found is not None:
        assert found.name.removeprefix("user:") == {**claims(), **odd}["sub"]
        assert found.name.isprintable()
        assert found.expires_at is not None
        assert found.expires_at > time.time()
        assert "iss" not in odd or odd["iss"] == ISSUER
        assert "aud" not in odd or odd["aud"] == AUDIENCE or AUDIENCE in odd["aud"]


GOOD = token()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(GOOD) - 1), st.characters(max_codepoint=300), st.booleans())
async def test_a_token_that_was_changed_anywhere_is_none(users: UserTokens, at: int, other: str, cut: bool) -> None:
    changed = GOOD[:at] if cut else GOOD[:at] + other + GOOD[at + 1 :]
    if _parts(changed) != _parts(GOOD):  # base64url has a few bits to spare: another spelling is the same token
        assert await users.principal_of(changed) is None


def _parts(text: str) -> list[bytes | str]:
    parts: list[bytes | str] = []
    for part in text.split("."):
        try:
            parts.append(base64.b64decode(part + "=" * (-len(part) % 4), b"-_", validate=True))
        except ValueError:
            parts.append(part)
    return parts
