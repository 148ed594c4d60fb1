"""Opening the database, and running functions on it from asynchronous code.

The functions of this room are plain and take a connection; `Database.read` and
`Database.write` run one in a thread, inside one transaction. What they may rely on is the same
with SQLite and with PostgreSQL:

- Writes run one after another, in whichever process they were asked for, and those of one process
  in the order in which they were. What a write has read stays true until it has been committed.
  SQLite has one writer by nature. On PostgreSQL, where statements are READ COMMITTED, every write
  first waits for a lock, and so each of its statements sees all that was committed before.
- A read sees the state of one moment, however many statements it has, and never waits for a write.
- When the connection breaks, or the server takes no writes at the moment,
  `sqlalchemy.exc.OperationalError` is raised, and the next call opens a new connection. A write may
  have been committed all the same, so it has to be one that can be repeated.
"""

import asyncio
import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from servicex_server.database.locks import Lock, wait_for
from servicex_server.database.upgrade import standing, upgrade
from servicex_server.errors import StartupError

P = ParamSpec("P")
T = TypeVar("T")
Guard = Callable[[Connection], None]

_READERS = 4

_POSTGRESQL = {
    "application_name": "servicex-server",
    "connect_timeout": 5,
    # a host that vanished without a word is found out in a quarter of a minute, not in two hours
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
}
"""Options of libpq, unless the URL says otherwise."""


_AWAY = ("25006", "25P03")
"""SQLSTATE of a server that others are taking over from, and of a session ended while it was idle
in a transaction: for psycopg they are errors of another class."""


class Database:
    """One database.

    Parameters
    ----------
    url
        SQLAlchemy URL: ``sqlite:///path`` makes the file if it is not there;
        ``postgresql+psycopg://user:password@host/database`` is a database that exists.

    Raises
    ------
    StartupError
        The URL is none of these, or psycopg is not installed.
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
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="database-writer")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="database-reader")

    @property
    def shared(self) -> bool:
        """Whether several processes may work on it at a time."""
        return self._engine.dialect.name == "postgresql"

    def __str__(self) -> str:
        """Return where it is, for people: without user and password."""
        if not self.shared:
            return f"SQLite in {self.url.database}"
        place = self.url.host or self.url.query.get("host", "this machine")
        port = f":{self.url.port}" if self.url.port else ""
        return f"PostgreSQL at {place}{port}, database {self.url.database}"

    def guarded(self, guard: Guard) -> "Database":
        """Return the same database, but every write first calls ``guard``, which may raise.

        It is called inside the transaction, when no other one can write any more.
        """
        other = copy.copy(self)
        other._before = (*self._before, guard)  # noqa: SLF001  # its own class
        return other

    def migrate(self) -> None:
        """Bring the tables up to date. Of several processes one does it, and the others wait.

        Raises
        ------
        StartupError
            The database cannot be opened, or a newer version of the service wrote it.
        """
        self._opened(upgrade)

    def standing(self) -> str:
        """Return where the database is and whether its tables are up to date; change nothing.

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
        """Return what psycopg needs to open a connection beside those that are kept here."""
        _, arguments = self._engine.dialect.create_connect_args(self.url)
        return {**arguments, **_unless_given(self.url)}

    async def read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function that only reads."""

        def work() -> T:
            with _passing(), self._reading.begin() as connection:
                return function(connection, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def write(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function in a transaction that is committed when it returns."""

        def work() -> T:
            with _passing(), self._engine.begin() as connection:
                for guard in self._before:
                    guard(connection)
                return function(connection, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    def close(self) -> None:
        """Finish what is being written, and close all connections."""
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self._engine.dispose()


@contextmanager
def _passing() -> Iterator[None]:
    """Raise whatever passes by itself as the one error that callers know for it."""
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
    """Return the URL of a database; what is said of a wrong one holds nothing of its text."""
    hint = "write postgresql+psycopg://user:password@host/database"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StartupError("setting database_url: this is no URL", hint=hint) from None
    if "@" in (url.host or ""):
        raise StartupError("setting database_url: the password has an @", hint="write it as %40")
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("postgresql+psycopg", "sqlite"):
        raise StartupError(f"setting database_url: {url.drivername} is not supported", hint=hint)
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
            hide_parameters=True,  # of an error, which is logged
        )
    except ModuleNotFoundError:
        raise StartupError(
            "PostgreSQL cannot be used without psycopg",
            hint="pip install 'servicex-server[postgresql]'",
        ) from None
    event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _unless_given(url: URL) -> dict[str, Any]:
    return {name: value for name, value in _POSTGRESQL.items() if name not in url.query}


def _set_up_postgresql(connection: Any, record: object) -> None:
    del record
    # who stops in the middle of a write, as a suspended machine does, keeps all others from it
    connection.execute("set idle_in_transaction_session_timeout = '30s'")
    connection.commit()


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
