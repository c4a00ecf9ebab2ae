"""Which of the ways to show a stream's events a client asks for (RFC 9110, section 12.5.1). No I/O."""

from __future__ import annotations

from gateway.http.connection import Scope

SSE, NDJSON, TEXT = "text/event-stream", "application/x-ndjson", "text/plain"
_ACCEPT_CHARACTERS_MAX = 4096
_RANGES_MAX = 64


def preferred(scope: Scope) -> str:
    """The representation with the highest q-value; SSE where the client does not care, or wants something else.

    Of two with the same one, what is named goes before what is covered by `*/*`; but text only if nothing else is as
    welcome, because `application/json, text/plain, */*` is what some HTTP clients send with every request.
    """
    told = b",".join(value for name, value in scope["headers"] if name == b"accept")
    if not told or told == b"*/*" or told == b"text/event-stream":
        return SSE
    ranges = _ranges(told[:_ACCEPT_CHARACTERS_MAX].decode("latin-1"))
    ranked = [(*_rank(offer, ranges), offer) for offer in (SSE, NDJSON, TEXT)]
    quality, _, offer = max(ranked, key=lambda one: one[:2])  # the first of equals
    return offer if quality > 0 else SSE


def _rank(offer: str, ranges: dict[str, float]) -> tuple[float, bool]:
    """The q-value of the most specific range that covers it, and whether it is named."""
    for covering in (offer, offer.partition("/")[0] + "/*", "*/*"):
        if covering in ranges:
            return ranges[covering], covering == offer and offer != TEXT
    return 0.0, False


def _ranges(accept: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in accept.split(",")[:_RANGES_MAX]:
        media_type, *parameters = one.split(";")
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "q":
                quality = _quality(value.strip())
        name = media_type.strip().lower()
        found[name] = max(found.get(name, 0.0), quality)
    return found


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 1.0  # not as the RFC has it: as if it were not there
    return value if 0.0 <= value <= 1.0 else 1.0
