"""`/login`: an API key with the scope `admin` is entered once, and a session cookie goes in its place; `/logout` ends that.

The page works without scripts. The cookie is `SameSite=Strict` and no script can read it; a form of another site is refused before
it comes here (`gateway.http.cors`), as any POST of another site is.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from gateway.access.admission import Admission
from gateway.access.credentials import SESSION_COOKIE
from gateway.access.given_tokens import cookie_of
from gateway.access.sessions import SESSION_SECONDS, Sessions
from gateway.console.files import PAGE_HEADERS
from gateway.http.audit import audit
from gateway.http.bodies import body_of
from gateway.http.connection import Receive, Scope
from gateway.http.principal import principal
from gateway.http.routes import OperationsOf, Route, route_for

operations = OperationsOf("gateway.console.operations")

PATH = "/login"
_FIELDS_MAX = 8
"""Of the form, which has one."""
_BODY_BYTES_MAX = 16_384
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:26rem;margin:15vh auto;padding:0 1rem;color-scheme:light dark}"
    "input,button{font:inherit;padding:.4rem .6rem}input{width:100%;box-sizing:border-box;margin:.3rem 0 .8rem}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    **PAGE_HEADERS,
    "cache-control": "no-store",
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
}
_PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    "<title>Midstream: log in</title><style>{style}</style><h1>Midstream</h1>{content}</html>\n"
)
_FORM = (
    '<form method="post" action="login"><label for="key">An API key with the scope <code>admin</code></label>'
    '<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>'
    "<button>Log in</button></form>"
)
_INSIDE = (
    '<p>Logged in as {name}. <a href="./">To the console</a></p>'
    '<form method="post" action="logout"><button>Log out</button></form>'
)


class Login:
    """The routes of the console's login, which exist where authentication is on."""

    def __init__(self, admission: Admission, sessions: Sessions, path_prefix: str) -> None:
        self._admission = admission
        self._sessions = sessions
        self._root = f"{path_prefix}/"
        self.routes = (
            Route("GET", PATH, self.page, operations.LOGIN_PAGE, "open"),
            Route("POST", PATH, self.log_in, operations.LOGIN, "open"),
            Route("POST", "/logout", self.log_out, operations.LOGOUT, "open"),
        )

    def route(self, scope: Scope) -> Route | None:
        """Returns the route of a request of these paths; None for everything else."""
        return route_for(self.routes, scope)

    async def page(self, scope: Scope, receive: Receive, send: Any) -> None:
        """`GET /login`"""
        who = principal.get()
        content = _INSIDE.format(name=escape(who.name)) if "admin" in who.scopes else _FORM
        await _page(200, content)(scope, receive, send)

    async def log_in(self, scope: Scope, receive: Receive, send: Any) -> None:
        """`POST /login`"""
        body = await body_of(Request(scope, receive), _BODY_BYTES_MAX)
        key = _key_in(body)
        who = await self._admission.principal_for(key) if key else None
        if who is None or "admin" not in who.scopes or who.stream_id is not None:
            self._admission.refusals.note("login_refused", key_of=None if who is None else who.name)
            why = "This key is not known here." if who is None else "This key lacks the scope admin."
            await _page(403, f"<p>{why}</p>{_FORM}")(scope, receive, send)
            return
        principal.set(who)
        audit("login")
        await self._go_to(self._root, self._cookie(scope, self._sessions.token(who), SESSION_SECONDS))(
            scope, receive, send
        )

    async def log_out(self, scope: Scope, receive: Receive, send: Any) -> None:
        """`POST /logout`"""
        await self._go_to(f"{self._root}login", self._cookie(scope, "", 0))(scope, receive, send)

    def _cookie(self, scope: Scope, value: str, age_seconds: int) -> bytes:
        return cookie_of(scope, SESSION_COOKIE, value, self._root, age_seconds, "Strict")

    @staticmethod
    def _go_to(path: str, cookie: bytes) -> Response:
        response = Response(status_code=303, headers={"location": path, "cache-control": "no-store"})
        response.raw_headers.append((b"set-cookie", cookie))
        return response


def _key_in(form: bytes) -> str:
    """Returns the key that was entered; an empty text if the form has none, or is another one."""
    try:
        return parse_qs(form.decode("latin-1"), max_num_fields=_FIELDS_MAX).get("key", [""])[-1].strip()
    except ValueError:
        return ""


def _page(status: int, content: str) -> Response:
    body = _PAGE.format(style=_STYLE, content=content)
    return Response(body, status, _HEADERS, media_type="text/html; charset=utf-8")


def to_login(scope: Scope, path_prefix: str) -> Response | None:
    """Returns a redirect to the login page, for a browser that navigates to a page; None for any other request."""
    accepted = any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])
    if scope.get("method") != "GET" or not accepted:
        return None
    return Response(status_code=303, headers={"location": f"{path_prefix}{PATH}", "cache-control": "no-store"})
