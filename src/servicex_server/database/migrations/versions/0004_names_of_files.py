"""Names of files in catalogues, and bad replicas."""

import sqlalchemy as sa
from alembic import op

from servicex_server.database.tables import UtcTime

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column and the table."""
    op.add_column("files", sa.Column("name", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "bad_replicas",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True),
        sa.Column("mark", sa.String(length=64), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("url", "rse", "file")),
        sa.Column("finder", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("first_seen", UtcTime(), nullable=False),
        sa.Column("last_seen", UtcTime(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("reported", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bad_replicas")),
    )
    op.create_index(op.f("ix_bad_replicas_mark"), "bad_replicas", ["mark"], unique=True)
    op.create_index(op.f("ix_bad_replicas_last_seen"), "bad_replicas", ["last_seen"])
