"""The origins whose pages may use the gateway, tested with handwritten requests, and with Chromium on pages of other origins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.support.http_server import HttpServer, Request, response
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")

APP, OTHER = "https://app.example.com", "https://other.example.com"
FAST = {"tokens": 20, "tokens_per_second": 0}
ASKED = "authorization, content-type, idempotency-key, last-event-id, x-midstream-on-disconnect, x-stainless-arch"
PATHS = [
    "/v1/streams",
    "/v1/streams/{}",
    "/v1/streams/{}/events",
    "/v1/streams/{}/cancel",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/models",
    "/api/chat",
    "/stream",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    """The first gateway allows one origin, the second none, the third all."""
    async with System(gateways=3, settings={"hosts": "chat.example.com"}) as system:
        for index, origins in ((0, f"{APP}, https://second.example.com:8443"), (2, "*")):
            gateway = system.gateways[index]
            gateway.kill()
            gateway.settings["cors_origins"] = origins
            await system.start_gateway(index)
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stream_id(running: System) -> str:
    created = await running.create("cors", simulate=FAST)
    await running.until_status(created, "completed")
    return created


def cross(origin: str, **more: str) -> dict[str, str]:
    """Returns the headers that a browser adds to a request of a page of this origin."""
    return {
        "origin": origin,
        "sec-fetch-site": "cross-site",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }


def preflight_of(origin: str, method: str = "POST") -> dict[str, str]:
    return cross(origin, access_control_request_method=method, access_control_request_headers=ASKED)


def allowed(response: Any) -> str | None:
    origin: str | None = response.headers.get("access-control-allow-origin")
    return origin


@pytest.mark.parametrize("path", PATHS)
async def test_preflight(system: System, stream_id: str, path: str) -> None:
    url = path.format(stream_id)
    yes = await system.http.options(system.gateway_url(0) + url, headers=preflight_of(APP))
    assert (yes.status_code, yes.content, allowed(yes)) == (204, b"", APP)
    assert {"GET", "POST", "DELETE"} <= set(yes.headers["access-control-allow-methods"].split(", "))
    assert set(ASKED.split(", ")) <= set(yes.headers["access-control-allow-headers"].split(", "))
    assert 0 < int(yes.headers["access-control-max-age"]) <= 86_400
    assert "origin" in yes.headers["vary"].lower()
    for index, origin in ((0, OTHER), (1, APP), (1, "null"), (0, APP + ".evil.com"), (0, APP.replace("https", "http"))):
        no = await system.http.options(system.gateway_url(index) + url, headers=preflight_of(origin))
        assert (no.status_code, allowed(no)) == (403, None)
    everybody = await system.http.options(system.gateway_url(2) + url, headers=preflight_of(OTHER))
    assert (everybody.status_code, allowed(everybody)) == (204, "*")


async def test_cors_headers_of_every_kind_of_answer(system: System, stream_id: str) -> None:
    """Errors and streams, too: without the header a page's script would not even see the status."""
    streams = "/v1/streams"
    for method, path, headers, status in (
        ("GET", f"{streams}/{stream_id}", {}, 200),
        ("GET", f"{streams}/{stream_id}/events", {}, 200),
        ("GET", f"{streams}/{stream_id}/events", {"accept": "application/x-ndjson"}, 200),
        ("GET", f"{streams}/{stream_id}/text", {}, 200),
        ("GET", f"{streams}/{stream_id}/events?last_event_id=9-9", {}, 200),
        ("GET", f"{streams}/{stream_id}/events?last_event_id=x", {}, 400),
        ("GET", f"{streams}/nonsense", {}, 404),
        ("GET", "/nowhere", {}, 404),
        ("PUT", streams, {}, 405),
        ("POST", streams, {}, 400),
        ("POST", "/v1/chat/completions", {}, 400),
        ("GET", "/stream?prompt=hello", {}, 200),
    ):
        where = f"{method} {path}"
        for index, origin in ((0, APP), (2, "*")):
            response = await system.http.request(
                method,
                system.gateway_url(index) + path,
                headers={**cross(APP), **headers},
                content=b"" if method != "GET" else None,
            )
            assert (response.status_code, allowed(response)) == (status, origin), where
            assert "x-stream-id" in response.headers["access-control-expose-headers"].lower(), where
            if index == 0:
                assert "origin" in response.headers["vary"].lower(), where


