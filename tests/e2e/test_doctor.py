"""`midstream doctor` with real proxies that have one fault each: it names the fault, the hop, and the directive."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from tests.support.proxies import Kind, Proxy, deployed
from tests.support.redis_server import free_port
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEEPALIVE_SECONDS = 2
"""The interval of keep-alives: short, so that a shorter time-out of a proxy is found in a few seconds."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System(gateways=2, workers=0, gateway_settings={"keepalive_seconds": KEEPALIVE_SECONDS}) as system:
        yield system


@dataclass
class Diagnosis:
    exit_code: int
    printed: str
    complained: str

    @property
    def found(self) -> dict[str, Any]:
        return dict(json.loads(self.printed))

    def fault(self, check: str) -> dict[str, Any]:
        """Returns the fault of this name. AssertionError unless there is exactly one."""
        (one,) = [fault for fault in self.found["faults"] if fault["check"] == check]
        return dict(one)

    @property
    def faults(self) -> list[str]:
        return [fault["check"] for fault in self.found["faults"]]


async def doctor(*arguments: str) -> Diagnosis:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "midstream.cli", "doctor", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        printed, complained = await process.communicate()
    assert b"Traceback" not in complained, complained.decode()
    return Diagnosis(process.returncode or 0, printed.decode(), complained.decode())


def nginx(gateway: str, *directives: str, above: str = "") -> Proxy:
    """Returns the configuration of an nginx that is right except for these directives."""
    right = ["proxy_http_version 1.1;", 'proxy_set_header Connection "";', "proxy_pass_header X-Accel-Buffering;"]
    text = " ".join([*(one for one in right if one.split()[0] not in " ".join(directives)), *directives])
    return Proxy(
        "nginx", f"{above} server {{ listen 127.0.0.1:{{port}}; location / {{ {text} proxy_pass {gateway}; }} }}"
    )


IGNORE = "proxy_ignore_headers X-Accel-Buffering;"
"""A common mistake: nginx follows the gateway's X-Accel-Buffering, unless a directive ignores it."""

WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "compression": (("gzip on;", "gzip_types text/event-stream;"), "gzip off;"),
    "idle": (("proxy_read_timeout 1s;",), "proxy_read_timeout 75s;"),
    "last_event_id": (('proxy_set_header Last-Event-ID "";',), "remove: proxy_set_header Last-Event-ID"),
    "http_version": (("proxy_http_version 1.0;",), "proxy_http_version 1.1;"),
    "headers": (("proxy_hide_header Cache-Control;",), "remove: proxy_hide_header Cache-Control;"),
    "framing": (("chunked_transfer_encoding off;",), "chunked_transfer_encoding on;"),
}
"""For each fault the wrong directives of an nginx, and the beginning of the advice."""


AT_ONCE = 3
"""Runs at the same time. They mostly wait, but with too many the machine itself delays events."""


