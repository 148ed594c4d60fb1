"""Deletion of requests in steps, and a time limit for each file of a request."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("requests", sa.Column("file_seconds", sa.Float(), nullable=True))
    op.add_column(
        "requests",
        sa.Column("deleted", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    where = sa.text("deleted")
    op.create_index(
        "ix_requests_deleted", "requests", ["id"], sqlite_where=where, postgresql_where=where
    )
