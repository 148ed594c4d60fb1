"""Rows of requests. Counters are counted from the task rows, never kept beside them."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, case, delete, func, insert, select, update

from servicex_server.database.tables import requests, tasks
from servicex_server.errors import NotFoundError, StateError
from servicex_server.model import (
    REQUEST_TRANSITIONS,
    Principal,
    Request,
    RequestState,
    ResultFormat,
    TaskState,
    now,
)

OPEN = [state for state in RequestState if not state.terminal]
_STORED = [field.name for field in fields(Request) if field.name in requests.c]


def _counted(condition: Any) -> Any:
    counts = (
        select(
            tasks.c.request_id,
            func.count().label("files"),
            func.sum(case((tasks.c.state == TaskState.DONE, 1), else_=0)).label("completed"),
            func.sum(case((tasks.c.state == TaskState.FAILED, 1), else_=0)).label("failed"),
        )
        .join_from(tasks, requests, tasks.c.request_id == requests.c.id)
        .where(condition)
        .group_by(tasks.c.request_id)
        .subquery()
    )
    return (
        select(
            requests,
            func.coalesce(counts.c.files, 0).label("files"),
            func.coalesce(counts.c.completed, 0).label("completed"),
            func.coalesce(counts.c.failed, 0).label("failed"),
        )
        .join_from(requests, counts, requests.c.id == counts.c.request_id, isouter=True)
        .where(condition)
    )


def _request(row: Row[Any]) -> Request:
    values = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's documented way to rows by name
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
    row = connection.execute(_counted(requests.c.id == request_id)).first()
    if row is None or not (principal.sees_all or row.owner == principal.user):
        raise NotFoundError(f"Transformation request not found with id: {request_id}")
    return _request(row)


def listed(
    connection: Connection, principal: Principal, *, owner: str | None = None
) -> list[Request]:
    """Return one's own requests, or another's for those who may see all; newest first."""
    wanted = owner if owner is not None and principal.sees_all else principal.user
    rows = connection.execute(
        _counted(requests.c.owner == wanted).order_by(requests.c.submitted_at.desc())
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
    """End a request and all of its files that have not ended.

    Raises
    ------
    NotFoundError, StateError
        There is none; it has ended already.
    """
    request = get(connection, principal, request_id)
    if not change_state(connection, [request_id], RequestState.CANCELED):
        raise StateError(
            f"Transformation request {request_id} has ended already: {request.state.value}"
        )
    drop_tasks(connection, request_id)


def drop_tasks(connection: Connection, request_id: str) -> None:
    """Cancel the files of a request that have not ended."""
    connection.execute(
        update(tasks)
        .where(
            tasks.c.request_id == request_id,
            tasks.c.state.in_([TaskState.WAITING, TaskState.RUNNING]),
        )
        .values(state=TaskState.CANCELED, finished_at=now())
    )


def remove(connection: Connection, principal: Principal, request_id: str) -> list[str]:
    """Delete a request with all its rows; return the keys of its objects.

    Raises
    ------
    NotFoundError
        There is none.
    """
    get(connection, principal, request_id)
    keys = connection.scalars(
        select(tasks.c.object_key).where(
            tasks.c.request_id == request_id, tasks.c.object_key.is_not(None)
        )
    ).all()
    connection.execute(delete(tasks).where(tasks.c.request_id == request_id))
    connection.execute(delete(requests).where(requests.c.id == request_id))
    return [key for key in keys if key]


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


def exists(connection: Connection, request_id: str) -> bool:
    """Whether there is such a request, whoever asks: for its bucket, which has keys of its own."""
    return connection.scalar(select(requests.c.id).where(requests.c.id == request_id)) is not None
