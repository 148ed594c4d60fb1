"""Which of the processes on one database dispatches: at most one at any moment.

On PostgreSQL the one that leads holds an advisory lock by a connection of its own. The server gives
the lock up the moment that connection ends, whatever ended it, and the next process that tries has
it. But a leader may need a while to see that its connection is gone, and meanwhile there are two
that believe to lead. So every term of a leader has a second lock, with a number that no other term
has, held by the same connection, and every write in the name of the leader first looks whether that
one is still held (`Leadership.guard`). Writes run one after another, so what was written under the
old leader is there before the new one reads, and nothing is written after.

The same connection hears what other processes tell the leader (`tell`). They do so after they have
committed, and the leader looks at the rows all the same: if it hears nothing, it loses nothing.
"""

import asyncio
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import OperationalError

from servicex_server.database.connection import Database
from servicex_server.database.locks import FIRST_TERM, SPACE, Lock

if TYPE_CHECKING:
    from psycopg import AsyncConnection

log = logging.getLogger(__name__)

CHANNEL = "servicex_server"
"""Where the leader listens; a channel belongs to one database."""

WATCH_SECONDS = 1.0
"""How often a leader makes sure of its connection."""

# six seconds until either side finds out that the host of the other one is gone; a server that is
# only slow costs nobody the lead
_OURS = {
    "keepalives_idle": 2,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 6_000,
}
_THEIRS = (
    b"set tcp_keepalives_idle = 2; set tcp_keepalives_interval = 2; "
    b"set tcp_keepalives_count = 2; set tcp_user_timeout = '6s'"
)


class NotLeadingError(OperationalError):
    """A write in the name of the leader, by a process that does not lead any more."""

    def __init__(self) -> None:
        super().__init__(None, None, ConnectionError("this process does not lead any more"))


class Leadership(ABC):
    """The right to dispatch."""

    @abstractmethod
    async def take(self) -> bool:
        """Lead from now on, unless another process does; return whether this one leads.

        Raises
        ------
        ConnectionError
            The database does not answer.
        """

    @abstractmethod
    async def watch(self, heard: Callable[[str], None]) -> None:
        """Return when this process has ceased to lead.

        Parameters
        ----------
        heard
            Called with everything that other processes tell meanwhile.
        """

    @abstractmethod
    def guard(self, connection: Connection) -> None:
        """Let a write pass if this process leads until it has been committed.

        Raises
        ------
        NotLeadingError
            It does not.
        """

    @abstractmethod
    async def release(self) -> None:
        """Cease to lead. What is being written has to have ended."""


def of(database: Database) -> Leadership:
    """Return how it is decided who leads on this database."""
    return AdvisoryLock(database) if database.shared else Undisputed()


class Undisputed(Leadership):
    """SQLite: whoever has opened the data folder is alone."""

    async def take(self) -> bool:
        """Lead."""
        return True

    async def watch(self, heard: Callable[[str], None]) -> None:
        """Never return: there is nobody to lose it to, and nobody to hear of."""
        del heard
        await asyncio.Event().wait()

    def guard(self, connection: Connection) -> None:
        """Let every write pass."""

    async def release(self) -> None:
        """Leave it to the lock of the folder."""


class AdvisoryLock(Leadership):
    """PostgreSQL: whoever holds the lock.

    Parameters
    ----------
    database
        The lock is one in there.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: AsyncConnection[Any] | None = None
        self._term: int | None = None

    async def take(self) -> bool:
        """Try once; the connection stays open for the next try."""
        import psycopg

        try:
            if self._connection is None:
                self._connection = await self._connect()
            self._term = await _lead(self._connection)
        except (psycopg.Error, OSError) as error:
            await self.release()
            raise ConnectionError(_line(error)) from error
        return self._term is not None

    async def _connect(self) -> "AsyncConnection[Any]":
        from psycopg import AsyncConnection

        options = self._database.connect_arguments() | _OURS
        connection = await AsyncConnection.connect(autocommit=True, **options)
        await connection.execute(_THEIRS)
        return connection

    async def watch(self, heard: Callable[[str], None]) -> None:
        """Return when the connection breaks."""
        import psycopg

        try:
            while self._connection is not None:
                async for notice in self._connection.notifies(timeout=WATCH_SECONDS):
                    heard(notice.payload)
                await self._connection.execute("select 1")
        except (psycopg.Error, OSError) as error:
            log.warning("this process has lost the lead: %s", _line(error))
        self._term = None

    def guard(self, connection: Connection) -> None:
        """Look whether the lock of this term is held, which only this process's session can do."""
        term = self._term
        if term is None:
            raise NotLeadingError
        if connection.scalar(select(func.pg_try_advisory_xact_lock(SPACE, term))):
            raise NotLeadingError

    async def release(self) -> None:
        """Close the connection, and with it every lock it has."""
        connection, self._connection, self._term = self._connection, None, None
        if connection is not None:
            with suppress(OSError):
                await connection.close()


async def _lead(connection: "AsyncConnection[Any]") -> int | None:
    """Take the lock that leads; return the number of the term, None if another process has it."""
    both = "(%s, %s)"
    # no waiting: a session that waits for a lock keeps the server from cleaning its tables
    found = await connection.execute(f"select pg_try_advisory_lock{both}", (SPACE, Lock.LEAD))
    if await found.fetchone() != (True,):
        return None
    # what the last leader was writing has to be there before this one reads
    await connection.execute(f"select pg_advisory_lock{both}", (SPACE, Lock.WRITE))
    await connection.execute(f"select pg_advisory_unlock{both}", (SPACE, Lock.WRITE))
    term = FIRST_TERM + secrets.randbelow(2**31 - FIRST_TERM)
    await connection.execute(f"select pg_advisory_lock{both}", (SPACE, term))
    await connection.execute(f"listen {CHANNEL}")
    return term


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def tell(connection: Connection, message: str) -> None:
    """Tell the leader something, as soon as this transaction is committed."""
    connection.execute(
        text("select pg_notify(:channel, :message)"), {"channel": CHANNEL, "message": message}
    )


def ping(connection: Connection) -> None:
    """Do nothing but reach the database."""
    connection.execute(text("select 1"))


def taken(connection: Connection) -> bool:
    """Whether a process leads, this one or another; of SQLite only that process can ask."""
    if connection.dialect.name != "postgresql":
        return False
    held = text(
        "select exists (select from pg_locks where locktype = 'advisory' and granted"
        " and database = (select oid from pg_database where datname = current_database())"
        " and classid = :space and objid = :lock)"
    )
    return bool(connection.scalar(held, {"space": SPACE, "lock": int(Lock.LEAD)}))
