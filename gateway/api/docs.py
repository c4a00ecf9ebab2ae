"""`GET /docs` and `GET /openapi.json`: every path of the gateway, for people and for machines. The page has no scripts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import orjson
from starlette.responses import Response

from gateway.console.files import PAGE_HEADERS
from gateway.http.connection import Scope
from gateway.http.exchange import json_response
from gateway.http.routes import OperationsOf, Route, route_for

operations = OperationsOf("gateway.api.operations")

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "table{border-collapse:collapse;margin:.2rem 0 1rem}caption{text-align:left;font-weight:600}"
    "th,td{padding:.2rem 1rem .2rem 0;vertical-align:top;text-align:left}th{font-weight:400;opacity:.7}"
    "code{font-size:.9rem}summary{cursor:pointer;padding:.2rem 0}details>div{margin:.5rem 0 1.5rem 1.2rem}"
    "summary span{opacity:.8;margin-left:1rem}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Json = dict[str, Any]


class Docs:
    """The part of the gateway that describes all of its routes: made from their table by the first request for it."""

    def __init__(self, routes: Sequence[Route], path_prefix: str) -> None:
        self.routes = (
            Route("GET", "/docs", self.page, operations.DOCS, "admin", is_page=True),
            Route("GET", "/openapi.json", self.openapi, operations.OPENAPI, "admin"),
        )
        self._described = [*routes, *self.routes]
        self._path_prefix = path_prefix
        self._made: tuple[bytes, bytes] | None = None

    async def _page_and_document(self) -> tuple[bytes, bytes]:
        if self._made is None:  # two first requests at once make it twice
            self._made = await asyncio.to_thread(self._make)
        return self._made

    def _make(self) -> tuple[bytes, bytes]:
        """Returns the page and the document. Takes 0.2 s in a thread, for which readers of streams need not wait."""
        from gateway.api.openapi import document  # imports pydantic's part for JSON Schema

        described = document(self._described, self._path_prefix)
        return page_of(described).encode(), orjson.dumps(described)

    def route(self, scope: Scope) -> Route | None:
        """The route of a request of the page or of the document; None for everything else."""
        return route_for(self.routes, scope)

    async def page(self, scope: Scope, receive: Any, send: Any) -> None:
        """`GET /docs`"""
        page, _ = await self._page_and_document()
        headers = {**PAGE_HEADERS, "content-security-policy": _POLICY}
        await Response(page, headers=headers, media_type="text/html; charset=utf-8")(scope, receive, send)

    async def openapi(self, scope: Scope, receive: Any, send: Any) -> None:
        """`GET /openapi.json`"""
        _, whole = await self._page_and_document()
        await json_response(whole)(scope, receive, send)


def page_of(described: Json) -> str:
    """The page for an OpenAPI document of `gateway.api.openapi`."""
    sections: dict[str, list[str]] = {}
    for path, item in described["paths"].items():
        for method, operation in item.items():
            sections.setdefault(operation["tags"][0], []).append(_operation(path, method, operation, described))
    tags = "".join(f"<h2>{escape(tag)}</h2>{''.join(parts)}" for tag, parts in sections.items())
    schemas = "".join(_schema(name, schema) for name, schema in described["components"]["schemas"].items())
    title = f"Midstream {escape(described['info']['version'])}: HTTP"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
        '<p>For machines: <a href="openapi.json">openapi.json</a>. In full: docs/reference/http.md of the project. '
        f"What answers GET also answers HEAD.</p>{tags}<h2>Schemas</h2>{schemas}</html>\n"
    )


def _operation(path: str, method: str, operation: Json, described: Json) -> str:
    parts = [f"<p>{_words(operation['description'])}</p>"] if "description" in operation else []
    scopes = {scope for scheme in operation["security"] for scopes in scheme.values() for scope in scopes}
    parts += [f"<p>Needs the scope <code>{escape(scope)}</code>, if authentication is on.</p>" for scope in scopes]
    rows = [
        (
            f"<code>{escape(parameter['name'])}</code>",
            parameter["in"],
            _type(parameter["schema"]),
            _words(parameter["description"]),
        )
        for parameter in operation["parameters"]
    ]
    parts.append(_table("Parameters", ("name", "in", "type", ""), rows))
    body = operation.get("requestBody")
    if body is not None:
        media_type, content = next(iter(body["content"].items()))
        needed = "" if body["required"] else ", optional"
        parts.append(f"<p>Body: {_type(content['schema'])} as <code>{media_type}</code>{needed}</p>")
    answers: list[Sequence[str]] = []
    errors: list[Sequence[str]] = []
    for status, answer in operation["responses"].items():
        answer = _resolved(answer, described)
        row = (f"<code>{status}</code>", _words(answer["description"].partition("\n")[0]), _contents(answer))
        (errors if int(status) >= 400 else answers).append(row)
    parts.append(_table("Answers", ("status", "", "body"), answers))
    parts.append(_table("Errors", ("status", "", "body"), errors))
    events = [
        (
            f"<code>{escape(event['event'])}</code>" if "event" in event else "(unnamed)",
            "yes" if event["id"] else "no",
            _type(event["data"]),
            _words(event["description"]),
        )
        for event in operation.get("x-events", ())
    ]
    parts.append(_table("Events", ("event", "id", "data", ""), events))
    name = f"<code>{method.upper()} {escape(path)}</code><span>{_words(operation['summary'])}</span>"
    return f"<details><summary>{name}</summary><div>{''.join(parts)}</div></details>"


def _schema(name: str, schema: Json) -> str:
    needed = schema.get("required", ())
    rows = [
        (
            f"<code>{escape(field)}</code>",
            _type(property_schema),
            "" if field in needed else "optional",
            _words(property_schema.get("description", "")),
        )
        for field, property_schema in schema.get("properties", {}).items()
    ]
    words = _words(schema.get("description", ""))
    table = _table("", ("field", "type", "", ""), rows)
    return f'<h3 id="{escape(name)}"><code>{escape(name)}</code></h3><p>{words}</p>{table}'


_TEXT = {"type": "string"}


def _contents(answer: Json) -> str:
    contents = [
        f"<code>{escape(media_type)}</code> {_type(content.get('schema', _TEXT))}"
        for media_type, content in answer.get("content", {}).items()
    ]
    headers = [f"header <code>{escape(name)}</code>" for name in answer.get("headers", {})]
    return "<br>".join((*contents, *headers))


def _type(schema: Json) -> str:
    """A schema in a few words; a name is a link to the table of its fields."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        values = schema.get("enum") or [schema["const"]]
        return ", ".join(f"<code>{escape(str(value))}</code>" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = [f"at least {schema['minimum']:g}"] if "minimum" in schema else []
    bounds += [f"at most {schema['maximum']:g}"] if "maximum" in schema else []
    return escape(", ".join((str(schema.get("type", "any JSON")), *bounds)))


def _table(caption: str, names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML; nothing where there are no rows."""
    lines = "".join(f"<tr>{''.join(f'<td>{cell}' for cell in row)}" for row in rows)
    if not lines:
        return ""
    head = "".join(f"<th>{name}" for name in names)
    return f"<table><caption>{caption}</caption><tr>{head}{lines}</table>"


def _words(text: str) -> str:
    """Words as HTML; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _resolved(part: Json, described: Json) -> Json:
    """An answer, which may be a reference to one of the document's components."""
    if "$ref" not in part:
        return part
    _, _, kind, name = part["$ref"].split("/")
    found: Json = described["components"][kind][name]
    return found
