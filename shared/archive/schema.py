"""The table of the archive. `shared/archive/migrations` makes it; a test compares the two."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Double, Index, LargeBinary, MetaData, String, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

ID = String(36).with_variant(String(36, collation="C"), "postgresql")
"""Compared byte by byte, so that the order of ids is the order of creation, whatever the database's language is."""
METADATA = JSON().with_variant(JSONB(), "postgresql")

metadata = MetaData()


def _where(condition: str) -> dict[str, Any]:
    """Returns the options of an index that has only the rows with this condition."""
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}


streams = Table(
    "streams",
    metadata,
    Column("id", ID, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("model", Text),
    Column("api", String(16), nullable=False),
    Column("finish_reason", Text),
    Column("error_code", Text),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("kept_at", Double, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("generated_tokens", BigInteger, nullable=False),
    Column("delivered_tokens", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    Column("metadata", METADATA, nullable=False),
    Column("receipt", Text),
    Column("notes", Text),
    Column("entries", LargeBinary),
    Column("request", LargeBinary),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("name_digest", String(64)),
    Column("expires_at", Double),
    Index("streams_by_owner", "owner", "id"),
    Index("streams_by_name", "name_digest", "id", **_where("name_digest IS NOT NULL")),
    Index("streams_by_expiry", "expires_at", **_where("expires_at IS NOT NULL")),
)
"""Times are Unix seconds. `receipt`: JSON as of the last look. `notes`: the delivery notes as Redis had them, as JSON. `entries`,
`request` (the hash that lay beside the log): `shared.archive.pieces`. `name_digest`: what stands for the name of a written stream
(`shared.keys.name_digest`). `expires_at`: when its content is to be gone, if its creator said so. Of a deleted stream only what is counted is left: no text, no metadata, no receipt."""
