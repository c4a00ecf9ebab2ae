"""`GET /docs` and `GET /openapi.json`: every path of the gateway, for people and for machines. A page without scripts."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from gateway.console.files import PAGE_HEADERS
from gateway.http.connection import Scope
from gateway.http.exchange import ASGI

_PATH = "/docs"
_OTHERS = (
    ("streams", "get", "/v1/streams/{stream_id}/events", "Follow a stream: Server-Sent Events, or lines of JSON."),
    ("streams", "get", "/v1/streams/{stream_id}/text", "The bare text, as it comes."),
    ("streams", "get", "/v1/streams/{stream_id}/ws", "Follow a stream over a WebSocket."),
    ("streams", "get", "/stream", "Ask with `?prompt=` and follow in one, for an EventSource."),
    ("OpenAI", "post", "/v1/chat/completions", "OpenAI's chat completions."),
    ("OpenAI", "get", "/v1/chat/completions/{completion_id}/events", "Go on with a chat completion."),
    ("OpenAI", "post", "/v1/responses", "OpenAI's responses."),
    ("OpenAI", "get", "/v1/responses/{response_id}", "A response as it is now, or its events."),
    ("OpenAI", "delete", "/v1/responses/{response_id}", "Cancel a response if it runs, and forget it."),
    ("OpenAI", "post", "/v1/responses/{response_id}/cancel", "Stop a response."),
    ("OpenAI", "get", "/v1/models", "The provider's models."),
    ("OpenAI", "get", "/v1/models/{model}", "One of the provider's models."),
    ("AI SDK", "post", "/api/chat", "What `useChat` asks."),
    ("AI SDK", "get", "/api/chat/{chat_id}/stream", "A chat's active stream; 204 if there is none."),
    ("AI SDK", "post", "/api/chat/{chat_id}/stop", "Stop a chat's active stream."),
    ("operations", "get", "/v1/probe", "Timed events, to see what stands between."),
    ("operations", "get", "/v1/probe/{name}", "What became of a probe that had a name."),
)
"""What is dispatched before FastAPI, which so does not know of it."""
_CONSOLE = (
    ("console", "get", "/", "The console."),
    ("console", "get", "/chat", "A chat to try."),
    ("console", "get", "/v1/overview", "What runs now."),
    ("console", "get", "/v1/overview/events", "What runs now, once a second."),
)
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "td{padding:.2rem 1rem .2rem 0;vertical-align:top}code{font-size:.9rem}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def describe_all(api: FastAPI, *, console: bool) -> dict[str, Any]:
    """The OpenAPI document of the routes of `api` and of all others, which `api` then serves."""
    described: dict[str, Any] = api.openapi()
    for tag, method, path, summary in (*_OTHERS, *(_CONSOLE if console else ())):
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", path)
        ]
        described["paths"].setdefault(path, {})[method] = {
            "tags": [tag],
            "summary": summary,
            **({"parameters": parameters} if parameters else {}),
            "responses": {"default": {"description": "docs/reference/http.md says it in full"}},
        }
    return described


class Docs:
    """A part of the gateway."""

    def __init__(self, described: dict[str, Any]) -> None:
        self._page = _page(described).encode()

    def route(self, scope: Scope) -> ASGI | None:
        """The handler for a request of this page; None for everything else."""
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] == _PATH:
            return self.page
        return None

    async def page(self, scope: Scope, receive: Any, send: Any) -> None:
        headers = {**PAGE_HEADERS, "content-security-policy": _POLICY}
        await Response(self._page, headers=headers, media_type="text/html; charset=utf-8")(scope, receive, send)


def _page(described: dict[str, Any]) -> str:
    sections: dict[str, list[str]] = {}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            summary = operation.get("description") or operation["summary"]
            row = f"<tr><td><code>{method.upper()}</code><td><code>{escape(path)}</code><td>{escape(summary)}"
            sections.setdefault(operation["tags"][0], []).append(row)
    tables = "".join(f"<h2>{escape(tag)}</h2><table>{''.join(rows)}</table>" for tag, rows in sections.items())
    title = f"Midstream {escape(described['info']['version'])}: HTTP"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
        '<p>For machines: <a href="openapi.json">openapi.json</a>. In full: docs/reference/http.md of the project.'
        f"{tables}</html>\n"
    )
