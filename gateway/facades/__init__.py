"""Other faces of the same log: APIs that clients already speak, each a `Part` of the gateway."""

from __future__ import annotations

from gateway.exchange import Part
from gateway.streams import Streams
from gateway.subscribe import Subscribe
from shared.settings import Settings


def facades(streams: Streams, subscribe: Subscribe, settings: Settings) -> list[Part]:
    """All of them."""
    return []
