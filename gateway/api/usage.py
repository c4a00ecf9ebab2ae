"""`GET /v1/usage`: what a principal has used on each day, by model; of all principals for who may see all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

from gateway.http.connection import Receive, Scope
from gateway.http.exchange import json_response, query_of
from gateway.http.principal import principal, require
from gateway.http.problems import Problem
from gateway.http.routes import OperationsOf, Route, route_for
from gateway.streams.streams import Streams
from shared.accounts import Accounts

operations = OperationsOf("gateway.api.operations")

_DAYS_MAX = 366
_PRINCIPAL_DAYS_MAX = 200
"""Days of principals in one answer to somebody who sees all; each has a row for each model, a hundred and one at most."""
_PRINCIPAL_CHARACTERS_MAX = 1024
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)

Row = dict[str, Any]


class UsageApi:
    """The usage that has been counted."""

    def __init__(self, streams: Streams, accounts: Accounts) -> None:
        self._streams = streams
        self._accounts = accounts
        self.routes = (Route("GET", "/v1/usage", self.usage, operations.USAGE, "read"),)

    def route(self, scope: Scope) -> Route | None:
        return route_for(self.routes, scope)

    async def usage(self, scope: Scope, receive: Receive, send: Any) -> None:
        """`GET /v1/usage`. Raises Problem 400, 403, 503."""
        query, who = query_of(scope), principal.get()
        first, last = _days_of(query)
        if who.stream_id is not None:
            raise Problem(403, "a token for one stream does not show its owner's usage")
        name = query.get("principal") or None
        if name is not None and len(name) > _PRINCIPAL_CHARACTERS_MAX:
            raise Problem(400, f"principal must have at most {_PRINCIPAL_CHARACTERS_MAX} characters")
        if "admin" not in who.scopes:
            if name not in (None, who.name):
                require("admin")
            name = who.name
        if name is None:
            rows, following = await self._of_all(first, last, query.get("after", ""))
        else:
            rows, following = await self._of_one(first, last, name), None
        body = {"from": first.isoformat(), "to": last.isoformat(), "usage": rows, "next": following}
        await json_response(body)(scope, receive, send)

    async def _of_one(self, first: date, last: date, name: str) -> list[Row]:
        days = [day.isoformat() for day in _days(first, last)]
        counted = await self._streams.answered(self._read, [(day, name) for day in days])
        return _rows(counted)

    async def _of_all(self, first: date, last: date, after: str) -> tuple[list[Row], str | None]:
        """Returns the rows of as many principals as one answer may have, and where the next answer begins; None: nowhere."""
        after_day, _, after_name = after.partition("/")
        if after:
            first = max(first, _day("after", after_day))
        pairs: list[tuple[str, str]] = []
        for day in map(date.isoformat, _days(first, last)):
            room = _PRINCIPAL_DAYS_MAX - len(pairs)
            beyond = after_name if day == after_day else ""
            names = await self._streams.answered(self._accounts.principals, day, beyond, room)
            pairs += [(day, name) for name in names]
            if len(names) == room:
                break
        rows = _rows(await self._streams.answered(self._read, pairs))
        return rows, "/".join(pairs[-1]) if len(pairs) == _PRINCIPAL_DAYS_MAX else None

    async def _read(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str, dict[str, dict[str, int]]]]:
        """Returns day, principal, and counts by model. All reads take one round trip."""
        counted = await asyncio.gather(*(self._accounts.usage(day, name) for day, name in pairs))
        return [(day, name, models) for (day, name), models in zip(pairs, counted, strict=True)]


def _rows(counted: list[tuple[str, str, dict[str, dict[str, int]]]]) -> list[Row]:
    return [
        {"day": day, "principal": name, "model": model, **counts}
        for day, name, models in counted
        for model, counts in sorted(models.items())
    ]


def _days_of(query: Mapping[str, str]) -> tuple[date, date]:
    """Returns the first and the last day that are asked for; by default this month until today (UTC). Raises Problem 400."""
    today = datetime.now(UTC).date()
    last = _day("to", query["to"]) if query.get("to") else today
    first = _day("from", query["from"]) if query.get("from") else min(last, today).replace(day=1)
    if first > last:
        raise Problem(400, f"from is after to: {first} is after {last}")
    if (last - first).days >= _DAYS_MAX:
        raise Problem(400, f"from and to are more than {_DAYS_MAX} days apart")
    return first, last


def _day(name: str, text: str) -> date:
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise Problem(400, f"{name} must be a day (UTC), as in 2026-11-28, not {text[:40]!r}")


def _days(first: date, last: date) -> list[date]:
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]
