"""The facts that a gateway process writes about itself to Redis, for the console and `midstream top`."""

from __future__ import annotations

from gateway import metrics
from gateway.delivery.delivery import Delivery
from gateway.following.tails import Tails
from gateway.process_name import gateway_name
from shared.commands import Commands
from shared.metrics import APPEND_TO_SOCKET, READER_CLOSES, RESUMES
from shared.presence import Facts, Presence, total
from shared.recent_quantiles import RecentQuantiles
from shared.settings import Settings


def presence(delivery: Delivery, tails: Tails, commands: Commands, settings: Settings) -> Presence:
    """Returns the presence of this process, to be started."""

    def facts() -> Facts:
        return {
            "readers": delivery.readers,
            "readers_max": settings.connections_max,
            "followed": len(tails),
            "tick_ms": round(delivery.tick_seconds * 1000, 1),
            "draining": delivery.draining,
            "totals": {
                "tokens_delivered": delivery.ledger.tokens_now(),
                "streams_created": total(metrics.CREATED),
                "resumes": total(RESUMES.counter()),
                "connections_ended": total(READER_CLOSES.counter()),
            },
        }

    return Presence(
        commands, "gateway", gateway_name(), facts, {"append_to_socket": RecentQuantiles(APPEND_TO_SOCKET.histogram())}
    )
