"""Current usage of the service by its users, to compare with quotas and to show on pages."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, and_, func, not_, select

from servicex_server.database.requests import OPEN
from servicex_server.database.tables import requests, tasks
from servicex_server.model import TaskState, now

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage of one user: open requests, submission times in the last minute, bytes of results."""

    open: int
    recent: tuple[datetime, ...]
    bytes: int


def of(connection: Connection, owner: str) -> Usage:
    """Return the usage of a user."""
    own = and_(requests.c.owner == owner, not_(requests.c.deleted))
    unfinished = select(func.count()).where(own, requests.c.state.in_(OPEN))
    # deleted requests count too, because they have cost as much
    recent = select(requests.c.submitted_at).where(
        requests.c.owner == owner, requests.c.submitted_at > now() - MINUTE
    )
    return Usage(
        open=connection.scalar(unfinished) or 0,
        recent=tuple(sorted(connection.scalars(recent))),
        bytes=int(connection.scalar(select(func.sum(requests.c.bytes)).where(own)) or 0),
    )


def files_at_work(connection: Connection, owner: str) -> int:
    """Return the number of running tasks of a user."""
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
    """Return the users with the most bytes of results, and the bytes of each."""
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
