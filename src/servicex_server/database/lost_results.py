"""Results whose objects are gone from the store: by a rule of it, a restore, or an operator."""

from collections.abc import Iterable

from sqlalchemy import Connection, and_, not_, select, update

from servicex_server.database import stored_objects
from servicex_server.database.counter_updates import CounterUpdates
from servicex_server.database.requests import OPEN, stored
from servicex_server.database.tables import OF_FILE, objects, requests, tasks
from servicex_server.model import RequestState, TaskState, now

_REOPENED = [*OPEN, RequestState.COMPLETE]
"""States of requests whose results are made again. A user who has cancelled one wants no more."""


def forget(connection: Connection, object_keys: Iterable[str]) -> None:
    """Let results be reused no more whose objects are gone."""
    keys = list(object_keys)
    stored_objects.reuse_no_more(connection, keys)
    stored_objects.remove(connection, keys)


def makers(connection: Connection) -> list[str]:
    """Return the ids of requests that have results."""
    return list(
        connection.scalars(
            select(requests.c.id).where(not_(requests.c.deleted), requests.c.completed > 0)
        )
    )


def own_objects(connection: Connection, request_id: str) -> set[str]:
    """Return the keys of the objects that a request has made itself, and that were not evicted."""
    keys = connection.scalars(
        select(tasks.c.object_key)
        .outerjoin(objects, tasks.c.object_key == objects.c.key)
        .where(
            tasks.c.request_id == request_id,
            tasks.c.state == TaskState.DONE,
            objects.c.evicted.is_(None),
        )
    )
    return {key for key in keys if key and key.startswith(f"{request_id}/")}


def make_again(connection: Connection, request_id: str, object_key: str) -> bool:
    """Queue the files of a request whose result had this object; return whether there are any.

    A request that was complete runs again. The files keep the names of their results, so that a
    reader can be told to wait. Other requests that share the object are left as they are, until
    one of their readers asks for it.
    """
    request = stored(connection, [request_id]).get(request_id)
    if request is None or request.deleted or request.state not in _REOPENED:
        return False
    forget(connection, [object_key])
    lost = and_(
        tasks.c.request_id == request_id,
        tasks.c.object_key == object_key,
        tasks.c.state == TaskState.DONE,
        OF_FILE,
    )
    numbers = select(tasks.c.bytes, tasks.c.events, tasks.c.events_kept).where(lost)
    if not (rows := connection.execute(numbers).all()):
        return False
    counters = CounterUpdates(connection, [request_id])
    for row in rows:
        counters.lose(request_id, size=row.bytes, events=row.events, kept=row.events_kept)
    counters.write(connection)
    connection.execute(update(tasks).where(lost).values(_ANEW | {"not_before": now()}))
    if request.state == RequestState.COMPLETE:
        # not a transition of the state: only a lost result leads back from the end
        connection.execute(
            update(requests)
            .where(requests.c.id == request_id)
            .values(state=RequestState.RUNNING, finished_at=None, failure="")
        )
    return True


_ANEW = {
    "state": TaskState.WAITING,
    "attempts": 0,
    "parts": 0,
    "finished_at": None,
    "object_key": None,
    "bytes": 0,
    "events": 0,
    "events_kept": None,
    "seconds": 0.0,
    "tried": None,
}
"""The values of a task whose work is done anew."""
