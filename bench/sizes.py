"""The sizes of the workloads: FULL, as published, and QUICK."""

from __future__ import annotations

from dataclasses import dataclass

READERS_MAX = 20_000
RATE_MAX = 2_000_000.0
SECONDS_MAX = 600.0


@dataclass(frozen=True, slots=True)
class Sizes:
    seconds: float = 8.0
    """How long a fixed rate is measured."""
    warm_up_seconds: float = 1.0
    ramp_seconds: float = 4.0
    ramp_steps: int = 14
    ramp_factor: float = 1.6
    """The search for the ceiling takes at most `ramp_steps` steps: each rate is `ramp_factor`
    times the one before, then `ramp_between` rates lie between the last two."""
    ramp_between: int = 2
    peer_share: float = 1 / 16
    """The peer's search begins at this share of our rate; W7 gives it this share of our answers."""

    tokens_per_entry: int = 1
    """For W1's publisher: 1 is what an idle worker writes."""
    w1_streams: int = 1000
    w1_rate: float = 20_000
    """Tokens per second, all streams together."""
    w2_readers: int = 1000
    w2_rate: float = 50
    w3_readers: int = 1000
    w3_events: int = 2000
    w4_readers: int = 5000
    w4_seconds: float = 20.0
    w5_attempts: int = 500
    w5_tokens: int = 2000
    w5_http_tokens: int = 1000
    w5_paced: int = 1000
    w5_paced_rate: float = 20
    w5_paced_tokens: int = 200
    w6_streams: int = 100
    w6_tokens: int = 96_000
    w7_answers: int = 1000
    w7_rate: float = 20
    """Tokens per second of each answer."""
    w8_times: int = 200
    growth_streams: tuple[int, ...] = (10, 100, 1000, 5000)
    growth_rate: float = 10_000
    growth_history: tuple[int, ...] = (0, 10_000, 100_000)
    growth_history_streams: int = 10


FULL = Sizes()
QUICK = Sizes(
    seconds=0.8,
    warm_up_seconds=0.3,
    ramp_seconds=0.5,
    ramp_steps=2,
    ramp_factor=6.0,
    ramp_between=0,
    peer_share=1 / 4,
    w1_streams=200,
    w1_rate=4000,
    w2_readers=200,
    w3_readers=60,
    w3_events=400,
    w4_readers=400,
    w4_seconds=0.6,
    w5_attempts=100,
    w5_tokens=100,
    w5_http_tokens=100,
    w5_paced=100,
    w5_paced_tokens=20,
    w6_streams=50,
    w6_tokens=3200,
    w7_answers=100,
    w8_times=12,
    growth_streams=(10, 100, 1000),
    growth_rate=4000,
    growth_history=(0, 1000, 10_000),
)
