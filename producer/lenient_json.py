"""JSON as providers write it: bounded before it is parsed, and read also where it is not JSON by the letter."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson

LARGE_BYTES = 64 << 10
VALUES_MAX = 100_000
"""Values in one chunk: as Python objects they take 20 times the bytes of `[[],[],…`, and so much time that all others wait."""


def has_too_many_values(data: bytes) -> bool:
    """Returns whether this JSON may have too many values (commas and brackets inside texts count, too)."""
    return data.count(b",") + data.count(b"[") + data.count(b"{") > VALUES_MAX


def lenient(data: bytes) -> Any:
    """Returns the value of JSON with half surrogate pairs, NaN, or bytes that are no UTF-8. Raises ValueError, RecursionError."""
    text = data.decode("utf-8", "replace")
    return json.loads(text, parse_constant=lambda _: None, parse_int=_finite, parse_float=_finite)


def json_or_text(data: bytes) -> Any:
    """Returns the value of JSON; of anything else, its text."""
    if len(data) <= LARGE_BYTES or not has_too_many_values(data):
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            pass
    return data.decode("utf-8", "replace").strip()


def _finite(digits: str) -> int | float | None:
    """Returns a JSON number as Python's; None for one that would be infinite as a float."""
    if len(digits) < 20 and digits.lstrip("-").isdecimal():
        return int(digits)
    number = float(digits)
    return number if math.isfinite(number) else None
