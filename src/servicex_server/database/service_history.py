"""History of the service: workers, waiting files and disk usage by minute, stored bytes by day."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, insert, or_, select

from servicex_server.database.tables import daily, history

KEPT = timedelta(days=7)
"""For how long the history is kept."""


DAYS_KEPT = timedelta(days=366)
"""For how long the stored bytes of each day are kept."""

DAYS_OF_GROWTH = 30
"""The last days whose growth is expected to go on."""


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
    day = minute.replace(hour=0, minute=0)
    gone = or_(daily.c.day < day - DAYS_KEPT, daily.c.day >= day)
    connection.execute(delete(daily).where(gone))
    connection.execute(insert(daily).values(day=day, stored=seen.stored))


def since(connection: Connection, moment: datetime) -> Sequence[Moment]:
    """Return the stored moments from a time on, the oldest first."""
    query = select(history).where(history.c.at >= moment).order_by(history.c.at)
    return [Moment(*row) for row in connection.execute(query)]


def days(connection: Connection) -> list[tuple[datetime, int]]:
    """Return the bytes of results at the end of each known day, the oldest first."""
    rows = connection.execute(select(daily.c.day, daily.c.stored).order_by(daily.c.day))
    return [(row.day, row.stored) for row in rows]


def growth(known: Sequence[tuple[datetime, int]]) -> float | None:
    """Return by how many bytes a day the results have grown lately; None if too little is known.

    Examples
    --------
    >>> first = datetime(2026, 1, 1)
    >>> growth([(first + timedelta(days=n), 5 * n) for n in range(3)])
    5.0
    >>> growth([(first, 5)])
    """
    lately = known[-DAYS_OF_GROWTH:]
    if len(lately) < 2:  # noqa: PLR2004  # points of a line
        return None
    numbers = [(day - lately[0][0]) / timedelta(days=1) for day, _ in lately]
    return statistics.linear_regression(numbers, [stored for _, stored in lately]).slope
