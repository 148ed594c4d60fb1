"""Rows of requests, with their counters.

A transaction that changes task rows also changes the counters, by the number of rows that really
changed. Writes run one after another. So a counter always equals the number of rows it counts.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    delete,
    func,
    insert,
    not_,
    select,
    tuple_,
    update,
)

from servicex_server.database.tables import requests, tasks
from servicex_server.errors import ForbiddenError, NotFoundError, StateError
from servicex_server.model import (
    REQUEST_TRANSITIONS,
    Principal,
    Request,
    RequestState,
    ResultFormat,
    TaskState,
    now,
)

log = logging.getLogger(__name__)

_T = TypeVar("_T")

MOST_PARAMETERS = 10_000
"""Most parameters of a statement (SQLite allows 32,766), and most rows that a statement deletes."""

OPEN = [state for state in RequestState if not state.terminal]
_STORED = [field.name for field in fields(Request) if field.name in requests.c]


def batches(values: Iterable[_T]) -> Iterator[list[_T]]:
    """Yield as many values at a time as a statement may have parameters."""
    found = list(values)
    for start in range(0, len(found), MOST_PARAMETERS):
        yield found[start : start + MOST_PARAMETERS]


def _request(row: Row[Any]) -> Request:
    values = {name: row._mapping[name] for name in _STORED}  # noqa: SLF001  # documented
    values["state"] = RequestState(values["state"])
    values["format"] = ResultFormat(values["format"])
    return Request(**values)


def create(connection: Connection, request: Request) -> None:
    """Add a request."""
    connection.execute(insert(requests).values({name: getattr(request, name) for name in _STORED}))


def get(connection: Connection, principal: Principal, request_id: str) -> Request:
    """Return a request with its counters.

    Raises
    ------
    NotFoundError
        The request does not exist, or belongs to another user. The error is the same for both.
    """
    row = connection.execute(select(requests).where(requests.c.id == request_id)).first()
    if row is None or row.deleted or not (principal.sees_all or row.owner == principal.user):
        raise NotFoundError(f"Transformation request not found with id: {request_id}")
    if row.owner != principal.user:
        _note(principal, row.owner, request_id, now().replace(minute=0, second=0, microsecond=0))
    return _request(row)


@lru_cache(maxsize=10_000)
def _note(principal: Principal, owner: str, request_id: str, hour: datetime) -> None:
    """Log that a user viewed another user's request, once an hour: pages reload every second."""
    del hour
    log.info(
        "user %s (role %s) viewed a request owned by %s",
        principal.user,
        principal.role.value,
        owner,
        extra={"request_id": request_id},
    )


def changeable(connection: Connection, principal: Principal, request_id: str) -> Request:
    """Return a request that a principal may change.

    An operator may read the requests of other users, but not change them.

    Raises
    ------
    NotFoundError, ForbiddenError
        The request does not exist; the principal may not change it.
    """
    request = get(connection, principal, request_id)
    if not (principal.changes_all or request.owner == principal.user):
        raise ForbiddenError(
            f"Transformation request {request_id} belongs to another user",
            hint="only its owner and administrators can change or delete it",
        )
    return request


def listed(
    connection: Connection,
    principal: Principal,
    *,
    owner: str | None = None,
    after: Request | None = None,
    offset: int = 0,
    limit: int = MOST_PARAMETERS,
    characters: int | None = None,
) -> list[Request]:
    """Return requests of the principal, or of another user for those who see all; newest first.

    Parameters
    ----------
    owner
        The user whose requests are returned; None for the principal's own.
    after
        The last request of the previous slice.
    offset
        Number of requests to skip.
    limit
        Most requests to return.
    characters
        Most characters of each query text to return; None for all.
    """
    wanted = owner if owner is not None and principal.sees_all else principal.user
    which: list[ColumnElement[bool]] = [requests.c.owner == wanted, not_(requests.c.deleted)]
    if after is not None:
        place = tuple_(requests.c.submitted_at, requests.c.id)
        which.append(place < (after.submitted_at, after.id))
    columns = [column for column in requests.c if column.name != "selection"]
    selection = requests.c.selection
    cut = selection if characters is None else func.substr(selection, 1, characters)
    rows: Iterable[Row[Any]] = connection.execute(
        select(*columns, cut.label("selection"))
        .where(*which)
        .order_by(requests.c.submitted_at.desc(), requests.c.id.desc())
        .offset(offset)
        .limit(limit)
    )
    return [_request(row) for row in rows]


