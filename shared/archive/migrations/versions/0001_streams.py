"""Makes the table of streams."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "streams",
        sa.Column("id", sa.String(36).with_variant(sa.String(36, collation="C"), "postgresql"), primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("model", sa.Text),
        sa.Column("api", sa.String(16), nullable=False),
        sa.Column("finish_reason", sa.Text),
        sa.Column("error_code", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("kept_at", sa.Double, nullable=False),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("generated_tokens", sa.BigInteger, nullable=False),
        sa.Column("delivered_tokens", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger),
        sa.Column("completion_tokens", sa.BigInteger),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("receipt", sa.Text),
        sa.Column("notes", sa.Text),
        sa.Column("entries", sa.LargeBinary),
        sa.Column("request", sa.LargeBinary),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("streams_by_owner", "streams", ["owner", "id"])


def downgrade() -> None:
    op.drop_table("streams")
