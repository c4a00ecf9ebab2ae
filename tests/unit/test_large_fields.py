"""Large fields of a request: taken out of it, and put back."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from shared.events import Accepted, Policies
from shared.large_fields import LARGE_BYTES, joined, place_in, split

PHOTO = [{"role": "user", "content": "x" * LARGE_BYTES}]
SMALL = [{"role": "user", "content": "x" * (LARGE_BYTES // 2)}]


@pytest.mark.parametrize(
    ("request_", "large"),
    [
        ({"messages": SMALL, "model": "m"}, set()),
        ({"messages": PHOTO, "model": "m", "n": 1}, {"messages"}),
        ({"messages": PHOTO, "tools": PHOTO, "response_format": PHOTO[0]}, {"messages"}),
        ({"messages": SMALL, "prediction": PHOTO[0], "x": "y" * LARGE_BYTES}, {"prediction", "x"}),
    ],
    ids=["small", "one", "largest", "two"],
)
def test_a_request_is_whole_again(request_: dict[str, Any], large: set[str]) -> None:
    small, beside = split(request_)
    assert set(beside) == large
    assert "messages" in small, "readers of the log find the field in any case"
    accepted = Accepted(small, Policies(), 1.0, "", {}, beside="kept" if beside else "").stored()
    assert place_in(accepted) == ("kept" if beside else "")
    assert len(accepted) < LARGE_BYTES or "tools" in request_
    if beside:
        whole = joined(accepted, {name.encode(): json for name, json in beside.items()})
        assert whole is not None
        assert Accepted.load(whole).request == request_
        assert place_in(whole) == ""


@pytest.mark.parametrize(
    "fields", [{}, {b"messages": b"["}, {b"\xff": b"1"}, {b"messages": b'"' + b"\xff" + b'"'}], ids=str
)
def test_fields_that_are_gone_or_damaged(fields: dict[bytes, bytes]) -> None:
    small, _ = split({"messages": PHOTO})
    assert joined(Accepted(small, Policies(), 1.0, "", {}, beside="request").stored(), fields) is None


@pytest.mark.parametrize("value", [b'"beside"', b'{"beside":1}', b'{"beside":"elsewhere"}', b'["beside"]', b"{"])
def test_what_names_no_place(value: bytes) -> None:
    assert place_in(value) == ""
    assert joined(value, {b"messages": b"[]"}) is None
    assert orjson.dumps(split({})[0]) == b"{}"
