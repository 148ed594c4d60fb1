"""How often the bucket keys of a user were revoked."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the column."""
    op.add_column("users", sa.Column("key_epoch", sa.Integer(), nullable=False, server_default="0"))
