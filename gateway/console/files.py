"""Serves the console at `/` and the chat at `/chat`: static files, without a build step and without anything from other sites.

The files are read once, at the start. Their names never change, so browsers must revalidate them (`no-cache`, ETag).
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from starlette.responses import Response

from gateway.http.connection import Scope
from gateway.http.etags import etag_of_body, is_known
from gateway.http.routes import OperationsOf, Route, route_for
from gateway.listening import is_loopback
from shared.settings import Settings

operations = OperationsOf("gateway.console.operations")

_PAGES = {"/": "console.html", "/chat": "chat.html"}
_FILES_PATH = "/console/"
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
}
"""The pages show texts that strangers wrote: no script in them may run, nothing may be sent to another site, no site may frame them."""


class Console:
    """The routes of the console's files."""

    def __init__(self) -> None:
        folder = resources.files("gateway.console").joinpath("web")
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        paths = {**_PAGES, **{_FILES_PATH + name: name for name in files if not name.endswith(".html")}}
        self._answers = {
            path: (files[name], _MEDIA_TYPES[name.rpartition(".")[2]], etag_of_body(files[name]))
            for path, name in paths.items()
        }
        self.routes = (
            Route("GET", "/", self.file, operations.CONSOLE, "admin", is_page=True),
            Route("GET", "/chat", self.file, operations.CHAT_PAGE, "admin", is_page=True),
            Route("GET", _FILES_PATH + "{file}", self.file, operations.CONSOLE_FILE, "open"),
        )

    def route(self, scope: Scope) -> Route | None:
        """Returns the route of a request of one of these files; None for everything else."""
        return route_for(self.routes, scope) if scope["path"] in self._answers else None

    async def file(self, scope: Scope, receive: Any, send: Any) -> None:
        body, media_type, etag = self._answers[scope["path"]]
        headers = {**PAGE_HEADERS, "etag": etag.decode()}
        if is_known(scope["headers"], etag):
            response = Response(status_code=304, headers=headers)
        else:
            response = Response(body, headers=headers, media_type=media_type)
        await response(scope, receive, send)


def is_wanted(settings: Settings, *, guarded: bool) -> bool:
    """Returns whether this gateway has a console. `guarded`: it asks for a credential."""
    if settings.console != "auto":
        return settings.console == "on"
    return guarded or is_loopback(settings.host)
