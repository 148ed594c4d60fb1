"""The leader lock: at most one process on a database dispatches at any moment.

On PostgreSQL the leader holds an advisory lock with a connection of its own. When that connection
ends, for whatever reason, the server releases the lock at once, and the next process that tries
gets it. But the old leader may need some time to detect that its connection is gone, and meanwhile
two processes believe that they lead. So every term of a leader has a second lock, whose number no
other term has, held by the same connection. Every write of a leader first checks that the lock of
its term is still held (`Leadership.guard`). Writes run one after another. So all writes of the old
leader are committed before the new one reads, and it cannot write after that.

The same connection receives messages from other processes to the leader (`notify_leader`). They
send one after they have committed. A lost message does no harm, because the leader also polls the
rows.
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

from servicex_server.database.advisory_locks import FIRST_TERM, SPACE, Lock
from servicex_server.database.connection import Database

if TYPE_CHECKING:
    from psycopg import AsyncConnection

log = logging.getLogger(__name__)

CHANNEL = "servicex_server"
"""PostgreSQL channel on which the leader listens; a channel belongs to one database."""

WATCH_SECONDS = 1.0
"""Seconds between two checks of the leader's connection."""

# either side detects within six seconds that the host of the other is gone; a server that is only
# slow does not end a term
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
    """A process that does not lead any more tried to write as the leader."""

    def __init__(self) -> None:
        super().__init__(None, None, ConnectionError("this process does not lead any more"))


class Leadership(ABC):
    """The right to dispatch."""

    @abstractmethod
    async def take(self) -> bool:
        """Try to take the lead; return whether this process leads now.

        Raises
        ------
        ConnectionError
            The database does not answer.
        """

    @abstractmethod
    async def watch(self, heard: Callable[[str], None]) -> None:
        """Return when this process does not lead any more.

        Parameters
        ----------
        heard
            Called with every message from another process meanwhile.
        """

    @abstractmethod
    def guard(self, connection: Connection) -> None:
        """Allow a write if this process is sure to lead until the write is committed.

        Raises
        ------
        NotLeadingError
            This process does not lead.
        """

    @abstractmethod
    async def release(self) -> None:
        """Give up the lead. The caller has finished all writes before."""


def of(database: Database) -> Leadership:
    """Return the leader lock of a database."""
    return AdvisoryLock(database) if database.shared else Undisputed()


class Undisputed(Leadership):
    """SQLite: the process that has locked the data folder always leads."""

    async def take(self) -> bool:
        """Take the lead."""
        return True

    async def watch(self, heard: Callable[[str], None]) -> None:
        """Never return: no other process can take the lead or send a message."""
        del heard
        await asyncio.Event().wait()

    def guard(self, connection: Connection) -> None:
        """Allow every write."""

    async def release(self) -> None:
        """Do nothing: the lock of the data folder decides."""


class AdvisoryLock(Leadership):
    """PostgreSQL: the process that holds the advisory lock leads.

    Parameters
    ----------
    database
        The database in which the lock is taken.
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
        """Check that this process's session still holds the lock of its term."""
        term = self._term
        if term is None:
            raise NotLeadingError
        if connection.scalar(select(func.pg_try_advisory_xact_lock(SPACE, term))):
            raise NotLeadingError

    async def release(self) -> None:
        """Close the connection, which releases its locks."""
        connection, self._connection, self._term = self._connection, None, None
        if connection is not None:
            with suppress(OSError):
                await connection.close()


async def _lead(connection: "AsyncConnection[Any]") -> int | None:
    """Try to take the leader lock; return the number of the new term, None if another leads."""
    both = "(%s, %s)"
    # without waiting: a session that waits for a lock keeps the server from vacuuming its tables
    found = await connection.execute(f"select pg_try_advisory_lock{both}", (SPACE, Lock.LEAD))
    if await found.fetchone() != (True,):
        return None
    # wait until the last write of the old leader is committed, before this one reads
    await connection.execute(f"select pg_advisory_lock{both}", (SPACE, Lock.WRITE))
    await connection.execute(f"select pg_advisory_unlock{both}", (SPACE, Lock.WRITE))
    term = FIRST_TERM + secrets.randbelow(2**31 - FIRST_TERM)
    await connection.execute(f"select pg_advisory_lock{both}", (SPACE, term))
    await connection.execute(f"listen {CHANNEL}")
    return term


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def notify_leader(connection: Connection, message: str) -> None:
    """Send a message to the leader when this transaction is committed."""
    connection.execute(
        text("select pg_notify(:channel, :message)"), {"channel": CHANNEL, "message": message}
    )


def ping(connection: Connection) -> None:
    """Check that the database answers."""
    connection.execute(text("select 1"))


def taken(connection: Connection) -> bool:
    """Whether any process leads. On SQLite always False: there, a leader knows that it leads."""
    if connection.dialect.name != "postgresql":
        return False
    held = text(
        "select exists (select from pg_locks where locktype = 'advisory' and granted"
        " and database = (select oid from pg_database where datname = current_database())"
        " and classid = :space and objid = :lock)"
    )
    return bool(connection.scalar(held, {"space": SPACE, "lock": int(Lock.LEAD)}))
