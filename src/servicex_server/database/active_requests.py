"""Active requests, which have not ended: the queries that the leader and the pages run repeatedly.

The cost depends on the number of active requests, and not on how many have ended.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select, text

from servicex_server.database.requests import OPEN
from servicex_server.database.tables import OF_FILE, datasets, requests, tasks
from servicex_server.model import DatasetState, Principal, RequestState, TaskState, now

_UNKNOWN = [DatasetState.CREATED, DatasetState.LOOKING]

RATE_SECONDS = 60.0
"""Seconds over which the rate of finished files is measured."""


@dataclass(frozen=True, slots=True)
class Queued:
    """An active request and its progress.

    ``events`` were read for its results, and ``events_kept`` are in them; None if the number is not
    known for every result. ``rate`` is the number of files that end in a second. ``seconds_left``
    is None if it cannot be estimated: no file has ended lately, or the look-up is not complete.
    """

    request_id: str
    owner: str
    title: str | None
    state: RequestState
    submitted_at: datetime
    files: int
    waiting: int
    running: int
    done: int
    failed: int
    events: int
    events_kept: int | None
    rate: float
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Numbers of active requests by state, and of their files by state.

    ``oldest`` is the age in seconds of the oldest request of which no file has started; 0 if there
    is none.
    """

    requests: Mapping[RequestState, int]
    files: Mapping[TaskState, int]
    oldest: float


def listed(connection: Connection) -> tuple[set[str], list[int]]:
    """Return the ids of active requests, and of the datasets that they wait for, oldest first."""
    rows = connection.execute(
        select(requests.c.id, requests.c.dataset_id, datasets.c.state)
        .join_from(requests, datasets, requests.c.dataset_id == datasets.c.id)
        .where(requests.c.state.in_(OPEN))
    ).all()
    return {row.id for row in rows}, sorted({r.dataset_id for r in rows if r.state in _UNKNOWN})


def incomplete(
    connection: Connection, request_ids: Iterable[str]
) -> dict[str, RequestState | None]:
    """Return those of the ended requests that did not complete, with their states.

    The state of a request that was removed is None. Workers may still process files of these
    requests.
    """
    wanted = list(request_ids)
    rows = connection.execute(
        select(requests.c.id, requests.c.state).where(requests.c.id.in_(wanted))
    )
    states = {row.id: RequestState(row.state) for row in rows}
    return {
        request_id: states.get(request_id)
        for request_id in sorted(wanted)
        if states.get(request_id) is not RequestState.COMPLETE
    }


_SHOWN = [
    requests.c[name]
    for name in (
        "id owner title state submitted_at files completed failed events events_kept"
    ).split()
]
"""Columns of a list entry, without the query text, which may be long."""


def queue(connection: Connection, principal: Principal) -> list[Queued]:
    """Return the principal's active requests, or all for a principal who sees all; oldest first.

    The cost depends on these requests, on running tasks, and on files that ended in the last
    minute.
    """
    moment = now()
    since = moment - timedelta(seconds=RATE_SECONDS)
    lately = (
        select(func.count())
        .where(tasks.c.request_id == requests.c.id, tasks.c.finished_at >= since, OF_FILE)
        .scalar_subquery()
    )
    wanted = select(*_SHOWN, lately.label("lately")).where(requests.c.state.in_(OPEN))
    if not principal.sees_all:
        wanted = wanted.where(requests.c.owner == principal.user)
    found = connection.execute(wanted.order_by(requests.c.submitted_at, requests.c.id)).all()
    at_work = _at_work(connection)
    return [_queued(row, at_work.get(row.id, 0), moment) for row in found]


def totals(connection: Connection) -> Totals:
    """Return the numbers of all active requests and their files."""
    moment = now()
    found = connection.execute(select(*_SHOWN).where(requests.c.state.in_(OPEN))).all()
    at_work = _at_work(connection)
    running = sum(at_work.get(row.id, 0) for row in found)
    done, failed = sum(row.completed for row in found), sum(row.failed for row in found)
    untouched = [
        (moment - row.submitted_at).total_seconds()
        for row in found
        if not (row.completed or row.failed or row.id in at_work)
    ]
    return Totals(
        requests=dict.fromkeys(OPEN, 0) | Counter(RequestState(row.state) for row in found),
        files={
            TaskState.WAITING: sum(row.files for row in found) - done - failed - running,
            TaskState.RUNNING: running,
            TaskState.DONE: done,
            TaskState.FAILED: failed,
        },
        oldest=max([0.0, *untouched]),
    )


def _at_work(connection: Connection) -> dict[str, int]:
    """Return the number of running files by request, from the partial index on running tasks."""
    rows = connection.execute(
        select(
            tasks.c.request_id,
            func.count(func.coalesce(tasks.c.part_of, tasks.c.id).distinct()).label("number"),
        )
        .where(text("tasks.state = 'running'"))  # the planner matches a literal, not a parameter
        .group_by(tasks.c.request_id)
    )
    return {row.request_id: row.number for row in rows}


def _queued(row: Any, running: int, moment: datetime) -> Queued:
    left = row.files - row.completed - row.failed
    # a new request has not run for a minute yet
    seconds = min(RATE_SECONDS, max(1.0, (moment - row.submitted_at).total_seconds()))
    rate = row.lately / seconds
    known = row.state == RequestState.RUNNING and rate > 0
    return Queued(
        request_id=row.id,
        owner=row.owner,
        title=row.title,
        state=RequestState(row.state),
        submitted_at=row.submitted_at,
        files=row.files,
        waiting=left - running,
        running=running,
        done=row.completed,
        failed=row.failed,
        events=row.events,
        events_kept=row.events_kept,
        rate=rate,
        seconds_left=left / rate if known else None,
    )
