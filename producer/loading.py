"""Loads providers: those that Midstream has, and objects of the user's own, named as `package.module:object`.

`python -m producer.loading package.module:object …` only tells whether they can be loaded: exit code 1 and a sentence if not.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from producer.generator_provider import GeneratorProvider, OwnProvider
from producer.provider import Provider
from producer.simulated_provider import SimulatedProvider
from shared.errors import Unusable
from shared.provider_kinds import OPENAI, SIMULATED
from shared.settings import Settings

logger = logging.getLogger(__name__)

_METHODS = ("model_of", "generate", "close")
_SHOWN_CHARACTERS = 200


def provider_of(kind: str, settings: Settings) -> Provider:
    """Returns a provider by its kind. Raises Unusable."""
    if kind == SIMULATED:
        return SimulatedProvider()
    if kind == OPENAI:
        from producer.openai_provider import OpenAIProvider  # takes a quarter of a second: only where it is needed

        return OpenAIProvider(
            api_key=settings.openai_api_key,
            base_url=settings.openai_base_url,
            default_model=settings.default_model,
            connections_max=settings.worker_concurrency,
        )
    return own_provider(kind, threads_max=settings.worker_concurrency, texts=bool(settings.log_texts))


def own_provider(path: str, *, threads_max: int = 1, texts: bool = False) -> Provider:
    """Imports `package.module:object` and returns it as a provider. Raises Unusable with one sentence."""
    module, _, names = path.partition(":")
    found: Any = _imported(path, module)
    for name in names.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise _refusal(path, f"{getattr(found, '__name__', module)!r} has no {name!r}") from None
    if inspect.isclass(found):
        raise _refusal(path, "it is a class: name an object of it, or a generator")
    if all(callable(getattr(found, method, None)) for method in _METHODS):
        return OwnProvider(path, found, texts=texts)
    functions = found, getattr(found, "__call__", None)  # noqa: B004 (of an object that can be called)
    is_async = any(map(inspect.isasyncgenfunction, functions))
    if not is_async and not any(map(inspect.isgeneratorfunction, functions)):
        raise _refusal(
            path, "it is no generator: it must be a function that yields, or an object with the methods of a Provider"
        )
    return GeneratorProvider(
        path,
        found,
        is_async=is_async,
        takes_so_far=_takes_two(path, found),
        threads_max=threads_max,
        texts=texts,
    )


def _imported(path: str, module: str) -> Any:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last: a folder there that is called as an installed package is not taken for it
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (module == missing or module.startswith(f"{missing}.")):
            raise _refusal(
                path, f"there is no module {missing!r} in {os.getcwd()} or elsewhere on Python's path"
            ) from None
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        place = f" (line {frames[-1].lineno} of {frames[-1].filename})" if len(frames) > 1 else ""
        shown = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN_CHARACTERS]
        raise _refusal(path, f"importing {module!r} raised {shown}{place}") from None


def _takes_two(path: str, function: Any) -> bool:
    """Returns whether a generator takes a second argument, what the log has already."""
    signature = inspect.signature(function)
    for count in (2, 1):
        with contextlib.suppress(TypeError):
            signature.bind(*range(count))
            return count == 2
    raise _refusal(path, "it must take one argument, the request, or two: the request and what the log has already")


def _refusal(path: str, why: str) -> Unusable:
    return Unusable(f"the provider {path!r} cannot be used: {why}")


def main(paths: Sequence[str]) -> int:
    try:
        for path in paths:
            own_provider(path)
    except Unusable as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