async def diagnoses(runs: dict[str, list[str]]) -> dict[str, Diagnosis]:
    """Runs several diagnoses, a few at a time. `runs` has the arguments of each by its name."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(arguments: list[str]) -> Diagnosis:
        async with places:
            return await doctor(*arguments)

    return dict(zip(runs, await asyncio.gather(*map(one, runs.values())), strict=True))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def of_wrong_nginxes(running: System) -> dict[str, Diagnosis]:
    gateway = running.gateway_url()
    with ExitStack() as stack:
        proxies = {check: stack.enter_context(nginx(gateway, *wrong)) for check, (wrong, _) in WRONG.items()}
        runs = {
            check: [one.url, "--via", f"gateway={gateway}", "--json", *([] if check == "idle" else ["--idle", "0"])]
            for check, one in proxies.items()
        }
        return await diagnoses(runs)


@pytest.mark.parametrize("check", WRONG)
async def test_an_nginx_with_one_fault_is_named(
    system: System, of_wrong_nginxes: dict[str, Diagnosis], check: str
) -> None:
    diagnosis = of_wrong_nginxes[check]
    assert diagnosis.exit_code == 1
    assert diagnosis.faults == [check], diagnosis.printed
    fault = diagnosis.fault(check)
    assert (fault["url"], fault["kind"]) == (diagnosis.found["addresses"][1]["url"], "nginx")
    assert fault["well_before_at"] == "gateway"
    assert any(change.startswith(WRONG[check][1]) for change in fault["change"])
    if check == "compression":
        assert (fault["encoding"], fault["delays"]) == ("gzip", False)  # unbuffered, nginx flushes its gzip too
    if check == "idle":
        assert 0.9 < fault["cut_after_seconds"] < KEEPALIVE_SECONDS + 2, "or it would be no fault"


async def test_an_nginx_that_buffers(system: System) -> None:
    """A default nginx uses HTTP/1.0 and buffers, unless X-Accel-Buffering forbids it. If that is ignored, all events come at the end."""
    with nginx(system.gateway_url(), "proxy_http_version 1.0;", "proxy_buffering on;", IGNORE) as proxy:
        diagnosis = await doctor(proxy.url, "--via", f"gateway={system.gateway_url()}", "--idle", "0", "--json")
    assert diagnosis.exit_code == 1
    assert diagnosis.faults == ["buffering", "http_version"], diagnosis.printed
    fault = diagnosis.fault("buffering")
    assert (fault["kind"], fault["well_before_at"]) == ("nginx", "gateway")
    assert fault["held_ms_max"] > 1200  # of the 1.4 s in which it was sent
    assert 3 << 10 <= fault["buffer_bytes"] <= 16 << 10  # nginx has buffers of a page, 4 or 8 KiB
    assert "proxy_buffering off;" in fault["change"]


async def test_gzip_that_buffers(system: System) -> None:
    """With HTTP/1.1 chunks are passed on one by one; only clients that accept gzip get all events at the end."""
    with nginx(system.gateway_url(), "proxy_buffering on;", IGNORE, "gzip on;", "gzip_types *;") as proxy:
        diagnosis = await doctor(proxy.url, "--via", f"gateway={system.gateway_url()}", "--idle", "0", "--json")
    assert diagnosis.faults == ["compression"], diagnosis.printed
    fault = diagnosis.fault("compression")
    assert fault["delays"] is True
    assert fault["held_ms_max"] > 1200


async def test_the_hop_in_the_middle_is_named(system: System) -> None:
    """A gateway, a right nginx, a Caddy that buffers, and a HAProxy in front: only Caddy is at fault."""
    with ExitStack() as stack:
        inner = stack.enter_context(nginx(system.gateway_url()))
        caddy = Proxy(
            "caddy", f"http://127.0.0.1:{{port}} {{\nreverse_proxy {inner.url[7:]} {{\nbuffer_responses\n}}\n}}\n"
        )
        middle = stack.enter_context(caddy)
        outer = stack.enter_context(haproxy(middle.url))
        vias = [f"gateway={system.gateway_url()}", f"inner={inner.url}", f"middle={middle.url}"]
        diagnosis = await doctor(outer.url, *(word for via in vias for word in ("--via", via)), "--idle", "0", "--json")
    fault = diagnosis.fault("buffering")
    assert (fault["at"], fault["kind"], fault["well_before_at"]) == ("middle", "caddy", "inner")
    assert fault["also_at"] == [outer.url[7:]]
    assert any("buffer_responses" in change for change in fault["change"])
    kinds = [address["kind"] for address in diagnosis.found["addresses"]]
    assert kinds == [None, "nginx", "caddy", None]  # HAProxy adds no header, and is not taken for the proxy behind it


def haproxy(gateway: str, option: str = "option http-no-delay") -> Proxy:
    times = "".join(f"    timeout {one} 60s\n" for one in ("connect", "client", "server"))
    return Proxy(
        "haproxy",
        f"defaults\n    mode http\n    option abortonclose\n    {option}\n{times}"
        "frontend f\n    bind 127.0.0.1:{port}\n    default_backend b\n"
        f"backend b\n    server s {gateway[7:]}\n",
    )


async def test_a_default_haproxy_waits_for_full_packets(system: System) -> None:
    with haproxy(system.gateway_url(), "no option http-no-delay") as proxy:
        named, unnamed = await asyncio.gather(
            doctor(system.gateway_url(), "--via", f"haproxy={proxy.url}", "--idle", "0", "--json"),
            doctor(proxy.url, "--idle", "0", "--json"),
        )
    fault = named.fault("buffering")
    assert (fault["at"], fault["kind"], fault["well_before_at"]) == ("haproxy", "haproxy", None)
    assert fault["clump_events"] < 24, "200 ms of the kernel's, and not to the end"
    assert fault["change"][0].startswith("option http-no-delay")
    assert any(change.startswith("HAProxy: option http-no-delay") for change in unnamed.fault("buffering")["change"])


async def test_a_caddy_with_flush_interval_keeps_the_request_of_a_reader_that_left(system: System) -> None:
    caddy = f"http://127.0.0.1:{{port}} {{\nreverse_proxy {system.gateway_url()[7:]} {{\nflush_interval -1\n}}\n}}\n"
    with Proxy("caddy", caddy) as proxy:
        diagnosis = await doctor(proxy.url, "--via", f"gateway={system.gateway_url()}", "--idle", "0", "--json")
    assert (diagnosis.exit_code, diagnosis.faults) == (0, [])
    (advice,) = [one for one in diagnosis.found["advice"] if one["check"] == "leaving"]
    assert (advice["kind"], advice["well_before_at"]) == ("caddy", "gateway")
    assert advice["noticed_seconds"] > 0.5
    assert advice["change"][0].startswith("remove: flush_interval -1")


async def test_a_cache_is_found(system: System) -> None:
    with ExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory())
        directives = (
            "proxy_cache c;",
            "proxy_cache_valid 200 1m;",
            "proxy_ignore_headers X-Accel-Buffering Cache-Control;",
        )
        above = f"proxy_cache_path {directory} keys_zone=c:1m;"
        proxy = stack.enter_context(nginx(system.gateway_url(), *directives, above=above))
        diagnosis = await doctor(proxy.url, "--idle", "0", "--json")
    assert "caching" in diagnosis.faults
    assert diagnosis.fault("caching")["change"][0] == "proxy_cache off;"


async def test_https_and_http_2(system: System) -> None:
    """Caddy makes a certificate that no client trusts."""
    gateway = system.gateway_url()[7:]
    site = f"https://localhost:{{port}} {{\ntls internal {{\n{{alpn}}\n}}\nreverse_proxy {gateway}\n}}\n"
    with ExitStack() as stack:
        modern = stack.enter_context(Proxy("caddy", site.replace("{alpn}", "")))
        old = stack.enter_context(Proxy("caddy", site.replace("{alpn}", "alpn http/1.1")))
        untrusted, both, one = await asyncio.gather(
            doctor(f"https://localhost:{modern.port}", "--idle", "0"),
            doctor(f"https://localhost:{modern.port}", "--idle", "0", "--insecure", "--json"),
            doctor(f"https://localhost:{old.port}", "--idle", "0", "--insecure", "--json"),
        )
    assert untrusted.exit_code == 2
    assert "certificate" in untrusted.printed.lower()
    assert (both.exit_code, one.exit_code) == (0, 0), both.printed
    assert both.found["addresses"][0]["checks"]["http2"]["verdict"] == "ok"
    assert one.found["addresses"][0]["checks"]["http2"]["verdict"] == "advice"


async def test_our_configurations_have_no_faults(system: System) -> None:
    ports = system.gateway_ports
    gateways = [word for index in range(2) for word in ("--via", system.gateway_url(index))]
    kinds: tuple[Kind, ...] = ("nginx", "caddy", "haproxy")
    with ExitStack() as stack:
        proxies = {kind: stack.enter_context(deployed(kind, ports)) for kind in kinds}
        by_kind = await diagnoses({kind: [one.url, *gateways, "--age", "3"] for kind, one in proxies.items()})
    for kind, diagnosis in by_kind.items():
        assert diagnosis.exit_code == 0, f"{kind}\n{diagnosis.printed}"
        assert "SSE streams as it should." in diagnosis.printed
        assert "✗" not in diagnosis.printed
        assert "!" not in diagnosis.printed  # no advice either
        assert diagnosis.printed.count("✓ 3 s") == 3  # a long response is possible at each address


async def test_text_names_hop_fault_and_directive(system: System) -> None:
    with nginx(system.gateway_url(), "proxy_http_version 1.0;", IGNORE) as proxy:
        diagnosis = await doctor(proxy.url, "--via", f"gateway={system.gateway_url()}", "--idle", "0")
    print(diagnosis.printed)
    assert diagnosis.exit_code == 1
    lines = diagnosis.printed.splitlines()
    (row,) = [line for line in lines if line.startswith("events come one by one")]
    assert re.search(r"✓ within \d+ ms +✗ all at the end$", row)
    text = " ".join(diagnosis.printed.split())
    assert f"✗ nginx at {proxy.url[7:]} holds events back" in text
    assert "At gateway, before it, all is well." in text
    assert "      proxy_buffering off;" in lines
    assert max(map(len, lines)) <= 130


async def test_an_unreachable_address_is_exit_code_2(system: System) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    gone, elsewhere, bad_url, bad_option = await asyncio.gather(
        doctor(system.gateway_url(), "--via", nobody, "--idle", "0", "--timeout", "3"),
        doctor(f"{system.gateway_url()}/readyz", "--idle", "0"),
        doctor("chat.example.com"),
        doctor(system.gateway_url(), "--idle", "-1"),
    )
    assert [one.exit_code for one in (gone, elsewhere, bad_url, bad_option)] == [2, 2, 2, 2]
    assert f"✗ {nobody} cannot be reached" in gone.printed
    assert "answered 404" in elsewhere.printed
    assert "must begin with http:// or https://" in bad_url.complained
    assert "--idle must be from 0 to 3600 seconds, not -1" in bad_option.complained


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("events=10001", "events must be a whole number from 0 to 10000, not '10001'"),
        ("events=many", "events must be a whole number"),
        ("events=10000&interval_ms=1000", "at most 3600 s in all"),
        ("events=10000&padding_bytes=16384", "events x padding_bytes must be at most"),
        ("comment_ms=1", "comment_ms must be 0"),
        ("name=short", "name must have 8 to 64"),
        ("status=500", "status must be 204"),
        ("events=%ff", "not percent-encoded UTF-8"),
    ],
)
async def test_a_probe_s_parameters_are_limited(system: System, query: str, detail: str) -> None:
    response = await system.http.get(f"{system.gateway_url()}/v1/probe?{query}")
    assert response.status_code == 400
    assert detail in response.json()["detail"]


async def test_a_gateway_that_stops_ends_its_probes(system: System) -> None:
    probe = system.http.stream("GET", f"{system.gateway_url(1)}/v1/probe?silence_ms=60000")
    async with asyncio.timeout(10), probe as response:
        parts = response.aiter_bytes()
        assert b"event: probe" in await anext(parts)
        began = time.monotonic()
        system.gateways[1].send(signal.SIGTERM)
        with suppress(httpx2.RemoteProtocolError):  # uvicorn may be quicker to close it than the probe to end it
            assert [part async for part in parts] == []
        assert time.monotonic() - began < 10
    assert await system.gateways[1].exit_code() == 0
    await system.start_gateway(1)
