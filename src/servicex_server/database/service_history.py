"""History of the service, minute by minute: workers, waiting files and disk usage."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, insert, or_, select

from servicex_server.database.tables import history

KEPT = timedelta(days=7)
"""For how long the history is kept."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The service at a moment.

    ``wanted``, ``there`` and ``busy`` count workers; ``waiting`` counts files. ``stored`` is bytes
    of results. ``free`` is free bytes on their disk; None if the results are in a bucket.
    """

    at: datetime
    wanted: int
    there: int
    busy: int
    waiting: int
    stored: int
    free: int | None


def put(connection: Connection, seen: Moment) -> None:
    """Store a moment, in place of one that was stored in the same minute.

    So a week has at most one row a minute, however often the leader changes. Rows that are too old
    are deleted. So are rows in the future, which exist if the clock was set back.
    """
    minute = seen.at.replace(second=0, microsecond=0)
    gone = or_(history.c.at < minute - KEPT, history.c.at >= minute)
    connection.execute(delete(history).where(gone))
    connection.execute(insert(history).values(asdict(seen)))


def since(connection: Connection, moment: datetime) -> Sequence[Moment]:
    """Return the stored moments from a time on, the oldest first."""
    query = select(history).where(history.c.at >= moment).order_by(history.c.at)
    return [Moment(*row) for row in connection.execute(query)]
