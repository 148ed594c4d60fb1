"""What people look at: requests, files and datasets, a page of them at a time.

The cost is that of a page, not of all that there is; counting is left to indexes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Text, and_, cast, func, not_, or_, select

from servicex_server.database import datasets as dataset_rows
from servicex_server.database import requests as request_rows
from servicex_server.database.ended_files import path_of
from servicex_server.database.tables import datasets, files, requests, tasks
from servicex_server.errors import ErrorRecord
from servicex_server.model import (
    Dataset,
    DatasetState,
    InputFile,
    Principal,
    Replica,
    RequestState,
    TaskState,
)

PAGE = 50
"""Requests or datasets that are shown at a time."""

FILES = 100
"""Files that are shown at a time."""


_EXAMPLES = 5
_ALIKE = 1000
"""Errors of a request that are held against each other, the most frequent ones."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A request as a list shows it: not the query, which may be long."""

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
    """Files of a request that failed alike: how many, what was wrong, and some of them."""

    count: int
    error: ErrorRecord
    examples: tuple[str, ...]
    log_tail: str


@dataclass(frozen=True, slots=True)
class Task:
    """A file of a request, or a part of one, however far it is."""

    id: int
    path: str
    state: TaskState
    attempts: int
    bytes: int
    events: int
    seconds: float
    worker: str
    object_name: str | None
    error: ErrorRecord | None
    first_entry: int
    last_entry: int | None


def requests_page(
    connection: Connection,
    principal: Principal,
    *,
    states: Sequence[RequestState] = (),
    wanted: str = "",
    everybody: bool = False,
    start: int = 0,
) -> tuple[list[Listed], int]:
    """Return some of one's requests, the newest first, and how many there are of such.

    Parameters
    ----------
    states
        Only those in one of them; all, if there is none.
    wanted
        Only those with this text in their title or dataset, or at the beginning of their id.
    everybody
        Other people's too, for those who see all.
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
    """Return the failed files of a request by what went wrong, the largest group first."""
    request_rows.get(connection, principal, request_id)
    error = cast(tasks.c.error, Text)
    failed = and_(tasks.c.request_id == request_id, tasks.c.state == TaskState.FAILED)
    rows = connection.execute(
        select(error.label("error"), func.count().label("count"), func.min(tasks.c.id).label("id"))
        .where(failed)
        .group_by(error)
        .order_by(func.count().desc(), func.min(tasks.c.id))
        .limit(_ALIKE)
    ).all()
    first = _paths(connection, tasks.c.id.in_([row.id for row in rows]), _ALIKE)
    groups: dict[ErrorRecord, list[Any]] = {}
    for row in rows:
        found = ErrorRecord(**json.loads(row.error))
        path = first[row.id]
        alike = replace(found, message=found.message.replace(path, "(the file)")) if path else found
        groups.setdefault(alike, []).append(row)
    return [
        _failures(connection, alike, same, first, failed)
        for alike, same in sorted(
            groups.items(), key=lambda group: -sum(row.count for row in group[1])
        )[:FILES]
    ]


def _failures(
    connection: Connection, alike: ErrorRecord, rows: list[Any], first: dict[int, str], failed: Any
) -> Failures:
    count = sum(row.count for row in rows)
    shown = {row.id: first[row.id] for row in rows[:_EXAMPLES]}
    if len(rows) == 1 and count > 1:
        shown = _paths(connection, failed & (cast(tasks.c.error, Text) == rows[0].error), _EXAMPLES)
    error = alike
    if count == 1:
        error = ErrorRecord(**json.loads(rows[0].error))
    tail = connection.scalar(select(tasks.c.log_tail).where(tasks.c.id == rows[0].id))
    return Failures(count, error, tuple(shown.values()), tail or "")


def _paths(connection: Connection, such: Any, most: int) -> dict[int, str]:
    """Return by id of a task what users know its file by."""
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
    """Return some files of a request in the dataset's order, and how many are in which state."""
    request_rows.get(connection, principal, request_id)
    mine = tasks.c.request_id == request_id
    counted = connection.execute(
        select(tasks.c.state, func.count()).where(mine).group_by(tasks.c.state)
    )
    counts = {TaskState(name): number for name, number in counted.all()}
    # found by their ids alone: to put whole rows in order takes long where there are very many
    found = select(tasks.c.id).where(mine).order_by(tasks.c.id).offset(start).limit(FILES)
    if state is not None:
        found = found.where(tasks.c.state == state)
    query = select(tasks, files.c.replicas, files.c.name).join_from(tasks, files)
    rows = connection.execute(query.where(tasks.c.id.in_(found)).order_by(tasks.c.id))
    return [_task(row) for row in rows], counts


def _task(row: Any) -> Task:
    return Task(
        id=row.id,
        path=path_of(row),
        state=TaskState(row.state),
        attempts=row.attempts,
        bytes=row.bytes,
        events=row.events,
        seconds=row.seconds,
        worker=row.worker,
        object_name=row.object_name,
        error=ErrorRecord(**row.error) if row.error else None,
        first_entry=row.first_entry,
        last_entry=row.last_entry,
    )


def datasets_page(
    connection: Connection, principal: Principal, *, wanted: str = "", start: int = 0
) -> tuple[list[Dataset], int]:
    """Return some of the datasets that one may see, the latest used first, and how many are."""
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
        Dataset(**{**row._mapping, "state": DatasetState(row.state)})  # noqa: SLF001  # documented
        for row in connection.execute(latest.offset(start).limit(PAGE))
    ]
    total = connection.scalar(select(func.count()).select_from(datasets).where(*such))
    return found, total or 0


def files_page(
    connection: Connection, principal: Principal, dataset_id: int, *, start: int = 0
) -> list[InputFile]:
    """Return some files of a dataset, in its order."""
    dataset_rows.check(connection, principal, dataset_id)
    query = select(files).where(files.c.dataset_id == dataset_id).order_by(files.c.position)
    rows = connection.execute(query.offset(start).limit(FILES))
    return [dataset_rows.input_file(row) for row in rows]


def places_of(
    connection: Connection, principal: Principal, dataset_id: int, *, most: int
) -> list[tuple[Replica, ...]]:
    """Return where each of the first files of a dataset is."""
    dataset_rows.check(connection, principal, dataset_id)
    query = select(files.c.replicas).where(files.c.dataset_id == dataset_id)
    rows = connection.scalars(query.order_by(files.c.position).limit(most))
    return [tuple(Replica(url, rse) for url, rse in row) for row in rows]
