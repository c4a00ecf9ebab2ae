"""The archive's database, SQLite or PostgreSQL. Every method raises ArchiveAway, at the latest after MIDSTREAM_ARCHIVE_SECONDS.

A stream has one row, whose key is its id. So it may be archived by several processes, and again: the first writes the row, later
ones only what its receipt says. A row that is deleted stays, without its content, and is never filled again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, and_, cast, event, exists, func, literal_column, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from shared.archive.pieces import Pieces, unpacked_entries
from shared.archive.record import ERASED, Record, Row, plain_text
from shared.archive.schema import streams
from shared.archive.wanted import Wanted
from shared.errors import ArchiveAway, Unusable
from shared.events import Entry
from shared.outcomes import Status
from shared.settings import Settings

logger = logging.getLogger(__name__)

_CONNECTIONS_MAX = 3
"""Of each process: one that writes, two that read. A hundred processes stay below what PostgreSQL allows by hundreds."""
_UPGRADE_LOCK = 0x6D6964  # any number that no other program takes
_COLUMNS = [column for column in streams.c if column.name not in ("entries", "request", "receipt", "notes")]
"""The columns of a list: all but a stream's content."""
_COUNTED_LATER = ("delivered_tokens", "prompt_tokens", "completion_tokens")
_LATER = (*_COUNTED_LATER, "receipt", "notes")
"""The columns that may change after a stream was archived: who has read it, and a usage that came late."""
_REFUSED_CLASSES = ("22", "23", "54")
"""SQLSTATE: data exception, integrity constraint violation, program limit exceeded (PostgreSQL, appendix A)."""
_PRUNED_AT_ONCE = 500
"""Rows that are removed in one transaction."""


@dataclass(frozen=True, slots=True)
class Archived:
    """A stream read from the archive: its entries, and the hashes that lay beside its log in Redis."""

    row: Row
    entries: list[Entry]
    notes: dict[bytes, bytes]
    beside: dict[bytes, bytes]


