"""Queries of the web pages: requests, files and datasets, one page at a time.

The cost depends on the size of a page, and not on the number of rows; counts use indexes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Text, and_, cast, func, not_, or_, select

from servicex_server.database import datasets as dataset_rows
from servicex_server.database import requests as request_rows
from servicex_server.database.failure_groups import Group, grouped
from servicex_server.database.finished_files import path_of
from servicex_server.database.tables import OF_FILE, datasets, files, requests, tasks
from servicex_server.errors import ErrorRecord
from servicex_server.model import (
    Dataset,
    InputFile,
    Principal,
    Replica,
    RequestState,
    TaskState,
)

PAGE = 50
"""Requests or datasets on one page."""

FILES = 100
"""Files on one page."""


_EXAMPLES = 5
_ALIKE = 1000
"""Most different errors of a request that are compared, the most frequent ones."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A request as a list shows it, without its query text, which may be long."""

    id: str
    title: str | None
    owner: str
    did: str
    language: str
    state: RequestState
    submitted_at: datetime
    finished_at: datetime | None
    files: int
    completed: int
    failed: int


@dataclass(frozen=True, slots=True)
class Failures:
    """Files of a request with similar failures: their number, their error, and some examples."""

    count: int
    error: ErrorRecord
    examples: tuple[str, ...]
    log_tail: str


@dataclass(frozen=True, slots=True)
class Task:
    """A file of a request in any state; ``parts_done`` of its ``parts`` are done, if it has any."""

    id: int
    path: str
    state: TaskState
    attempts: int
    bytes: int
    events: int
    events_kept: int | None
    seconds: float
    worker: str
    object_name: str | None
    error: ErrorRecord | None
    parts: int
    parts_done: int


def requests_page(
    connection: Connection,
    principal: Principal,
    *,
    states: Sequence[RequestState] = (),
    wanted: str = "",
    everybody: bool = False,
    start: int = 0,
) -> tuple[list[Listed], int]:
    """Return a page of requests, the newest first, and the total number of matching requests.

    Parameters
    ----------
    states
        Only requests in one of these states; all requests if it is empty.
    wanted
        Only requests with this text in their title or dataset, or at the beginning of their id.
    everybody
        Also requests of other users, if the principal sees all.
    start
        Number of requests to skip.
    """
    such = [not_(requests.c.deleted)]
    if not (everybody and principal.sees_all):
        such.append(requests.c.owner == principal.user)
    if states:
        such.append(requests.c.state.in_(states))
    if wanted:
        such.append(
            or_(
                requests.c.title.icontains(wanted, autoescape=True),
                requests.c.did.icontains(wanted, autoescape=True),
                requests.c.id.istartswith(wanted, autoescape=True),
            )
        )
    columns = [requests.c[name] for name in Listed.__dataclass_fields__]
    query = select(*columns).where(*such).order_by(requests.c.submitted_at.desc(), requests.c.id)
    found = [
        Listed(**{**row._mapping, "state": RequestState(row.state)})  # noqa: SLF001  # documented
        for row in connection.execute(query.offset(start).limit(PAGE))
    ]
    total = connection.scalar(select(func.count()).select_from(requests).where(*such))
    return found, total or 0


def failures(connection: Connection, principal: Principal, request_id: str) -> list[Failures]:
    """Return the failed files of a request, grouped by similar errors, the largest group first."""
    request_rows.get(connection, principal, request_id)
    error = cast(tasks.c.error, Text)
    failed = and_(tasks.c.request_id == request_id, tasks.c.state == TaskState.FAILED, OF_FILE)
    rows: Sequence[Any] = connection.execute(
        select(error.label("error"), func.count().label("count"), func.min(tasks.c.id).label("id"))
        .where(failed)
        .group_by(error)
        .order_by(func.count().desc(), func.min(tasks.c.id))
        .limit(_ALIKE)
    ).all()
    first = _paths(connection, tasks.c.id.in_([row.id for row in rows]), _ALIKE)
    groups = grouped(
        (ErrorRecord(**json.loads(row.error)), first[row.id], row.count, row) for row in rows
    )
    return [_failures(connection, group, first, failed) for group in groups[:FILES]]


def _failures(
    connection: Connection, group: Group[Any], first: dict[int, str], failed: Any
) -> Failures:
    rows = group.members
    shown = {row.id: first[row.id] for row in rows[:_EXAMPLES]}
    if len(rows) == 1 and group.count > 1:
        shown = _paths(connection, failed & (cast(tasks.c.error, Text) == rows[0].error), _EXAMPLES)
    tail = connection.scalar(select(tasks.c.log_tail).where(tasks.c.id == rows[0].id))
    return Failures(group.count, group.shown, tuple(shown.values()), tail or "")


