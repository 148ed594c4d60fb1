"""Events kept in the results, in addition to events read, of tasks and requests."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the columns, and sum events read. The events kept in old results are not known."""
    op.add_column("tasks", sa.Column("events_kept", sa.BigInteger(), nullable=True))
    events = sa.Column("events", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("requests", events)
    kept = sa.Column("events_kept", sa.BigInteger(), nullable=True, server_default="0")
    op.add_column("requests", kept)
    op.execute(
        "UPDATE requests SET events = (SELECT coalesce(sum(tasks.events), 0) FROM tasks "
        "WHERE tasks.request_id = requests.id AND tasks.state = 'done')"
    )
    op.execute("UPDATE requests SET events_kept = NULL WHERE completed > 0")
