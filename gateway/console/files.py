"""The console at `/`, and the chat at `/chat`: pages that are files, with nothing built and nothing from elsewhere.

They are read once, at the start. Their names never change, so each is compared (`no-cache`, ETag) before it is shown again.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from starlette.responses import Response

from gateway.console import operations
from gateway.http.connection import Scope
from gateway.http.etags import etag_of_body, is_known
from gateway.http.hosts import is_loopback
from gateway.http.routes import ASGI, get_and_head, handler_for
from shared.settings import Settings

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
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
"""What a page shows was written by strangers: nothing in it may run, be sent elsewhere, or be framed."""


class Console:
    """A part of the gateway."""

    def __init__(self) -> None:
        files = {one.name: one.read_bytes() for one in resources.files("gateway.console").joinpath("web").iterdir()}
        paths = {**_PAGES, **{_FILES_PATH + name: name for name in files if not name.endswith(".html")}}
        self._answers = {
            path: (files[name], _MEDIA_TYPES[name.rpartition(".")[2]], etag_of_body(files[name]))
            for path, name in paths.items()
        }
        self.routes = (
            *get_and_head("/", self.file, operations.CONSOLE),
            *get_and_head("/chat", self.file, operations.CHAT_PAGE),
            *get_and_head(_FILES_PATH + "{file}", self.file, operations.CONSOLE_FILE),
        )

    def route(self, scope: Scope) -> ASGI | None:
        """The handler for a request of one of these files; None for everything else."""
        return handler_for(self.routes, scope) if scope["path"] in self._answers else None

    async def file(self, scope: Scope, receive: Any, send: Any) -> None:
        body, media_type, etag = self._answers[scope["path"]]
        headers = {**PAGE_HEADERS, "etag": etag.decode()}
        if is_known(scope["headers"], etag):
            response = Response(status_code=304, headers=headers)
        else:
            response = Response(body, headers=headers, media_type=media_type)
        await response(scope, receive, send)


def is_wanted(settings: Settings) -> bool:
    """Whether this gateway has a console."""
    if settings.console != "auto":
        return settings.console == "on"
    return is_loopback(settings.host)
