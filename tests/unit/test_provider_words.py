"""The fields besides the answer that are kept of a provider's chunks: their size is limited, and they can always be stored."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from producer.chunk_reader import ChunkReader
from producer.chunk_shapes import ABOUT_BYTES_MAX, fitting
from producer.provider_errors import own_error


def line(**chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def choice(index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"index": index, "delta": {}, "logprobs": None, "finish_reason": None, **fields}


def test_the_answer_s_own_fields_are_kept_and_its_envelope_is_not() -> None:
    reader = ChunkReader()
    about = {"id": "c", "object": "chunk", "created": 1, "model": "m-2026", "obfuscation": "x", "usage": None}
    first = line(**about, system_fingerprint="fp", prompt_filter_results=[1], choices=[])
    words = line(**about, system_fingerprint="other", choices=[choice(delta={"content": "a"})])
    end = line(**about, service_tier="flex", choices=[choice(finish_reason="stop", stop_reason=7, token_ids=None)])
    usage = line(**{**about, "usage": {"total_tokens": 3}}, citations=["u"], choices=[])
    assert reader.feed(first + words + end + usage) == ["a"]
    assert reader.about == {
        "provider": {
            "model": "m-2026",
            "system_fingerprint": "fp",
            "prompt_filter_results": [1],
            "service_tier": "flex",
            "citations": ["u"],
        },
        "choice": {"stop_reason": 7},
    }


def test_a_further_choice_keeps_the_fields_of_its_end() -> None:
    items = ChunkReader().feed(line(choices=[choice(1, finish_reason="stop", stop_reason=7)]))
    assert [orjson.loads(item) for item in items] == [
        {"delta": {}, "index": 1, "finish_reason": "stop", "stop_reason": 7}
    ]


@pytest.mark.parametrize("odd", ["a\ud83db", 2**70, float("nan"), {"deep": ["\ude00", 2**70, float("nan")]}])
def test_any_value_of_a_provider_can_be_stored(odd: Any) -> None:
    assert orjson.dumps(fitting({"odd": odd, "system_fingerprint": "fp"})).endswith(b'"fp"}')
    assert orjson.loads(orjson.dumps(own_error({"message": "m\ud83d", "odd": odd}, "m")))["message"] == "m\ufffd"


def test_only_values_that_are_too_long_are_left_out() -> None:
    large = "x" * ABOUT_BYTES_MAX
    assert fitting({"large": large, "system_fingerprint": "fp"}) == {"system_fingerprint": "fp"}
    error = own_error({"message": large, "code": "c", "large": large}, "m")
    assert (len(error["message"]), error["code"], error["type"], "large" in error) == (500, "c", None, False)
    assert own_error({"message": None}, "ours")["message"] == "ours"
