"""The advisory locks of this service in its PostgreSQL database: numbers that mean what it says.

They belong to the database they are taken in, so services with databases of their own, on one
server, never meet.
"""

from enum import IntEnum

from sqlalchemy import Connection, text

SPACE = 0x5E7C1CE
"""The first of the two numbers of every lock here: others in the same database have other ones."""


class Lock(IntEnum):
    """The second number of a lock."""

    LEAD = 1
    """Held by the session of the one process that dispatches."""

    WRITE = 2
    """Held by the one transaction that writes."""

    MIGRATE = 3
    """Held by the one transaction that changes tables."""


FIRST_TERM = 1000
"""The numbers from here on each stand for one term of a leader, held by its session too."""


def wait_for(connection: Connection, lock: Lock) -> None:
    """Take a lock until the transaction ends; who has waited sees all that the last holder did."""
    connection.execute(
        text("select pg_advisory_xact_lock(:space, :lock)"), {"space": SPACE, "lock": int(lock)}
    )
