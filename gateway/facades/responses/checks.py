"""Checks of single parameters of the Responses API. Each raises Problem 400 that names the parameter."""

from __future__ import annotations

from typing import Any, NoReturn

import orjson

from gateway.http.problems import Problem

_SHOWN_CHARACTERS = 80


def wrong(name: str, wanted: str, got: Any) -> NoReturn:
    raise Problem(400, f"{name} must be {wanted}, not {_abridged(got)}", param=name)


def unsupported(name: str, got: Any, instead: str) -> NoReturn:
    """Refuses a parameter or value that OpenAI's Responses API has and Midstream has not."""
    raise Problem(400, f"{name} {_abridged(got)} is not supported; there are {instead}", param=name, code="unsupported")


def text(value: Any, name: str) -> str:
    return value if isinstance(value, str) else wrong(name, "a text", value)


def truth(value: Any, name: str, default: bool) -> bool:
    if value is None:
        return default
    return value if isinstance(value, bool) else wrong(name, "true or false", value)


def one_of(value: Any, name: str, wanted: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in wanted:
        wrong(name, f"one of {', '.join(wanted)}", value)
    return value


def objects(value: Any, name: str) -> list[dict[str, Any]]:
    """Returns a list of objects, an empty one for None."""
    if value is None:
        return []
    if not isinstance(value, list):
        wrong(name, "a list", value)
    for index, element in enumerate(value):
        if not isinstance(element, dict):
            wrong(f"{name}[{index}]", "an object", element)
    return value


def an_object(value: Any, name: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Returns an object without its keys whose value is null, an empty one for None. It may have the `known` keys only."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        wrong(name, "an object", value)
    given = {key: given for key, given in value.items() if given is not None}
    for key in given:
        if key not in known:
            unsupported(f"{name}.{key}", given[key], f"{name}.{f' and {name}.'.join(known)}")
    return given


def _abridged(value: Any) -> str:
    shown = orjson.dumps(value, default=str).decode()
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[: _SHOWN_CHARACTERS - 3] + "..."