async def test_origins_that_are_not_configured_get_no_access(system: System, stream_id: str) -> None:
    for index, origin in ((0, OTHER), (1, APP)):
        response = await system.http.get(system.events_url(stream_id, gateway=index), headers=cross(origin))
        assert allowed(response) is None
    plain = await system.http.get(system.events_url(stream_id, gateway=1))
    assert not [name for name in plain.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/streams"),
        ("POST", "/v1/streams/{}/cancel"),
        ("DELETE", "/v1/streams/{}"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/api/chat"),
        ("GET", "/stream?prompt=mine"),
    ],
)
async def test_requests_with_side_effects_are_refused_for_other_origins(
    system: System, stream_id: str, method: str, path: str
) -> None:
    """Forms and images are sent without a preflight, and do harm even if the page cannot read the answer."""
    body: dict[str, Any] = (
        {"json": {"model": "m", "messages": [{"role": "user", "content": "x"}], "input": "x"}}
        if method == "POST"
        else {}
    )
    before = len(await system.logs())
    for headers in (
        cross(OTHER),
        {"origin": "null", "sec-fetch-site": "cross-site"},
        {"origin": OTHER},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate"},
    ):
        for index in (0, 1):
            url = system.gateway_url(index) + path.format(stream_id)
            response = await system.http.request(method, url, headers=headers, **body)
            assert response.status_code == 403, headers
            problem = response.json()
            message = problem["error"]["message"] if "error" in problem else problem["detail"]
            assert "error" in problem or not path.startswith(("/v1/chat", "/v1/responses"))
            assert "MIDSTREAM_CORS_ORIGINS" in message
    assert len(await system.logs()) == before


async def test_the_same_origin_and_programs_are_allowed(system: System) -> None:
    """The gateway's own pages, also over plain HTTP and behind a proxy, and clients that are not browsers."""
    url = f"{system.gateway_url(1)}/v1/streams"
    host = system.gateway_url(1).removeprefix("http://")
    body = {"messages": [{"role": "user", "content": "x"}], "simulate": FAST}
    for headers in (
        {},
        {"origin": f"http://{host}"},
        {"origin": f"http://{host}", "sec-fetch-site": "same-origin"},
        {"origin": "https://chat.example.com", "sec-fetch-site": "same-origin"},
        {"origin": "https://chat.example.com", "host": "chat.example.com"},
        {"origin": "https://chat.example.com", "host": "chat.example.com:443"},
        {"origin": "https://chat.example.com", "x-forwarded-host": "chat.example.com"},
        {"sec-fetch-site": "none"},
    ):
        assert (await system.http.post(url, headers=headers, json=body)).status_code == 201, headers
    link = await system.http.get(f"{system.gateway_url(1)}/stream?prompt=typed", headers={"sec-fetch-site": "none"})
    assert link.status_code == 200


async def test_dns_rebinding_is_refused(system: System, stream_id: str) -> None:
    """DNS rebinding: the browser takes the gateway for the page's own origin; only `Host` shows the attack."""
    url = system.gateway_url(2)  # it allows all origins, but still checks the host name
    before = len(await system.logs())
    page = {"host": "rebound.example:8000", "origin": "http://rebound.example:8000", "sec-fetch-site": "same-origin"}
    for path in [
        *PATHS,
        "/",
        "/chat",
        "/v1/overview",
        "/metrics",
        "/healthz",
        "/readyz",
        "/docs",
        "/v1/probe",
        "/none",
    ]:
        for method in ("GET", "POST", "DELETE", "OPTIONS", "HEAD"):
            refused = await system.http.request(method, url + path.format(stream_id), headers=page)
            assert refused.status_code == 421, f"{method} {path}"
            assert refused.headers["x-content-type-options"] == "nosniff"
            if method == "GET" and path.startswith(("/v1/chat", "/v1/responses", "/v1/models")):
                assert "MIDSTREAM_HOSTS" in refused.json()["error"]["message"]
            elif method == "GET":
                assert "MIDSTREAM_HOSTS" in refused.json()["detail"]
    assert len(await system.logs()) == before
    host, port = url.removeprefix("http://").split(":")
    rebound_url = f"ws://rebound.example:{port}/v1/streams/{stream_id}/ws"
    with pytest.raises(InvalidStatus) as caught:
        async with connect(rebound_url, host=host, port=int(port), proxy=None):
            pass
    assert caught.value.response.status_code == 421
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "chat.example.com"):
        assert (await system.http.get(f"{url}/v1/streams/{stream_id}", headers={"host": host})).status_code == 200


async def test_websockets(system: System, stream_id: str) -> None:
    """Browsers let pages open and read WebSockets to any host: so the gateway must check the origin."""
    for index, origin, status in ((0, APP, 101), (0, OTHER, 403), (1, APP, 403), (1, None, 101), (2, OTHER, 101)):
        url = f"{system.gateway_url(index).replace('http', 'ws', 1)}/v1/streams/{stream_id}/ws"
        try:
            async with connect(url, origin=origin, proxy=None) as socket:  # type: ignore[arg-type]  # an Origin is a str
                events = [json.loads(message)["event"] async for message in socket]
                assert (events[0], events[-1]) == ("started", "done")
                reached = 101
        except InvalidStatus as refused:
            reached = refused.response.status_code
        assert reached == status, (index, origin)


@pytest.mark.parametrize(
    "origins", ["app.example.com", "https://app.example.com/path", "*,https://a.example", "https://*"]
)
async def test_a_wrong_setting_is_named(system: System, origins: str) -> None:
    gateway = system.gateways[1]
    gateway.kill()
    right, gateway.settings["cors_origins"] = gateway.settings.get("cors_origins", ""), origins
    try:
        gateway.start()
        assert await gateway.exit_code() != 0
        assert "MIDSTREAM_CORS_ORIGINS" in gateway.logged()
    finally:
        gateway.settings["cors_origins"] = right
        await system.start_gateway(1)


