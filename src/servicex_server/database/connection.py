"""Opening the database, and running functions on it from asynchronous code.

The functions of this package are synchronous and take a connection. `Database.read` and
`Database.write` run one in a thread, inside one transaction. They guarantee the same with SQLite
and with PostgreSQL:

- Writes run one after another, across all processes; those of one process run in the order in which
  it made them. What a write has read stays true until it is committed. SQLite has only one writer.
  On PostgreSQL, where transactions are READ COMMITTED, every write first waits for a lock, so each
  of its statements sees all that was committed before.
- A read sees the state of one moment, however many statements it has, and never waits for a write.
- When the connection breaks, or the server does not accept writes at the moment, the call raises
  `sqlalchemy.exc.OperationalError`, and the next call opens a new connection. The write may have
  been committed nevertheless, so it has to be safe to repeat.
- On a full disk, SQLite's writes use a reserve (`DiskReserve`), so that deletions are possible.
"""

import asyncio
import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from servicex_server.database.advisory_locks import Lock, wait_for
from servicex_server.database.disk_reserve import DiskReserve, is_disk_full
from servicex_server.database.migrate import standing, upgrade
from servicex_server.errors import StartupError
from servicex_server.text.hints import install

P = ParamSpec("P")
T = TypeVar("T")
Guard = Callable[[Connection], None]

_READERS = 4

_POSTGRESQL = {
    "application_name": "servicex-server",
    "connect_timeout": 5,
    # a host that vanished is detected within 15 seconds, and not after two hours
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
}
"""Options of libpq, unless the URL sets them."""


_AWAY = ("25006", "25P03")
"""SQLSTATE of a server that is read-only during a failover, and of a session that was ended while
idle in a transaction. For psycopg neither is an OperationalError."""


class Database:
    """One database.

    Parameters
    ----------
    url
        SQLAlchemy URL: ``sqlite:///path``, whose file is created if it does not exist, or
        ``postgresql+psycopg://user:password@host/database``, which has to exist.

    Raises
    ------
    StartupError
        The URL has another form, or psycopg is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = _parsed(url)
        self._engine = _engine(self.url)
        self._before: tuple[Guard, ...] = ()
        reading: dict[str, Any] = {"writes": False}
        if self.shared:
            self._before = (lambda connection: wait_for(connection, Lock.WRITE),)
            reading = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reading = self._engine.execution_options(**reading)
        self._reserve: DiskReserve | None = None
        if not self.shared and self.url.database:
            self._reserve = DiskReserve(Path(f"{self.url.database}.reserve"))
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="database-writer")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="database-reader")

    @property
    def shared(self) -> bool:
        """Whether several processes may use the database at the same time."""
        return self._engine.dialect.name == "postgresql"

    @property
    def disk_full(self) -> bool:
        """Whether the disk of SQLite has no space but the reserve."""
        return self._reserve is not None and self._reserve.disk_full

    def __str__(self) -> str:
        """Return where the database is, for people, without user and password."""
        if not self.shared:
            return f"SQLite in {self.url.database}"
        place = self.url.host or self.url.query.get("host", "this machine")
        port = f":{self.url.port}" if self.url.port else ""
        return f"PostgreSQL at {place}{port}, database {self.url.database}"

    def guarded(self, guard: Guard) -> "Database":
        """Return the same database, whose writes first call ``guard``, which may raise.

        The guard runs inside the transaction, after the lock that excludes other writes.
        """
        other = copy.copy(self)
        other._before = (*self._before, guard)  # noqa: SLF001  # its own class
        return other

    def migrate(self) -> None:
        """Migrate the tables. If several processes start, one migrates and the others wait.

        Raises
        ------
        StartupError
            The database cannot be opened, or a newer version of the service wrote it.
        """
        if self._reserve is None:
            self._opened(upgrade)
            return
        with self._reserve.lent():  # to open the database takes space too
            self._opened(upgrade)
        self._reserve.keep()

    def standing(self) -> str:
        """Return where the database is, and whether its tables are up to date; change nothing.

        Raises
        ------
        StartupError
            As for `migrate`.
        """
        return f"{self}: {self._opened(standing)}"

    def _opened(self, function: Callable[[Connection], T]) -> T:
        try:
            with self._engine.begin() as connection:
                return function(connection)
        except DBAPIError as error:
            why = " ".join(str(error.orig).split())
            raise StartupError(f"{self} cannot be opened: {why}") from error

    def connect_arguments(self) -> dict[str, Any]:
        """Return the arguments with which psycopg opens a connection outside of the pool."""
        _, arguments = self._engine.dialect.create_connect_args(self.url)
        return {**arguments, **_unless_given(self.url)}

    async def read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function that only reads, in a transaction that sees one moment."""

        def work() -> T:
            with _passing(), self._reading.begin() as connection:
                return function(connection, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def write(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function in a transaction that is committed when it returns."""

        def transaction() -> T:
            with _passing(), self._engine.begin() as connection:
                for guard in self._before:
                    guard(connection)
                return function(connection, *args, **kwargs)

        def work() -> T:
            reserve = self._reserve
            try:
                done = transaction()
            except OperationalError as error:
                if reserve is None or not is_disk_full(error.orig):
                    raise
                with reserve.lent():
                    return transaction()
            if reserve is not None:
                reserve.keep()
            return done

        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    def close(self) -> None:
        """Finish running reads and writes, and close all connections."""
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self._engine.dispose()


@contextmanager
def _passing() -> Iterator[None]:
    """Turn all transient database errors into `OperationalError`, which callers handle."""
    try:
        yield
    except OperationalError:
        raise
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if not (error.connection_invalidated or state in _AWAY) or error.orig is None:
            raise
        raise OperationalError(error.statement, None, error.orig) from error


def _parsed(text: str) -> URL:
    """Return the URL of a database. Errors never quote the text, which may contain a password."""
    hint = "write postgresql+psycopg://user:password@host/database"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StartupError("setting storage.database_url: this is not a URL", hint=hint) from None
    if "@" in (url.host or ""):
        raise StartupError(
            "setting storage.database_url: the password has an @", hint="write it as %40"
        )
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("postgresql+psycopg", "sqlite"):
        raise StartupError(
            f"setting storage.database_url: {url.drivername} is not supported", hint=hint
        )
    return url


def _engine(url: URL) -> Engine:
    if url.drivername == "sqlite":
        engine = create_engine(url)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        engine = create_engine(
            url,
            pool_size=_READERS + 1,
            pool_pre_ping=True,
            connect_args=_unless_given(url),
            hide_parameters=True,  # errors are logged, and must not contain parameters
        )
    except ModuleNotFoundError:
        raise StartupError(
            "PostgreSQL cannot be used without psycopg",
            hint=install("postgresql"),
        ) from None
    event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _unless_given(url: URL) -> dict[str, Any]:
    return {name: value for name, value in _POSTGRESQL.items() if name not in url.query}


def _set_up_postgresql(connection: Any, record: object) -> None:
    del record
    # a process that stops during a write, as on a suspended machine, would block all other writes
    connection.execute("set idle_in_transaction_session_timeout = '30s'")
    connection.commit()


def _set_up_sqlite(connection: Any, record: object) -> None:
    del record
    connection.isolation_level = None  # the begin event below starts transactions
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
