"""How the service was, minute by minute: workers, what waited, and how full its disk was."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, insert, or_, select

from servicex_server.database.tables import history

KEPT = timedelta(days=7)
"""For how long it is known."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The service at a moment.

    ``wanted``, ``there`` and ``busy`` are workers, ``waiting`` files, ``stored`` bytes of results,
    ``free`` bytes of the disk that they are on; None if they are in a bucket.
    """

    at: datetime
    wanted: int
    there: int
    busy: int
    waiting: int
    stored: int
    free: int | None


def put(connection: Connection, seen: Moment) -> None:
    """Write down how it is, in the place of what was written in the same minute.

    So a week has no more rows than minutes, however often somebody begins to lead. What is older
    goes; and what is younger, for the clock was set back.
    """
    minute = seen.at.replace(second=0, microsecond=0)
    gone = or_(history.c.at < minute - KEPT, history.c.at >= minute)
    connection.execute(delete(history).where(gone))
    connection.execute(insert(history).values(asdict(seen)))


def since(connection: Connection, moment: datetime) -> Sequence[Moment]:
    """Return how it was from a moment on, the oldest first."""
    query = select(history).where(history.c.at >= moment).order_by(history.c.at)
    return [Moment(*row) for row in connection.execute(query)]
