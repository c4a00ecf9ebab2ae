"""Content negotiation: which representation of a stream's events a client prefers (RFC 9110, section 12.5.1). No I/O."""

from __future__ import annotations

from gateway.http.connection import Scope

SSE, NDJSON, TEXT, JSON = "text/event-stream", "application/x-ndjson", "text/plain", "application/json"
_ACCEPT_CHARACTERS_MAX = 4096
_RANGES_MAX = 64


def preferred(scope: Scope) -> str:
    """The representation with the highest q-value; SSE where none is preferred, or none of the three is accepted.

    At equal q-values a type that is named goes before one that `*/*` covers. Text is chosen only if no other is as welcome:
    some HTTP clients send `application/json, text/plain, */*` with every request.
    """
    header = b",".join(value for name, value in scope["headers"] if name == b"accept")
    if not header or header == b"*/*" or header == b"text/event-stream":
        return SSE
    ranges = _ranges(header[:_ACCEPT_CHARACTERS_MAX].decode("latin-1"))
    ranked = [(*_rank(offer, ranges), offer) for offer in (SSE, NDJSON, TEXT)]
    quality, _, offer = max(ranked, key=lambda candidate: candidate[:2])  # the first of equals
    return offer if quality > 0 else SSE


def accepts_only_events(scope: Scope) -> bool:
    """Whether a request can be answered with an event stream and nothing else: a GET of a browser's EventSource, or of the like."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return False
    return list(_ranges_of(scope)) == [SSE]


def accepts_json_and_no_events(scope: Scope) -> bool:
    """Whether a request accepts JSON, and neither an event stream nor anything at all (`*/*`)."""
    ranges = _ranges_of(scope)
    return _rank(JSON, ranges)[0] > 0 and _rank(SSE, ranges)[0] == 0


def _rank(offer: str, ranges: dict[str, float]) -> tuple[float, bool]:
    """The q-value of the most specific range that covers this type, and whether that range names it."""
    for covering in (offer, offer.partition("/")[0] + "/*", "*/*"):
        if covering in ranges:
            return ranges[covering], covering == offer and offer != TEXT
    return 0.0, False


def _ranges_of(scope: Scope) -> dict[str, float]:
    header = b",".join(value for name, value in scope["headers"] if name == b"accept")
    return _ranges(header[:_ACCEPT_CHARACTERS_MAX].decode("latin-1"))


def _ranges(accept: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in accept.split(",")[:_RANGES_MAX]:
        media_type, *parameters = part.split(";")
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
        return 1.0  # not a number: ignored
    return value if 0.0 <= value <= 1.0 else 1.0
