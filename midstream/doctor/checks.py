"""Judges observations: one finding for each check. Pure: no I/O, no clock."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from midstream.doctor.observe import Arrival, Observation

LAST_EVENT_ID = "7-42"
"""The Last-Event-ID of the first probe, sent to see whether it arrives."""

_HELD_SECONDS_MAX = 0.15
"""Nine of ten events may be at most this much later than the quickest. Readers see more as stutter; networks vary by less."""
_CLUMP_SHARE = 0.25
"""Two events arrived together if less than this share of the time between their sending lies between their arrivals."""
_MARGIN_SECONDS = 2.0
"""How much longer than the keep-alive interval a silent connection must stay open: comments may be slightly late."""


LEAVING_SECONDS_MAX = 0.5
"""A hop that watches its reader's connection closes its own to the gateway within this time."""


class Verdict(StrEnum):
    """How a check has come out."""

    OK = "ok"
    FAULT = "fault"
    ADVICE = "advice"
    """It works, but could be better."""
    UNKNOWN = "unknown"


CHECKS = {
    "buffering": "events come one by one",
    "compression": "not compressed",
    "idle": "idle connections stay open",
    "comments": "keep-alive comments arrive",
    "last_event_id": "Last-Event-ID arrives",
    "leaving": "disconnects are noticed",
    "http_version": "HTTP to the gateway",
    "http2": "HTTP/2 for readers",
    "framing": "chunked for readers",
    "headers": "response headers are kept",
    "caching": "not cached",
    "no_content": "204 stays 204",
    "age": "responses may last long",
}
"""Every check and the title of its row in the table, in order."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check at one address."""

    check: str
    verdict: Verdict
    words: str
    """A few words for the table."""
    problem: str = ""
    """What the hop does wrong, a sentence without its subject ("holds events back ..."); empty if nothing."""
    figures: dict[str, Any] = field(default_factory=dict)


def ok(check: str, words: str, **figures: Any) -> Finding:
    return Finding(check, Verdict.OK, words, "", figures)


def fault(check: str, words: str, problem: str, **figures: Any) -> Finding:
    return Finding(check, Verdict.FAULT, words, problem, figures)


def advice(check: str, words: str, problem: str, **figures: Any) -> Finding:
    return Finding(check, Verdict.ADVICE, words, problem, figures)


def unknown(check: str, words: str) -> Finding:
    return Finding(check, Verdict.UNKNOWN, words)


@dataclass(frozen=True, slots=True)
class Pace:
    """How events arrived, compared with how they were sent."""

    events: int
    held_seconds: float
    """Delay of nine of ten events, at most, beyond that of the quickest event."""
    held_seconds_max: float
    clump_events: int
    """The largest number of events that arrived together though they were sent apart."""
    clump_bytes: int
    """The median size of events that arrived together."""
    at_the_end: bool
    """No event arrived before all had been sent."""

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
    """Compares the times of arrival with those of sending; None for fewer than three timed events.

    Two machines' clocks differ by an unknown constant, so delays are counted from that of the quickest event.
    """
    timed = [arrival for arrival in arrivals if arrival.event == "message"]
    if len(timed) < 3:
        return None
    lags = [arrival.came_seconds - arrival.sent_seconds for arrival in timed]
    quickest = min(lags)
    late = sorted(lag - quickest for lag in lags)
    clumps: list[list[Arrival]] = [[timed[0]]]
    for before, arrival in itertools.pairwise(timed):
        apart = arrival.came_seconds - before.came_seconds
        if apart < _CLUMP_SHARE * (arrival.sent_seconds - before.sent_seconds):
            clumps[-1].append(arrival)
        else:
            clumps.append([arrival])
    sizes = [sum(arrival.size_bytes for arrival in clump) for clump in clumps]
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


def held_seconds(observation: Observation) -> float:
    """Returns how long events were held back; infinity if they did not all come."""
    found = pace(observation.arrivals)
    return float("inf") if found is None or not observation.whole else found.held_seconds


def may_be_chance(observation: Observation) -> bool:
    """Whether events came late, and yet before all had been sent: so they also come on a busy machine."""
    found = pace(observation.arrivals)
    return found is not None and observation.whole and found.held and not found.at_the_end