class Archive:
    """One database. `open` may be called at any time; every method opens it if need be."""

    def __init__(self, settings: Settings) -> None:
        self._url = _url_of(settings.archive_url)
        self._pieces = Pieces(settings.archive_key)
        self._seconds = settings.archive_seconds
        self._engine: AsyncEngine | None = None
        self._opening = asyncio.Lock()
        # As text, and with values in its order: what SQLAlchemy does for each row would cost more than all the rest.
        keeping = self._keep_statement().compile(dialect=self._url.get_dialect()())
        self._keeping, self._kept_columns = str(keeping), tuple(keeping.positiontup or ())
        self._is_open = False

    @property
    def address(self) -> str:
        """The database's URL without a password, for log lines."""
        return str(self._url.render_as_string(hide_password=True))

    async def open(self) -> None:
        """Connects, and brings the database to this version's schema."""
        async with self._answering(), self._opening:
            if self._is_open:
                return
            if self._engine is None:
                self._engine = _engine_of(self._url, self._seconds)
            async with self._engine.connect() as connection:
                await connection.run_sync(_upgrade)
                await connection.commit()
            self._is_open = True

    async def close(self) -> None:
        if self._engine is not None:
            try:
                async with asyncio.timeout(self._seconds):
                    await self._engine.dispose()
            except (TimeoutError, SQLAlchemyError, OSError) as error:
                logger.debug("the archive's connections were not closed: %s", error)

    async def ping(self) -> None:
        """Returns when the database has answered."""
        async with self._connection() as connection:
            await connection.execute(text("SELECT 1"))

    # --- writing

    async def keep(self, records: Sequence[Record]) -> list[str]:
        """Stores records in one transaction; returns the ids of those that the database refuses to store for what they say."""
        rows = await asyncio.to_thread(self._rows_of, records)
        try:
            async with self._connection(writing=True) as connection:
                await connection.exec_driver_sql(self._keeping, rows)
        except _Refused as refused:
            if len(records) == 1:
                logger.error("stream %s: the archive refuses it: %s", records[0].stream_id, refused)
                return [records[0].stream_id]
            return [stream_id for record in records for stream_id in await self.keep([record])]
        return []

    def _rows_of(self, records: Sequence[Record]) -> list[tuple[Any, ...]]:
        """Returns the values of `_kept_columns` of each record, in one order, or two writers would lock each other."""
        rows = []
        for record in sorted(records, key=lambda record: record.stream_id):
            entries = self._pieces.closed(record.stream_id, "entries", record.entries)
            request = self._pieces.closed(record.stream_id, "request", record.beside) if record.beside else None
            stored = {"entries": entries, "request": request, "stored_bytes": len(entries) + len(request or b"")}
            row = {**record.columns, **stored, "metadata": orjson.dumps(record.columns["metadata"]).decode()}
            rows.append(tuple([row[name] for name in self._kept_columns]))
        return rows

    async def erase(self, row: Row) -> None:
        """Removes a stream's content; what is counted stays. `row`: what is to be stored of it (`tombstone_of`).

        May be repeated: then more that was delivered counts, and less does not.
        """
        async with self._connection(writing=True) as connection:
            insert = self._insert().values(row)
            counted = {name: insert.excluded[name] for name in _COUNTED_LATER}
            has_more = insert.excluded.delivered_tokens > streams.c.delivered_tokens
            where = or_(streams.c.status != str(Status.DELETED), has_more)
            await connection.execute(
                insert.on_conflict_do_update(index_elements=["id"], set_={**counted, **ERASED}, where=where)
            )

    async def forget(self, owner: str) -> int:
        """Removes the content of all streams of an owner, and the owner's name. Returns how many there were."""
        async with self._connection(writing=True) as connection:
            result = await connection.execute(
                update(streams).where(streams.c.owner == plain_text(owner)).values({**ERASED, "owner": ""})
            )
            return int(result.rowcount)

    async def prune(self, *, days: int, bytes_max: int) -> int:
        """Removes the content of what has expired, and the oldest streams: those created more than so many days ago, and those above that size in all.

        0 is no limit. Returns how many rows it removed, at most `_PRUNED_AT_ONCE`: then there may be more.
        """
        async with self._connection(writing=True) as connection:
            expired = update(streams).where(streams.c.expires_at <= time.time())
            await connection.execute(expired.values(ERASED))
            oldest = select(streams.c.id, streams.c.created_at, streams.c.stored_bytes).order_by(streams.c.id)
            rows = (await connection.execute(oldest.limit(_PRUNED_AT_ONCE))).all()
            stored_bytes = (await connection.execute(select(func.sum(streams.c.stored_bytes)))).scalar() or 0
            too_old = time.time() - days * 86_400 if days else 0.0
            gone = []
            for stream_id, created_at, size_bytes in rows:
                if created_at >= too_old and not (bytes_max and stored_bytes > bytes_max):
                    break
                gone.append(stream_id)
                stored_bytes -= size_bytes
            if gone:
                await connection.execute(streams.delete().where(streams.c.id.in_(gone)))
            return len(gone)

    # --- reading

    async def read(self, stream_id: str) -> Archived | None:
        """Returns a stream; None if it is not there, or deleted."""
        async with self._connection() as connection:
            wanted = and_(streams.c.id == stream_id, _has_content())
            found = (await connection.execute(select(streams).where(wanted))).mappings().first()
        if found is None:
            return None
        return await asyncio.to_thread(self._archived, dict(found))

    def _archived(self, row: Row) -> Archived:
        stream_id = row["id"]
        try:
            entries = unpacked_entries(self._pieces.opened(stream_id, "entries", row["entries"]))
            beside = b"" if row["request"] is None else self._pieces.opened(stream_id, "request", row["request"])
            notes = {name.encode(): value.encode() for name, value in orjson.loads(row["notes"] or "{}").items()}
            fields = {entry.field: entry.value for entry in unpacked_entries(beside)}
        except (ValueError, AttributeError) as error:
            raise ArchiveAway(f"the archive's row of stream {stream_id} is damaged: {error}") from None
        return Archived(row, entries, notes, fields)

    async def has(self, stream_id: str) -> bool:
        """Returns whether there is a row, also of a deleted stream."""
        async with self._connection() as connection:
            found = await connection.execute(select(streams.c.id).where(streams.c.id == stream_id))
            return found.first() is not None

    async def owner_of(self, stream_id: str) -> str | None:
        """Returns who owns a stream that is there and not deleted."""
        async with self._connection() as connection:
            wanted = and_(streams.c.id == stream_id, _has_content())
            return (await connection.execute(select(streams.c.owner).where(wanted))).scalar()

    async def named(self, name_digest: str) -> str | None:
        """Returns the newest written stream of a name that is there and not deleted."""
        async with self._connection() as connection:
            wanted = and_(streams.c.name_digest == name_digest, _has_content())
            newest = select(streams.c.id).where(wanted).order_by(streams.c.id.desc()).limit(1)
            return (await connection.execute(newest)).scalar()

    async def find(self, wanted: Wanted, count: int) -> list[Row]:
        """Returns the newest streams that are wanted, at most `count`, the newest first, without their content."""
        conditions = [] if wanted.with_deleted else [_has_content()]
        if wanted.owner is not None:
            conditions.append(streams.c.owner == plain_text(wanted.owner))
        if wanted.status:
            conditions.append(streams.c.status == wanted.status)
        if wanted.model:
            conditions.append(streams.c.model == plain_text(wanted.model))
        if wanted.from_time is not None:
            conditions.append(streams.c.created_at >= wanted.from_time)
        if wanted.to_time is not None:
            conditions.append(streams.c.created_at < wanted.to_time)
        if wanted.before:
            conditions.append(streams.c.id < wanted.before)
        for key, value in wanted.metadata.items():
            conditions.append(self._has_metadata(plain_text(key), plain_text(value)))
        query = select(*_COLUMNS).where(*conditions).order_by(streams.c.id.desc()).limit(count)
        async with self._connection() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    # --- helpers

    def _has_metadata(self, key: str, value: str) -> Any:
        """Returns the condition that a field of the metadata has a value. A path of JSON could not name every key."""
        if self._url.get_backend_name() == "postgresql":
            return streams.c.metadata.op("@>")(cast({key: value}, JSONB))
        fields = func.json_each(streams.c.metadata).table_valued("key", "value")
        return exists(select(1).select_from(fields).where(fields.c.key == key, fields.c.value == value))

    def _keep_statement(self) -> Any:
        insert = self._insert()
        later = {name: insert.excluded[name] for name in _LATER}
        is_not_deleted = streams.c.status != literal_column(f"'{Status.DELETED}'")
        return insert.on_conflict_do_update(index_elements=["id"], set_=later, where=is_not_deleted)

    def _insert(self) -> Any:
        return (postgresql if self._url.get_backend_name() == "postgresql" else sqlite).insert(streams)

    @asynccontextmanager
    async def _connection(self, *, writing: bool = False) -> AsyncIterator[AsyncConnection]:
        """Gives a connection, in a transaction that is committed if all goes well."""
        if not self._is_open:
            await self.open()
        assert self._engine is not None
        async with self._answering(), self._engine.begin() if writing else self._engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """Raises ArchiveAway when the time is up, and for what the database or its driver raises."""
        try:
            async with asyncio.timeout(self._seconds):
                yield
        except TimeoutError:
            raise ArchiveAway(f"the archive has not answered within {self._seconds:g} s") from None
        except DBAPIError as error:
            raise (_Refused if _refuses_the_values(error) else ArchiveAway)(_words_of(error)) from None
        except (SQLAlchemyError, OSError, EOFError) as error:
            raise ArchiveAway(_words_of(error)) from None


