"""Current usage of the service by its users, to compare with quotas and to show on pages."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, and_, func, not_, select

from servicex_server.database import stored_objects
from servicex_server.database.requests import OPEN
from servicex_server.database.tables import requests, tasks
from servicex_server.model import TaskState, now

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage of one user: open requests, submission times in the last minute, bytes of results.

    Results that several users share count to one of them.
    """

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
        bytes=stored_objects.size_of(connection, owner),
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
