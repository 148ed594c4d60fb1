"""Opening the database, and running functions on it from asynchronous code.

The functions of this room are plain and take a connection; `Database.read` and
`Database.write` run one in a thread, inside one transaction. SQLite has one writer at a time, so
writes there go through one thread and never meet a locked database.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError

from servicex_server.errors import StartupError

P = ParamSpec("P")
T = TypeVar("T")

_MIGRATIONS = Path(__file__).with_name("migrations")
_READERS = 4


class Database:
    """One database.

    Parameters
    ----------
    url
        SQLAlchemy URL; ``sqlite:///path`` makes the file if it is not there.
    """

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _set_up_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="database-writer")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="database-reader")

    def migrate(self) -> None:
        """Bring the tables up to date.

        Raises
        ------
        StartupError
            The database cannot be opened, or a newer version of the service wrote it.
        """
        from alembic import command
        from alembic.config import Config
        from alembic.migration import MigrationContext
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        try:
            with self._engine.begin() as connection:
                now = MigrationContext.configure(connection).get_current_revision()
                known = {r.revision for r in ScriptDirectory.from_config(config).walk_revisions()}
                if now is not None and now not in known:
                    raise StartupError(
                        f"the database was written by a newer version of servicex-server "
                        f"(its revision {now} is not known here)",
                        hint="install that version, or choose another --data-dir",
                    )
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except (OperationalError, DBAPIError) as error:
            raise StartupError(f"the database cannot be opened: {error.orig}") from error

    async def read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function that only reads."""
        return await self._run(self._readers, function, args, kwargs)

    async def write(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function in a transaction that is committed when it returns."""
        return await self._run(self._writer, function, args, kwargs)

    async def _run(
        self, pool: ThreadPoolExecutor, function: Callable[..., T], args: Any, kwargs: Any
    ) -> T:
        def work() -> T:
            with self._engine.connect() as connection:
                options = connection.execution_options(writes=pool is self._writer)
                with options.begin():
                    return function(options, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def close(self) -> None:
        """Finish what is being written, and close all connections."""
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self._engine.dispose()


def _set_up_sqlite(connection: Any, record: object) -> None:
    del record
    connection.isolation_level = None  # the begin event below says when a transaction begins
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "busy_timeout=10000",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
