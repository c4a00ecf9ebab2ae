"""Declared routes: which method and path a part of the gateway answers, with which handler, and how it is described.

The same table dispatches requests and makes the OpenAPI document (`gateway.api.openapi`), so neither knows a path that the
other does not.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from gateway.http.connection import Scope
from gateway.http.principal import OPEN, SCOPES
from gateway.http.problems import Problem

if TYPE_CHECKING:
    from gateway.http.operations import Operation

ASGI = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
Handler = Callable[..., Awaitable[Any]]

_SHOWN_CHARACTERS = 200
_PARAMETER = re.compile(r"\{(\w+)(:path)?\}")


class OperationsOf:
    """The operations that a module describes: each attribute returns the one of this name when it is called.

    Only the OpenAPI document needs them. The module is imported when it is made: all models of pydantic together would take
    a third of a gateway's start.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Callable[[], Operation]:
        return lambda: cast("Operation", getattr(import_module(self._module), name))


class Route:
    """One method of one path.

    The path is a template with at most one parameter: `{name}` is one segment; `{name:path}` may have slashes. It is not empty.
    """

    __slots__ = (
        "_has_parameter",
        "_head",
        "_operation",
        "_spans_segments",
        "_tail",
        "handler",
        "is_page",
        "method",
        "path",
        "scope",
    )

    def __init__(
        self,
        method: str,
        template: str,
        handler: Handler,
        operation: Callable[[], Operation],
        scope: str,
        *,
        is_page: bool = False,
    ) -> None:
        """`scope` is what a principal needs to ask for it (`gateway.http.principal`), or `open`. Raises ValueError for any other.

        `is_page`: where authentication is on, a browser that is not let in is sent to the login.
        """
        if scope not in SCOPES and scope != OPEN:
            raise ValueError(f"{scope!r} is no scope")
        self.method = method
        self.handler = handler
        self._operation = operation
        self.scope = scope
        self.is_page = is_page
        self.path = _PARAMETER.sub(r"{\1}", template)
        """The template as OpenAPI writes it."""
        parameter = _PARAMETER.search(template)
        self._has_parameter = parameter is not None
        self._spans_segments = parameter is not None and parameter[2] is not None
        self._head = template if parameter is None else template[: parameter.start()]
        self._tail = "" if parameter is None else template[parameter.end() :]

    @property
    def operation(self) -> Operation:
        """The route's description. Slow at first: it imports the module of the description."""
        return self._operation()

    def matches(self, path: str) -> bool:
        """Returns whether a request's path matches the template."""
        if not self._has_parameter:
            return path == self.path
        if not (path.startswith(self._head) and path.endswith(self._tail)):
            return False
        argument = self.argument(path)
        return argument != "" and (self._spans_segments or "/" not in argument)

    def argument(self, path: str) -> str:
        """Returns the value of the template's parameter in a path that matches."""
        return path[len(self._head) : len(path) - len(self._tail)]


def methods_like(method: str) -> tuple[str, ...]:
    """The methods that a route of `method` answers: GET also HEAD, whose answer has no body (RFC 9110, section 9.3.2)."""
    return ("GET", "HEAD") if method == "GET" else (method,)


def route_for(routes: Sequence[Route], scope: Scope) -> Route | None:
    """The first route that an HTTP request matches; None for everything else."""
    if scope["type"] != "http":
        return None
    method, path = scope["method"], scope["path"]
    for route in routes:
        if method in methods_like(route.method) and route.matches(path):
            return route
    return None


def no_route(routes: Sequence[Route], scope: Scope, instead: str = "") -> Problem:
    """The answer to an HTTP request that matches none of all routes: 405 where its path has other methods, else 404.

    A 404 says which path was probably meant; else `instead`, which may be empty.
    """
    method, path = scope["method"], scope["path"]
    allowed = _methods_of(routes, path)
    if allowed and method not in allowed:
        return Problem(405, f"{method} is not possible here; {_listed(allowed)}", headers={"allow": ", ".join(allowed)})
    detail = f"there is no {method} {path[:_SHOWN_CHARACTERS]}"
    for meant in _similar(path):
        methods = _methods_of(routes, meant)
        if methods:
            return Problem(404, f"{detail}; there is {methods[0]} {meant[:_SHOWN_CHARACTERS]}")
    return Problem(404, f"{detail}; {instead}" if instead else detail)


def _methods_of(routes: Sequence[Route], path: str) -> list[str]:
    return [method for route in routes if route.matches(path) for method in methods_like(route.method)]


def _listed(methods: Sequence[str]) -> str:
    return f"{' and '.join(methods)} {'is' if len(methods) == 1 else 'are'}"


def _similar(path: str) -> Iterator[str]:
    """Paths that may have been meant: without doubled or final slashes; below /v1, where that is missing or doubled."""
    plain = "/" + "/".join(part for part in path.split("/") if part)
    for candidate in (plain, plain.removeprefix("/v1"), f"/v1{plain}"):
        if candidate != path:
            yield candidate


class Part(Protocol):
    """An API, or a piece of one, that is dispatched before FastAPI."""

    @property
    def routes(self) -> Sequence[Route]:
        """All routes of this part; `route` finds each."""

    def route(self, scope: Scope) -> Route | None:
        """The route of this request; None if it belongs to another part. Its handler answers or raises Problem."""
