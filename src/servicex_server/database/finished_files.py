"""Finished files of a request, delivered or failed, as users see them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, case, func, select

from servicex_server.database import requests as request_rows
from servicex_server.database.tables import OF_FILE, files, tasks
from servicex_server.errors import ErrorRecord
from servicex_server.model import Attempt, Principal, Replica, TaskState
from servicex_server.text.escaping import redacted


class EndedFile(NamedTuple):
    """A delivered or failed file of a request, without details, because there may be many."""

    id: int
    file_id: int
    state: TaskState
    path: str
    object_name: str | None
    bytes: int
    events: int
    events_kept: int | None
    seconds: float
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class FailedFile:
    """A failed file of a request, with all details of its failure."""

    file_id: int
    path: str
    events: int
    finished_at: datetime
    worker: str
    replicas: tuple[Replica, ...]
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
    """Return the delivered and failed files of a request, in the order they ended.

    ``later_than`` is inclusive, because two files may end at the same time.
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
        tasks.c.events_kept,
        tasks.c.seconds,
        tasks.c.finished_at,
        # replicas take long to decode, and are needed only if no worker reported the path
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
            row.events_kept,
            row.seconds,
            row.finished_at,
        )
        for row in connection.execute(query)
    ]


def failed(connection: Connection, principal: Principal, request_id: str) -> list[FailedFile]:
    """Return the files of a request that failed, in the order they ended."""
    request_rows.get(connection, principal, request_id)
    query = _ended(request_id, [TaskState.FAILED], tasks, files.c.replicas, files.c.name)
    return [_failed(row) for row in connection.execute(query)]


def first_log(connection: Connection, request_id: str) -> str:
    """Return the log of the first delivered file of a request that has one."""
    query = (
        select(tasks.c.log_tail)
        .where(
            tasks.c.request_id == request_id,
            tasks.c.state == TaskState.DONE,
            tasks.c.log_tail != "",
            OF_FILE,
        )
        .order_by(tasks.c.finished_at, tasks.c.id)
        .limit(1)
    )
    return connection.scalar(query) or ""


def _ended(request_id: str, states: Sequence[TaskState], *columns: Any) -> Select[Any]:
    return (
        select(*columns)
        .join_from(tasks, files, tasks.c.file_id == files.c.id)
        .where(tasks.c.request_id == request_id, tasks.c.state.in_(states), OF_FILE)
        .order_by(tasks.c.finished_at, tasks.c.id)
    )


def path_of(row: Any) -> str:
    """Return the path of a task's file as users know it, without secrets.

    ``row`` has the columns of the task and of its file.
    """
    path: str = row.path or (row.replicas[0][0] if row.replicas else row.name)
    return redacted(path)


def _failed(row: Any) -> FailedFile:
    return FailedFile(
        file_id=row.file_id,
        path=path_of(row),
        events=row.events,
        finished_at=row.finished_at,
        worker=row.worker,
        replicas=tuple(Replica(redacted(url), rse) for url, rse in row.replicas),
        attempts=tuple(
            Attempt(
                url=redacted(tried["url"]),
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
    """Return statistics on seconds, bytes and events of the delivered files; None before the first.

    ``kept`` is missing if the number of events in the result is not known for every file.
    """
    request_rows.get(connection, principal, request_id)
    row = connection.execute(
        select(
            func.count().label("count"),
            func.min(tasks.c.seconds).label("least"),
            func.max(tasks.c.seconds).label("most"),
            func.sum(tasks.c.seconds).label("total"),
            func.sum(tasks.c.bytes).label("bytes"),
            func.sum(tasks.c.events).label("events"),
            func.sum(tasks.c.events_kept).label("kept"),
            func.count(tasks.c.events_kept).label("known"),
        ).where(tasks.c.request_id == request_id, tasks.c.state == TaskState.DONE, OF_FILE)
    ).one()
    found = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's documented way to rows by name
    if found.pop("known") < found["count"]:
        del found["kept"]
    return found if found["count"] else None
