"""History of the service by minute, and the bytes of a request's results."""

import sqlalchemy as sa
from alembic import op

from servicex_server.database.tables import UtcTime

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column and the table, and sum the bytes of existing results."""
    column = sa.Column("bytes", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("requests", column)
    op.execute(
        "UPDATE requests SET bytes = (SELECT coalesce(sum(tasks.bytes), 0) FROM tasks "
        "WHERE tasks.request_id = requests.id AND tasks.state = 'done')"
    )
    op.create_table(
        "history",
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("there", sa.Integer(), nullable=False),
        sa.Column("busy", sa.Integer(), nullable=False),
        sa.Column("waiting", sa.Integer(), nullable=False),
        sa.Column("stored", sa.BigInteger(), nullable=False),
        sa.Column("free", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("at", name=op.f("pk_history")),
    )
