"""What observations mean: one finding for each check. Pure: no I/O, no clock."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from midstream.doctor.observe import Arrival, Observation

LAST_EVENT_ID = "7-42"
"""What is sent along, to see whether it arrives."""

_HELD_SECONDS_MAX = 0.15
"""Nine of ten events must come within this of the quickest. A reader sees a stutter above it; networks vary by less."""
_CLUMP_SHARE = 0.25
"""Events that come within this share of the distance at which they were sent, came together."""
_MARGIN_SECONDS = 2.0
"""How much longer than the keep-alive interval a silent connection must live: comments are not sent to the millisecond."""


LEAVING_SECONDS_MAX = 0.5
"""A hop that looks at its reader's connection closes the other one within this."""


class Verdict(StrEnum):
    OK = "ok"
    FAULT = "fault"
    ADVICE = "advice"
    """It works; something would be better otherwise."""
    UNKNOWN = "unknown"


CHECKS = {
    "buffering": "events come one by one",
    "compression": "not compressed",
    "idle": "silence is endured",
    "comments": "keep-alive comments arrive",
    "last_event_id": "Last-Event-ID arrives",
    "leaving": "a reader's leaving is noticed",
    "http_version": "HTTP to the gateway",
    "http2": "HTTP/2 for readers",
    "framing": "chunked for readers",
    "headers": "response headers are kept",
    "caching": "not from a cache",
    "no_content": "204 stays 204",
    "age": "a response may grow old",
}
"""Every check and its row in the table, in order."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found at one address."""

    check: str
    verdict: Verdict
    words: str
    """A few, for the table."""
    told: str = ""
    """A sentence without a subject ("holds events back ..."): what the hop does. Empty where all is well."""
    figures: dict[str, Any] = field(default_factory=dict)


def ok(check: str, words: str, **figures: Any) -> Finding:
    return Finding(check, Verdict.OK, words, "", figures)


def fault(check: str, words: str, told: str, **figures: Any) -> Finding:
    return Finding(check, Verdict.FAULT, words, told, figures)


def advice(check: str, words: str, told: str, **figures: Any) -> Finding:
    return Finding(check, Verdict.ADVICE, words, told, figures)


def unknown(check: str, words: str) -> Finding:
    return Finding(check, Verdict.UNKNOWN, words)


@dataclass(frozen=True, slots=True)
class Pace:
    """How events came, compared with how they were sent."""

    events: int
    held_seconds: float
    """Nine of ten events were at most so much later than the one that was quickest."""
    held_seconds_max: float
    clump_events: int
    """The most that came together though they were sent apart."""
    clump_bytes: int
    """The usual size of what came together."""
    at_the_end: bool
    """Nothing came before all had been sent."""

    @property
    def held(self) -> bool:
        return self.held_seconds > _HELD_SECONDS_MAX

    def words(self) -> str:
        if self.at_the_end:
            return "all at the end"
        return f"{self.clump_events} at a time, up to {seconds(self.held_seconds_max)} late"

    def figures(self) -> dict[str, Any]:
        return {
            "held_ms": round(self.held_seconds * 1000, 1),
            "held_ms_max": round(self.held_seconds_max * 1000, 1),
            "clump_events": self.clump_events,
            "clump_bytes": self.clump_bytes,
        }


def pace(arrivals: Sequence[Arrival]) -> Pace | None:
    """None for fewer than three timed events.

    Two machines' clocks differ by an unknown constant, so an event's delay is counted from that of the quickest one.
    """
    timed = [one for one in arrivals if one.event == "message"]
    if len(timed) < 3:
        return None
    lags = [one.came_seconds - one.sent_seconds for one in timed]
    quickest = min(lags)
    late = sorted(lag - quickest for lag in lags)
    clumps: list[list[Arrival]] = [[timed[0]]]
    for before, one in itertools.pairwise(timed):
        apart, sent_apart = one.came_seconds - before.came_seconds, one.sent_seconds - before.sent_seconds
        if apart < _CLUMP_SHARE * sent_apart:
            clumps[-1].append(one)
        else:
            clumps.append([one])
    sizes = [sum(one.size_bytes for one in clump) for clump in clumps]
    last = timed[-1]
    return Pace(
        events=len(timed),
        held_seconds=late[int(0.9 * (len(late) - 1))],
        held_seconds_max=late[-1],
        clump_events=max(len(clump) for clump in clumps),
        clump_bytes=round(statistics.median(sizes)),
        at_the_end=last.came_seconds - timed[0].came_seconds
        < _CLUMP_SHARE * (last.sent_seconds - timed[0].sent_seconds),
    )


