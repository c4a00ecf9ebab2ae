"""Who may ask for what, over HTTP: every route and face as a stranger, as somebody else, with too little, and with a wrong token."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import websockets

from gateway.access.signing import SigningKeys
from gateway.access.stream_tokens import StreamTokens
from shared.ids import new_stream_id
from shared.settings import Settings
from tests.support.guarded_gateway import KEYS, MODULE, TOKEN_KEYS
from tests.support.raw_http import exchange
from tests.support.redis_server import free_port
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {
    "auth": "required",
    "token_keys": TOKEN_KEYS,
    "console": "on",
    "user_cookie": "user",
    "trusted_proxies": "127.0.0.1",  # so that a test can have an address of its own
}
OPEN = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/console/{file}"),
    ("GET", "/login"),
    ("POST", "/login"),
    ("POST", "/logout"),
}
"""What anybody may ask. Whoever adds to it says by that what the new route tells strangers: nothing."""
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "simulate": {"tokens": 3}}
TOKENS = StreamTokens(SigningKeys(TOKEN_KEYS), Settings())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System(gateways=2, gateway_module=MODULE, gateway_settings=SETTINGS) as system:
        yield system


def as_(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer tk_{name}"}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def ended(system: System, name: str = "alice", **body: Any) -> dict[str, Any]:
    """Creates a stream, waits for its end, and returns the body of the 201."""
    response = await system.http.post(f"{system.gateway_url()}/v1/streams", json={**CHAT, **body}, headers=as_(name))
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    await system.http.get(f"{system.gateway_url()}/v1/streams/{created['id']}?wait=20", headers=as_(name))
    return created


async def described(system: System) -> list[tuple[str, str, dict[str, Any]]]:
    response = await system.http.get(f"{system.gateway_url()}/openapi.json", headers=as_("root"))
    assert response.status_code == 200
    return [
        (method.upper(), path, operation)
        for path, item in response.json()["paths"].items()
        for method, operation in item.items()
    ]


def filled(path: str, stream_id: str) -> str:
    """Returns a path for a template, with this stream in place of whatever names one."""
    ids = {"response_id": f"resp_{stream_id}", "completion_id": f"chatcmpl-{stream_id}", "chat_id": "chat-1", "name": "probe-name", "file": "style.css", "model": "gpt-4o-mini"}  # fmt: skip
    return re.sub(r"\{(\w+)\}", lambda name: ids.get(name[1], stream_id), path)


async def asked(
    system: System, method: str, path: str, headers: Mapping[str, str], body: Any = None, gateway: int = 0
) -> tuple[int, Mapping[str, str], str]:
    """Returns status, headers and body of an answer; of one that streams the first bytes."""
    url = system.gateway_url(gateway) + path
    async with system.http.stream(method, url, headers=headers, json=body) as response:
        text = b""
        async for part in response.aiter_bytes():
            text += part
            if "event-stream" in response.headers.get("content-type", ""):
                break
        return response.status_code, response.headers, text.decode()


# --- every route


async def test_every_route_asks_for_a_credential(system: System) -> None:
    operations = await described(system)
    assert {(method, path) for method, path, operation in operations if not operation["security"]} == OPEN
    stream_id = (await ended(system))["id"]
    for method, path, operation in operations:
        for headers in ({}, bearer("tk_nobody"), bearer(TOKENS.token(stream_id)[:-1] + "!")):
            status, answered, text = await asked(system, method, filled(path, stream_id), headers, CHAT)
            if (method, path) in OPEN:
                assert status not in (401, 404, 500), f"{method} {path}: {status}"
                continue
            assert status == 401, f"{method} {path} lets strangers in: {status} {text}"
            assert answered["www-authenticate"].startswith('Bearer realm="midstream"')
            assert ("invalid_token" in answered["www-authenticate"]) == bool(headers)
            problem = json.loads(text)
            assert ("error" in problem) == path.startswith(("/v1/chat", "/v1/responses", "/v1/models")), path
            assert operation["security"][0] == {"bearer": operation["security"][1]["accessToken"]}
            assert "401" in operation["responses"]


async def test_every_route_asks_for_its_scope(system: System) -> None:
    stream_id = (await ended(system))["id"]
    for method, path, operation in await described(system):
        for scope in (operation["security"] or [{"bearer": []}])[0]["bearer"]:
            lacking = {"create": "reader", "read": "creator", "cancel": "reader", "write": "reader", "admin": "alice"}[
                scope
            ]
            status, answered, text = await asked(system, method, filled(path, stream_id), as_(lacking), CHAT)
            assert status == 403, f"{method} {path} does not need {scope}: {status} {text}"
            assert f'error="insufficient_scope", scope="{scope}"' in answered["www-authenticate"]


async def test_no_route_tells_somebody_else_s_stream_from_none(system: System) -> None:
    """Also at a gateway that has not seen the stream yet, and with everything that a client can say about it."""
    mine = (await ended(system, midstream={"metadata": {"mine": "yes"}}))["id"]
    unknown = new_stream_id()
    bodies = {"": None, "tokens": {"scopes": ["read"]}}
    asked_for = 0
    for method, path, operation in await described(system):
        names = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
        if not names & {"stream_id", "response_id", "completion_id"}:
            continue
        for gateway, extra in ((0, {}), (1, {}), (1, {"last-event-id": "1-2"}), (0, {"if-none-match": "*"})):
            answers = []
            for stream_id in (mine, unknown):
                body = bodies.get(path.rpartition("/")[2])
                status, headers, text = await asked(
                    system, method, filled(path, stream_id), {**as_("bob"), **extra}, body, gateway
                )
                kept = sorted(set(headers) - {"date", "x-request-id"})
                answers.append((status, kept, text.replace(stream_id, "ID")))
            if not path.endswith("/ws"):
                assert answers[0][0] == 404, f"{method} {path}: {answers[0]}"
            assert answers[0] == answers[1], f"{method} {path} {extra}"
            asked_for += 1
    assert asked_for >= 40
    assert (await system.http.get(f"{system.gateway_url()}/v1/streams/{mine}", headers=as_("alice"))).status_code == 200
    assert (await system.http.get(f"{system.gateway_url()}/v1/streams/{mine}", headers=as_("root"))).status_code == 200


async def test_a_websocket_shows_by_its_close_code_why_it_is_refused(system: System) -> None:
    mine, other = (await ended(system))["id"], (await ended(system, "bob"))["id"]

    async def code(stream_id: str, headers: Mapping[str, str], query: str = "") -> tuple[int | None, str]:
        url = f"ws://127.0.0.1:{system.gateway_port(1)}/v1/streams/{stream_id}/ws{query}"
        text = ""
        async with websockets.connect(url, additional_headers=dict(headers)) as socket:
            with suppress(websockets.ConnectionClosedError):
                async for message in socket:
                    text += str(message)
        return socket.close_code, text.replace(stream_id, "ID")

    assert (await code(mine, {}))[0] == 4401
    assert (await code(mine, as_("creator")))[0] == 4403
    assert await code(other, as_("alice")) == await code(new_stream_id(), as_("alice"))
    assert (await code(other, as_("alice")))[0] == 4404
    assert (await code(mine, as_("alice")))[0] == 1000
    assert (await code(mine, {}, f"?access_token={TOKENS.token(mine)}"))[0] == 1000
    assert (await code(other, {}, f"?access_token={TOKENS.token(mine)}"))[0] == 4404


async def test_who_may_only_read_cannot_cancel_over_a_websocket(system: System) -> None:
    response = await system.http.post(
        f"{system.gateway_url()}/v1/streams",
        json={**CHAT, "simulate": {"tokens": 1000, "tokens_per_second": 20}},
        headers=as_("alice"),
    )
    stream_id = response.json()["id"]
    url = f"ws://127.0.0.1:{system.gateway_port()}/v1/streams/{stream_id}/ws?access_token={TOKENS.token(stream_id, ['read'])}"
    async with websockets.connect(url) as socket:
        await socket.send('{"type": "cancel"}')
        async for message in socket:
            event = json.loads(message)
            if event["event"] == "error":
                assert event["data"]["status"] == 403
                break
        else:
            raise AssertionError("the cancel was not refused")
    state = await system.http.get(f"{system.gateway_url()}/v1/streams/{stream_id}", headers=as_("alice"))
    assert state.json()["status"] in ("queued", "running")
    cancel = await system.http.post(
        f"{system.gateway_url()}/v1/streams/{stream_id}/cancel", headers=bearer(TOKENS.token(stream_id))
    )
    assert cancel.json()["status"] == "cancelled"


# --- what follows from an earlier answer


async def test_a_follow_up_to_somebody_else_s_response_is_one_to_none(system: System) -> None:
    url = f"{system.gateway_url()}/v1/responses"
    body = {"model": "m", "input": "Hello"}
    first = await system.http.post(url, json=body, headers=as_("alice"))
    assert first.status_code == 200, first.text
    response_id = first.json()["id"]
    item_id = first.json()["output"][0]["id"]
    unknown = new_stream_id()
    for name, expected in (("alice", 200), ("bob", 400)):
        answer = await system.http.post(url, json={**body, "previous_response_id": response_id}, headers=as_(name))
        assert answer.status_code == expected, answer.text
        item = await system.http.post(
            url, json={"model": "m", "input": [{"type": "item_reference", "id": item_id}, {"role": "user", "content": "x"}]}, headers=as_(name)
        )  # fmt: skip
        assert item.status_code == (200 if name == "alice" else 404), item.text
    stranger = await system.http.post(url, json={**body, "previous_response_id": f"resp_{unknown}"}, headers=as_("bob"))
    assert answer.text.replace(response_id, "ID") == stranger.text.replace(f"resp_{unknown}", "ID")


async def test_a_chat_id_and_an_idempotency_key_are_each_principal_s_own(system: System) -> None:
    chat = {"id": "the-chat", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}]}
    url = system.gateway_url()
    status, headers, _ = await asked(system, "POST", "/api/chat", as_("alice"), chat)
    assert status == 200
    replay = f"{url}/api/chat/the-chat/stream?ended=replay"
    assert (await system.http.get(replay, headers=as_("bob"))).status_code == 204
    assert (await system.http.get(replay, headers=as_("alice"))).status_code == 200
    stopped = await system.http.post(
        f"{url}/api/chat/the-chat/stop", json={"activeStreamId": headers["x-stream-id"]}, headers=as_("bob")
    )
    assert stopped.json()["stopped"] is False
    assert stopped.json()["status"] is None
    ids: dict[str, str] = {}
    for name in ("alice", "bob", "alice"):
        created = await system.http.post(
            f"{url}/v1/streams", json=CHAT, headers={**as_(name), "idempotency-key": "the-key"}
        )
        assert ids.setdefault(name, created.json()["id"]) == created.json()["id"]
    assert ids["alice"] != ids["bob"]


async def test_who_writes_a_stream_gets_the_right_to_it_and_a_page_may_read_it(system: System) -> None:
    headers = {**as_("alice"), "content-type": "text/plain"}
    for expected in (201, 200):
        made = await system.http.put(f"{system.gateway_url()}/v1/stream/for/a/page", headers=headers, content=b"Hello")
        assert made.status_code == expected, made.text
        token, stream_id = made.headers["x-midstream-access-token"], made.headers["x-stream-id"]
        read = await system.http.get(f"{system.gateway_url(1)}/v1/stream/{stream_id}?access_token={token}")
        assert (read.status_code, read.text) == (200, "Hello")
        for method, path in (("POST", stream_id), ("PUT", "x"), ("DELETE", stream_id)):
            answer = await system.http.request(
                method, f"{system.gateway_url()}/v1/stream/{path}", headers=bearer(token)
            )
            assert answer.status_code == 403, method


# --- for a user


async def test_a_service_reaches_a_user_s_stream_only_where_it_names_the_user(system: System) -> None:
    """Also one that has created it. Another service with the scope `act` is trusted as much; who lacks it gets 403."""
    url, address = f"{system.gateway_url()}/v1/streams", {"x-forwarded-for": "198.51.100.3"}
    for_ada, for_bob = {"x-midstream-owner": "ada"}, {"x-midstream-owner": "bob"}
    body = {**CHAT, "simulate": {"tokens": 1000, "tokens_per_second": 20}}
    created = await system.http.post(url, json=body, headers={**as_("backend"), **for_ada})
    stream_id = created.json()["id"]
    for name, headers, expected in (
        ("backend", for_ada, 200),
        ("backend", {}, 404),
        ("backend", for_bob, 404),
        ("other-backend", {}, 404),
        ("other-backend", for_bob, 404),
        ("other-backend", for_ada, 200),
        ("alice", for_ada, 403),
        ("root", for_ada, 403),
        ("root", {}, 200),
        ("backend", {"x-midstream-owner": ""}, 400),
        ("backend", {"x-midstream-owner": "key:alice"}, 404),
    ):
        for gateway in (0, 1):
            for path in ("", "/receipt", "/events?from=now"):
                status, _, _ = await asked(
                    system, "GET", f"/v1/streams/{stream_id}{path}", {**as_(name), **headers}, gateway=gateway
                )
                assert status == expected, (name, headers, path)
            if expected != 200:
                status, _, _ = await asked(
                    system, "POST", f"/v1/streams/{stream_id}/cancel", {**as_(name), **headers}, gateway=gateway
                )
                assert status == expected, (name, headers)
    listed = await system.http.get(
        f"{system.gateway_url()}/v1/usage?principal=user:ada", headers={**as_("backend"), **for_bob}
    )
    assert listed.status_code == 403, "somebody else's usage"
    done = await system.http.post(f"{url}/{stream_id}/cancel", headers={**as_("backend"), **for_ada, **address})
    assert done.json()["status"] == "cancelled"
    assert audited(system, address=address["x-forwarded-for"]) == [
        {
            "event": "cancelled",
            "stream": stream_id,
            "principal": "user:ada",
            "service": "key:backend",
            "address": "198.51.100.3",
        }
    ]
    # An act of a service is not an administrator's, whatever else its key may do.
    assert (await system.http.get(f"{url}/{stream_id}", headers={**as_("root"), **for_ada})).status_code == 403


# --- tokens


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/streams", CHAT),
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/v1/responses", {"input": "Hello"}),
        ("/v1/responses", {"input": "Hello", "stream": True}),
        ("/api/chat", {"id": "c", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}]}),
        ("/stream?prompt=Hello", None),
    ],
)
async def test_every_create_gives_the_right_to_its_stream(system: System, path: str, body: Any) -> None:
    cookie = {"midstream": {"cookie": True}} if body is not None else {}
    path += "" if body is not None else "&cookie=true"
    method = "GET" if body is None else "POST"
    sent = body if body is None else {**body, **cookie}
    headers = {**as_("alice"), "x-forwarded-proto": "https"}
    status, answered, text = await asked(system, method, path, headers, sent)
    assert status in (200, 201), text
    token = answered["x-midstream-access-token"]
    stream_id = token.split(".")[4]
    if path == "/v1/streams":
        assert json.loads(text)["access_token"] == token
    assert token.startswith("mst1.")
    assert re.fullmatch(r"[A-Za-z0-9._-]+", token)
    where = f"/v1/streams/{stream_id}" if body is not None else "/stream"
    assert re.fullmatch(
        rf"midstream_token={re.escape(token)}; Path={where}; Max-Age=\d+; HttpOnly; SameSite=Lax; Secure",
        answered["set-cookie"],
    )
    url = f"{system.gateway_url(1)}/v1/streams/{stream_id}"
    for answer in (
        await system.http.get(url + "?wait=20", headers=bearer(token)),
        await system.http.get(url, params={"access_token": token}),
        await system.http.get(url, headers={"cookie": f"a=b; midstream_token={token}"}),
        await system.http.get(f"{url}/receipt?access%5Ftoken={token}"),
        await system.http.get(f"{url}/events", headers={**bearer(token), "last-event-id": "1-2"}),
        await system.http.post(f"{url}/cancel", headers=bearer(token)),
    ):
        assert answer.status_code == 200, answer.text


async def test_a_token_opens_nothing_but_its_stream(system: System) -> None:
    mine, second = (await ended(system))["id"], (await ended(system))["id"]
    token = TOKENS.token(mine)
    url = system.gateway_url(1)
    for method, path, operation in await described(system):
        status, _, text = await asked(system, method, filled(path, second), bearer(token), None)
        if (method, path) in OPEN or path.endswith("/ws"):
            continue
        if path.startswith("/v1/streams/") or "completions/" in path or "responses/" in path:
            needed = operation["security"][0]["bearer"][0]
            assert status == (404 if needed in ("read", "cancel") else 403), f"{method} {path}: {status} {text}"
        else:  # the models, the probe: what is nobody's
            assert status in (400, 403, 204, 200, 404), f"{method} {path}: {status} {text}"
    deletes = [path for method, path, _ in await described(system) if method == "DELETE"]
    assert len(deletes) >= 3
    for path in deletes:
        status, _, text = await asked(system, "DELETE", filled(path, mine), bearer(token), None)
        assert status == 403, f"{path}: to read and cancel a stream is no right to delete it: {status} {text}"
    prompt = await system.http.get(f"{url}/stream", headers={**bearer(token), "last-event-id": f"{second}/1-1"})
    assert prompt.status_code == 404
    assert (await system.http.get(f"{url}/stream?prompt=x", headers=bearer(token))).status_code == 403


def altered(token: str) -> dict[str, str]:
    kind, key, rights, expires, stream_id, signature = token.split(".")
    parts = [kind, key, rights, expires, stream_id, signature]

    def with_(index: int, value: str) -> str:
        return ".".join([*parts[:index], value, *parts[index + 1 :]])

    other_keys = SigningKeys("another-key-0123456789abcdef-0123456789")
    foreign = StreamTokens(other_keys, Settings()).token(stream_id)
    return {
        "expired": TOKENS.token(stream_id, expires_at=time.time() - 1),
        "longer": with_(3, str(int(expires) + 1)),
        "more rights": with_(2, "rcx"),
        "changed signature": with_(5, ("A" if signature[0] != "A" else "B") + signature[1:]),
        "no signature": token.rpartition(".")[0],
        "empty signature": with_(5, ""),
        "cut": token[:-1],
        "extended": token + "A",
        "another kind": with_(0, "mss1"),
        "no kind": token[5:],
        "unknown key id": with_(1, "000000"),
        "empty key id": with_(1, ""),
        "somebody else's key": foreign,
        "their key under our id": ".".join([*foreign.split(".")[:1], key, *foreign.split(".")[2:]]),
        "percent": token + "%00",
        "NUL": token + "\0",
        "U+2028": token + "\u2028",
        "none": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.",
        "empty": "",
        "huge": token + "A" * 7000,
        "not ASCII": token[:-1] + "\u0661",
    }


async def test_a_wrong_token_is_refused_wherever_it_stands(system: System) -> None:
    stream_id = (await ended(system))["id"]
    token = TOKENS.token(stream_id)
    path = f"/v1/streams/{stream_id}"
    port = system.gateway_port()
    for what, wrong in altered(token).items():
        raw = wrong.encode("utf-8")
        escaped = "".join(f"%{byte:02X}" for byte in raw)
        requests = {
            "query": f"GET {path}?access_token={escaped} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
        }
        requests["header"] = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer ".encode() + raw + b"\r\n\r\n"  # fmt: skip
        requests["cookie"] = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncookie: midstream_token=".encode() + raw + b"\r\n\r\n"  # fmt: skip
        for place, request in requests.items():
            answer = await exchange(port, request)
            status = int(answer.split(b" ", 2)[1])
            allowed = {"NUL": (401, 400), "huge": (401, 414)}.get(what, (401,))  # HTTP's own bounds come first
            assert status in allowed, f"{what} in the {place}: {answer.decode('latin-1')}"
    good = await system.http.get(f"{system.gateway_url()}{path}", headers=bearer(token))
    assert good.status_code == 200


@pytest.mark.parametrize("text", ["a\r\nx-injected: 1", "a\nset-cookie: x=1", "a\0b", "a\u2028b", "a\u0085b"])
async def test_texts_from_outside_inject_nothing(system: System, text: str) -> None:
    """In a header httptools refuses CR, LF and NUL; everywhere else they arrive, escaped."""
    url = system.gateway_url()
    for answer in (
        await system.http.get(f"{url}/v1/streams/x", params={"access_token": text}),
        await system.http.get(f"{url}/stream", params={"prompt": text, "cookie": text}, headers=as_("alice")),
        await system.http.post(f"{url}/login", data={"key": text}),
        await system.http.post(f"{url}/v1/streams", json={**CHAT, "midstream": {"cookie": text}}, headers=as_("alice")),
        await system.http.get(f"{url}/api/chat/x/stream", params={"ended": text}, headers=as_("alice")),
    ):
        assert 400 <= answer.status_code < 500, answer.text
        assert "x-injected" not in answer.headers
        assert "set-cookie" not in answer.headers
        assert "\0" not in answer.text
        assert "html" in answer.headers["content-type"] or answer.json()


async def test_tokens_are_made_narrower_and_shorter_and_never_wider(system: System) -> None:
    stream_id = (await ended(system))["id"]
    url = f"{system.gateway_url()}/v1/streams/{stream_id}/tokens"
    made = await system.http.post(url, json={"scopes": ["read"], "expires_in": 60}, headers=as_("alice"))
    assert made.status_code == 201, made.text
    read_only = made.json()["access_token"]
    assert made.json()["scopes"] == ["read"]
    assert abs(made.json()["expires_at"] - time.time() - 60) < 5
    cancel = await system.http.post(url.replace("/tokens", "/cancel"), headers=bearer(read_only))
    assert cancel.status_code == 403
    # From a token: not longer than itself, not more than it has.
    further = await system.http.post(url, json={"expires_in": 3600}, headers=bearer(read_only))
    assert further.json()["expires_at"] == made.json()["expires_at"]
    wider = await system.http.post(url, json={"scopes": ["cancel"]}, headers=bearer(read_only))
    assert wider.status_code == 403
    whole = await system.http.post(url, headers=as_("alice"))
    assert whole.json()["expires_at"] == TOKENS.last_moment(stream_id)
    assert whole.json()["scopes"] == ["read"]
    bodies: list[dict[str, Any]] = [
        {"scopes": []},
        {"scopes": ["create"]},
        {"expires_in": 0},
        {"expires_in": "1"},
        {"x": 1},
    ]
    for wrong in bodies:
        assert (await system.http.post(url, json=wrong, headers=as_("alice"))).status_code == 400, wrong
    cookie = await system.http.post(url, json={"cookie": True, "expires_in": 60}, headers=as_("alice"))
    assert "HttpOnly" in cookie.headers["set-cookie"]
    assert "Secure" not in cookie.headers["set-cookie"]  # over plain HTTP it would never be sent


# --- cookies, and where tokens may stand


async def test_a_user_s_token_works_in_a_cookie_and_in_a_url_and_an_api_key_does_not(system: System) -> None:
    url = f"{system.gateway_url()}/stream?prompt=Hello"
    for headers, query, expected in (
        ({"cookie": "user=jwt_alice"}, "", 200),
        ({}, "&access_token=jwt_alice", 200),
        ({"cookie": "user=tk_alice"}, "", 401),
        ({}, "&access_token=tk_alice", 401),
        ({"cookie": "user=jwt_reader"}, "", 403),
    ):
        async with system.http.stream("GET", url + query, headers=headers) as response:
            assert response.status_code == expected, f"{headers} {query}"


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site"}, 401),
        ({"sec-fetch-site": "same-site"}, 401),
        ({"sec-fetch-site": "cross-site", "origin": "https://evil.example"}, 401),
        ({"origin": "null"}, 401),
        ({}, 200),
    ],
)
async def test_a_cookie_counts_for_pages_of_this_origin_only(
    system: System, page: dict[str, str], expected: int
) -> None:
    stream_id = (await ended(system))["id"]
    headers = {"cookie": f"midstream_token={TOKENS.token(stream_id)}", **page}
    answer = await system.http.get(f"{system.gateway_url()}/v1/streams/{stream_id}", headers=headers)
    assert answer.status_code == expected


# --- the console


async def test_the_console_asks_for_an_admin_s_key_once(system: System) -> None:
    url, page = system.gateway_url(), {"accept": "text/html,*/*;q=0.8"}
    for path in ("/", "/chat", "/docs"):
        answer = await system.http.get(url + path, headers=page)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    for path in ("/v1/overview", "/openapi.json", "/v1/streams/abc", "/stream?prompt=x"):
        assert (await system.http.get(url + path, headers=page)).status_code == 401, "no page"
    operations = {path: answers["responses"] for method, path, answers in await described(system) if method == "GET"}
    assert [path for path in operations if "303" in operations[path]] == ["/", "/chat", "/docs"]
    login = await system.http.get(f"{url}/login", headers=page)
    assert "form-action 'self'" in login.headers["content-security-policy"]
    assert "default-src 'none'" in login.headers["content-security-policy"]
    for key in ("", "tk_alice", "tk_nobody", TOKENS.token(new_stream_id())):
        refused = await system.http.post(f"{url}/login", data={"key": key})
        assert refused.status_code == 403
        assert "set-cookie" not in refused.headers
    own = {"origin": url, "x-forwarded-proto": "https"}
    entered = await system.http.post(f"{url}/login", data={"key": "tk_root"}, headers=own)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert re.fullmatch(
        r"midstream_session=mss1\.[\w.+-]+; Path=/; Max-Age=28800; HttpOnly; SameSite=Strict; Secure", cookie
    )
    assert "tk_root" not in cookie
    system.http.cookies.clear()
    session = {"cookie": cookie.partition(";")[0]}
    for path in ("/", "/chat", "/docs", "/openapi.json", "/v1/overview", "/login", "/metrics"):
        assert (await system.http.get(url + path, headers=session)).status_code == 200, path
    # A session is a cookie and nothing else; other sites cannot use it; an altered one is none.
    value = session["cookie"].partition("=")[2]
    kind, key_id, scopes, expires, name, signature = value.split(".")
    root = base64.urlsafe_b64encode(b"key:root").rstrip(b"=").decode()
    assert name == root
    for headers in (
        bearer(value),
        {**session, "sec-fetch-site": "cross-site"},
        {"cookie": f"midstream_session={value[:-1]}"},
        {"cookie": f"midstream_session={'.'.join((kind, key_id, scopes + '+act', expires, name, signature))}"},
        {"cookie": f"midstream_token={value}"},
    ):
        assert (await system.http.get(f"{url}/v1/overview", headers=headers)).status_code == 401, headers
    evil = {**session, "origin": "https://evil.example"}
    for path in ("/login", "/logout", "/v1/streams"):
        assert (await system.http.post(url + path, data={"key": "tk_root"}, headers=evil)).status_code == 403
    left = await system.http.post(f"{url}/logout", headers=session)
    assert "Max-Age=0" in left.headers["set-cookie"]


# --- time


async def test_the_time_does_not_tell_somebody_else_s_stream_from_none(system: System) -> None:
    """Asked in turn at a gateway that does not know the owner, and at one that does: the medians are within a third."""
    mine = (await ended(system, messages=[{"role": "user", "content": "x" * 2000}]))["id"]
    for gateway in (0, 1):
        seconds: dict[str, list[float]] = {"mine": [], "unknown": []}
        for _ in range(150):
            for what, stream_id in (("mine", mine), ("unknown", new_stream_id())):
                began = time.perf_counter()
                answer = await system.http.get(
                    f"{system.gateway_url(gateway)}/v1/streams/{stream_id}/events", headers=as_("bob")
                )
                seconds[what].append(time.perf_counter() - began)
                assert answer.status_code == 404
        medians = [statistics.median(taken) for taken in seconds.values()]
        assert max(medians) < min(medians) * 1.34, f"gateway {gateway}: {medians}"


async def test_owners_and_scopes_hold_for_every_key(system: System) -> None:
    """Whoever may create owns what they create, whichever gateway is asked; nobody else but an admin may read it."""
    for owner in ("alice", "bob", "root"):
        stream_id = (await ended(system, owner))["id"]
        for name, who in KEYS.items():
            allowed = name == owner or "admin" in who.scopes
            for gateway in (0, 1):
                answer = await system.http.get(
                    f"{system.gateway_url(gateway)}/v1/streams/{stream_id}", headers=as_(name)
                )
                assert answer.status_code == (403 if "read" not in who.scopes else 200 if allowed else 404)


# --- how the gateway is


async def test_metrics_and_health_have_a_port_of_their_own(system: System) -> None:
    health = {path: await system.http.get(system.gateway_url() + path) for path in ("/healthz", "/readyz", "/metrics")}
    assert [answer.status_code for answer in health.values()] == [200, 200, 401]
    assert health["/healthz"].json() == {"status": "ok"}
    assert health["/readyz"].json() == {"status": "ready"}
    full = await system.http.get(f"{system.gateway_url()}/readyz", headers=as_("root"))
    assert "readers" in full.json()
    port = free_port()
    async with System(workers=0, gateway_module=MODULE, gateway_settings={**SETTINGS, "metrics_port": port}) as guarded:
        for path in health:
            public = await guarded.http.get(guarded.gateway_url() + path, headers=as_("root"))
            own = await guarded.http.get(f"http://127.0.0.1:{port}{path}")
            assert (public.status_code, own.status_code) == (404, 200), path
        assert "midstream_http_requests_total" in own.text
        assert (await guarded.http.get(f"http://127.0.0.1:{port}/v1/streams/x")).status_code == 404


# --- the audit log


def audited(system: System, **wanted: str) -> list[dict[str, Any]]:
    """Returns the audit lines of all gateways that have these values, without those of every log line."""
    lines = [json.loads(line) for gateway in system.gateways for line in gateway.logged().splitlines()]
    found = [line for line in lines if line["logger"] == "midstream.audit" and wanted.items() <= line.items()]
    return [
        {
            name: line[name]
            for name in line
            if name not in ("time", "level", "logger", "message", "request_id", "left_out")
        }
        for line in found
    ]


async def test_who_ends_or_deletes_a_stream_is_in_the_audit_log(system: System) -> None:
    url, address = f"{system.gateway_url()}/v1/streams", "198.51.100.1"
    body = {**CHAT, "simulate": {"tokens": 1000, "tokens_per_second": 20}}
    ids = [(await system.http.post(url, json=body, headers=as_("alice"))).json()["id"] for _ in range(2)]
    own, by_an_admin = ({**as_(name), "x-forwarded-for": address} for name in ("alice", "root"))
    await system.http.post(
        f"{url}/{ids[0]}/cancel", headers={**bearer(TOKENS.token(ids[0])), "x-forwarded-for": address}
    )
    await system.http.post(f"{url}/{ids[0]}/cancel", headers=own)  # it has ended: this one does nothing
    await system.http.delete(f"{url}/{ids[0]}", headers=own)
    await system.http.delete(f"{url}/{ids[1]}", headers=by_an_admin)
    for name, status in (("alice", 204), ("root", 204), ("bob", 404)):  # repeated: nothing is done
        for stream_id in ids:
            repeated = {**as_(name), "x-forwarded-for": address}
            assert (await system.http.delete(f"{url}/{stream_id}", headers=repeated)).status_code == status
    about = {"address": address}
    assert audited(system, address=address) == [
        {"event": "cancelled", "stream": ids[0], "principal": f"stream:{ids[0]}", **about},
        {"event": "deleted", "stream": ids[0], "principal": "key:alice", **about, "owner": "key:alice"},
        {"event": "deleted", "stream": ids[1], "principal": "key:root", **about, "owner": "key:alice"},
    ]


async def test_who_is_not_let_in_is_in_the_audit_log_and_cannot_fill_it(system: System) -> None:
    url, address = system.gateway_url(), "198.51.100.2"
    from_there = {"x-forwarded-for": address}
    await system.http.post(f"{url}/login", data={"key": "tk_alice"}, headers=from_there)
    await system.http.post(f"{url}/login", data={"key": "tk_unknown"}, headers=from_there)
    await system.http.post(f"{url}/login", data={"key": "tk_root"}, headers=from_there)
    system.http.cookies.clear()
    for query, headers in (("", {}), ("", bearer("tk_unknown")), ("?access_token=tk_unknown", {}), ("", {"cookie": "midstream_token=tk_unknown"})):  # fmt: skip
        answer = await system.http.get(f"{url}/v1/streams/abc{query}", headers={**headers, **from_there})
        assert answer.status_code == 401
    nobody, route = {"principal": "anonymous", "address": address}, "GET /v1/streams/{stream_id}"
    assert audited(system, address=address) == [
        {"event": "login_refused", **nobody, "key_of": "key:alice"},
        {"event": "login_refused", **nobody},
        {"event": "login", "principal": "key:root", "address": address},
        *({"event": "credential_refused", **nobody, "route": route, "credential": place} for place in ("none", "header", "query", "cookie")),
    ]  # fmt: skip
    for _ in range(30):
        await system.http.get(f"{url}/v1/streams/abc", headers=from_there)
    assert len(audited(system, address=address)) <= 1 + 2 * 10  # of two minutes at most
    assert "tk_unknown" not in system.tails()


# --- revoked while somebody reads


@pytest.mark.parametrize(("at_once", "connection_seconds"), [(1, 900.0), (0, 2.0)])
async def test_a_reader_whose_key_is_revoked_ends(tmp_path: Path, at_once: int, connection_seconds: float) -> None:
    """Of every kind: one that reconnects, one whose response lasts as long as its stream, and one that has a right of its own."""
    revoked = tmp_path / "revoked"
    revoked.write_text("")
    settings = {**SETTINGS, "revoke_ends_readers": at_once, "connection_seconds": connection_seconds}
    async with System(
        gateway_module=MODULE, gateway_settings=settings, environment={"GUARDED_REVOKED": str(revoked)}
    ) as system:
        body = {**CHAT, "simulate": {"tokens": 10_000, "tokens_per_second": 20}}
        created = (await system.http.post(f"{system.gateway_url()}/v1/streams", json=body, headers=as_("alice"))).json()
        login = await system.http.post(f"{system.gateway_url()}/login", data={"key": "tk_root"})
        session = {"cookie": login.headers["set-cookie"].partition(";")[0]}
        system.http.cookies.clear()
        overview = f"{system.gateway_url()}/v1/overview"
        assert (await system.http.get(overview, headers=session)).status_code == 200
        url = f"{system.gateway_url()}/v1/streams/{created['id']}"

        async def until_cut(path: str, headers: Mapping[str, str]) -> float:
            """Follows, again after each end, and returns when the first answer was 401."""
            while True:
                with suppress(httpx2.HTTPError):
                    async with system.http.stream("GET", path, headers=headers) as response:
                        if response.status_code == 401:
                            return time.monotonic()
                        assert response.status_code == 200
                        async for _ in response.aiter_bytes():
                            pass
                await asyncio.sleep(0.05)

        readers = [
            asyncio.create_task(until_cut(url + path, headers))
            for path, headers in (("/events", as_("alice")), ("/text", as_("alice")), ("/events", as_("root")), ("/events", bearer(created["access_token"])))
        ]  # fmt: skip

        async def all_read() -> bool:
            ready = await system.http.get(f"{system.gateway_url()}/readyz", headers=as_("root"))
            return bool(ready.json()["readers"] == len(readers))

        await wait_until(all_read, what="the readers are there")
        began = time.monotonic()
        await asyncio.to_thread(revoked.write_text, "alice")
        ended_at = await asyncio.wait_for(asyncio.gather(*readers[:2]), 10.0)
        assert max(ended_at) - began < 6.0
        assert not any(reader.done() for reader in readers[2:])
        await system.http.post(f"{url}/cancel", headers=as_("root"))
        # The console's watcher and its session end with their key, too.
        watching = asyncio.create_task(until_cut(f"{overview}/events", session))
        await asyncio.to_thread(revoked.write_text, "alice root")
        await asyncio.wait_for(watching, 15.0)
        assert (await system.http.get(overview, headers=session)).status_code == 401
        for reader in readers[2:]:
            reader.cancel()
        await asyncio.gather(*readers[2:], return_exceptions=True)
