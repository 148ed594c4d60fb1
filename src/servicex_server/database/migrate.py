"""Migrating the tables of a database, with the migrations in the folder beside this file."""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from servicex_server.database.advisory_locks import Lock, wait_for
from servicex_server.errors import StartupError

if TYPE_CHECKING:
    # imported where there is something to migrate: that takes longer than most commands
    from alembic.config import Config

MIGRATIONS = Path(__file__).with_name("migrations")

OLDEST_POSTGRESQL = 15
"""Oldest supported major version of PostgreSQL."""


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the missing migrations. If several processes start, one runs them and the others wait.

    Parameters
    ----------
    connection
        A connection in a transaction. On PostgreSQL, a failed migration leaves no changes.
    revision
        The last migration to run.

    Raises
    ------
    StartupError
        The server is too old, or a newer version of the service wrote the database.
    """
    if connection.dialect.name == "postgresql":
        _refuse_old(connection)
    if revision == "head" and _stored(connection) == newest():
        return
    if connection.dialect.name == "postgresql":
        wait_for(connection, Lock.MIGRATE)
    from alembic import command

    _revision(connection)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def standing(connection: Connection) -> str:
    """Return in a few words whether migrations are missing; change nothing.

    Raises
    ------
    StartupError
        As for `upgrade`.
    """
    if connection.dialect.name == "postgresql":
        _refuse_old(connection)
    revision = _revision(connection)
    if revision is None:
        return "empty; the first start makes the tables"
    if revision != newest():
        return f"at revision {revision}; the next start brings it up to date"
    return f"up to date, at revision {revision}"


def newest() -> str:
    """Return the newest revision. The files of migrations begin with their revisions."""
    return max(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def _stored(connection: Connection) -> str | None:
    """Return the revision of a database, None if it has no tables yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("select version_num from alembic_version")).scalar()
    return None if found is None else str(found)


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _refuse_old(connection: Connection) -> None:
    version, *_ = connection.dialect.server_version_info or (0,)
    if int(version) < OLDEST_POSTGRESQL:
        raise StartupError(
            f"PostgreSQL {version} is too old; {OLDEST_POSTGRESQL} or later is needed"
        )


def _revision(connection: Connection) -> str | None:
    now = _stored(connection)
    known = {path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py")}
    if now is not None and now not in known:
        raise StartupError(
            f"the database was written by a newer version of servicex-server "
            f"(its revision {now} is not known here)",
            hint="install that version, or choose another --data-dir",
        )
    return now