def buffering(plain: Observation, padded: Observation | None) -> Finding:
    """Judges whether events are held back. `padded` fills a buffer and so shows its size; None if `plain` came undelayed."""
    found = pace(plain.arrivals)
    if found is None:
        return fault("buffering", "events are missing", f"lets no timed events through: {plain.error or 'none came'}")
    if not plain.whole:
        return fault("buffering", "cut off", f"breaks the response off after {found.events} events: {plain.error}")
    if not found.held:
        return ok("buffering", f"within {seconds(max(found.held_seconds, 0.001))}", **found.figures())
    problem = f"holds events back for up to {seconds(found.held_seconds_max)}"
    figures = found.figures()
    full = pace(padded.arrivals) if padded is not None else None
    if full is not None and full.clump_events > 1 and full.held_seconds_max < found.held_seconds_max / 2:
        figures["buffer_bytes"] = full.clump_bytes
        problem += f", or until about {full.clump_bytes / 1024:.0f} KiB have gathered"
    elif found.at_the_end:
        problem += ", to the end of the response"
    return fault("buffering", found.words(), problem, **figures)


def compression(observation: Observation) -> Finding:
    """Judges whether the stream came compressed, and whether that held its events back."""
    encoding = observation.header("content-encoding").lower()
    if encoding in ("", "identity", "none"):
        if observation.status != 200:
            return unknown("compression", observation.error or f"answered {observation.status}")
        return ok("compression", "no")
    if observation.unreadable:
        return fault(
            "compression", encoding, f"compresses the stream ({encoding}), against `no-transform`", encoding=encoding
        )
    found = pace(observation.arrivals)
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


def idle(observation: Observation, planned_seconds: float, keepalive_seconds: float) -> Finding:
    """Judges how long a silent connection stayed open, against the interval of the gateway's comments."""
    if observation.whole:
        return ok("idle", f"{planned_seconds:g} s", endured_seconds=planned_seconds)
    if observation.left:
        return unknown("idle", "no end came")
    cut = observation.ended_seconds
    figures = {"cut_after_seconds": round(cut, 1), "keepalive_seconds": keepalive_seconds}
    how = f" (with status {observation.status})" if observation.status >= 400 else ""
    sentence = f"cuts a silent connection after {seconds(cut)}{how}"
    if cut < keepalive_seconds + _MARGIN_SECONDS:
        sentence += f"; the gateway sends a comment only every {keepalive_seconds:g} s"
        return fault("idle", f"cut after {seconds(cut)}", sentence, **figures)
    sentence += f"; the gateway's comments, every {keepalive_seconds:g} s, prevent it"
    return advice("idle", f"cut after {seconds(cut)}", sentence, **figures)


def comments(observation: Observation, *, buffered: bool) -> Finding:
    """Judges whether the keep-alive comments of a silence came, and came when they were sent. `buffered`: events are held back, too."""
    ends = [arrival for arrival in observation.arrivals if arrival.event == "end"]
    if not ends:
        return unknown("comments", "cut off" if observation.error else "no end came")
    sent, came = int(ends[0].data.get("comments", 0)), observation.comments
    if len(came) < sent:
        sentence = f"lets {len(came)} of {sent} keep-alive comments through"
        return fault("comments", f"{len(came)} of {sent}", sentence, sent=sent, came=len(came))
    if came[-1] - came[0] < 0.2:  # they were sent over more than a second
        if buffered:
            return unknown("comments", "held back too")
        return fault("comments", "held back", "holds keep-alive comments back until an event follows", sent=sent)
    return ok("comments", f"{sent} of {sent}", sent=sent, came=len(came))


def last_event_id(observation: Observation) -> Finding:
    """Judges whether the request header Last-Event-ID reached the gateway as it was sent."""
    came = observation.seen.get("last-event-id")
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
    """Judges whether a disconnect reaches the gateway. We left `left_seconds` after the request; the gateway kept writing comments."""
    if trace is None:
        return unknown("leaving", "another gateway answered")
    if trace.get("running"):
        sentence = (
            f"keeps its connection to the gateway when the reader has left (still {waited_seconds:g} s later, "
            "over several writes): answers are generated for nobody"
        )
        return fault("leaving", "no", sentence)
    if trace.get("closed_by") != "client":
        return unknown("leaving", f"ended by the {trace.get('closed_by')}")
    noticed_seconds = max(0.0, float(trace.get("closed_after_ms", 0)) / 1000 - left_seconds)
    if noticed_seconds > LEAVING_SECONDS_MAX:
        sentence = "notices that a reader has left only when the next bytes come from the gateway"
        return advice("leaving", "at the next write", sentence, noticed_seconds=round(noticed_seconds, 2))
    return ok("leaving", "at once", noticed_seconds=round(noticed_seconds, 2))


