"""One rule for the pieces of tool calls, whatever numbering a provider uses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from producer.tool_calls import CALLS_MAX, ToolCalls


def piece(name: str | None = None, arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {**fields, "function": function}


def gathered(*chunks: list[dict[str, Any]], odd: list[str] | None = None) -> list[tuple[str, str, str]]:
    """(id, name, arguments) of each call, by the simplest reader: the first piece begins a call, all have an index."""
    calls: list[list[str]] = []
    gathering = ToolCalls((odd if odd is not None else []).append)
    for chunk in chunks:
        for shown in gathering.take(chunk):
            function = shown["function"]
            if shown["index"] == len(calls):
                assert shown["type"] == "function"
                calls.append([shown["id"], function["name"], function["arguments"]])
            else:
                assert "id" not in shown
                assert "name" not in function
                calls[shown["index"]][2] += function["arguments"]
    assert len(gathering) == len(calls)
    return [(call_id, name, arguments) for call_id, name, arguments in calls]


A, B = '{"x":1}', '{"y":2}'


@pytest.mark.parametrize(
    ("chunks", "calls"),
    [
        pytest.param(
            [[piece("f", "", index=0, id="a")], [piece(None, A[:3], index=0)], [piece("g", "", index=1, id="b")],
             [piece(None, B, index=1), piece(None, A[3:], index=0)]],
            [("a", "f", A), ("b", "g", B)], id="as OpenAI does"),
        pytest.param([[piece("f", A, index=5, id="a")], [piece("g", B, index=3, id="b")]], [("a", "f", A), ("b", "g", B)], id="other numbers"),
        pytest.param([[piece("f", A, index=0, id="a")], [piece("f", B, index=0, id="b")]], [("a", "f", A), ("b", "f", B)], id="one index"),
        pytest.param(
            [[piece("f", "", index=0, id="a")], [piece("g", "", index=0, id="b")], [piece("f", A, index=0, id="a")]],
            [("a", "f", A), ("b", "g", "")], id="one index, and back to the first"),
        pytest.param([[piece("f", A, id="a"), piece("g", B, id="b")]], [("a", "f", A), ("b", "g", B)], id="no index, one chunk"),
        pytest.param([[piece("f", A, id="a")], [piece("g", B, id="b")]], [("a", "f", A), ("b", "g", B)], id="no index, two chunks"),
        pytest.param(
            [[piece("f", "", id="a")], [piece("g", "", id="b")], [piece(None, A, id="a")], [piece(None, B, id="b")]],
            [("a", "f", A), ("b", "g", B)], id="no index, pieces by id"),
        pytest.param([[piece("f", "", id="a")], [piece(None, A[:3])], [piece(None, A[3:])]], [("a", "f", A)], id="no index, pieces by place"),
        pytest.param([[piece("f", "", id="a")], [piece(None, A[:3], id="b")], [piece(None, A[3:], id="c")]], [("a", "f", A)], id="no index, unstable id"),
        pytest.param([[piece("f", "", index=0, id="a")], [piece(None, A[:3], index=0, id="b")], [piece("", A[3:], index=0, id="c")]], [("a", "f", A)], id="unstable id"),
        pytest.param([[piece("f", part, index=0, id="a")] for part in (A[:2], A[2:4], A[4:])], [("a", "f", A)], id="all repeated"),
        pytest.param([[piece("f", part, index=0)] for part in (A[:2], A[2:4], A[4:])], [("", "f", A)], id="the name repeated, no id"),
        pytest.param([[piece("f", A, index=0, id="")], [piece("g", B, index=0, id="")]], [("", "f", A), ("", "g", B)], id="one index, no ids"),
        pytest.param([[piece("f", A, index=0)], [piece("f", B, index=0)]], [("", "f", A), ("", "f", B)], id="one index, one name, no ids"),
        pytest.param([[piece("f", A), piece("g", B)]], [("", "f", A), ("", "g", B)], id="nothing but places"),
        pytest.param([[piece(None, A[:3], index=0, id="a")], [piece("f", A[3:], index=0)]], [("a", "f", A)], id="the name comes late"),
        pytest.param([[{"index": 0, "id": "a"}], [piece("f", A, index=0)]], [("a", "f", A)], id="the id comes first"),
        pytest.param([[piece("f", A, index=0, id="a")], [piece("g", B, index=1, id="a")]], [("a", "f", A), ("a_1", "g", B)], id="one id"),
        pytest.param([[{"index": 0, "id": "a"}], [{"index": 1}]], [], id="nameless"),
        pytest.param([[piece("f", "", index=0, id="a")], [piece(None, "", index=0), {"index": 0}]], [("a", "f", "")], id="no arguments"),
    ],
)  # fmt: skip
def test_whose_piece_it_is(chunks: list[list[dict[str, Any]]], calls: list[tuple[str, str, str]]) -> None:
    found = gathered(*chunks)
    assert [call[1:] for call in found] == [call[1:] for call in calls]
    ids = [call_id for call_id, _, _ in found]
    assert len(set(ids)) == len(ids)
    for call_id, (wanted, _, _) in zip(ids, calls, strict=True):
        assert call_id == wanted if wanted else call_id.startswith("call_")


def test_other_fields_and_other_types_stay() -> None:
    calls = ToolCalls(lambda kind: None)
    signed = {**piece("f", A, index=0, id="a"), "extra_content": {"google": {"thought_signature": "s"}}}
    assert calls.take([signed]) == [{**signed, "type": "function"}]
    custom = {"index": 1, "id": "b", "type": "custom", "custom": {"name": "sh", "input": "l"}}
    assert calls.take([custom, {"index": 1, "custom": {"input": "s"}}]) == [
        custom,
        {"index": 1, "custom": {"input": "s"}},
    ]


def test_what_is_repaired_is_reported_and_what_is_not_is_not() -> None:
    odd: list[str] = []
    gathered([piece("f", A, index=0, id="a"), piece("g", B, index=1, id="b")], odd=odd)
    assert odd == []
    gathered([piece("f", A, index=0, id="a")], [piece("g", B, index=0)], odd=odd)
    assert odd == ["call_index", "call_id"]


def test_calls_and_ids_are_bounded() -> None:
    odd: list[str] = []
    found = gathered(*([piece("f", "{}", index=number, id=str(number))] for number in range(CALLS_MAX + 5)), odd=odd)
    assert len(found) == CALLS_MAX
    assert odd == ["tool_calls"] * 5
    calls = ToolCalls(odd.append)
    for number in range(5000):
        calls.take([piece(None if number else "f", "1", index=0, id=json.dumps(number))])
    assert len(calls._by_id) < 2000
