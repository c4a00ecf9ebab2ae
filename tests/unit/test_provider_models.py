"""Which model answers a request that names none."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.http.problems import Problem
from gateway.provider_models import ProviderModels
from shared.settings import Settings

LOCAL = Settings(openai_base_url="http://127.0.0.1:1/v1")


def models(settings: Settings, *lists: list[Any] | Problem) -> ProviderModels:
    """Each list is the provider's answer to one request; the last one also to all others."""
    made, answers = ProviderModels(settings), list(lists)

    async def listed() -> dict[str, Any]:
        assert answers, "the provider is asked, though it need not be"
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Problem):
            raise answer
        return {"object": "list", "data": [{"id": name} if isinstance(name, str) else name for name in answer]}

    made.listed = listed  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize(
    ("settings", "lists", "chosen"),
    [
        (Settings(), [], "gpt-4o-mini"),
        (Settings(default_model="mine"), [], "mine"),
        (Settings(openai_api_key="k"), [], "gpt-4o-mini"),
        (Settings(openai_base_url=LOCAL.openai_base_url, default_model="mine"), [], "mine"),
        (LOCAL, [["smollm2:135m", "qwen3"]], "smollm2:135m"),
        (LOCAL, [["nomic-embed-text", "whisper-1", "qwen3"]], "qwen3"),
        (LOCAL, [["llama", "gpt-4o-mini"]], "gpt-4o-mini"),
        (LOCAL, [["text-embedding-3"]], "text-embedding-3"),
        (LOCAL, [[None, {"name": "x"}, {"id": 7}, "qwen3"]], "qwen3"),
    ],
)
async def test_the_default_model_is_one_that_exists(settings: Settings, lists: list[Any], chosen: str) -> None:
    assert await models(settings, *lists).default_for({}) == chosen


async def test_what_was_chosen_stays_while_the_provider_has_it() -> None:
    asked = models(LOCAL, ["a", "b"], ["new", "a"], ["new"])
    assert [await asked.default() for _ in range(3)] == ["a", "a", "new"]


async def test_nobody_is_asked_where_the_request_names_a_model() -> None:
    assert await models(LOCAL).default_for({"model": "m"}) == ""


@pytest.mark.parametrize("answer", [[], Problem(502, "the provider could not be asked: refused")])
async def test_without_any_model_the_usual_one_is_asked_for_so_that_the_stream_shows_why(answer: Any) -> None:
    assert await models(LOCAL, answer).default() == "gpt-4o-mini"


async def test_while_the_provider_is_away_the_choice_stays() -> None:
    asked = models(LOCAL, ["a"], Problem(502, "away"))
    assert [await asked.default() for _ in range(2)] == ["a", "a"]
