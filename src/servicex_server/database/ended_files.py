"""Files of a request that have ended, as users read them: what was delivered, and what failed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, case, func, select

from servicex_server.database import requests as request_rows
from servicex_server.database.tables import files, tasks
from servicex_server.database.tasks import entries_of
from servicex_server.errors import ErrorRecord
from servicex_server.model import Attempt, Entries, Principal, Replica, TaskState


class EndedFile(NamedTuple):
    """A file of a request that was delivered or failed, or part of one; as short as it can be."""

    id: int
    file_id: int
    state: TaskState
    path: str
    object_name: str | None
    bytes: int
    events: int
    seconds: float
    finished_at: datetime
    entries: Entries | None


@dataclass(frozen=True, slots=True)
class FailedFile:
    """A file of a request that failed, or part of one, with all that is known about why."""

    file_id: int
    path: str
    events: int
    finished_at: datetime
    worker: str
    replicas: tuple[Replica, ...]
    entries: Entries | None
    attempts: tuple[Attempt, ...]
    error: ErrorRecord | None
    log_tail: str


def listed(
    connection: Connection,
    principal: Principal,
    request_id: str,
    *,
    later_than: datetime | None = None,
) -> list[EndedFile]:
    """Return the files of a request that were delivered or failed, in the order they ended.

    ``later_than`` is inclusive: two files may end in one moment.
    """
    request_rows.get(connection, principal, request_id)
    query = _ended(
        request_id,
        [TaskState.DONE, TaskState.FAILED],
        tasks.c.id,
        tasks.c.file_id,
        tasks.c.state,
        tasks.c.path,
        tasks.c.object_name,
        tasks.c.bytes,
        tasks.c.events,
        tasks.c.seconds,
        tasks.c.finished_at,
        tasks.c.first_entry,
        tasks.c.last_entry,
        # these take long to decode, and are wanted only where no worker has said which one it was
        case((tasks.c.path.is_(None), files.c.replicas)).label("replicas"),
        files.c.name,
    )
    if later_than is not None:
        query = query.where(tasks.c.finished_at >= later_than)
    return [
        EndedFile(
            row.id,
            row.file_id,
            TaskState(row.state),
            path_of(row),
            row.object_name,
            row.bytes,
            row.events,
            row.seconds,
            row.finished_at,
            entries_of(row),
        )
        for row in connection.execute(query)
    ]


def failed(connection: Connection, principal: Principal, request_id: str) -> list[FailedFile]:
    """Return the files of a request that failed, in the order they ended."""
    request_rows.get(connection, principal, request_id)
    query = _ended(request_id, [TaskState.FAILED], tasks, files.c.replicas, files.c.name)
    return [_failed(row) for row in connection.execute(query)]


def _ended(request_id: str, states: Sequence[TaskState], *columns: Any) -> Select[Any]:
    return (
        select(*columns)
        .join_from(tasks, files, tasks.c.file_id == files.c.id)
        .where(tasks.c.request_id == request_id, tasks.c.state.in_(states))
        .order_by(tasks.c.finished_at, tasks.c.id)
    )


def path_of(row: Any) -> str:
    """Return what users know the file of a task by, of a row of both."""
    path: str = row.path or (row.replicas[0][0] if row.replicas else row.name)
    return path


def _failed(row: Any) -> FailedFile:
    return FailedFile(
        file_id=row.file_id,
        path=path_of(row),
        events=row.events,
        finished_at=row.finished_at,
        worker=row.worker,
        replicas=tuple(Replica(url, rse) for url, rse in row.replicas),
        entries=entries_of(row),
        attempts=tuple(
            Attempt(
                url=tried["url"],
                seconds=tried["seconds"],
                error=ErrorRecord(**tried["error"]) if tried["error"] else None,
            )
            for tried in row.tried or []
        ),
        error=ErrorRecord(**row.error) if row.error else None,
        log_tail=row.log_tail,
    )


def statistics(
    connection: Connection, principal: Principal, request_id: str
) -> dict[str, float] | None:
    """Return seconds, bytes and events of the delivered files; None before the first."""
    request_rows.get(connection, principal, request_id)
    row = connection.execute(
        select(
            func.count().label("count"),
            func.min(tasks.c.seconds).label("least"),
            func.max(tasks.c.seconds).label("most"),
            func.sum(tasks.c.seconds).label("total"),
            func.sum(tasks.c.bytes).label("bytes"),
            func.sum(tasks.c.events).label("events"),
        ).where(tasks.c.request_id == request_id, tasks.c.state == TaskState.DONE)
    ).one()
    found = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's documented way to rows by name
    return found if found["count"] else None
