"""What users have at this moment: of what there are limits for, and who has how much."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, and_, func, not_, select

from servicex_server.database.requests import OPEN
from servicex_server.database.tables import requests, tasks
from servicex_server.model import TaskState, now

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Use:
    """Requests that have not ended, when those of the last minute came, and bytes of results."""

    open: int
    recent: tuple[datetime, ...]
    bytes: int


def of(connection: Connection, owner: str) -> Use:
    """Return what somebody has."""
    own = and_(requests.c.owner == owner, not_(requests.c.deleted))
    unfinished = select(func.count()).where(own, requests.c.state.in_(OPEN))
    # those that are deleted have cost as much
    recent = select(requests.c.submitted_at).where(
        requests.c.owner == owner, requests.c.submitted_at > now() - MINUTE
    )
    return Use(
        open=connection.scalar(unfinished) or 0,
        recent=tuple(sorted(connection.scalars(recent))),
        bytes=int(connection.scalar(select(func.sum(requests.c.bytes)).where(own)) or 0),
    )


def files_at_work(connection: Connection, owner: str) -> int:
    """Return how many files of somebody are at work."""
    running = (
        select(func.count())
        .select_from(tasks)
        .join(requests, tasks.c.request_id == requests.c.id)
        .where(tasks.c.state == TaskState.RUNNING, requests.c.owner == owner)
    )
    return connection.scalar(running) or 0


def stored(connection: Connection) -> int:
    """Return the bytes of all results."""
    total = select(func.sum(requests.c.bytes)).where(not_(requests.c.deleted))
    return int(connection.scalar(total) or 0)


def stored_by_user(connection: Connection, *, most: int) -> list[tuple[str, int]]:
    """Return those who have the most bytes of results, and how many."""
    total = func.sum(requests.c.bytes)
    rows = connection.execute(
        select(requests.c.owner, total.label("total"))
        .where(not_(requests.c.deleted))
        .group_by(requests.c.owner)
        .having(total > 0)
        .order_by(total.desc(), requests.c.owner)
        .limit(most)
    )
    return [(row.owner, int(row.total)) for row in rows]
