"""API keys and users' tokens at running gateways: made, used, revoked, replaced, by the command line and over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from midstream.redis_connection import connected
from shared.api_keys import ApiKey
from shared.errors import Unusable
from shared.keys import API_KEYS
from shared.settings import Settings
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ROOT = Path(__file__).resolve().parents[2]
_CHAT = {"messages": [{"role": "user", "content": "Hello"}], "simulate": {"tokens": 3}}
_KEY = ec.generate_private_key(ec.SECP256R1())
_ISSUER, _AUDIENCE = "https://login.example", "midstream"


class _KeySet(BaseHTTPRequestHandler):
    """The identity provider's key set."""

    def do_GET(self) -> None:
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(_KEY.public_key()))
        body = json.dumps({"keys": [{**public, "kid": "1"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Logs nothing."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system() -> AsyncIterator[System]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _KeySet)
    thread = Thread(target=server.serve_forever)
    thread.start()
    settings = {
        "auth": "required",
        "token_keys": "0123456789abcdef0123456789abcdef",
        "jwt_keys": f"http://127.0.0.1:{server.server_port}/keys",
        "jwt_issuer": _ISSUER,
        "jwt_audience": _AUDIENCE,
    }
    try:
        async with System(gateways=2, gateway_settings=settings) as system:
            yield system
            await system.commands.delete(API_KEYS)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def keys(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "midstream.cli",
        "keys",
        *arguments,
        "--redis",
        system.redis.url_of("midstream-keys"),
    ]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, cwd=_ROOT, check=False)


async def made(system: System, name: str, scopes: str, *options: str) -> dict[str, Any]:
    done = await keys(system, "create", name, "--scopes", scopes, "--json", *options)
    assert done.returncode == 0, done.stderr
    about: dict[str, Any] = json.loads(done.stdout)
    return about


async def status(system: System, token: str, gateway: int = 0) -> int:
    """Returns the status of a create with this token."""
    headers = {"authorization": f"Bearer {token}"}
    response = await system.http.post(f"{system.gateway_url(gateway)}/v1/streams", json=_CHAT, headers=headers)
    return response.status_code


async def test_a_key_works_at_once_on_each_gateway_and_after_its_revocation_on_none(system: System) -> None:
    key = (await made(system, "backend", "create,read"))["key"]
    assert [await status(system, key, gateway) for gateway in (0, 1)] == [201, 201]
    assert (await keys(system, "revoke", "backend")).returncode == 0
    began = time.monotonic()
    for gateway in (0, 1):

        async def is_refused(gateway: int = gateway) -> bool:
            return await status(system, key, gateway) == 401

        await wait_until(is_refused, within_seconds=5, what="the revocation")
    assert time.monotonic() - began < 5


async def test_a_key_has_its_scopes_and_its_time(system: System) -> None:
    reader = (await made(system, "reader", "read"))["key"]
    assert await status(system, reader) == 403
    short = (await made(system, "short", "create", "--expires", "4s"))["key"]
    assert await status(system, short) == 201

    async def is_refused() -> bool:
        return await status(system, short) == 401

    await wait_until(is_refused, what="the key's end")


async def test_a_replaced_key_stays_valid_for_its_grace(system: System) -> None:
    old = (await made(system, "rotated", "create"))["key"]
    done = await keys(system, "rotate", "rotated", "--grace", "1s", "--json")
    new = json.loads(done.stdout)["key"]
    assert new != old
    assert await status(system, new) == 201

    async def is_refused() -> bool:
        return await status(system, old) == 401

    await wait_until(is_refused, what="the end of the grace")
    assert await status(system, new) == 201


async def test_each_change_of_a_key_is_in_the_audit_log(system: System) -> None:
    """Of the command that makes it, and of every gateway that notices it: also one that was made without the command."""
    commands = (
        ("create", "audited", "--scopes", "create", "--json"),
        ("rotate", "audited", "--grace", "9s", "--json"),
        ("revoke", "audited"),
    )
    made, revoked = [], []
    for arguments in commands:
        done = await keys(system, *arguments)
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert all(line["logger"] == "midstream.audit" and line["name"] == "audited" for line in lines)
        assert all(line["principal"].startswith("account:") and line["scopes"] == ["create"] for line in lines)
        if arguments[0] == "revoke":
            revoked = [line["key_id"] for line in lines if line["event"] == "key_revoked"]
        else:
            [line] = lines
            made.append(json.loads(done.stdout))
            assert (line["event"], line["key_id"]) == (f"key_{arguments[0]}d", made[-1]["id"])
            assert made[-1]["key"] not in done.stderr
    assert line["former"] == [made[0]["id"]]
    assert sorted(revoked) == sorted(key["id"] for key in made)

    await system.commands.hset(API_KEYS, "0" * 64, ApiKey("", "minted", frozenset({"admin"}), 0.0).stored())
    await system.commands.hset(API_KEYS, "version", "minted")

    def have_noticed() -> bool:
        """Whether each gateway has a line about it, which may name other keys, too: those of the same look."""
        return all(re.search(r'"added":\[[^\]]*"minted:0000000000"', gateway.logged()) for gateway in system.gateways)

    await wait_until(have_noticed, what="every gateway has noticed the key")
    await system.commands.hdel(API_KEYS, "0" * 64)


async def test_the_list_shows_no_key(system: System) -> None:
    about = await made(system, "listed", "create,admin", "--expires", "90d")
    listed = await keys(system, "list")
    assert f"{about['id']}  listed  admin,create  created " in listed.stdout
    assert about["key"][4:] not in listed.stdout
    stored = await system.commands.hgetall(API_KEYS)
    assert about["key"][4:].encode() not in b"".join([*stored.keys(), *stored.values()])
    assert (await keys(system, "revoke", about["key"])).returncode == 0
    assert "listed" not in (await keys(system, "list")).stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["create", "x", "--scopes", "fly"], "scopes are act, admin, "),
        (["create", "-", "--scopes", "read"], "is no name for a key"),
        (["create", "x", "--scopes", "read", "--expires", "soon"], "must be a number and s, m, h, d or y"),
        (["create", "x", "--scopes", "read", "--limit", "fly=1"], "must be NAME=NUMBER"),
        (["revoke", "nobody"], "there is no key 'nobody'"),
        (["rotate", "nobody"], "there is no key 'nobody'"),
    ],
)
async def test_what_is_wrong_is_said(system: System, arguments: list[str], sentence: str) -> None:
    done = await keys(system, *arguments)
    assert done.returncode in (1, 2)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_user_comes_with_the_identity_provider_s_token(system: System) -> None:
    claims = {"sub": "u-1", "iss": _ISSUER, "aud": _AUDIENCE, "exp": int(time.time()) + 60}
    alice = jwt.encode(claims, _KEY, "ES256", headers={"kid": "1"})
    bob = jwt.encode({**claims, "sub": "u-2"}, _KEY, "ES256", headers={"kid": "1"})

    async def is_let_in() -> bool:
        return await status(system, alice) == 201

    await wait_until(is_let_in, what="the identity provider's keys")
    headers = {"authorization": f"Bearer {alice}"}
    response = await system.http.post(f"{system.gateway_url()}/v1/streams", json=_CHAT, headers=headers)
    stream_id = response.json()["id"]
    for token, expected in ((alice, 200), (bob, 404)):
        response = await system.http.get(
            f"{system.gateway_url(1)}/v1/streams/{stream_id}", headers={"authorization": f"Bearer {token}"}
        )
        assert response.status_code == expected
    system.assert_no_complaints()
    assert alice not in system.tails()


