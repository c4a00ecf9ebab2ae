"""The doctor's conclusions: pace, headers that reveal proxies, and advice."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from midstream.doctor.checks import CHECKS, Finding, Verdict, pace
from midstream.doctor.examine import Address, Examined, _quick
from midstream.doctor.kinds import NAMES, Trace, changes, kind_of, traces
from midstream.doctor.observe import Arrival, Client, Observation
from midstream.doctor.redis_checks import judged
from midstream.doctor.redis_observe import RedisSeen, Server
from midstream.doctor.report import as_json, as_text, report_of
from shared.redis_server import RedisAddress
from shared.settings import Settings
from tests.support.http_server import HttpServer, Request, head


def arrivals(came: Sequence[float], *, interval: float = 0.05, skew: float = 0.0) -> list[Arrival]:
    """Returns events sent one interval apart, by a clock that is `skew` seconds ahead of ours."""
    return [Arrival(number, "message", number * interval + skew, at, {}, 40) for number, at in enumerate(came, start=1)]


@pytest.mark.parametrize("skew", [0.0, 1000.0, -1000.0])
def test_the_pace_does_not_depend_on_the_difference_of_clocks(skew: float) -> None:
    found = pace(arrivals([0.02 + number * 0.05 for number in range(1, 25)], skew=skew))
    assert found is not None
    assert not found.held
    assert found.held_seconds_max == pytest.approx(0, abs=1e-6)
    assert (found.clump_events, found.at_the_end) == (1, False)


def test_events_that_all_arrive_at_the_end_are_a_buffer() -> None:
    found = pace(arrivals([2.0 + number / 1000 for number in range(24)]))
    assert found is not None
    assert found.held
    assert found.at_the_end
    assert found.clump_events == 24
    assert found.held_seconds_max == pytest.approx(23 * 0.049, rel=0.01)


def test_the_size_of_clumps_is_measured() -> None:
    """A hop that forwards what it has every half second: ten events at a time."""
    found = pace(arrivals([-(-number // 10) * 0.5 + number / 100_000 for number in range(1, 41)]))
    assert found is not None
    assert found.held
    assert not found.at_the_end
    assert (found.clump_events, found.clump_bytes) == (10, 400)


def test_one_late_event_is_not_a_buffer() -> None:
    came = [number * 0.05 for number in range(1, 25)]
    came[12] += 0.04
    found = pace(arrivals(came))
    assert found is not None
    assert not found.held


PUNCTUAL = [number * 0.05 for number in range(1, 25)]
LATE = [-(-number // 10) * 0.5 for number in range(1, 25)]
AT_THE_END = [2.0] * 24


class Hop:
    """A hop whose events come at one of these times after the other, and then always at the last."""

    def __init__(self, *paces: list[float]) -> None:
        self._paces = list(paces)
        self.measured = 0

    async def observe(self, url: str, plan: dict[str, Any], **_: Any) -> Observation:
        observation = Observation(url, 200, "HTTP/1.1")
        if plan.get("interval_ms") == 60:
            came = self._paces.pop(0) if len(self._paces) > 1 else self._paces[0]
            self.measured += 1
            observation.arrivals = [*arrivals(came), Arrival(99, "end", 0.0, 9.0, {}, 9)]
        return observation

    async def get_json(self, url: str) -> dict[str, Any]:
        return {"closed_by": "client"}


@pytest.mark.parametrize(
    ("paces", "verdict", "measured"),
    [
        ([PUNCTUAL], Verdict.OK, 1 + 1),
        ([LATE, PUNCTUAL], Verdict.OK, 2 + 1),
        ([LATE, LATE, PUNCTUAL], Verdict.OK, 3 + 1),
        ([LATE], Verdict.FAULT, 3 + 1),
        ([LATE, AT_THE_END, LATE], Verdict.FAULT, 3 + 1),
        ([AT_THE_END], Verdict.FAULT, 1 + 1),  # no busy machine does that
    ],
)
async def test_a_delay_that_may_be_chance_is_measured_again(
    paces: list[list[float]], verdict: Verdict, measured: int
) -> None:
    """Events as they are, and compressed ones once more."""
    hop, found = Hop(*paces), Examined(Address("http://x"))
    await _quick(found, cast(Client, hop), Observation("http://x"), False, lambda line: None)
    assert found.findings["buffering"].verdict == verdict
    assert hop.measured == measured
    if verdict == Verdict.FAULT and paces[0] is LATE:
        assert found.findings["buffering"].figures["clump_events"] == 10, "the least delay counts"


def test_two_events_are_too_few_for_a_finding() -> None:
    assert pace(arrivals([0.1, 0.2])) is None


def response(headers: dict[str, str], seen: dict[str, str] | None = None) -> Observation:
    first = Arrival(0, "probe", 0.0, 0.0, {"seen": {"headers": seen or {}}}, 10)
    return Observation("http://x", 200, "HTTP/1.1", list(headers.items()), [first])


@pytest.mark.parametrize(
    ("kind", "headers", "seen"),
    [
        ("nginx", {"server": "nginx/1.22.1"}, {}),
        ("nginx", {"server": "openresty"}, {}),
        ("caddy", {"server": "Caddy"}, {}),
        ("caddy", {"via": "1.1 Caddy"}, {}),
        ("alb", {"date": "now"}, {"x-amzn-trace-id": "Root=1-67"}),
        ("cloudflare", {"server": "cloudflare", "cf-ray": "8c1-FRA"}, {"cf-ray": "8c1-FRA"}),
        ("nextjs", {"x-powered-by": "Next.js"}, {}),
        ("nextjs", {"server": "Vercel", "x-vercel-id": "fra1"}, {}),
        ("cloudfront", {"via": "1.1 abc.cloudfront.net (CloudFront)"}, {}),
        ("envoy", {"server": "istio-envoy"}, {}),
        ("", {"date": "now"}, {"x-forwarded-for": "10.0.0.1"}),
    ],
)
def test_a_proxy_is_recognised_by_its_headers(kind: str, headers: dict[str, str], seen: dict[str, str]) -> None:
    assert kind_of("", traces(response(headers, seen)), [])[0] == kind


def test_a_header_that_a_proxy_passed_on_is_not_attributed_to_it() -> None:
    nginx, cloudflare = Trace("nginx", "Server: nginx"), Trace("cloudflare", "Cf-Ray: 1")
    assert kind_of("", [nginx], [nginx]) == ("", "")
    assert kind_of("", [cloudflare, nginx], [nginx])[0] == "cloudflare"
    assert kind_of("haproxy-1", [nginx], [nginx]) == ("haproxy", "as it was named")
    assert kind_of("Next.js", [], [])[0] == "nextjs"
    assert kind_of("nextcloud", [], []) == ("", "")


@pytest.mark.parametrize("kind", ["", *NAMES])
def test_every_fault_has_advice(kind: str) -> None:
    for check in CHECKS:
        lines = changes(check, kind)
        assert lines, f"{check} at {kind}"
        assert all(len(line) <= 120 for line in lines), f"{check} at {kind}"


def examined(name: str, **verdicts: Verdict) -> Examined:
    found = Examined(Address(f"http://{name}.test:80", name))
    for check in CHECKS:
        verdict = verdicts.get(check, Verdict.OK)
        found.add(Finding(check, verdict, "words", "does it" if verdict is not Verdict.OK else ""))
    return found


def test_the_first_address_that_shows_a_fault_is_named() -> None:
    wrong = Verdict.FAULT
    way = [examined("gateway"), examined("inner", idle=wrong), examined("outer", idle=wrong, buffering=wrong)]
    report = report_of(way)
    named = [(one.finding.check, one.hop.label, one.before and one.before.label, one.also_at) for one in report.faults]
    assert named == [("buffering", "outer", "inner", []), ("idle", "inner", "gateway", ["outer"])]
    assert report.exit_code == 1
    text = as_text(report, 1.0)
    assert "✗ inner does it. At gateway, before it, all is well." in text
    assert "2 faults found." in text
    assert as_json(report, 1.0)["faults"][1]["also_at"] == ["outer"]


def test_exit_codes_of_advice_and_of_an_unreachable_address() -> None:
    assert report_of([examined("gateway"), examined("outer", http2=Verdict.ADVICE)]).exit_code == 0
    gone = Examined(Address("http://gone.test"), unreachable="cannot be reached: no")
    report = report_of([gone, examined("outer", idle=Verdict.FAULT)])
    assert report.exit_code == 2
    assert report.faults[0].before is None  # the address before it was not tested, and may be at fault
    assert "1 of 2 addresses could not be tested; 1 fault at the others." in as_text(report, 1.0)


def test_with_a_single_address_the_fault_is_on_the_way_to_it() -> None:
    only = replace(examined("", buffering=Verdict.FAULT), traces=[Trace("nginx", "Server: nginx/1.22.1")])
    only.address = Address("https://chat.test/app")
    assert "✗ nginx on the way to chat.test/app does it. (Server: nginx/1.22.1)  [buffering]" in as_text(
        report_of([only]), 1.0
    )


@pytest.mark.parametrize(
    ("info", "check", "verdict", "change"),
    [
        ([{"redis_version": "6.2.14"}], "version", Verdict.FAULT, "Use Redis 7.0 or newer"),
        ([{"redis_version": "7.2.4", "valkey_version": "9.1.2"}], "version", Verdict.OK, ""),
        ([{"redis_version": "7.0.15"}, {"redis_version": "8.0.6"}], "version", Verdict.ADVICE, "to one version"),
        ([{}], "version", Verdict.UNKNOWN, ""),
        ([{"connected_slaves": "2", "slave0": "ip=a,state=online", "slave1": "ip=b,state=wait_bgsave"}], "replicas", Verdict.FAULT, "lower MIDSTREAM_MIN_REPLICAS"),
        ([{"aof_enabled": "1", "aof_delayed_fsync": "3"}], "persistence", Verdict.ADVICE, "a faster disk: 3 writes"),
    ],
)  # fmt: skip
def test_what_the_servers_say_is_judged(info: list[dict[str, str]], check: str, verdict: Verdict, change: str) -> None:
    servers = [Server(RedisAddress("here", 6379 + index), info=fields) for index, fields in enumerate(info)]
    found = {one.check: one for one in judged(RedisSeen("one server", servers), Settings(min_replicas=2))}
    assert found[check].verdict is verdict
    assert change in found[check].problem


class Odd(HttpServer):
    """Answers as no gateway does: with a line that has no end, with much from few bytes, or never."""

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request.path.startswith("/endless"):
            writer.write(head(200, {"content-type": "text/event-stream", "connection": "close"}))
            writer.write(b"data: " + b"a" * (17 << 20))
            writer.close()
        elif request.path.startswith("/bomb"):
            packed = gzip.compress((b"a" * (1 << 20) + b"\n") * 40, mtime=0)
            length = {"content-length": str(len(packed)), "content-encoding": "gzip"}
            writer.write(head(200, {"content-type": "text/event-stream", **length}) + packed)
        else:
            await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("path", "words"), [("/endless", "longer than"), ("/bomb", "32 MiB"), ("/never", "nothing more")]
)
async def test_what_no_gateway_sends_is_an_observation(path: str, words: str) -> None:
    async with Odd() as server:
        observation = await Client(0.5).observe(server.origin + path, {}, planned_seconds=0.0)
    assert words in observation.error


async def test_a_question_that_nobody_answers_is_given_up() -> None:
    async with Odd() as server:
        began = time.monotonic()
        assert await Client(0.2).get_json(server.origin + "/never") is None
    assert time.monotonic() - began < 5
