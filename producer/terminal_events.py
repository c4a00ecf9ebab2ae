"""The values of the terminal events that a worker writes."""

from __future__ import annotations

import time
from typing import Any

import orjson

from producer.chunk_shapes import storable
from producer.provider import Finish
from shared.outcomes import CancelReason, FailureCode


def done(finish: Finish, first_token_at: float | None = None) -> bytes:
    """`first_token_at`, here and below: when the attempt's first token came (Unix seconds), if one did."""
    times = {"first_token_at": first_token_at, "time": time.time()}
    return _encoded({"finish_reason": finish.reason, "usage": finish.usage, **finish.about, **times})


def failed(code: FailureCode, message: str, *, retryable: bool, **more: Any) -> bytes:
    """`more`: what the provider said of its error (`ProviderError.about`)."""
    return _encoded(
        {"code": code.value, "message": message, "retryable": retryable, **more, "time": time.time()},
    )


def cancelled(by: CancelReason, first_token_at: float | None = None) -> bytes:
    return _encoded({"by": by.value, "first_token_at": first_token_at, "time": time.time()})


def _encoded(value: dict[str, Any]) -> bytes:
    """Returns the JSON of a value. It never fails: what cannot be stored becomes null."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(storable(value, lambda: None))