def change_state(
    connection: Connection,
    request_ids: Iterable[str],
    state: RequestState,
    *,
    failure: str = "",
) -> list[str]:
    """Move requests to a state, if their current state allows it; return the ids of those moved."""
    may = [old for old, new in REQUEST_TRANSITIONS.items() if state in new]
    values: dict[str, Any] = {"state": state}
    if state.terminal:
        values |= {"finished_at": now(), "failure": failure}
    result = connection.execute(
        update(requests)
        .where(requests.c.id.in_(list(request_ids)), requests.c.state.in_(may))
        .values(**values)
        .returning(requests.c.id)
    )
    return list(result.scalars())


def cancel(connection: Connection, principal: Principal, request_id: str) -> None:
    """Cancel a request. Its unfinished files are not processed any more.

    Raises
    ------
    NotFoundError, ForbiddenError, StateError
        The request does not exist; the principal may not change it; it has ended already.
    """
    request = changeable(connection, principal, request_id)
    if not change_state(connection, [request_id], RequestState.CANCELED):
        raise StateError(
            f"Transformation request {request_id} has ended already: {request.state.value}"
        )
    drop_tasks(connection, request_id)


def drop_tasks(connection: Connection, request_id: str) -> None:
    """Cancel the running tasks of a request that has ended.

    Waiting tasks, which may be many, are left as they are: tasks of an ended request never start.
    """
    connection.execute(
        update(tasks)
        .where(tasks.c.request_id == request_id, tasks.c.state == TaskState.RUNNING)
        .values(state=TaskState.CANCELED, finished_at=now())
    )


def stored(connection: Connection, request_ids: Iterable[str]) -> dict[str, Row[Any]]:
    """Return what transactions need of those requests that exist, by id: not their queries."""
    found = select(*_OF_TRANSACTIONS).where(requests.c.id.in_(sorted(request_ids)))
    return {row.id: row for row in connection.execute(found)}


_OF_TRANSACTIONS = [
    requests.c[name]
    for name in "id owner dataset_id state deleted files completed failed last_ended".split()
]


def mark_deleted(connection: Connection, principal: Principal, request_id: str) -> None:
    """Mark a request as deleted, so that nobody sees it. Its rows are removed later, in steps.

    Raises
    ------
    NotFoundError, ForbiddenError
        The request does not exist; the principal may not change it.
    """
    changeable(connection, principal, request_id)
    change_state(connection, [request_id], RequestState.CANCELED)
    drop_tasks(connection, request_id)
    connection.execute(update(requests).where(requests.c.id == request_id).values(deleted=True))


def marked_deleted(connection: Connection) -> list[str]:
    """Return the ids of deleted requests whose rows are not removed yet."""
    return list(connection.scalars(select(requests.c.id).where(requests.c.deleted)))


def tasks_to_remove(connection: Connection, request_id: str) -> tuple[list[int], list[str]]:
    """Return ids of some tasks of a deleted request, and the keys of objects only they use."""
    some = select(tasks.c.id, tasks.c.object_key).where(tasks.c.request_id == request_id)
    rows = connection.execute(some.limit(MOST_PARAMETERS)).all()
    return [row.id for row in rows], unused(connection, filter(None, (r.object_key for r in rows)))


def remove_tasks(connection: Connection, task_ids: Iterable[int]) -> None:
    """Remove tasks of a deleted request."""
    connection.execute(delete(tasks).where(tasks.c.id.in_(list(task_ids))))


def remove(connection: Connection, request_id: str) -> None:
    """Remove a deleted request whose tasks are all removed."""
    connection.execute(delete(requests).where(requests.c.id == request_id))


def unused(connection: Connection, object_keys: Iterable[str]) -> list[str]:
    """Return the keys of objects that only deleted requests use, or that no task uses."""
    keys = sorted(set(object_keys))
    named = (
        select(tasks.c.object_key)
        .join_from(tasks, requests, tasks.c.request_id == requests.c.id)
        .where(not_(requests.c.deleted))
        .distinct()
    )
    used: set[str] = set()
    for some in batches(keys):
        used.update(connection.scalars(named.where(tasks.c.object_key.in_(some))))
    return [key for key in keys if key not in used]


def of_dataset(
    connection: Connection, dataset_id: int, states: Iterable[RequestState]
) -> list[str]:
    """Return the ids of the requests on a dataset that are in one of the states."""
    return list(
        connection.scalars(
            select(requests.c.id).where(
                requests.c.dataset_id == dataset_id, requests.c.state.in_(list(states))
            )
        )
    )
