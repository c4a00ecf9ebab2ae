"""Declared routes: which method and path a part of the gateway answers, with which handler, and how it is described.

The same table dispatches requests and makes the OpenAPI document (`gateway.api.openapi`), so neither knows a path that the
other does not.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from gateway.http.connection import Scope
from gateway.http.operations import Operation

ASGI = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
Handler = Callable[..., Awaitable[Any]]

_PARAMETER = re.compile(r"\{(\w+)(:path)?\}")


class Route:
    """One method of one path.

    The path is a template with at most one parameter: `{name}` is one segment, maybe empty; `{name:path}` may have slashes.
    """

    __slots__ = ("_has_parameter", "_head", "_spans_segments", "_tail", "handler", "method", "operation", "path")

    def __init__(self, method: str, template: str, handler: Handler, operation: Operation) -> None:
        self.method = method
        self.handler = handler
        self.operation = operation
        self.path = _PARAMETER.sub(r"{\1}", template)
        """The template as OpenAPI writes it."""
        parameter = _PARAMETER.search(template)
        self._has_parameter = parameter is not None
        self._spans_segments = parameter is not None and parameter[2] is not None
        self._head = template if parameter is None else template[: parameter.start()]
        self._tail = "" if parameter is None else template[parameter.end() :]

    def matches(self, path: str) -> bool:
        """Returns whether a request's path matches the template."""
        if not self._has_parameter:
            return path == self.path
        if not (path.startswith(self._head) and path.endswith(self._tail)):
            return False
        return self._spans_segments or "/" not in self.argument(path)

    def argument(self, path: str) -> str:
        """Returns the value of the template's parameter in a path that matches."""
        return path[len(self._head) : len(path) - len(self._tail)]


def get_and_head(template: str, handler: Handler, operation: Operation) -> tuple[Route, Route]:
    """The two routes of a resource that also answers HEAD."""
    return Route("GET", template, handler, operation), Route("HEAD", template, handler, operation.head())


def handler_for(routes: Sequence[Route], scope: Scope) -> ASGI | None:
    """The handler of the first route that an HTTP request matches; None for everything else."""
    if scope["type"] != "http":
        return None
    method, path = scope["method"], scope["path"]
    for route in routes:
        if route.method == method and route.matches(path):
            return route.handler
    return None


class Part(Protocol):
    """An API, or a piece of one, that is dispatched before FastAPI."""

    @property
    def routes(self) -> Sequence[Route]:
        """All routes of this part; `route` finds a handler for each."""

    def route(self, scope: Scope) -> ASGI | None:
        """The handler for this request; None if it belongs to another part. A handler answers or raises Problem."""
