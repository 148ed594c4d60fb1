"""Results whose objects are gone from the store: by a rule of it, a restore, or an operator."""

from collections.abc import Iterable

from sqlalchemy import Connection, and_, func, select, update

from servicex_server.database.requests import OPEN
from servicex_server.database.tables import OF_FILE, requests, tasks
from servicex_server.model import RequestState, TaskState, now

_REOPENED = [*OPEN, RequestState.COMPLETE]
"""States of requests whose results are made again. A user who has cancelled one wants no more."""


def forget(connection: Connection, object_keys: Iterable[str]) -> None:
    """Let results be reused no more whose objects are gone."""
    connection.execute(
        update(tasks).where(tasks.c.object_key.in_(list(object_keys))).values(identity=None)
    )


def makers(connection: Connection) -> list[str]:
    """Return the ids of requests that have results."""
    return list(
        connection.scalars(
            select(requests.c.id).where(~requests.c.deleted, requests.c.completed > 0)
        )
    )


def own_objects(connection: Connection, request_id: str) -> set[str]:
    """Return the keys of the objects that a request has made itself, and still has."""
    keys = connection.scalars(
        select(tasks.c.object_key).where(
            tasks.c.request_id == request_id, tasks.c.state == TaskState.DONE
        )
    )
    return {key for key in keys if key and key.startswith(f"{request_id}/")}


def make_again(connection: Connection, request_id: str, object_key: str) -> bool:
    """Queue the files of a request whose result had this object; return whether there are any.

    A request that was complete runs again. The files keep the names of their results, so that a
    reader can be told to wait. Other requests that share the object are left as they are, until
    one of their readers asks for it.
    """
    lost = and_(
        tasks.c.request_id == request_id,
        tasks.c.object_key == object_key,
        tasks.c.state == TaskState.DONE,
        OF_FILE,
    )
    reopened = and_(
        requests.c.id == request_id, requests.c.state.in_(_REOPENED), ~requests.c.deleted
    )
    if connection.scalar(select(requests.c.id).where(reopened)) is None:
        return False
    forget(connection, [object_key])
    sums = connection.execute(
        select(
            func.count().label("files"),
            func.sum(tasks.c.bytes).label("bytes"),
            func.sum(tasks.c.events).label("events"),
            func.coalesce(func.sum(tasks.c.events_kept), 0).label("kept"),
        ).where(lost)
    ).one()
    if not sums.files:
        return False
    connection.execute(
        update(tasks)
        .where(lost)
        .values(
            state=TaskState.WAITING,
            attempts=0,
            parts=0,
            not_before=now(),
            finished_at=None,
            object_key=None,
            bytes=0,
            events=0,
            events_kept=None,
            seconds=0.0,
            tried=None,
        )
    )
    connection.execute(
        update(requests)
        .where(reopened)
        .values(
            completed=requests.c.completed - sums.files,
            bytes=requests.c.bytes - sums.bytes,
            events=requests.c.events - sums.events,
            events_kept=requests.c.events_kept - sums.kept,
        )
    )
    connection.execute(
        update(requests)
        .where(reopened, requests.c.state == RequestState.COMPLETE)
        # not a transition of the state: only a lost result leads back from the end
        .values(state=RequestState.RUNNING, finished_at=None, failure="")
    )
    return True