def buffering(plain: Observation, padded: Observation | None) -> Finding:
    """`padded` sends enough to fill a buffer and so tells its size; it is asked for when `plain` was held back."""
    found = pace(plain.arrivals)
    if found is None:
        return fault("buffering", "events are missing", f"lets no timed events through: {plain.error or 'none came'}")
    if not plain.whole:
        return fault("buffering", "cut off", f"breaks the response off after {found.events} events: {plain.error}")
    if not found.held:
        return ok("buffering", f"within {seconds(max(found.held_seconds, 0.001))}", **found.figures())
    told = f"holds events back for up to {seconds(found.held_seconds_max)}"
    figures = found.figures()
    full = pace(padded.arrivals) if padded is not None else None
    if full is not None and full.clump_events > 1 and full.held_seconds_max < found.held_seconds_max / 2:
        figures["buffer_bytes"] = full.clump_bytes
        told += f", or until about {full.clump_bytes / 1024:.0f} KiB have gathered"
    elif found.at_the_end:
        told += ", to the end of the response"
    return fault("buffering", found.words(), told, **figures)


def compression(told: Observation) -> Finding:
    encoding = told.header("content-encoding").lower()
    if encoding in ("", "identity", "none"):
        if told.status != 200:
            return unknown("compression", told.error or f"answered {told.status}")
        return ok("compression", "no")
    if told.unreadable:
        return fault(
            "compression", encoding, f"compresses the stream ({encoding}), against `no-transform`", encoding=encoding
        )
    found = pace(told.arrivals)
    if found is None or found.held:
        late = (
            "and no event came"
            if found is None
            else f"and so holds events back for up to {seconds(found.held_seconds_max)}"
        )
        figures = {} if found is None else found.figures()
        return fault(
            "compression",
            f"{encoding}, {'no events' if found is None else found.words()}",
            f"compresses the stream ({encoding}), {late}",
            encoding=encoding,
            delays=True,
            **figures,
        )
    return fault(
        "compression",
        f"{encoding}, no delay",
        f"compresses the stream ({encoding}), against `no-transform`: no delay now, but memory for each reader",
        encoding=encoding,
        delays=False,
        **found.figures(),
    )


def idle(told: Observation, asked_seconds: float, keepalive_seconds: float) -> Finding:
    if told.whole:
        return ok("idle", f"{asked_seconds:g} s", endured_seconds=asked_seconds)
    if told.left:
        return unknown("idle", "no end came")
    cut = told.ended_seconds
    figures = {"cut_after_seconds": round(cut, 1), "keepalive_seconds": keepalive_seconds}
    how = f" (with status {told.status})" if told.status >= 400 else ""
    sentence = f"cuts a silent connection after {seconds(cut)}{how}"
    if cut < keepalive_seconds + _MARGIN_SECONDS:
        sentence += f"; the gateway sends a comment only every {keepalive_seconds:g} s"
        return fault("idle", f"cut after {seconds(cut)}", sentence, **figures)
    sentence += f"; the gateway's comments, every {keepalive_seconds:g} s, prevent it"
    return advice("idle", f"cut after {seconds(cut)}", sentence, **figures)


def comments(told: Observation, *, buffered: bool) -> Finding:
    ends = [one for one in told.arrivals if one.event == "end"]
    if not ends:
        return unknown("comments", "cut off" if told.error else "no end came")
    sent, came = int(ends[0].data.get("comments", 0)), told.comments
    if len(came) < sent:
        sentence = f"lets {len(came)} of {sent} keep-alive comments through"
        return fault("comments", f"{len(came)} of {sent}", sentence, sent=sent, came=len(came))
    if came[-1] - came[0] < 0.2:  # they were sent over more than a second
        if buffered:
            return unknown("comments", "held back too")
        return fault("comments", "held back", "holds keep-alive comments back until an event follows", sent=sent)
    return ok("comments", f"{sent} of {sent}", sent=sent, came=len(came))


def last_event_id(told: Observation) -> Finding:
    came = told.seen.get("last-event-id")
    if came == LAST_EVENT_ID:
        return ok("last_event_id", "yes")
    if came is None:
        return fault(
            "last_event_id", "lost", "drops the request header Last-Event-ID: readers begin again from the start"
        )
    return fault(
        "last_event_id", "changed", f"changes the request header Last-Event-ID from {LAST_EVENT_ID} to {came!r}"
    )


