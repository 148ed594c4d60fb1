"""When a catalogue was last asked again where a file is."""

import sqlalchemy as sa
from alembic import op

from servicex_server.database.tables import UtcTime

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make room."""
    op.add_column("files", sa.Column("asked_again", UtcTime(), nullable=True))
