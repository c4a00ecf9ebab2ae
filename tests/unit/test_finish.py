"""The tables of `producer.finish`: what a finish_reason means, and when an answer is whole."""

from __future__ import annotations

import pytest

from producer.finish import FinishReason, end_of, finish_reason_of, later_of


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", "stop"), ("STOP", "stop"), ("eos", "stop"), ("eos_token", "stop"), ("end_turn", "stop"), ("stop_sequence", "stop"),
        ("COMPLETE", "stop"), ("FinishReason.STOP", "stop"), ("FINISH_REASON_STOP", "stop"), ("1", "stop"), ("of tomorrow", "stop"),
        ("length", "length"), ("max_tokens", "length"), ("MAX_TOKENS", "length"), ("max-tokens", "length"), ("model_length", "length"),
        ("tool_calls", "tool_calls"), ("tool_use", "tool_calls"), ("function_call", "tool_calls"),
        ("content_filter", "content_filter"), ("SAFETY", "content_filter"), ("refusal", "content_filter"), ("sensitive", "content_filter"),
        ("error", "error"), ("network_error", "error"), ("abort", "error"), ("MALFORMED_FUNCTION_CALL", "error"),
        ("", None), ("null", None), ("None", None), (" null ", None), ("FINISH_REASON_UNSPECIFIED", None),
    ],
)  # fmt: skip
def test_what_a_word_means(word: str, reason: str | None) -> None:
    assert finish_reason_of(word) == reason


STOP, LENGTH, CALLS = FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS


@pytest.mark.parametrize(
    ("reason", "has_calls", "is_done", "has_content", "end"),
    [
        (STOP, False, False, False, STOP),
        (STOP, True, False, True, CALLS),
        (LENGTH, True, True, True, LENGTH),
        (None, False, True, True, STOP),
        (None, True, True, True, CALLS),
        (None, False, True, False, None),
        (None, True, False, True, None),
    ],
)
def test_when_an_answer_is_whole(
    reason: FinishReason | None, has_calls: bool, is_done: bool, has_content: bool, end: FinishReason | None
) -> None:
    assert end_of(reason, has_calls=has_calls, is_done=is_done, has_content=has_content) == end


def test_a_stop_does_not_replace_another_reason() -> None:
    assert later_of(None, STOP) == later_of(STOP, STOP) == STOP
    assert later_of(CALLS, STOP) == later_of(STOP, CALLS) == CALLS
    assert later_of(STOP, LENGTH) == LENGTH
