from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.provider import Finish, Unavailable
from producer.simulated_provider import DEFAULT_TOKENS, SimulatedProvider
from tests.support.hearing import Heard, answer_of
from tests.support.waiting import wait_until


def request_for(prompt: str = "hello", /, **parameters: Any) -> dict[str, Any]:
    simulate = {"tokens_per_second": 0, **parameters.pop("simulate", {})}
    return {"messages": [{"role": "user", "content": prompt}], "simulate": simulate, **parameters}


async def answer_to(request: dict[str, Any], partial: str = "") -> tuple[list[str], Finish]:
    items, finish = await answer_of(SimulatedProvider(), request, partial)
    return [word for word in items if isinstance(word, str)], finish


async def test_the_same_prompt_gives_the_same_answer() -> None:
    words, finish = await answer_to(request_for())
    assert (words, finish) == await answer_to(request_for())
    assert len(words) == DEFAULT_TOKENS
    assert finish == Finish("stop", {"prompt_tokens": 1, "completion_tokens": 80, "total_tokens": 81})


async def test_another_prompt_or_seed_gives_another() -> None:
    answers = [
        (await answer_to(one))[0]
        for one in (request_for(), request_for("bye"), request_for(seed=1), request_for(seed=2))
    ]
    assert len({"".join(words) for words in answers}) == 4


async def test_the_pace_does_not_change_the_answer() -> None:
    slow, _ = await answer_to(request_for(simulate={"tokens": 30, "tokens_per_second": 1000}))
    assert slow == (await answer_to(request_for(simulate={"tokens": 30})))[0]


@given(st.integers(0, 60), st.integers(0, 60))
def test_an_answer_continues_after_any_token(tokens: int, kept: int) -> None:
    async def run() -> None:
        whole, _ = await answer_to(request_for(simulate={"tokens": tokens}))
        rest, _ = await answer_to(request_for(simulate={"tokens": tokens}), "".join(whole[:kept]))
        assert whole[:kept] + rest == whole

    loop = asyncio.new_event_loop()
    loop.run_until_complete(run())
    loop.close()


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(("limit", "count", "reason"), [(3, 3, "length"), (10, 10, "stop"), (99, 10, "stop")])
async def test_a_limit_cuts_the_answer_off(name: str, limit: int, count: int, reason: str) -> None:
    parameters: dict[str, Any] = {name: limit}
    words, finish = await answer_to(request_for(simulate={"tokens": 10}, **parameters))
    assert (len(words), finish.reason) == (count, reason)


async def test_the_finish_reason_is_the_requested_one() -> None:
    _, finish = await answer_to(request_for(simulate={"tokens": 2, "finish_reason": "content_filter"}))
    assert finish.reason == "content_filter"


@pytest.mark.parametrize("count", [0, 1, 7, 70])
@pytest.mark.parametrize("pace", [0, 5000])
async def test_it_fails_after_the_requested_number_of_tokens(count: int, pace: int) -> None:
    hearer = Heard()
    simulate = {"tokens": 100, "fail_after": count, "tokens_per_second": pace}
    with pytest.raises(Unavailable):
        await SimulatedProvider().generate(request_for(simulate=simulate), "", hearer)
    assert len(hearer.items) == count


async def test_it_falls_silent_after_the_requested_number_of_tokens() -> None:
    hearer = Heard()
    request = request_for(simulate={"tokens": 100, "stall_after": 3})
    generating = asyncio.create_task(SimulatedProvider().generate(request, "", hearer))
    await wait_until(lambda: hearer.items)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(hearer.items) == 3
    assert not generating.done()
    generating.cancel()
    await asyncio.gather(generating, return_exceptions=True)
