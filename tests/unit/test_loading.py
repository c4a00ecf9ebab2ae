"""Which provider a worker has: generators that can be loaded, and one sentence for those that cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from producer.generator_provider import GeneratorProvider, OwnProvider
from producer.loading import main, own_provider
from producer.named_providers import NamedProviders
from producer.provider import Finish, Refused
from shared.errors import Unusable
from shared.provider_kinds import check_for_worker, is_kind, provider_kinds
from shared.settings import Settings
from tests.support.hearing import Heard

MODULE = """
import functools

async def asynchronous(request):
    yield "a"

def threaded(request, so_far):
    yield "a"

def any_number(*arguments):
    yield "a"

@functools.wraps(asynchronous)
async def wrapped(*arguments):
    async for it in asynchronous(*arguments):
        yield it

class Called:
    async def __call__(self, request, so_far=None):
        yield "a"

class Full:
    name = "full"
    def model_of(self, request): return "full-1"
    async def generate(self, request, partial, hearer): ...
    async def close(self): ...

called, full, partly = Called(), Full(), functools.partial(threaded, so_far=None)
text = "hello"
def returns(request): return "a"
async def awaits(request): return "a"
def none(): yield
def three(a, b, c): yield
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that stands in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"generators_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    return name


@pytest.mark.parametrize(
    ("name", "continues"),
    [
        ("asynchronous", False),
        ("threaded", True),
        ("any_number", True),
        ("wrapped", False),
        ("called", True),
        ("partly", False),
    ],
)
def test_generators(module: str, name: str, continues: bool) -> None:
    provider = own_provider(f"{module}:{name}")
    assert isinstance(provider, GeneratorProvider)
    assert provider.abilities_of({}) == (continues, continues, False)
    assert provider.model_of({"model": "m"}) == "m"


def test_an_object_with_the_methods_of_a_provider(module: str) -> None:
    provider = own_provider(f"{module}:full")
    assert isinstance(provider, OwnProvider)
    assert provider.model_of({}) == "full-1"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nowhere:answer", "there is no module 'nowhere' in "),
        ("json.nowhere:answer", "there is no module 'json.nowhere' in "),
        ("{}:nothing", "has no 'nothing'"),
        ("{}:Called", "it is a class: name an object of it"),
        ("{}:text", "it is no generator"),
        ("{}:returns", "it is no generator"),
        ("{}:awaits", "it is no generator"),
        ("{}:none", "it must take one argument"),
        ("{}:three", "it must take one argument"),
    ],
)
def test_what_cannot_be_a_provider_is_refused_in_one_sentence(module: str, path: str, sentence: str) -> None:
    with pytest.raises(Unusable, match=sentence) as refused:
        own_provider(path.format(module))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("import nowhere_at_all", "raised ModuleNotFoundError: No module named 'nowhere_at_all' (line 2 of"),
        ("x = 1 / 0", "raised ZeroDivisionError: division by zero (line 2 of"),
        ("def answer(:", "raised SyntaxError: "),
        ("raise SystemExit(3)", "raised SystemExit: 3 (line 2 of"),
    ],
)
def test_a_module_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"broken_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(f"\n{source}\n")
    assert main([f"{name}:answer"]) == 1
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, {"simulated": "simulated"}),
        ({"openai_api_key": "k"}, {"openai": "openai"}),
        ({"provider": "a.b:c.d"}, {"a.b:c.d": "a.b:c.d"}),
        ({"providers": "chat=openai, agent=app:answer"}, {"chat": "openai", "agent": "app:answer"}),
    ],
)
def test_kinds(settings: dict[str, Any], kinds: dict[str, str]) -> None:
    assert provider_kinds(Settings(**settings)) == kinds


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"provider": "gpt"}, "must be openai, simulated or package.module:object"),
        ({"provider": "app:"}, "must be openai, simulated or package.module:object"),
        ({"provider": "openai"}, "needs OPENAI_API_KEY"),
        ({"providers": "chat=openai"}, "needs OPENAI_API_KEY"),
        ({"provider": "simulated", "providers": "a=simulated"}, "are both set"),
        ({"providers": "a=simulated,a=simulated"}, "names 'a' twice"),
        ({"providers": "simulated"}, "'simulated' must be NAME=PROVIDER"),
        ({"providers": "a b=simulated"}, "'a b=simulated' must be NAME=PROVIDER"),
        ({"providers": ",".join(f"p{number}=simulated" for number in range(33))}, "32 are the most"),
        ({"provider_on_cancel": "shrug"}, "must be close or drain"),
    ],
)
def test_settings_that_name_no_provider(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Unusable, match=sentence):
        check_for_worker(Settings(**settings))


def test_a_kind_is_told_from_anything_else() -> None:
    assert [is_kind(kind) for kind in ("openai", "app:answer", "a.b:c", "app", "app:answer()", "1:a", "a:b:c", "")] == [
        *[True] * 3,
        *[False] * 5,
    ]


class Echo:
    """Answers with the request that it was given."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: list[dict[str, Any]] = []

    def model_of(self, request: dict[str, Any]) -> str:
        return str(request.get("model") or f"{self.name}'s own")

    async def generate(self, request: dict[str, Any], partial: str, hearer: Any) -> Finish:
        self.requests.append(request)
        return Finish()

    async def close(self) -> None:
        """Nothing is held open."""


@pytest.mark.parametrize(
    ("request_", "name", "model"),
    [
        ({"model": "gpt-9"}, "chat", "gpt-9"),
        ({"model": "agent"}, "agent", None),
        ({"model": "gpt-9", "midstream": {"provider": "agent"}}, "agent", "gpt-9"),
        ({"model": "agent", "midstream": {"provider": "chat"}}, "chat", "agent"),
        ({}, "chat", None),
    ],
)
async def test_a_request_chooses_a_provider_by_name(request_: dict[str, Any], name: str, model: str | None) -> None:
    echoes = {name: Echo(name) for name in ("chat", "agent")}
    providers = NamedProviders(dict(echoes))
    assert providers.model_of(request_) == (model or f"{name}'s own")
    await providers.generate(request_, "", Heard())
    assert [echo.name for echo in echoes.values() if echo.requests] == [name]
    assert echoes[name].requests == [{"model": model} if model else {}]


async def test_a_provider_that_there_is_not() -> None:
    providers = NamedProviders({"chat": Echo("chat"), "agent": Echo("agent")})
    with pytest.raises(Refused, match=r"there is no provider 'x'; there are chat, agent"):
        await providers.generate({"midstream": {"provider": "x"}}, "", Heard())