def _paths(connection: Connection, such: Any, most: int) -> dict[int, str]:
    """Return the paths of files as users know them, by task id."""
    query = select(tasks, files.c.replicas, files.c.name).join_from(tasks, files).where(such)
    rows = connection.execute(query.order_by(tasks.c.id).limit(most))
    return {row.id: _task(row).path for row in rows}


def tasks_page(
    connection: Connection,
    principal: Principal,
    request_id: str,
    *,
    state: TaskState | None = None,
    start: int = 0,
) -> tuple[list[Task], dict[TaskState, int]]:
    """Return a page of a request's files in the dataset's order, and the number in each state."""
    request_rows.get(connection, principal, request_id)
    mine = and_(tasks.c.request_id == request_id, OF_FILE)
    counted = connection.execute(
        select(tasks.c.state, func.count()).where(mine).group_by(tasks.c.state)
    )
    counts = {TaskState(name): number for name, number in counted.all()}
    # the subquery selects ids only, because sorting very many complete rows takes long
    found = select(tasks.c.id).where(mine).order_by(tasks.c.id).offset(start).limit(FILES)
    if state is not None:
        found = found.where(tasks.c.state == state)
    query = select(tasks, files.c.replicas, files.c.name).join_from(tasks, files)
    rows = connection.execute(query.where(tasks.c.id.in_(found)).order_by(tasks.c.id)).all()
    split = [row.id for row in rows if row.state == TaskState.SPLIT]
    parts = connection.execute(
        select(tasks.c.part_of, func.count())
        .where(tasks.c.part_of.in_(split), tasks.c.state == TaskState.DONE)
        .group_by(tasks.c.part_of)
    )
    done: dict[int, int] = dict(iter(parts))
    return [_task(row, done.get(row.id, 0)) for row in rows], counts


def _task(row: Any, parts_done: int = 0) -> Task:
    return Task(
        id=row.id,
        path=path_of(row),
        state=TaskState(row.state),
        attempts=row.attempts,
        bytes=row.bytes,
        events=row.events,
        events_kept=row.events_kept,
        seconds=row.seconds,
        worker=row.worker,
        object_name=row.object_name,
        error=ErrorRecord(**row.error) if row.error else None,
        parts=row.parts,
        parts_done=parts_done,
    )


def datasets_page(
    connection: Connection, principal: Principal, *, wanted: str = "", start: int = 0
) -> tuple[list[Dataset], int]:
    """Return a page of the datasets that a principal may see, last used first, and the total."""
    such = [dataset_rows.visible(principal)]
    if wanted:
        such.append(datasets.c.name.icontains(wanted, autoescape=True))
    mine = files.c.dataset_id == datasets.c.id
    query = select(
        datasets,
        select(func.count()).where(mine).scalar_subquery().label("n_files"),
        select(func.coalesce(func.sum(files.c.size), 0))
        .where(mine)
        .scalar_subquery()
        .label("size"),
        select(func.coalesce(func.sum(files.c.events), 0))
        .where(mine)
        .scalar_subquery()
        .label("events"),
    ).where(*such)
    latest = query.order_by(datasets.c.last_used.desc(), datasets.c.id.desc())
    found = [
        dataset_rows.dataset(row) for row in connection.execute(latest.offset(start).limit(PAGE))
    ]
    total = connection.scalar(select(func.count()).select_from(datasets).where(*such))
    return found, total or 0


def files_page(
    connection: Connection, principal: Principal, dataset_id: int, *, start: int = 0
) -> list[InputFile]:
    """Return a page of a dataset's files, in its order, without secrets in URLs."""
    dataset_rows.check(connection, principal, dataset_id)
    query = select(files).where(files.c.dataset_id == dataset_id).order_by(files.c.position)
    rows = connection.execute(query.offset(start).limit(FILES))
    return [dataset_rows.shown_file(row) for row in rows]


def places_of(
    connection: Connection, principal: Principal, dataset_id: int, *, most: int
) -> list[tuple[Replica, ...]]:
    """Return the replicas of each of the first files of a dataset."""
    dataset_rows.check(connection, principal, dataset_id)
    query = select(files.c.replicas).where(files.c.dataset_id == dataset_id)
    rows = connection.scalars(query.order_by(files.c.position).limit(most))
    return [tuple(Replica(url, rse) for url, rse in row) for row in rows]
