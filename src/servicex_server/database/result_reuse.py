"""Reuse of results that another request has for the same work."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, not_, select, update

from servicex_server.database import stored_objects
from servicex_server.database.counter_updates import CounterUpdates
from servicex_server.database.requests import stored
from servicex_server.database.tables import requests, tasks
from servicex_server.database.tasks import RUNNABLE, Work
from servicex_server.model import (
    Sharing,
    TaskState,
)


def known_objects(
    connection: Connection, result_keys: Collection[str], *, owner: str, of: Sharing
) -> dict[str, str]:
    """Return the object keys of results that may be reused, by result key."""
    return {row.identity: row.object_key for row in _made(connection, result_keys, owner, of)}


def reuse(
    connection: Connection, works: Sequence[Work], result_keys: Mapping[int, str], *, of: Sharing
) -> set[int]:
    """End the tasks whose result exists already, by reusing it; return their ids.

    Parameters
    ----------
    works
        Waiting tasks of one request, each for a whole file.
    result_keys
        Result keys, by task id.
    of
        Whose results may be reused.
    """
    request_id, owner = works[0].request_id, works[0].owner
    asked = stored(connection, [request_id]).get(request_id)
    if asked is None or asked.state not in RUNNABLE:
        return set()
    known = {row.identity: row for row in _made(connection, set(result_keys.values()), owner, of)}
    clock = CounterUpdates(connection, [request_id])
    ends = [
        {
            "task": work.task_id,
            "known_by": result_keys[work.task_id],
            "moment": clock.end(
                request_id,
                TaskState.DONE,
                size=found.bytes,
                events=found.events,
                kept=found.events_kept,
            ),
            "url": work.file.path,
            "name": work.object_name,
            "key": found.object_key,
            "size": found.bytes,
            "number": found.events,
            "kept": found.events_kept,
        }
        for work in works
        if not work.joins and (found := known.get(result_keys.get(work.task_id, "")))
    ]
    if ends:
        connection.execute(_REUSE, ends)
        stored_objects.use(connection, {end["key"] for end in ends})
        clock.write(connection)
    return {end["task"] for end in ends}


def _made(
    connection: Connection, result_keys: Collection[str], owner: str, of: Sharing
) -> Iterator[Any]:
    made = (
        select(
            tasks.c.identity, tasks.c.object_key, tasks.c.bytes, tasks.c.events, tasks.c.events_kept
        )
        .join_from(tasks, requests, tasks.c.request_id == requests.c.id)
        .where(
            tasks.c.identity.in_(result_keys),
            tasks.c.state == TaskState.DONE,
            not_(requests.c.deleted),  # its objects are being deleted
        )
    )
    if of is Sharing.OWN:
        made = made.where(requests.c.owner == owner)
    yield from (row for row in connection.execute(made) if row.object_key)


_REUSE = (
    update(tasks)
    .where(tasks.c.id == bindparam("task"))
    .values(
        state=TaskState.DONE,
        not_before=None,
        identity=bindparam("known_by"),
        finished_at=bindparam("moment"),
        path=bindparam("url"),
        object_name=bindparam("name"),
        object_key=bindparam("key"),
        bytes=bindparam("size"),
        events=bindparam("number"),
        events_kept=bindparam("kept"),
    )
)
