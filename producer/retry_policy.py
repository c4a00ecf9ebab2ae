"""When a run gives up a call of the provider, and how long it waits before the next one. No I/O."""

from __future__ import annotations

import random

from producer.provider import ProviderError, Unavailable
from shared.outcomes import FailureCode
from shared.settings import Settings

_BACKOFF_SECONDS_MAX = 30.0
_RETRY_AFTER_SECONDS_MAX = 120.0
"""A provider that asks to wait for longer counts as unavailable: the stream fails."""


def time_limit_passed(
    settings: Settings, *, calling_seconds: float, silent_seconds: float, first_token_came: bool
) -> Unavailable | None:
    """Returns the error of a call that takes too long; None while it is within its time limits.

    `calling_seconds`: since the call began. `silent_seconds`: since the last token, or since the call began.
    """
    if calling_seconds > settings.attempt_seconds:
        message = f"the answer was not complete within {settings.attempt_seconds:g} s"
        return Unavailable(message, code=FailureCode.PROVIDER_TIMEOUT)
    if not first_token_came and silent_seconds > settings.first_token_seconds:
        message = f"no token came within {settings.first_token_seconds:g} s"
        return Unavailable(message, code=FailureCode.PROVIDER_TIMEOUT)
    if first_token_came and silent_seconds > settings.between_tokens_seconds:
        message = f"the provider fell silent for {settings.between_tokens_seconds:g} s in mid-answer"
        return Unavailable(message, code=FailureCode.PROVIDER_STALLED)
    return None


def pause_before_next_call(
    settings: Settings, error: ProviderError, *, on_interrupt: str, attempt: int, tries: int, in_mid_answer: bool
) -> float | None:
    """Returns the seconds to wait before the provider is called again; None if it is not to be called again.

    `tries`: the calls since the attempt began. In mid-answer another call is another attempt, which the stream's policy
    `on_interrupt` must allow.
    """
    if not error.retryable:
        return None
    if in_mid_answer and (on_interrupt == "fail" or attempt >= settings.attempts_max):
        return None
    if not in_mid_answer and tries >= settings.provider_tries_max:
        return None
    if error.retry_after_seconds is not None:
        return error.retry_after_seconds if error.retry_after_seconds <= _RETRY_AFTER_SECONDS_MAX else None
    backoff_seconds: float = settings.provider_backoff_seconds * 2 ** (tries - 1)
    return min(_BACKOFF_SECONDS_MAX, backoff_seconds) * random.uniform(0.5, 1.0)
