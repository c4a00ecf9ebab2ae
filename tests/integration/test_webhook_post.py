"""One POST of a webhook: certificates, addresses, what a name resolves to."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from producer.webhook_post import NotDelivered, Poster, _retry_after_seconds
from shared.settings import Settings
from shared.webhook_target import BadTarget
from tests.integration.test_redis_tls import Authority
from tests.support.http_server import HttpServer, Request, response

LOCAL = Settings(webhook_networks="127.0.0.0/8", webhook_hosts="*", webhook_http=1, webhook_seconds=2.0)


class Receiver(HttpServer):
    def __init__(self, **where: Any) -> None:
        super().__init__(**where)
        self.requests: list[Request] = []
        self.connections = 0

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await super()._connected(reader, writer)

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(request)
        writer.write(response(200, "text/plain", b"ok"))


def resolve_to(patch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Has every name resolve to these addresses. Returns the names that are looked up from now on."""
    names: list[str] = []

    async def getaddrinfo(host: str, port: int, **more: Any) -> Any:
        names.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    patch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return names


async def test_the_address_that_was_checked_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is resolved once, whatever it resolves to later; a private address among others is passed over."""
    async with Receiver() as receiver:
        poster = Poster(LOCAL)
        names = resolve_to(monkeypatch, "10.0.0.1", "127.0.0.1")
        url = f"http://name.test:{receiver.port}/a?b"
        for _ in range(2):
            assert (await poster.post(url, {"webhook-id": "i"}, b"{}")).status == 200
        assert [(request.path, request.body) for request in receiver.requests] == [("/a?b", b"{}")] * 2
        assert receiver.requests[0].headers["host"] == f"name.test:{receiver.port}"
        assert names == ["name.test"]
        assert receiver.connections == 1
        await poster.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1"])
async def test_a_name_of_a_private_address(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    poster = Poster(Settings())
    resolve_to(monkeypatch, address)
    with pytest.raises(BadTarget, match="no public address"):
        await poster.post("https://name.test/", {}, b"")
    with pytest.raises(BadTarget):
        await poster.post("http://name.test/", {}, b"")
    await poster.close()


async def test_a_look_up_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    poster = Poster(Settings(webhook_seconds=0.1, webhook_networks="127.0.0.0/8", webhook_http=1))
    forever = asyncio.Event()

    async def getaddrinfo(host: str, port: int, **more: Any) -> Any:
        await forever.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    results = await asyncio.gather(
        *(poster.post("http://name.test/", {}, b"") for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(result, NotDelivered) and result.kind == "timeout" for result in results)
    assert poster._look_ups.locked(), "their threads are still busy"
    forever.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not poster._look_ups.locked()
    await poster.close()


@pytest.mark.parametrize("names", ["right", "wrong", "unknown authority"])
async def test_certificates(tmp_path: Path, names: str) -> None:
    """Only one for the host, by an authority that is known, is accepted: nothing is sent to another."""
    authority = Authority(tmp_path, "authority")
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(authority.sign("receiver"))  # for 127.0.0.1
    trusting = ssl.create_default_context(
        cafile=None if names == "unknown authority" else str(authority.file("authority"))
    )
    receiver = Receiver()
    server = await asyncio.start_server(receiver._connected, "127.0.0.1", 0, ssl=serving)
    port = server.sockets[0].getsockname()[1]
    poster = Poster(LOCAL, tls=trusting)
    url = f"https://{'localhost' if names == 'wrong' else '127.0.0.1'}:{port}/"
    if names == "right":
        assert (await poster.post(url, {}, b"{}")).status == 200
    else:
        with pytest.raises(NotDelivered) as raised:
            await poster.post(url, {}, b"{}")
        assert raised.value.kind == "tls"
        assert not receiver.requests
    await poster.close()
    server.close()


@pytest.mark.parametrize(
    ("value", "seconds"), [("", 0.0), ("7", 7.0), ("-7", 0.0), ("1.5", 0.0), ("soon", 0.0), ("9" * 50, 0.0)]
)
def test_retry_after(value: str, seconds: float) -> None:
    assert _retry_after_seconds(value) == seconds
    assert _retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert _retry_after_seconds("Fri, 01 Jan 2100 00:00:00 GMT") > 1e6
