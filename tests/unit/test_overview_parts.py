"""Parts of the overview without a running system: quantiles of the last seconds, and the frames of `midstream top`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from midstream.screen import frame, sparkline
from shared.recent_quantiles import WINDOW_SECONDS, RecentQuantiles


def histogram(*buckets: float) -> Histogram:
    return Histogram("a", "a", buckets=buckets, registry=CollectorRegistry())


def test_quantiles_cover_only_the_last_seconds() -> None:
    seen = histogram(0.001, 0.01, 0.1)
    recent = RecentQuantiles(seen)
    assert recent.current(0.0) is None
    for _ in range(100):
        seen.observe(0.05)
    quantiles = recent.current(1.0)
    assert quantiles is not None
    assert quantiles["samples"] == 100
    assert 10 < quantiles["p50_ms"] <= quantiles["p99_ms"] <= 100
    for _ in range(100):
        seen.observe(0.0005)
    quantiles = recent.current(2.0 + WINDOW_SECONDS)  # the slow ones are long ago now
    assert quantiles is not None
    assert quantiles["samples"] == 100
    assert quantiles["p99_ms"] <= 1
    assert recent.current(3.0 + 2 * WINDOW_SECONDS) is None


def test_values_beyond_all_buckets_count_as_the_last_bound() -> None:
    seen = histogram(0.001, 0.01)
    recent = RecentQuantiles(seen)
    recent.current(0.0)
    seen.observe(7.0)
    assert recent.current(1.0) == {"p50_ms": 10.0, "p99_ms": 10.0, "samples": 1}


def snapshot(streams: int, processes: int, name: str = "vm-1-abcdef") -> dict[str, Any]:
    row = {
        "id": "0" * 36,
        "status": "running",
        "age_seconds": 1.0,
        "tokens": 12345,
        "tokens_per_second": 40.2,
        "attempt": 1,
        "worker": name,
    }
    process = {
        "kind": "worker",
        "name": name,
        "running": 1,
        "capacity": 1000,
        "per_second": {"tokens_generated": 1.0},
        "cpu": 0.5,
        "memory_bytes": 5e7,
        "lag": {},
        "draining": False,
        "silent": False,
        "heard_seconds": 1.0,
    }
    return {
        "version": "0",
        "gateway": name,
        "readers": 1,
        "streams": {
            "running": streams,
            "waiting": 0,
            "oldest_waiting_seconds": 0.0,
            "newest": [{**row, "id": f"{number:036}"} for number in range(streams)],
            "ended": [],
        },
        "totals": {},
        "per_second": {},
        "lag": {},
        "redis": {"up": True, "memory_bytes": 1.0, "headroom_bytes": 1.0},
        "processes": [process] * processes,
    }


@given(
    streams=st.integers(0, 100),
    processes=st.integers(0, 40),
    columns=st.integers(20, 200),
    lines=st.integers(1, 100),
    trouble=st.sampled_from(["", "away"]),
)
def test_a_frame_fits_its_terminal(streams: int, processes: int, columns: int, lines: int, trouble: str) -> None:
    snapshot_ = snapshot(streams, processes)
    drawn = frame(snapshot_, "http://here", [1.0] * 300, columns, lines, colours=False, trouble=trouble)
    assert len(drawn) <= lines
    assert all(len(line) <= columns for line in drawn)


def test_a_large_terminal_shows_everything() -> None:
    drawn = "\n".join(frame(snapshot(30, 5), "http://here", [], 100, 200, colours=False))
    assert all(f"{number:036}"[:12] in drawn for number in range(30))
    assert drawn.count("worker vm-1") == 5
    assert "more" not in drawn


def test_control_characters_in_names_are_removed() -> None:
    drawn = frame(snapshot(2, 2, name="\x1b]0;taken\x07\n"), "http://here", [], 100, 50, colours=False)
    assert not any(character < " " for line in drawn for character in line)


@pytest.mark.parametrize(("values", "drawn"), [([], ""), ([0, 0], "▁▁"), ([0, 4, 8], "▁▄█")])
def test_sparkline(values: list[float], drawn: str) -> None:
    assert sparkline(values) == drawn
