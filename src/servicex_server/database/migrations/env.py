"""Runs migrations on the connection that `servicex_server.database.migrate` provides."""

from alembic import context

from servicex_server.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
context.run_migrations()
