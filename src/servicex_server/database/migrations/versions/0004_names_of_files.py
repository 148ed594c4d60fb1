"""What catalogues call the files of a dataset."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make room."""
    op.add_column("files", sa.Column("name", sa.Text(), nullable=False, server_default=""))
