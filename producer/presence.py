"""What a worker reports about itself, for the console and `midstream top`."""

from __future__ import annotations

from producer.worker import Worker
from shared.commands import Commands
from shared.metrics import APPEND_SECONDS, STREAMS_ENDED, TAKEOVERS, TOKENS_GENERATED
from shared.presence import Facts, Presence, total
from shared.recent_quantiles import RecentQuantiles


def presence(worker: Worker, commands: Commands, *, name: str, provider: str, capacity: int) -> Presence:
    def facts() -> Facts:
        return {
            "provider": provider,
            "running": worker.tally(),
            "capacity": capacity,
            "draining": worker.draining,
            "failures": worker.failures(),
            "totals": {
                "tokens_generated": total(TOKENS_GENERATED.counter()),
                "streams_ended": total(STREAMS_ENDED.counter()),
                "takeovers": total(TAKEOVERS.counter()),
            },
        }

    return Presence(commands, "worker", name, facts, {"append": RecentQuantiles(APPEND_SECONDS.histogram())})
