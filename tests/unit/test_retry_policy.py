"""`producer.retry_policy`: the time limits of a call of the provider, and the pause before the next call."""

import pytest

from producer.provider import ProviderError, Refused, Unavailable
from producer.retry_policy import pause_before_next_call, time_limit_passed
from shared.outcomes import FailureCode
from shared.settings import Settings

SETTINGS = Settings(
    attempt_seconds=100.0,
    first_token_seconds=20.0,
    between_tokens_seconds=10.0,
    attempts_max=3,
    provider_tries_max=4,
    provider_backoff_seconds=1.0,
)


@pytest.mark.parametrize(
    ("calling_seconds", "silent_seconds", "first_token_came", "code"),
    [
        (100.0, 1.0, True, None),
        (100.1, 1.0, True, FailureCode.PROVIDER_TIMEOUT),
        (20.0, 20.0, False, None),
        (20.1, 20.1, False, FailureCode.PROVIDER_TIMEOUT),
        (50.0, 10.0, True, None),
        (50.0, 10.1, True, FailureCode.PROVIDER_STALLED),
    ],
)
def test_time_limits_of_a_call(
    calling_seconds: float, silent_seconds: float, first_token_came: bool, code: FailureCode | None
) -> None:
    error = time_limit_passed(
        SETTINGS,
        calling_seconds=calling_seconds,
        silent_seconds=silent_seconds,
        first_token_came=first_token_came,
    )
    assert (error and error.code) == code


def pause(
    error: ProviderError,
    *,
    on_interrupt: str = "restart",
    attempt: int = 1,
    tries: int = 1,
    in_mid_answer: bool = False,
) -> float | None:
    return pause_before_next_call(
        SETTINGS, error, on_interrupt=on_interrupt, attempt=attempt, tries=tries, in_mid_answer=in_mid_answer
    )


def test_the_pause_doubles_from_try_to_try() -> None:
    for tries, longest_seconds in ((1, 1.0), (2, 2.0), (3, 4.0)):
        seconds = pause(Unavailable("busy"), tries=tries)
        assert seconds is not None
        assert longest_seconds / 2 <= seconds <= longest_seconds


def test_a_pause_has_30_seconds_at_most() -> None:
    seconds = pause(Unavailable("busy"), tries=20, in_mid_answer=True)
    assert seconds is not None
    assert 15.0 <= seconds <= 30.0


@pytest.mark.parametrize(("retry_after_seconds", "pause_seconds"), [(7.0, 7.0), (120.0, 120.0), (120.1, None)])
def test_retry_after_of_up_to_two_minutes_takes_precedence(
    retry_after_seconds: float, pause_seconds: float | None
) -> None:
    assert pause(Unavailable("busy", retry_after_seconds=retry_after_seconds)) == pause_seconds


def test_no_call_follows_a_refusal() -> None:
    assert pause(Refused("no such model")) is None


def test_tries_before_the_first_token_are_limited() -> None:
    assert pause(Unavailable("busy"), tries=3, on_interrupt="fail") is not None
    assert pause(Unavailable("busy"), tries=4) is None


def test_attempts_are_limited_and_need_a_policy_that_allows_them() -> None:
    assert pause(Unavailable("gone"), in_mid_answer=True, attempt=2, on_interrupt="continue") is not None
    assert pause(Unavailable("gone"), in_mid_answer=True, attempt=3, on_interrupt="continue") is None
    assert pause(Unavailable("gone"), in_mid_answer=True, on_interrupt="fail") is None
