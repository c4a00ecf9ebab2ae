"""Runs all checks at one address: which probes are sent, and in what order."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx2

from midstream.doctor import checks
from midstream.doctor.checks import Finding, Verdict
from midstream.doctor.kinds import Trace, traces
from midstream.doctor.observe import ENCODINGS, Client, Observation, negotiated

PATH = "/v1/probe"
IDLE_SECONDS_MAX = 3600.0
_DEFAULT_IDLE_SECONDS_MAX = 62.0
"""Without --idle, a gateway's very long keep-alive interval does not make the run take minutes."""
_IDLE_MARGIN_SECONDS = 2.0
_LEAVING_WAIT_SECONDS = 4.0
"""Four comments: a hop that notices a disconnect at a write notices it at the second one."""
_LEAVING_POLL_SECONDS = 0.1
_TRIES_MAX = 3
"""How often a delay is measured that may be chance: a busy machine delays events now and then, a buffer each time."""
_NO_EVENTS = {"events": 0}
_COMMENTS = {"events": 0, "silence_ms": 1900, "comment_ms": 450}
_PACE = {"events": 24, "interval_ms": 60}
_PADDED = {"events": 240, "interval_ms": 6, "padding_bytes": 500}
"""The parameters of the probes. 24 events in 1.4 s show whether events are held back; 120 KB in that time show after how many bytes a
buffer lets them go; four comments in 1.9 s show whether comments pass."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address between the gateway and its readers, or the one that readers use."""

    url: str
    name: str = ""

    @property
    def label(self) -> str:
        return self.name or self.place

    @property
    def place(self) -> str:
        url = httpx2.URL(self.url)
        path = "" if url.path in ("", "/") else url.path.rstrip("/")
        return f"{url.netloc.decode('ascii')}{path}"

    @property
    def probe_url(self) -> str:
        base = self.url.rstrip("/")
        return base if base.endswith(PATH) else base + PATH


@dataclass(slots=True)
class Examined:
    """The results for one address."""

    address: Address
    unreachable: str = ""
    """Why nothing could be tested; empty if all was."""
    findings: dict[str, Finding] = field(default_factory=dict)
    traces: list[Trace] = field(default_factory=list)
    gateway_version: str = ""
    keepalive_seconds: float = 15.0

    def add(self, finding: Finding) -> None:
        self.findings[finding.check] = finding


@dataclass(frozen=True, slots=True)
class Options:
    """How long the slow checks may take."""

    idle_seconds: float | None = None
    """None: a little longer than the gateway's keep-alive interval; 0: not tested."""
    age_seconds: float = 0.0


async def examine(
    address: Address, client: Client, options: Options, *, outermost: bool, progress: Callable[[str], None]
) -> Examined:
    """Runs every check, over at most three connections at once: some proxies limit them."""
    found = Examined(address)
    response = await client.observe(
        address.probe_url, _NO_EVENTS, planned_seconds=0, headers={"last-event-id": checks.LAST_EVENT_ID}
    )
    found.unreachable = _why_not(response)
    if found.unreachable:
        return found
    gateway = response.first["gateway"]
    found.gateway_version, found.keepalive_seconds = str(gateway["version"]), float(gateway["keepalive_seconds"])
    found.traces = traces(response)
    for finding in (
        checks.last_event_id(response),
        checks.http_version(response),
        checks.framing(response),
        checks.headers(response, outermost=outermost),
    ):
        found.add(finding)
    async with asyncio.TaskGroup() as group:
        group.create_task(_idle(found, client, options, progress))
        if options.age_seconds:
            group.create_task(_age(found, client, options.age_seconds, progress))
        group.create_task(_quick(found, client, response, outermost, progress))
    return found


def _why_not(response: Observation) -> str:
    if not response.status:
        return f"cannot be reached: {response.error}"
    if response.status == 404:
        return f"answered 404: {PATH} does not lead to a Midstream gateway (or to one that is too old)"
    if response.status != 200:
        text = " ".join(response.body_head.decode("utf-8", "replace").split())
        return f"answered {response.status} to a probe: {text[:160] or 'with an empty body'}"
    if not isinstance(response.first.get("gateway"), dict):
        return (
            response.error
            or f"{PATH} is not answered by a gateway ({response.header('content-type') or 'no Content-Type'})"
        )
    return ""


