"""Rows for the objects of results, pinned requests, and the bytes that were stored each day."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the tables and the column. Each object of a finished task gets a row."""
    op.add_column(
        "requests", sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.create_table(
        "objects",
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("owner", sa.String(320), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("made", sa.DateTime(), nullable=False),
        sa.Column("last_used", sa.DateTime(), nullable=False),
        sa.Column("evicted", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("key", name="pk_objects"),
    )
    op.create_table(
        "daily",
        sa.Column("day", sa.DateTime(), nullable=False),
        sa.Column("stored", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("day", name="pk_daily"),
    )
    there = sa.text("evicted IS NULL")
    for column in ("last_used", "owner"):
        op.create_index(
            f"ix_objects_{column}",
            "objects",
            [column],
            sqlite_where=there,
            postgresql_where=there,
        )
    op.execute(
        """
        INSERT INTO objects (key, owner, bytes, made, last_used)
        SELECT tasks.object_key, min(requests.owner), max(tasks.bytes),
               min(coalesce(tasks.finished_at, requests.submitted_at)),
               max(coalesce(tasks.finished_at, requests.submitted_at))
        FROM tasks JOIN requests ON tasks.request_id = requests.id
        WHERE tasks.state = 'done' AND tasks.part_of IS NULL AND tasks.object_key IS NOT NULL
        GROUP BY tasks.object_key
        """
    )
