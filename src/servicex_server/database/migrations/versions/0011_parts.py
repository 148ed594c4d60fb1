"""Parts of a file, which are tasks below the task of the file and are joined to one result."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the columns. Existing parts have results of their own, and stay unchanged."""
    op.add_column("tasks", sa.Column("part_of", sa.BigInteger(), nullable=True))
    op.add_column("tasks", sa.Column("parts", sa.Integer(), nullable=False, server_default="0"))
    op.drop_index("ix_tasks_request_id_file_id_first_entry", table_name="tasks")
    for columns, condition in (
        (["request_id", "file_id", "first_entry"], "IS NULL"),
        (["part_of", "first_entry"], "IS NOT NULL"),
    ):
        where = sa.text(f"part_of {condition}")
        op.create_index(
            f"ix_tasks_{'_'.join(columns)}",
            "tasks",
            columns,
            unique=True,
            sqlite_where=where,
            postgresql_where=where,
        )
