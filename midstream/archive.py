"""`midstream list`, `show`, `export` and `forget`: what has ended, and for whom.

`list` and `show` ask a gateway, which knows what runs, too. `export` and `forget` are an operator's: they open the archive itself.
"""

from __future__ import annotations

import asyncio
import csv
import io
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import IO, TYPE_CHECKING, Any

import orjson

from midstream.gateway_answers import get
from midstream.operator import operator
from midstream.redis_connection import connected
from shared.accounts import Accounts
from shared.archive import archive_of
from shared.archive.record import tombstone_of
from shared.archive.wanted import Wanted
from shared.errors import Unusable
from shared.event_log import EventLog
from shared.events import CANCELLED, owner_of
from shared.ids import BEGINNING
from shared.logs import audit_line
from shared.outcomes import CancelReason
from shared.receipt import DeliveryNotes
from shared.settings import Settings
from shared.unkept import Unkept
from shared.usage import Usage

if TYPE_CHECKING:
    from shared.archive.store import Archive

COLUMNS = (
    *("id", "owner", "status", "model", "api", "finish_reason", "error_code"),
    *("created_at", "started_at", "ended_at", "kept_at"),
    *("attempts", "generated_tokens", "delivered_tokens", "prompt_tokens", "completion_tokens", "stored_bytes"),
    "metadata",
)
"""What an export has of each stream: counts and times, and no text of a request or an answer."""
_PAGE_ROWS = 1000
"""Rows that are read from the archive at a time: half a megabyte, without the content."""
_LIVE_MAX = 100_000
"""Streams in Redis that `forget` looks at, each by a round trip: 20 s."""

Row = dict[str, Any]


# --- of a gateway


def list_streams(*, server: str, query: dict[str, str], count: int, as_json: bool) -> int:
    """Prints the newest streams, at most `count`. Raises Unusable."""
    after: str | None = ""
    if not as_json:
        print(f"{'ID':36}  {'CREATED (UTC)':19}  {'STATUS':9}  {'TOKENS':>7}  {'MODEL':20}  OWNER")
    while count > 0 and after is not None:
        page = get(server, "/v1/streams", {**query, "limit": str(min(count, 100)), "after": after})
        for row in page["streams"]:
            print(orjson.dumps(row).decode() if as_json else _line(row))
        count -= len(page["streams"])
        after = page["after"]
    return 0


def show(*, server: str, stream_id: str, as_json: bool) -> int:
    """Prints a stream's state and receipt. Raises Unusable."""
    state = get(server, f"/v1/streams/{stream_id}")
    receipt = get(server, f"/v1/streams/{stream_id}/receipt")
    if as_json:
        print(orjson.dumps({**state, "receipt": receipt}, option=orjson.OPT_INDENT_2).decode())
        return 0
    for name in ("id", "status", "model", "finish_reason", "metadata", "usage", "error"):
        if state[name]:
            print(
                f"{name + ':':15}{state[name] if isinstance(state[name], str) else orjson.dumps(state[name]).decode()}"
            )
    for happened, at in _timeline(state, receipt):
        print(f"  {_time_of(at)}  {happened}")
    print(f"\n{state['text']}")
    return 0


def _timeline(state: Row, receipt: Row) -> Iterable[tuple[str, float]]:
    """Yields what happened to a stream, and when, in order."""
    by = f" by {state['cancelled_by']}" if state["cancelled_by"] else ""
    happened = [("created", state["created_at"]), (f"ended: {state['status']}{by}", state["ended_at"])]
    for attempt in receipt["generated"]["attempts"]:
        happened.append(
            (f"attempt {attempt['attempt']} by {attempt['worker']}: {attempt['tokens']} tokens", attempt["started_at"])
        )
        happened.append((f"first token of attempt {attempt['attempt']}", attempt.get("first_token_at")))
    for note in receipt["delivered"]["connections"]:
        happened.append((f"a reader at {note['gateway']} from {note['from']}", note["opened_at"]))
        happened.append(
            (f"that reader left at {note['to']}: {note['outcome']}, {note['tokens']} tokens", note["closed_at"])
        )
    return sorted(((words, at) for words, at in happened if at is not None), key=lambda pair: pair[1])


def _line(row: Row) -> str:
    model = (row["model"] or "")[:20]
    return f"{row['id']}  {_time_of(row['created_at'])}  {row['status']:9}  {row['generated_tokens']:7}  {model:20}  {row['owner']}"