def leaving(trace: dict[str, Any] | None, left_seconds: float, waited_seconds: float) -> Finding:
    """`left_seconds`: how long after the request we left. The gateway wrote a comment now and then all the while."""
    if trace is None:
        return unknown("leaving", "another gateway answered")
    if trace.get("running"):
        sentence = (
            f"keeps its connection to the gateway when the reader has left (still {waited_seconds:g} s later, "
            "over several writes): answers go on for nobody"
        )
        return fault("leaving", "no", sentence)
    if trace.get("closed_by") != "client":
        return unknown("leaving", f"ended by the {trace.get('closed_by')}")
    noticed_seconds = max(0.0, float(trace.get("closed_after_ms", 0)) / 1000 - left_seconds)
    if noticed_seconds > LEAVING_SECONDS_MAX:
        sentence = "notices that a reader has left only when the next bytes come from the gateway"
        return advice("leaving", "at the next write", sentence, noticed_seconds=round(noticed_seconds, 2))
    return ok("leaving", "at once", noticed_seconds=round(noticed_seconds, 2))


def http_version(told: Observation) -> Finding:
    version = str(told.first.get("seen", {}).get("http_version", ""))
    if version == "1.0":
        sentence = "speaks HTTP/1.0 to the gateway: it has no chunks, so an answer that breaks off looks whole"
        return fault("http_version", "1.0", sentence, version=version)
    if told.seen.get("connection", "").lower() == "close":
        sentence = "opens a new connection to the gateway for every request"
        return advice("http_version", f"{version}, Connection: close", sentence, version=version)
    return ok("http_version", version or "?", version=version)


def http2(agreed: str | None, *, https: bool) -> Finding:
    """Only for the address that readers use."""
    if not https:
        return unknown("http2", "http: not spoken")
    if agreed is None:
        return unknown("http2", "no TLS")
    if agreed == "h2":
        return ok("http2", "yes")
    sentence = "offers no HTTP/2: a browser opens six connections to a host, so the seventh open tab waits"
    return advice("http2", "no", sentence)


def framing(told: Observation) -> Finding:
    if told.http_version in ("HTTP/2", "HTTP/3"):
        return ok("framing", told.http_version)
    length = told.header("content-length")
    if length:
        return fault(
            "framing", "Content-Length", f"gathers the whole response and gives it a Content-Length ({length})"
        )
    if "chunked" in told.header("transfer-encoding").lower():
        return ok("framing", "chunked")
    sentence = f"answers with {told.http_version} without chunks: an answer that breaks off looks whole"
    return fault("framing", "ends by closing", sentence)


def headers(told: Observation, *, outermost: bool) -> Finding:
    kind, cache = told.header("content-type"), told.header("cache-control").lower()
    wrong = []
    if not kind.lower().startswith("text/event-stream"):
        wrong.append(f"Content-Type is {kind or 'missing'}: an EventSource refuses it")
    missing = [one for one in ("no-cache", "no-transform") if one not in cache]
    if missing:
        wrong.append(f"Cache-Control lacks {' and '.join(missing)}: others on the way may store or compress it")
    if wrong:
        names = [
            name
            for name, on in (
                ("Content-Type", not kind.lower().startswith("text/event-stream")),
                ("Cache-Control", missing),
            )
            if on
        ]
        return fault("headers", f"{', '.join(names)} changed", f"changes response headers: {'; '.join(wrong)}")
    if not told.header("x-accel-buffering") and not outermost:
        sentence = "takes off X-Accel-Buffering (nginx does so by itself): an nginx further out will buffer"
        return advice("headers", "no X-Accel-Buffering", sentence)
    return ok("headers", "yes")


def caching(told: Observation, again: Observation) -> Finding:
    """The same URL asked twice: each probe has a number of its own."""
    first, second = told.first.get("probe"), again.first.get("probe")
    if first is None or second is None:
        return unknown("caching", again.error or f"answered {again.status}")
    if first == second:
        return fault("caching", "cached", "stores the response, and gives it to the next reader too")
    return ok("caching", "yes")


def no_content(told: Observation) -> Finding:
    if told.status == 204:
        return ok("no_content", "yes")
    got = told.status or told.error
    sentence = f"answers {got} where the gateway says 204: an EventSource that has all will not stop"
    return fault("no_content", str(got), sentence)


def age(told: Observation, asked_seconds: float) -> Finding:
    if told.whole:
        return ok("age", f"{asked_seconds:g} s", endured_seconds=asked_seconds)
    if told.left:
        return unknown("age", "no end came")
    cut = told.ended_seconds
    sentence = f"ends a response after {seconds(cut)}, though events come; readers have to resume so often"
    return fault("age", f"cut after {seconds(cut)}", sentence, cut_after_seconds=round(cut, 1))


def seconds(value: float) -> str:
    """Short, in the unit that suits it."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