@pytest.mark.parametrize("where", ["body", "header", "chat", "ai_sdk"])
async def test_a_service_creates_for_a_user_who_then_reads_it(system: System, where: str) -> None:
    service = (await made(system, f"service-{where}", "create,act"))["key"]
    headers = {"authorization": f"Bearer {service}"}
    body: dict[str, Any] = dict(_CHAT)
    path = {"chat": "/v1/chat/completions", "ai_sdk": "/api/chat"}.get(where, "/v1/streams")
    if where == "ai_sdk":
        body = {"id": "chat-1", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}]}
    if where == "header":
        headers["x-midstream-owner"] = "u-7"
    else:
        body["midstream"] = {"owner": "u-7"}
    response = await system.http.post(system.gateway_url() + path, json=body, headers=headers)
    assert response.status_code in (200, 201), response.text
    stream_id = response.headers.get("x-stream-id") or response.json()["id"]
    for subject, expected in (("u-7", 200), ("u-1", 404)):
        claims = {"sub": subject, "iss": _ISSUER, "aud": _AUDIENCE, "exp": int(time.time()) + 60}
        user = {"authorization": f"Bearer {jwt.encode(claims, _KEY, 'ES256', headers={'kid': '1'})}"}
        read = await system.http.get(f"{system.gateway_url(1)}/v1/streams/{stream_id}", headers=user)
        assert read.status_code == expected