def _time_of(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


# --- of the archive itself


def export(*, settings: Settings, wanted: Wanted, form: str, output: str) -> int:
    """Writes all archived streams that are wanted, the newest first, to a file, or with `-` to standard output. Raises Unusable."""
    write = {"ndjson": _write_ndjson, "csv": _write_csv, "parquet": _write_parquet}[form]
    if output == "-":
        asyncio.run(_export(settings, wanted, write(sys.stdout.buffer)))
    else:
        with open(output, "wb") as file:
            asyncio.run(_export(settings, wanted, write(file)))
    return 0


Write = Callable[[Sequence[Row]], None]
"""Writes rows; none, when these were all."""


async def _export(settings: Settings, wanted: Wanted, write: Write) -> None:
    async with _opened(settings) as archive:
        async for rows in _pages(archive, wanted):
            write(rows)
        write(())


async def _pages(archive: Archive, wanted: Wanted) -> AsyncIterator[list[Row]]:
    before = wanted.before
    while True:
        page = Wanted(
            owner=wanted.owner, from_time=wanted.from_time, to_time=wanted.to_time, before=before, with_deleted=True
        )
        rows = await archive.find(page, _PAGE_ROWS)
        if not rows:
            return
        yield [{name: row[name] for name in COLUMNS} for row in rows]
        before = rows[-1]["id"]


def _write_ndjson(file: IO[bytes]) -> Write:
    return lambda rows: file.writelines(orjson.dumps(row) + b"\n" for row in rows)


def _write_csv(file: IO[bytes]) -> Write:
    text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
    lines = csv.writer(text)
    lines.writerow(COLUMNS)

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            lines.writerow([_cell(row[name]) for name in COLUMNS])
        text.flush()

    return write


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return orjson.dumps(value).decode()
    # A spreadsheet would take such a text for a formula.
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _write_parquet(file: IO[bytes]) -> Write:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Unusable("--format parquet needs a package that is missing: pip install 'midstream[parquet]'") from None
    whole = ("attempts", "generated_tokens", "delivered_tokens", "prompt_tokens", "completion_tokens", "stored_bytes")
    kinds = {name: pyarrow.int64() for name in whole} | {"metadata": pyarrow.string()}
    kinds |= {name: pyarrow.float64() for name in COLUMNS if name.endswith("_at")}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
    writer = pyarrow.parquet.ParquetWriter(file, schema)

    def write(rows: Sequence[Row]) -> None:
        if not rows:
            writer.close()
            return
        columns = {name: [row[name] for row in rows] for name in COLUMNS}
        columns["metadata"] = [orjson.dumps(row["metadata"]).decode() for row in rows]
        writer.write_table(pyarrow.table(columns, schema=schema))

    return write


def forget(*, settings: Settings, owner: str) -> int:
    """Removes everything of an owner, running or ended, in Redis and in the archive. Raises Unusable, ArchiveAway."""
    archived, live = asyncio.run(_forget(settings, owner))
    audit_line("forgotten", **operator(), owner=owner, archived_streams=archived, streams_in_redis=live)
    print(f"forgotten: {archived} archived streams, {live} in Redis")
    return 0


async def _forget(settings: Settings, owner: str) -> tuple[int, int]:
    """Returns how many streams the archive had, and Redis. What is counted stays, without the owner's name."""
    async with _opened(settings) as archive, connected(settings, name="forget") as connection:
        log = EventLog(
            connection,
            log_ttl_seconds=settings.log_ttl_seconds,
            ended_ttl_seconds=settings.ended_ttl_seconds,
            tombstone_ttl_seconds=settings.tombstone_ttl_seconds,
        )
        unkept = Unkept(
            connection, log_ttl_seconds=settings.log_ttl_seconds, ended_ttl_seconds=settings.ended_ttl_seconds
        )
        usage = Usage(Accounts(connection, settings), log, DeliveryNotes(connection), settings)
        if await unkept.count() > _LIVE_MAX:
            raise Unusable(
                f"more than {_LIVE_MAX} streams run or wait for the archive: nothing was removed, try again later"
            )
        live = 0
        for stream_id in await unkept.newest(_LIVE_MAX):
            first = await log.read(stream_id, BEGINNING, 1)
            if first and owner_of(first[0].value) == owner:
                cancelled = orjson.dumps({"by": CancelReason.OPERATOR, "time": time.time()})
                await log.end(stream_id, CANCELLED, cancelled)
                ended = await usage.count_now(stream_id, closed=True)
                await archive.erase({**tombstone_of(ended), "owner": ""})
                live += await log.delete(stream_id)
        async for rows in _pages(archive, Wanted(owner=owner)):
            await asyncio.gather(*(log.delete(row["id"]) for row in rows))  # also one that was brought back
        archived = await archive.forget(owner)
        return archived, live


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Archive]:
    archive = archive_of(settings)
    if archive is None:
        raise Unusable("there is no archive: set MIDSTREAM_ARCHIVE_URL as the gateways have it")
    try:
        yield archive
    finally:
        await archive.close()
