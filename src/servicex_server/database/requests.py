"""Rows of requests, with their counters.

A counter is changed in the transaction that changes the task rows it counts, by as many as really
changed; and writes run one after another. So it always is what counting them would give.
"""

import logging
from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, not_, select, update

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

_SOME = 10_000
"""Values that a statement may have, of which SQLite takes 32,766; and rows that it removes."""

OPEN = [state for state in RequestState if not state.terminal]
_STORED = [field.name for field in fields(Request) if field.name in requests.c]


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
        There is none, or it is somebody else's; the two look the same.
    """
    row = connection.execute(select(requests).where(requests.c.id == request_id)).first()
    if row is None or row.deleted or not (principal.sees_all or row.owner == principal.user):
        raise NotFoundError(f"Transformation request not found with id: {request_id}")
    if row.owner != principal.user:
        _note(principal, row.owner, request_id, now().replace(minute=0, second=0, microsecond=0))
    return _request(row)


@lru_cache(maxsize=10_000)
def _note(principal: Principal, owner: str, request_id: str, hour: datetime) -> None:
    """Log that somebody looks at what is another's: once an hour, for a page looks every second."""
    del hour
    log.info(
        "%s, %s, looks at what is of %s",
        principal.user,
        principal.role.value,
        owner,
        extra={"request_id": request_id},
    )


def _changeable(connection: Connection, principal: Principal, request_id: str) -> Request:
    """Return a request that a principal may change, which is less than may be read."""
    request = get(connection, principal, request_id)
    if not (principal.changes_all or request.owner == principal.user):
        raise ForbiddenError(
            f"Transformation request {request_id} is somebody else's",
            hint="an administrator may end or delete it, an operator only looks",
        )
    return request


def listed(
    connection: Connection, principal: Principal, *, owner: str | None = None
) -> list[Request]:
    """Return one's own requests, or another's for those who may see all; newest first."""
    wanted = owner if owner is not None and principal.sees_all else principal.user
    rows = connection.execute(
        select(requests)
        .where(requests.c.owner == wanted, not_(requests.c.deleted))
        .order_by(requests.c.submitted_at.desc())
    )
    return [_request(row) for row in rows]


def change_state(
    connection: Connection,
    request_ids: Iterable[str],
    state: RequestState,
    *,
    failure: str = "",
) -> list[str]:
    """Move requests to a state, those that may go there; return their ids."""
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
    """End a request; files of it that have not ended never will.

    Raises
    ------
    NotFoundError, ForbiddenError, StateError
        There is none; it is not for this principal to change; it has ended already.
    """
    request = _changeable(connection, principal, request_id)
    if not change_state(connection, [request_id], RequestState.CANCELED):
        raise StateError(
            f"Transformation request {request_id} has ended already: {request.state.value}"
        )
    drop_tasks(connection, request_id)


def drop_tasks(connection: Connection, request_id: str) -> None:
    """Take the files of a request that has ended away from the workers.

    Those that wait stay as they are, however many: nothing takes files of an ended request.
    """
    connection.execute(
        update(tasks)
        .where(tasks.c.request_id == request_id, tasks.c.state == TaskState.RUNNING)
        .values(state=TaskState.CANCELED, finished_at=now())
    )


def stored(connection: Connection, request_ids: Iterable[str]) -> dict[str, Row[Any]]:
    """Return the rows of those requests that there are, by id."""
    rows = connection.execute(select(requests).where(requests.c.id.in_(sorted(request_ids))))
    return {row.id: row for row in rows}


def hide(connection: Connection, principal: Principal, request_id: str) -> None:
    """Delete a request for all who look; its rows go bit by bit.

    Raises
    ------
    NotFoundError, ForbiddenError
        There is none; it is not for this principal to change.
    """
    _changeable(connection, principal, request_id)
    change_state(connection, [request_id], RequestState.CANCELED)
    drop_tasks(connection, request_id)
    connection.execute(update(requests).where(requests.c.id == request_id).values(deleted=True))


def hidden(connection: Connection) -> list[str]:
    """Return the deleted requests that have rows still."""
    return list(connection.scalars(select(requests.c.id).where(requests.c.deleted)))


def doomed(connection: Connection, request_id: str) -> tuple[list[int], list[str]]:
    """Return some tasks of a deleted request, and the keys of their objects that go with them."""
    some = select(tasks.c.id, tasks.c.object_key).where(tasks.c.request_id == request_id)
    rows = connection.execute(some.limit(_SOME)).all()
    return [row.id for row in rows], unused(connection, filter(None, (r.object_key for r in rows)))


def remove_tasks(connection: Connection, task_ids: Iterable[int]) -> None:
    """Remove tasks of a deleted request."""
    connection.execute(delete(tasks).where(tasks.c.id.in_(list(task_ids))))


def remove(connection: Connection, request_id: str) -> None:
    """Remove a deleted request that has no tasks any more."""
    connection.execute(delete(requests).where(requests.c.id == request_id))


def unused(connection: Connection, object_keys: Iterable[str]) -> list[str]:
    """Return those of the keys whose object is the result of no task, but of deleted requests."""
    keys = sorted(set(object_keys))
    named = (
        select(tasks.c.object_key)
        .join_from(tasks, requests, tasks.c.request_id == requests.c.id)
        .where(not_(requests.c.deleted))
        .distinct()
    )
    used: set[str] = set()
    for start in range(0, len(keys), _SOME):
        some = tasks.c.object_key.in_(keys[start : start + _SOME])
        used.update(connection.scalars(named.where(some)))
    return [key for key in keys if key not in used]


def of_dataset(
    connection: Connection, dataset_id: int, states: Iterable[RequestState]
) -> list[str]:
    """Return the requests on a dataset that are in one of the states."""
    return list(
        connection.scalars(
            select(requests.c.id).where(
                requests.c.dataset_id == dataset_id, requests.c.state.in_(list(states))
            )
        )
    )