async def test_nobody_else_creates_for_a_user(system: System) -> None:
    plain = (await made(system, "plain", "create,read,cancel,admin"))["key"]
    for headers, body in (
        ({"x-midstream-owner": "u-7"}, _CHAT),
        ({}, {**_CHAT, "midstream": {"owner": "u-7"}}),
    ):
        response = await system.http.post(
            f"{system.gateway_url()}/v1/streams", json=body, headers={"authorization": f"Bearer {plain}", **headers}
        )
        assert response.status_code == 403, response.text


async def test_a_key_has_limits_of_its_own_and_sees_its_own_usage(system: System) -> None:
    made = {}
    for name, options in (
        ("limited", ("create,read,cancel", "--limit", "streams=1")),
        ("unlimited", ("create,read,cancel",)),
        ("auditor", ("read,admin",)),
    ):
        done = await keys(system, "create", name, "--scopes", *options)
        assert done.returncode == 0, done.stderr
        made[name] = {"authorization": f"Bearer {done.stdout.split()[0]}"}
    slow = {**_CHAT, "simulate": {"tokens": 1000, "tokens_per_second": 20}}

    async def create(name: str, gateway: int) -> int:
        url = f"{system.gateway_url(gateway)}/v1/streams"
        return int((await system.http.post(url, json=slow, headers=made[name])).status_code)

    assert [await create("unlimited", n % 2) for n in range(3)] == [201] * 3
    assert [await create("limited", n % 2) for n in range(3)] == [201, 429, 429]
    short = await system.http.post(f"{system.gateway_url()}/v1/streams", json=_CHAT, headers=made["unlimited"])
    assert short.status_code == 201

    async def usage(name: str, query: str = "") -> Any:
        return await system.http.get(f"{system.gateway_url(1)}/v1/usage{query}", headers=made[name])

    async def counted() -> bool:
        return bool((await usage("unlimited")).json()["usage"])

    await wait_until(counted, what="the short answer is counted")
    [row] = (await usage("unlimited")).json()["usage"]
    assert (row["principal"], row["streams"], row["generated"]) == ("key:unlimited", 1, 3)
    assert (await usage("limited")).json()["usage"] == []
    assert (await usage("limited", "?principal=key:unlimited")).status_code == 403
    assert (await usage("auditor", "?principal=key:unlimited")).json()["usage"] == [row]
    assert row in (await usage("auditor")).json()["usage"]
    anonymous = await system.http.get(f"{system.gateway_url()}/v1/usage")
    assert anonymous.status_code == 401
    with_token = {"authorization": f"Bearer {short.json()['access_token']}"}
    refused = await system.http.get(f"{system.gateway_url()}/v1/usage", headers=with_token)
    assert refused.status_code in (401, 403), "a right to one stream is no right to its owner's usage"


async def test_a_redis_that_refuses_the_connection_is_no_endless_wait(system: System) -> None:
    """The shipped users may not choose another database."""
    url = system.redis.url_of("midstream-keys") + "?db=1"  # over a Unix socket
    with pytest.raises(Unusable, match="refuses this process: NOPERM"):
        async with connected(Settings(redis_url=url, redis_start_seconds=0.5), name="keys"):
            pass