def http_version(observation: Observation) -> Finding:
    """Judges the version of HTTP that the last hop speaks to the gateway, and whether it keeps its connections."""
    version = str(observation.first.get("seen", {}).get("http_version", ""))
    if version == "1.0":
        sentence = "speaks HTTP/1.0 to the gateway: it has no chunks, so an answer that breaks off looks whole"
        return fault("http_version", "1.0", sentence, version=version)
    if observation.seen.get("connection", "").lower() == "close":
        sentence = "opens a new connection to the gateway for every request"
        return advice("http_version", f"{version}, Connection: close", sentence, version=version)
    return ok("http_version", version or "?", version=version)


def http2(agreed: str | None, *, https: bool) -> Finding:
    """Judges the protocol that TLS agreed on; only for the address that readers use."""
    if not https:
        return unknown("http2", "http: not spoken")
    if agreed is None:
        return unknown("http2", "no TLS")
    if agreed == "h2":
        return ok("http2", "yes")
    sentence = "offers no HTTP/2: a browser opens six connections to a host, so the seventh open tab waits"
    return advice("http2", "no", sentence)


def framing(observation: Observation) -> Finding:
    """Judges whether a reader can tell a whole response from one that was cut off."""
    if observation.http_version in ("HTTP/2", "HTTP/3"):
        return ok("framing", observation.http_version)
    length = observation.header("content-length")
    if length:
        return fault(
            "framing", "Content-Length", f"gathers the whole response and gives it a Content-Length ({length})"
        )
    if "chunked" in observation.header("transfer-encoding").lower():
        return ok("framing", "chunked")
    sentence = f"answers with {observation.http_version} without chunks: an answer that breaks off looks whole"
    return fault("framing", "ends by closing", sentence)


def headers(observation: Observation, *, outermost: bool) -> Finding:
    """Judges whether the response headers came as the gateway sends them."""
    kind, cache = observation.header("content-type"), observation.header("cache-control").lower()
    wrong = []
    if not kind.lower().startswith("text/event-stream"):
        wrong.append(f"Content-Type is {kind or 'missing'}: an EventSource refuses it")
    missing = [directive for directive in ("no-cache", "no-transform") if directive not in cache]
    if missing:
        wrong.append(f"Cache-Control lacks {' and '.join(missing)}: other proxies may store or compress it")
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
    if not observation.header("x-accel-buffering") and not outermost:
        sentence = "removes X-Accel-Buffering (nginx does so by default): an nginx further out will buffer"
        return advice("headers", "no X-Accel-Buffering", sentence)
    return ok("headers", "yes")


def caching(observation: Observation, again: Observation) -> Finding:
    """Compares two responses to one URL: every probe has a number of its own."""
    first, second = observation.first.get("probe"), again.first.get("probe")
    if first is None or second is None:
        return unknown("caching", again.error or f"answered {again.status}")
    if first == second:
        return fault("caching", "cached", "stores the response, and serves it to the next reader too")
    return ok("caching", "yes")


def no_content(observation: Observation) -> Finding:
    """Judges whether a 204 arrives as one."""
    if observation.status == 204:
        return ok("no_content", "yes")
    got = observation.status or observation.error
    sentence = (
        f"answers {got} where the gateway says 204: an EventSource that has everything will not stop reconnecting"
    )
    return fault("no_content", str(got), sentence)


def age(observation: Observation, planned_seconds: float) -> Finding:
    """Judges how long a response may last in which events come all the time."""
    if observation.whole:
        return ok("age", f"{planned_seconds:g} s", endured_seconds=planned_seconds)
    if observation.left:
        return unknown("age", "no end came")
    cut = observation.ended_seconds
    sentence = f"ends a response after {seconds(cut)}, though events come; readers have to resume that often"
    return fault("age", f"cut after {seconds(cut)}", sentence, cut_after_seconds=round(cut, 1))


def seconds(value: float) -> str:
    """Returns a short text, in ms below one second."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
