"""`GET /v1/streams`: whoever asks finds their own streams, an administrator everybody's."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from starlette.responses import Response

from gateway.http.exchange import json_response
from gateway.http.principal import principal
from gateway.http.problems import Problem, archive_in_time, no_log
from shared.archive.record import LISTED_STATUSES
from shared.archive.wanted import Wanted
from shared.errors import Disconnected, RedisRefused
from shared.ids import is_stream_id

_LIMIT, _LIMIT_MAX = 20, 100
_METADATA = "metadata."
_NAMES = ("status", "model", "from", "to", "limit", "after", "owner")


def wanted_of(query: dict[str, str]) -> tuple[Wanted, int]:
    """Returns which streams a query asks for, and how many at most. Raises Problem 400, 403."""
    for name in query:
        if name not in _NAMES and not (name.startswith(_METADATA) and name != _METADATA):
            raise Problem(
                400, f"{name[:64]!r} is no parameter of this list; there are {', '.join(_NAMES)}, metadata.KEY"
            )
    status, after, limit = query.get("status", ""), query.get("after", ""), query.get("limit", str(_LIMIT))
    if status and status not in LISTED_STATUSES:
        raise Problem(400, f"status must be one of {', '.join(LISTED_STATUSES)}, not {status[:64]!r}")
    if after and not is_stream_id(after):
        raise Problem(400, f"after must be the id of a stream, as `after` of the page before, not {after[:64]!r}")
    # The length first: int() of a very long text is slow, and refused.
    if len(limit) > 9 or not (limit.isascii() and limit.isdecimal() and 1 <= int(limit) <= _LIMIT_MAX):
        raise Problem(400, f"limit must be a whole number from 1 to {_LIMIT_MAX}, not {limit[:64]!r}")
    metadata = {name.removeprefix(_METADATA): value for name, value in query.items() if name.startswith(_METADATA)}
    wanted = Wanted(
        owner=_owner(query.get("owner")),
        status=status,
        model=query.get("model", ""),
        metadata=metadata,
        from_time=_time("from", query.get("from")),
        to_time=_time("to", query.get("to")),
        before=after,
    )
    return wanted, int(limit)


def _owner(named: str | None) -> str | None:
    """Returns whose streams are listed, where the request names that owner; None for everybody's, which only an administrator may ask for."""
    who = principal.get()
    if who.stream_id is not None:
        raise Problem(403, "this token is for one stream; the list needs a key of your own")
    if "admin" in who.scopes:
        return named
    if named is not None and named != who.name:
        raise Problem(403, "only an administrator may list the streams of another owner")
    return who.name


def _time(name: str, value: str | None) -> float | None:
    """Returns a time as Unix seconds. Raises Problem 400."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            parsed = datetime.fromisoformat(value)
            seconds = parsed.timestamp() if parsed.tzinfo else math.nan
        except ValueError:
            seconds = math.nan
    if not math.isfinite(seconds):
        raise Problem(
            400, f"{name} must be Unix seconds, or a time with its zone as in 2026-11-28T00:00:00Z, not {value[:64]!r}"
        )
    return seconds


async def listed(finding: Any, query: dict[str, str], events_url: str) -> Response:
    """Returns a page of the list. Raises Problem 400, 403, 404, 503."""
    if finding is None:
        raise Problem(404, "there is no archive, and so no list of streams: MIDSTREAM_ARCHIVE_URL sets one up")
    wanted, limit = wanted_of(query)
    try:
        with archive_in_time():
            page = await finding.page(wanted, limit)
    except (Disconnected, RedisRefused) as error:
        raise no_log(error) from None
    streams = [{**row, "events_url": events_url.format(row["id"])} for row in page.rows]
    return json_response({"streams": streams, "after": page.after})
