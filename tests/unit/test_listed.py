"""Model, metadata and failures in the console's list, read from any bytes; and the samples of its charts."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.console.listed import failure_of, failures_of, metadata_of, model_of
from gateway.console.samples import SAMPLES_SECONDS, Samples
from shared.events import Accepted, Policies

_TEXTS = st.text(max_size=80)


@given(metadata=st.dictionaries(_TEXTS, _TEXTS, max_size=6), content=_TEXTS, cut=st.integers(0, 400))
def test_metadata_is_read_without_the_request(metadata: dict[str, str], content: str, cut: int) -> None:
    request = {"model": "m", "metadata": {"not": "this"}, "messages": [{"role": "user", "content": content}]}
    stored = Accepted(request, Policies(60.0, "restart"), 5.0, "somebody", metadata).stored()
    end = stored.index(orjson.dumps(request)) + 20
    shown = {shortened(name): shortened(text) for name, text in metadata.items()}
    assert metadata_of(stored[:end]) == metadata_of(stored) == shown
    assert metadata_of(stored[: min(cut, end - 40)]) in ({}, shown)


def shortened(text: str) -> str:
    return text if len(text) <= 64 else text[:63] + "…"


def test_a_log_of_an_earlier_version_that_begins_with_its_request() -> None:
    stored = orjson.dumps({"request": {"messages": []}, "policies": {}, "metadata": {"a": "b"}})
    assert metadata_of(stored) == {"a": "b"}
    assert metadata_of(stored[:20]) == {}


@given(st.binary(max_size=60))
def test_bytes_that_are_not_json(value: bytes) -> None:
    assert metadata_of(value) == {}
    assert model_of(value) is None
    assert set(failure_of(value)) == {"code", "status"}


@pytest.mark.parametrize(
    ("value", "failure"),
    [
        ({"code": "provider_refused", "message": "secret", "status": 404}, {"code": "provider_refused", "status": 404}),
        ({"code": 7, "status": "x"}, {"code": "", "status": None}),
        ({"code": [{}], "status": True}, {"code": "", "status": None}),
        ([], {"code": "", "status": None}),
    ],
)
def test_a_failure_does_not_have_the_provider_s_message(value: Any, failure: dict[str, Any]) -> None:
    assert failure_of(orjson.dumps(value)) == failure


def test_malformed_failures_in_heartbeats_are_ignored() -> None:
    failure = {
        "id": "0" * 36,
        "attempt": 1,
        "tokens": 2,
        "model": "m",
        "code": "log_full",
        "status": None,
        "ended_at": 5.0,
    }
    (row,) = failures_of({"failures": [failure]})
    assert (row["id"], row["tokens"], row["error"]) == ("0" * 36, 2, {"code": "log_full", "status": None})
    for name, value in [
        ("id", "x"),
        ("id", None),
        ("attempt", "1"),
        ("tokens", None),
        ("ended_at", "now"),
        ("ended_at", 1e300),
    ]:
        assert failures_of({"failures": [{**failure, name: value}, 7, None]}) == []
    assert failures_of({"failures": {"a": 1}}) == failures_of({}) == []


def snapshot(time: float) -> dict[str, Any]:
    return {
        "time": time,
        "readers": 1,
        "streams": {"running": 2, "waiting": 0, "newest": [1, 2]},
        "per_second": {"tokens_generated": 3.0, "resumes": 1.0},
        "lag": {"redis": {"p50_ms": 1.0, "p99_ms": 2.0}, "append": {"p99_ms": 5.0}},
    }


def test_samples_are_bounded_in_time_and_in_number() -> None:
    samples = Samples()
    for tick in range(4000):
        samples.add(snapshot(1000.0 + tick / 10))
    kept = samples.all()
    assert len(kept) <= 240
    assert kept[-1]["time"] - kept[0]["time"] <= SAMPLES_SECONDS
    assert kept[-1] == {
        "time": 1399.9,
        "readers": 1,
        "streams": {"running": 2, "waiting": 0},
        "per_second": {"tokens_generated": 3.0, "tokens_delivered": 0.0},
        "lag": {"redis": {"p99_ms": 2.0}},
    }
    samples.add(snapshot(500.0))  # the clock was set back
    assert [sample["time"] for sample in samples.all()] == [500.0]
