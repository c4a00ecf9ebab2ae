"""The archive over SQLite and a real PostgreSQL: each stream once, found again, and gone when it is to be gone."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect
from sqlalchemy.engine import make_url

import shared.archive
from shared import events
from shared.archive.pieces import Pieces, packed_entries, unpacked_entries
from shared.archive.record import Record, record_of, tombstone_of
from shared.archive.schema import metadata
from shared.archive.store import Archive, _engine_of
from shared.archive.wanted import Wanted
from shared.errors import ArchiveAway, Unusable
from shared.events import Accepted, Entry, Policies
from shared.ids import FIRST_ID, EventId, new_stream_id
from shared.receipt import EndedLog, Generated, StreamNotes, receipt
from shared.settings import Settings
from tests.support.needs import needs
from tests.support.postgres import PostgresServer, postgres_programs

KEY, OTHER_KEY = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    needs("PostgreSQL", postgres_programs())
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/archive.sqlite"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url


@pytest.fixture
async def archive(url: str) -> AsyncIterator[Archive]:
    archive = archive_at(url)
    yield archive
    await archive.close()


def archive_at(url: str, **settings: Any) -> Archive:
    return Archive(Settings(archive_url=url, **settings))


def ended(
    owner: str,
    *,
    text: str = "hello",
    model: str = "small",
    created_at: float | None = None,
    about: dict[str, str] | None = None,
) -> Record:
    """Returns the record of an answer of one token."""
    whole = ended_log(owner, text=text, model=model, created_at=created_at, about=about)
    notes, beside = {b"n": b"{}"}, {b"messages": b"[1]"}
    return record_of(whole.stream_id, whole.entries, whole.generated.history, whole.receipt, notes=notes, beside=beside)


def ended_log(
    owner: str,
    *,
    text: str = "hello",
    model: str = "small",
    created_at: float | None = None,
    about: dict[str, str] | None = None,
    facade: dict[str, Any] | None = None,
) -> EndedLog:
    stream_id = new_stream_id(created_at)
    accepted = Accepted(
        {"model": model, "messages": []}, Policies(), created_at or time.time(), owner, about or {}, facade or {}
    )
    entries = [
        Entry(FIRST_ID, events.ACCEPTED, accepted.stored()),
        Entry(EventId(1, 0), events.STARTED, orjson.dumps({"attempt": 1, "model": model, "worker": "w", "time": 1})),
        Entry(EventId(1, 1), events.TOKEN, text.encode()),
        Entry(
            EventId(1, 2),
            events.DONE,
            b'{"finish_reason":"stop","usage":{"prompt_tokens":3,"completion_tokens":1},"time":2}',
        ),
    ]
    generated = Generated()
    for entry in entries:
        generated.apply(entry)
    return EndedLog(stream_id, entries, generated, receipt(stream_id, generated, StreamNotes([])))


async def test_a_stream_has_one_row_however_often_it_is_archived(archive: Archive) -> None:
    record = ended("anna")
    again = Record(record.stream_id, {**record.columns, "delivered_tokens": 1, "owner": "somebody else"}, b"", b"")
    assert await archive.keep([record]) == []
    assert await archive.keep([again]) == []
    archived = await archive.read(record.stream_id)
    assert archived is not None
    assert packed_entries(archived.entries) == record.entries
    assert archived.notes == {b"n": b"{}"}
    assert archived.beside == {b"messages": b"[1]"}
    assert archived.row["owner"] == "anna"
    assert archived.row["delivered_tokens"] == 1, "what was delivered may change after the end"
    assert len(await archive.find(Wanted(owner="anna"), 10)) >= 1
    assert await archive.owner_of(record.stream_id) == "anna"


async def test_what_is_deleted_stays_deleted_and_counts(archive: Archive) -> None:
    logs = [ended_log("bert"), ended_log("bert")]
    record, late = (record_of(*log[:2], log.generated.history, log.receipt) for log in logs)
    await archive.keep([record])
    for log in logs:
        await archive.erase(tombstone_of(log))
        await archive.erase(
            {**tombstone_of(log), "delivered_tokens": 1}
        )  # a repeated delete, after somebody has read more
        await archive.erase(tombstone_of(log))  # and one that finds less
    assert await archive.keep([record, late]) == [], "a worker that had read the log before the delete"
    for deleted in (record, late):
        assert await archive.read(deleted.stream_id) is None
        assert await archive.has(deleted.stream_id)
    assert await archive.find(Wanted(owner="bert"), 10) == []
    rows = await archive.find(Wanted(owner="bert", with_deleted=True), 10)
    counts = [(row["status"], row["generated_tokens"], row["delivered_tokens"], row["metadata"]) for row in rows]
    assert counts == [("deleted", 1, 1, {})] * 2


async def test_a_name_leads_to_its_newest_stream_until_that_expires(archive: Archive) -> None:
    def written(expires_at: str | None) -> Record:
        kept = {"api": "durable", "content_type": "text/plain", "ttl": None, "expires_at": expires_at, "life_ms": 1}
        log = ended_log("gerd", facade={**kept, "name": "d" * 64})
        return record_of(*log[:2], log.generated.history, log.receipt)

    lasting = (written(None), written("2999-01-01T00:00:00Z"))
    older, newer = sorted(lasting, key=lambda record: record.stream_id)  # those of one millisecond have no other order
    expired = written("2001-01-01T00:00:00Z")
    await archive.keep([older, newer, expired])
    assert await archive.named("d" * 64) == newer.stream_id
    assert await archive.read(expired.stream_id) is None
    assert {row["id"] for row in await archive.find(Wanted(owner="gerd"), 9)} == {older.stream_id, newer.stream_id}
    await archive.prune(days=0, bytes_max=0)
    deleted = [
        row for row in await archive.find(Wanted(owner="gerd", with_deleted=True), 9) if row["status"] == "deleted"
    ]
    assert [row["id"] for row in deleted] == [expired.stream_id]
    await archive.forget("gerd")
    assert await archive.named("d" * 64) is None


async def test_a_database_of_the_first_schema_is_brought_to_the_newest(url: str) -> None:
    """What was archived before stays, and is found."""
    record, archive = ended("hans"), archive_at(url)
    await archive.keep([record])
    assert archive._engine is not None
    async with archive._engine.begin() as connection:
        await connection.run_sync(lambda sync: _migrated(sync, "0001"))
        assert "name_digest" not in await connection.run_sync(lambda sync: _columns(sync))
    await archive.close()
    upgraded = archive_at(url)
    archived = await upgraded.read(record.stream_id)
    assert archived is not None
    assert archived.row["name_digest"] is None
    await upgraded.close()


def _migrated(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(shared.archive.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.downgrade(config, revision)


def _columns(connection: Connection) -> list[str]:
    return [column["name"] for column in inspect(connection).get_columns("streams")]


async def test_an_owner_is_forgotten(archive: Archive) -> None:
    mine, other = [ended("carla", about={"user": "c"}) for _ in range(3)], ended("dora")
    await archive.keep([*mine, other])
    assert await archive.forget("carla") == 3
    assert await archive.find(Wanted(owner="carla", with_deleted=True), 10) == []
    assert [await archive.read(record.stream_id) for record in mine] == [None] * 3
    assert await archive.read(other.stream_id) is not None
    assert await archive.forget("carla") == 0


async def test_streams_are_found_page_by_page_the_newest_first(archive: Archive) -> None:
    now = time.time()
    records = [
        ended(
            "eve",
            created_at=now - 100 + index,
            model="large" if index % 2 else "small",
            about={"chat": f"c{index % 3}"},
        )
        for index in range(6)
    ]
    await archive.keep(records)
    newest_first = [record.stream_id for record in reversed(records)]

    async def found(count: int = 10, **wanted: Any) -> list[str]:
        return [row["id"] for row in await archive.find(Wanted(owner="eve", **wanted), count)]

    assert await found() == newest_first
    first_page = await found(2)
    await archive.keep([ended("eve", created_at=now)])  # one more does not move the pages behind it
    assert first_page + await found(10, before=first_page[-1]) == newest_first
    assert await found(model="large", to_time=now - 1) == newest_first[::2]
    assert await found(metadata={"chat": "c1"}) == [newest_first[1], newest_first[4]]
    assert await found(metadata={"chat": "c1", "none": "x"}) == []
    assert await found(from_time=now - 99.5, to_time=now - 97.5) == newest_first[3:5]
    assert await found(status="failed") == []


async def test_texts_that_a_database_does_not_take(archive: Archive) -> None:
    """NUL is no character of a text in PostgreSQL; quotes and brackets in the name of a metadata field are no path."""
    record = ended("f\0f", text="a\0b", model="m\0", about={"k\"]\\'": "v\0"})
    assert await archive.keep([record]) == []
    archived = await archive.read(record.stream_id)
    assert archived is not None
    assert packed_entries(archived.entries) == record.entries, "the answer itself is kept byte by byte"
    assert [row["id"] for row in await archive.find(Wanted(metadata={"k\"]\\'": "v\ufffd"}), 10)] == [record.stream_id]


async def test_one_stream_that_is_refused_does_not_keep_the_others_out(archive: Archive) -> None:
    good, bad = ended("gina"), ended("gina")
    bad.columns["generated_tokens"] = None
    assert await archive.keep([good, bad]) == [bad.stream_id]
    assert await archive.read(good.stream_id) is not None


async def test_texts_are_encrypted_for_whoever_has_the_key(url: str) -> None:
    record, secret = ended("hans", text="a secret"), b"a secret"
    before, after, without = (archive_at(url, archive_key=keys) for keys in (KEY, f"{OTHER_KEY},{KEY}", OTHER_KEY))
    try:
        await before.keep([record])
        archived = await after.read(record.stream_id)
        assert archived is not None
        assert packed_entries(archived.entries) == record.entries
        piece = archived.row["entries"]
        assert secret not in piece
        with pytest.raises(ArchiveAway, match="no key of MIDSTREAM_ARCHIVE_KEY"):
            await without.read(record.stream_id)
        with pytest.raises(ArchiveAway, match="no key"):
            Pieces(KEY).opened(new_stream_id(), "entries", piece)  # copied to another row
    finally:
        for archive in (before, after, without):
            await archive.close()


async def test_bounds_of_age_and_size(tmp_path: Path) -> None:
    archive, now = archive_at(f"sqlite:///{tmp_path}/a.sqlite"), time.time()
    records = [ended("ida", created_at=now - 86_400 * age) for age in (9, 8, 1, 0)]
    await archive.keep(records)
    assert await archive.prune(days=0, bytes_max=0) == 0
    assert await archive.prune(days=2, bytes_max=0) == 2
    size_bytes = sum(row["stored_bytes"] for row in await archive.find(Wanted(), 10))
    assert await archive.prune(days=2, bytes_max=size_bytes) == 0
    assert await archive.prune(days=2, bytes_max=size_bytes - 1) == 1
    assert [row["id"] for row in await archive.find(Wanted(), 10)] == [records[-1].stream_id]
    await archive.close()


async def test_the_migrations_make_the_schema(archive: Archive) -> None:
    await archive.open()

    def differences(connection: Any) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with archive._connection() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_database_that_is_frozen_or_dies_is_away_for_a_limited_time(postgres: PostgresServer) -> None:
    archive, record = archive_at(postgres.url, archive_seconds=1.0), ended("jo")
    await archive.keep([record])
    postgres.freeze()
    try:
        for _ in range(4):  # more often than there are connections
            began_at = time.monotonic()
            with pytest.raises(ArchiveAway):
                await archive.read(record.stream_id)
            assert time.monotonic() - began_at < 5.0
    finally:
        postgres.thaw()
    assert await archive.read(record.stream_id) is not None
    postgres.kill()
    with pytest.raises(ArchiveAway):
        await archive.keep([ended("jo")])
    postgres.start()
    assert await archive.keep([ended("jo")]) == []
    await archive.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "no url"])
def test_an_address_that_cannot_be_used(url: str) -> None:
    with pytest.raises(Unusable, match="MIDSTREAM_ARCHIVE_URL must be sqlite:///"):
        archive_at(url)


@pytest.mark.parametrize("keys", ["short", base64.b64encode(b"x" * 31).decode(), f"{KEY},?"])
def test_a_key_that_cannot_be_used(keys: str) -> None:
    with pytest.raises(Unusable, match="MIDSTREAM_ARCHIVE_KEY must be 32 bytes"):
        Pieces(keys)


def test_entries_are_packed_byte_by_byte() -> None:
    entries = [
        Entry(EventId(1, index), field, value)
        for index, (field, value) in enumerate([(b"t", b"\n\xff 7"), (b"", b""), (b"x", b"1-1 t 3\nabc")])
    ]
    assert unpacked_entries(packed_entries(entries)) == entries
    for damaged in (b"1-1 t 3", b"1-1 t\nabc\n", b"x"):
        with pytest.raises(ValueError, match=r"not found|unpack|invalid literal"):
            unpacked_entries(damaged)


def test_a_damaged_piece() -> None:
    piece = Pieces("").closed("x", "entries", b"abc" * 100)
    for damaged in (b"", b"?" + piece[1:], piece[:-3], piece[:5] + b"\0\0\0" + piece[8:]):
        with pytest.raises(ArchiveAway):
            Pieces("").opened("x", "entries", damaged)


class CancelledClose:
    """A connection on whose close the time was up."""

    def close(self) -> None:
        raise asyncio.CancelledError


def test_a_close_that_takes_too_long_leaves_no_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    engine = _engine_of(make_url("postgresql+asyncpg://nobody@127.0.0.1/none"), 1.0)
    with caplog.at_level(logging.DEBUG), pytest.raises(asyncio.CancelledError):
        engine.sync_engine.pool._close_connection(cast(Any, CancelledClose()))
    assert "CancelledError" not in caplog.text
