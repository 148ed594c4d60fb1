"""When the replicas of a file were last refreshed from its catalogue."""

import sqlalchemy as sa
from alembic import op

from servicex_server.database.tables import UtcTime

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column."""
    op.add_column("files", sa.Column("asked_again", UtcTime(), nullable=True))
