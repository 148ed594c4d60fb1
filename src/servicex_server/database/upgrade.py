"""Bringing the tables of a database up to date, by the migrations beside this file."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from servicex_server.database.locks import Lock, wait_for
from servicex_server.errors import StartupError

OLDEST_POSTGRESQL = 15


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations that are missing. Of several processes one does, and the others wait.

    Parameters
    ----------
    connection
        In a transaction, which on PostgreSQL is all or nothing.
    revision
        Where to stop.

    Raises
    ------
    StartupError
        The server is too old, or a newer version of the service wrote the database.
    """
    if connection.dialect.name == "postgresql":
        _refuse_old(connection)
        wait_for(connection, Lock.MIGRATE)
    _revision(connection)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def standing(connection: Connection) -> str:
    """Return in a few words whether there is something to migrate; nothing is changed.

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
    if revision != ScriptDirectory.from_config(_config()).get_current_head():
        return f"at revision {revision}; the next start brings it up to date"
    return f"up to date, at revision {revision}"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config


def _refuse_old(connection: Connection) -> None:
    version, *_ = connection.dialect.server_version_info or (0,)
    if int(version) < OLDEST_POSTGRESQL:
        raise StartupError(
            f"PostgreSQL {version} is too old; {OLDEST_POSTGRESQL} or later is needed"
        )


def _revision(connection: Connection) -> str | None:
    now = MigrationContext.configure(connection).get_current_revision()
    known = {one.revision for one in ScriptDirectory.from_config(_config()).walk_revisions()}
    if now is not None and now not in known:
        raise StartupError(
            f"the database was written by a newer version of servicex-server "
            f"(its revision {now} is not known here)",
            hint="install that version, or choose another --data-dir",
        )
    return now
