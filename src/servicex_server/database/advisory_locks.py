"""PostgreSQL advisory locks of this service: the numbers, and what each lock protects.

An advisory lock belongs to one database. So services with different databases on one server do not
affect each other.
"""

from enum import IntEnum

from sqlalchemy import Connection, text

SPACE = 0x5E7C1CE
"""The first of the two numbers of every lock. Other programs that use the same database have other
numbers."""


class Lock(IntEnum):
    """The second number of a lock."""

    LEAD = 1
    """Held by the session of the leader, the one process that dispatches."""

    WRITE = 2
    """Held by the one transaction that writes."""

    MIGRATE = 3
    """Held by the one transaction that changes tables."""


FIRST_TERM = 1000
"""Numbers from this one on each stand for one term of a leader, whose session holds the lock."""


def wait_for(connection: Connection, lock: Lock) -> None:
    """Take a lock until the transaction ends. It then sees all that the last holder committed."""
    connection.execute(
        text("select pg_advisory_xact_lock(:space, :lock)"), {"space": SPACE, "lock": int(lock)}
    )
