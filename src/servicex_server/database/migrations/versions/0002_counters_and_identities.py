"""Counters of requests, result keys of tasks, and status snapshots of the leader."""

import sqlalchemy as sa
from alembic import op

from servicex_server.database.tables import UtcTime

revision = "0002"
down_revision = "0001"

_COUNTED = {
    "files": "1 = 1",
    "completed": "tasks.state = 'done'",
    "failed": "tasks.state = 'failed'",
}


def upgrade() -> None:
    """Add the columns and the table, and count existing rows."""
    for name in _COUNTED:
        column = sa.Column(name, sa.Integer(), nullable=False, server_default="0")
        op.add_column("requests", column)
    op.add_column("requests", sa.Column("last_ended", UtcTime(), nullable=True))
    of_request = "FROM tasks WHERE tasks.request_id = requests.id"
    for name, condition in _COUNTED.items():
        op.execute(
            f"UPDATE requests SET {name} = (SELECT count(*) {of_request} AND {condition})"  # noqa: S608  # constants above
        )
    op.execute(f"UPDATE requests SET last_ended = (SELECT max(finished_at) {of_request})")  # noqa: S608  # a constant
    op.add_column("tasks", sa.Column("identity", sa.String(length=64), nullable=True))
    op.drop_index(op.f("ix_tasks_request_id_state"), "tasks")
    op.create_index(op.f("ix_tasks_request_id_state_id"), "tasks", ["request_id", "state", "id"])
    op.create_index(op.f("ix_tasks_object_key"), "tasks", ["object_key"])
    op.create_index(op.f("ix_tasks_identity"), "tasks", ["identity"])
    for of, some in (("state", "state = 'running'"), ("not_before", "not_before IS NOT NULL")):
        index = "ix_tasks_running" if of == "state" else "ix_tasks_not_before"
        where = sa.text(some)
        op.create_index(index, "tasks", [of], sqlite_where=where, postgresql_where=where)
    op.create_table(
        "snapshots",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_snapshots")),
    )
