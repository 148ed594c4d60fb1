"""What a user has at this moment, of what there are limits for."""

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


def of(connection: Connection, owner: str, *, with_bytes: bool) -> Use:
    """Return what somebody has; bytes are counted only if somebody asks, for that takes longer."""
    own = and_(requests.c.owner == owner, not_(requests.c.deleted))
    unfinished = select(func.count()).where(own, requests.c.state.in_(OPEN))
    # those that are deleted have cost as much
    recent = select(requests.c.submitted_at).where(
        requests.c.owner == owner, requests.c.submitted_at > now() - MINUTE
    )
    stored = 0
    if with_bytes:
        results = (
            select(func.coalesce(func.sum(tasks.c.bytes), 0))
            .join_from(tasks, requests, tasks.c.request_id == requests.c.id)
            .where(own, tasks.c.state == TaskState.DONE)
        )
        stored = int(connection.scalar(results) or 0)
    return Use(
        open=connection.scalar(unfinished) or 0,
        recent=tuple(sorted(connection.scalars(recent))),
        bytes=stored,
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