def _has_content() -> Any:
    """Returns the condition that a stream is not deleted, and has not expired."""
    return and_(streams.c.entries.is_not(None), or_(streams.c.expires_at.is_(None), streams.c.expires_at > time.time()))


class _Refused(ArchiveAway):
    """The database answers, and refuses these values."""


def _refuses_the_values(error: DBAPIError) -> bool:
    """Returns whether the database refuses what a statement stores; else it is away, full, read-only, or lacks a permission."""
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    return isinstance(error, DataError | IntegrityError) or sqlstate[:2] in _REFUSED_CLASSES


def _words_of(error: BaseException) -> str:
    """Returns the first line of an error: without the statement, whose parameters are private."""
    words = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    return f"the archive cannot be used: {words or type(error).__name__}"[:300]


def _url_of(configured: str) -> Any:
    """Returns the URL with the driver that is used for it. Raises Unusable."""
    wanted = "must be sqlite:///path/to/file or postgresql://user:password@host/name"
    try:
        url = make_url(configured)
    except ArgumentError:
        raise Unusable(f"MIDSTREAM_ARCHIVE_URL {wanted}") from None
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        return url.set(drivername="sqlite+aiosqlite")
    if url.get_backend_name() in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+asyncpg")
    raise Unusable(f"MIDSTREAM_ARCHIVE_URL {wanted}")


def _engine_of(url: Any, seconds: float) -> AsyncEngine:
    is_sqlite = url.get_backend_name() == "sqlite"
    limits: dict[str, Any]
    # asyncpg has time limits of its own, so that it gives up before the one around it cancels what it does.
    limits = {"timeout": seconds} if is_sqlite else {"timeout": seconds * 0.8, "command_timeout": seconds * 0.8}
    if not is_sqlite:
        limits["connection_class"] = _postgres_connection_class()
    engine = create_async_engine(
        url, pool_size=_CONNECTIONS_MAX, max_overflow=0, pool_timeout=seconds, pool_recycle=600, connect_args=limits
    )
    logging.getLogger(f"sqlalchemy.pool.impl.{type(engine.pool).__name__}").addFilter(_is_no_cancelled_close)
    if is_sqlite:

        @event.listens_for(engine.sync_engine, "connect")
        def set_up(connection: Any, _: Any) -> None:
            cursor = connection.cursor()
            # Readers do not wait for the writer; and what is committed outlasts a power cut.
            for pragma in ("journal_mode=WAL", "synchronous=FULL"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    return engine


def _is_no_cancelled_close(record: logging.LogRecord) -> bool:
    """Drops the trace that SQLAlchemy logs when the time was up during a close: the driver has cut the connection off then."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _postgres_connection_class() -> Any:
    """Returns asyncpg's connection, whose `close` does not raise if the server does not answer: it is cut off then.

    SQLAlchemy closes in a task of its own, whose error nobody would retrieve.
    """
    import asyncpg

    class Closing(asyncpg.Connection):  # type: ignore[misc]
        async def close(self, *, timeout: float | None = None) -> None:
            with contextlib.suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await super().close(timeout=timeout)

    return Closing


def _upgrade(connection: Connection) -> None:
    """Brings the database to the newest schema: one process at a time, the others wait and find nothing to do."""
    from alembic import command  # takes 50 ms and 10 MB, in each process once
    from alembic.config import Config

    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