# --- Chromium


class Site(HttpServer):
    """A server of blank pages, as another origin."""

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response(200, "text/html", b"<!doctype html><title>a page</title>"))


_USE = """async ([base, id, prompt]) => {
    const outcome = work => work.then(result => result, () => 'refused');
    const source = url => new Promise((resolve, reject) => {
        const one = new EventSource(url), tokens = [];
        one.onmessage = event => event.data === '[DONE]' ? (one.close(), resolve(tokens.length)) : tokens.push(event.data);
        one.addEventListener('done', () => { one.close(); resolve(tokens.length); });
        one.onerror = () => { one.close(); reject(); };
    });
    const json = {'content-type': 'application/json', 'x-stainless-lang': 'js', authorization: 'Bearer x'};
    const body = JSON.stringify({messages: [{role: 'user', content: prompt}], simulate: {tokens: 3}});
    return {
        created: await outcome(fetch(`${base}/v1/streams`, {method: 'POST', headers: json, body})
            .then(response => [response.status, response.headers.get('location') !== null])),
        events: await outcome(source(`${base}/v1/streams/${id}/events`)),
        missing: await outcome(fetch(`${base}/v1/streams/nonsense`).then(response => response.status)),
        resumed: await outcome(fetch(`${base}/v1/streams/${id}/events`,
            {headers: {'last-event-id': '1-18', accept: 'application/x-ndjson'}})
            .then(response => response.text()).then(text => text.trim().split('\\n').length)),
        asked: await outcome(source(`${base}/stream?prompt=${prompt}`).then(count => count > 0)),
        socket: await outcome(new Promise((resolve, reject) => {
            const one = new WebSocket(`${base.replace('http', 'ws')}/v1/streams/${id}/ws`);
            one.onmessage = () => { one.close(); resolve('open'); };
            one.onerror = () => reject();
        })),
    };
}"""
_EVERYTHING = {"created": [201, True], "events": 20, "missing": 404, "resumed": 3, "asked": True, "socket": "open"}
_NOTHING = dict.fromkeys(_EVERYTHING, "refused")


async def used(browser: Browser, origin: str, *arguments: str) -> Any:
    page: Page = await browser.new_page()
    await page.goto(origin)
    try:
        return await page.evaluate(_USE, list(arguments))
    finally:
        await page.close()


async def test_pages_in_chromium(system: System, stream_id: str, browser: Browser) -> None:
    async with (
        Site() as friend,
        Site() as stranger,
        System(gateway_settings={"cors_origins": friend.origin}) as own,
    ):
        created = await own.create("mine", simulate=FAST)
        await own.until_status(created, "completed")
        assert await used(browser, friend.origin, own.gateway_url(), created, "friend") == _EVERYTHING
        home = f"{own.gateway_url()}/healthz"
        assert await used(browser, home, own.gateway_url(), created, "home") == _EVERYTHING
        before = len(await own.logs())
        assert await used(browser, stranger.origin, own.gateway_url(), created, "stranger") == _NOTHING
        assert len(await own.logs()) == before, "nothing was generated for a stranger's page"


_IMAGE = """url => new Promise((resolve, reject) => {
    const image = new Image();
    image.onerror = resolve;
    image.onload = reject;
    image.src = url;
})"""
_FORM = """url => {
    document.body.innerHTML = `<form method="post" enctype="text/plain" action="${url}"><input></form>`;
    const input = document.querySelector('input');
    input.name = '{"messages":[{"role":"user","content":"form"}],"x":"';
    input.value = '"}';
    document.forms[0].submit();
}"""
_LINK = "url => { location = url; }"


@pytest.mark.parametrize(
    ("script", "path"), [(_FORM, "/v1/streams"), (_LINK, "/stream?prompt=link")], ids=["form", "link"]
)
async def test_another_site_s_form_and_link_in_chromium(
    system: System, browser: Browser, script: str, path: str
) -> None:
    """Requests that need no script. Only their origin makes them different from allowed ones."""
    before = len(await system.logs())
    page = await browser.new_page()
    async with Site() as stranger:
        await page.goto(stranger.origin)
        url = system.gateway_url(1) + path
        async with page.expect_response(url) as answer, asyncio.timeout(20):
            await page.evaluate(script, url)
        assert (await answer.value).status == 403
        await page.close()
    assert len(await system.logs()) == before


async def test_another_site_s_image_in_chromium(system: System, browser: Browser) -> None:
    before = len(await system.logs())
    page = await browser.new_page()
    async with Site() as stranger:
        await page.goto(stranger.origin)
        await page.evaluate(_IMAGE, f"{system.gateway_url(1)}/stream?prompt=image")
        await page.close()
    assert len(await system.logs()) == before
