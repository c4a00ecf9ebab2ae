"""Adds what written streams need: the name by which they are found, and when they expire."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("streams", sa.Column("name_digest", sa.String(64)))
    op.add_column("streams", sa.Column("expires_at", sa.Double))
    for name, columns in (("streams_by_name", ["name_digest", "id"]), ("streams_by_expiry", ["expires_at"])):
        has_value = sa.text(f"{columns[0]} IS NOT NULL")
        op.create_index(name, "streams", columns, postgresql_where=has_value, sqlite_where=has_value)


def downgrade() -> None:
    for name in ("streams_by_expiry", "streams_by_name"):
        op.drop_index(name, "streams")
    for name in ("expires_at", "name_digest"):
        op.drop_column("streams", name)