async def _idle(found: Examined, client: Client, options: Options, progress: Callable[[str], None]) -> None:
    planned_seconds = options.idle_seconds
    if planned_seconds is None:
        planned_seconds = min(found.keepalive_seconds + _IDLE_MARGIN_SECONDS, _DEFAULT_IDLE_SECONDS_MAX)
    if not planned_seconds:
        return
    plan = {"events": 0, "silence_ms": round(planned_seconds * 1000)}
    observation = await client.observe(found.address.probe_url, plan, planned_seconds=planned_seconds)
    progress(f"{found.address.label}: done")
    found.add(checks.idle(observation, planned_seconds, found.keepalive_seconds))


async def _age(found: Examined, client: Client, planned_seconds: float, progress: Callable[[str], None]) -> None:
    progress(f"{found.address.label}: one response for {planned_seconds:g} s")
    plan = {"events": max(1, round(planned_seconds)), "interval_ms": 1000}
    observation = await client.observe(found.address.probe_url, plan, planned_seconds=planned_seconds)
    found.add(checks.age(observation, planned_seconds))


async def _quick(
    found: Examined, client: Client, response: Observation, outermost: bool, progress: Callable[[str], None]
) -> None:
    url, label = found.address.probe_url, found.address.label

    async def observe(plan: dict[str, int], encodings: str = "identity") -> Observation:
        planned = (plan.get("silence_ms", 0) + plan["events"] * plan.get("interval_ms", 0)) / 1000
        return await client.observe(url, plan, planned_seconds=planned, encodings=encodings)

    async def observe_pace(encodings: str, tries: int = _TRIES_MAX) -> Observation:
        """Returns the observation with the least delay."""
        best = await observe(_PACE, encodings)
        while tries > 1 and checks.may_be_chance(best):
            tries -= 1
            best = min(best, await observe(_PACE, encodings), key=checks.held_seconds)
        return best

    found.add(checks.caching(response, await observe(_NO_EVENTS)))
    progress(f"{label}: pace of events")
    plain = await observe_pace("identity")
    pace = checks.pace(plain.arrivals)
    buffered = pace is not None and pace.held
    found.add(checks.buffering(plain, await observe(_PADDED) if buffered else None))
    progress(f"{label}: compression")
    found.add(checks.compression(await observe_pace(ENCODINGS, tries=1 if buffered else _TRIES_MAX)))
    progress(f"{label}: keep-alive comments")
    found.add(checks.comments(await observe(_COMMENTS), buffered=buffered))
    found.add(checks.no_content(await client.observe(url, {"status": 204}, planned_seconds=0)))
    progress(f"{label}: disconnects")
    for _ in range(_TRIES_MAX):
        found.add(await _leaving(url, client))
        if found.findings["leaving"].verdict != Verdict.ADVICE:
            break
    if outermost:
        parsed = httpx2.URL(url)
        found.add(checks.http2(await negotiated(parsed, client), https=parsed.scheme == "https"))
    progress(f"{label}: idle connection")


async def _leaving(url: str, client: Client) -> Finding:
    """Leaves a silent stream, then asks whether the gateway noticed; repeatedly, since any of several gateways may answer."""
    name = secrets.token_hex(8)
    plan: dict[str, str | int] = {"name": name, "events": 0, "silence_ms": 15_000, "comment_ms": 900}
    observation = await client.observe(url, plan, planned_seconds=15, leave_after_events=1, leave_after_seconds=1.5)
    left_at, trace = time.monotonic(), None
    while time.monotonic() - left_at < _LEAVING_WAIT_SECONDS:
        trace = await client.get_json(f"{url}/{name}") or trace
        if trace is not None and not trace.get("running"):
            break
        await asyncio.sleep(_LEAVING_POLL_SECONDS)
    return checks.leaving(trace, observation.ended_seconds, _LEAVING_WAIT_SECONDS)
