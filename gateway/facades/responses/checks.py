"""What the parameters of the Responses API may be. Each raises Problem 400 that names the parameter."""

from __future__ import annotations

from typing import Any, NoReturn

import orjson

from gateway.http.problems import Problem

_SHOWN_CHARACTERS = 80


def wrong(name: str, wanted: str, got: Any) -> NoReturn:
    raise Problem(400, f"{name} must be {wanted}, not {_shown(got)}", param=name)


def unsupported(name: str, got: Any, instead: str) -> NoReturn:
    """Of what the Responses API has, and we do not."""
    raise Problem(400, f"{name} {_shown(got)} is not supported; there are {instead}", param=name, code="unsupported")


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
    """A list of objects; none said is an empty one."""
    if value is None:
        return []
    if not isinstance(value, list):
        wrong(name, "a list", value)
    for index, one in enumerate(value):
        if not isinstance(one, dict):
            wrong(f"{name}[{index}]", "an object", one)
    return value


def an_object(value: Any, name: str, known: tuple[str, ...]) -> dict[str, Any]:
    """An object that has no other keys than these; none said is an empty one. Keys whose value is null are left out."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        wrong(name, "an object", value)
    given = {key: one for key, one in value.items() if one is not None}
    for key in given:
        if key not in known:
            unsupported(f"{name}.{key}", given[key], f"{name}.{f' and {name}.'.join(known)}")
    return given


def _shown(value: Any) -> str:
    shown = orjson.dumps(value, default=str).decode()
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[: _SHOWN_CHARACTERS - 3] + "..."
