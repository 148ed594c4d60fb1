"""What is still to be done, as the process that dispatches reads it again and again.

The cost is that of the requests that have not ended, however many have.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select, text

from servicex_server.database.requests import OPEN
from servicex_server.database.tables import datasets, requests, tasks
from servicex_server.model import DatasetState, Principal, RequestState, TaskState, now

_UNKNOWN = [DatasetState.CREATED, DatasetState.LOOKING]

RATE_SECONDS = 60.0
"""For how long back it is looked how fast files end."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A request that has not ended, and how fast it goes on.

    ``rate`` is files that end in a second; ``seconds_left`` is None where nothing says how long
    it takes: no file has ended lately, or not all files are known.
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
    rate: float
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Requests that have not ended, by state, and their files by state.

    ``oldest`` is the age in seconds of the oldest request of which no file has started.
    """

    requests: Mapping[RequestState, int]
    files: Mapping[TaskState, int]
    oldest: float


def listed(connection: Connection) -> tuple[set[str], list[int]]:
    """Return the requests that have not ended, and the datasets they wait for, oldest first."""
    rows = connection.execute(
        select(requests.c.id, requests.c.dataset_id, datasets.c.state)
        .join_from(requests, datasets, requests.c.dataset_id == datasets.c.id)
        .where(requests.c.state.in_(OPEN))
    ).all()
    return {row.id for row in rows}, sorted({r.dataset_id for r in rows if r.state in _UNKNOWN})


def broken_off(
    connection: Connection, request_ids: Iterable[str]
) -> dict[str, RequestState | None]:
    """Return those of the requests that did not end with their last file, but before; and how.

    One that is gone has no state any more. Files of all of them may still be worked on.
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
    requests.c[name] for name in "id owner title state submitted_at files completed failed".split()
]
"""Not the query, which may be long."""


def queue(connection: Connection, principal: Principal) -> list[Queued]:
    """Return one's requests that have not ended, everybody's for those who see all, oldest first.

    The cost is that of these requests, of what runs, and of what has ended in the last minute.
    """
    moment = now()
    since = moment - timedelta(seconds=RATE_SECONDS)
    lately = (
        select(func.count())
        .where(tasks.c.request_id == requests.c.id, tasks.c.finished_at >= since)
        .scalar_subquery()
    )
    wanted = select(*_SHOWN, lately.label("lately")).where(requests.c.state.in_(OPEN))
    if not principal.sees_all:
        wanted = wanted.where(requests.c.owner == principal.user)
    found = connection.execute(wanted.order_by(requests.c.submitted_at, requests.c.id)).all()
    at_work = _at_work(connection)
    return [_queued(row, at_work.get(row.id, 0), moment) for row in found]


def totals(connection: Connection) -> Totals:
    """Return numbers of all requests that have not ended, and what is in them."""
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
    """Return by request how many files run, from the index that has no others."""
    rows = connection.execute(
        select(tasks.c.request_id, func.count().label("number"))
        .where(text("tasks.state = 'running'"))  # a parameter would hide which index has it
        .group_by(tasks.c.request_id)
    )
    return {row.request_id: row.number for row in rows}


def _queued(row: Any, running: int, moment: datetime) -> Queued:
    left = row.files - row.completed - row.failed
    # a request that came a moment ago has not had a minute
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
        rate=rate,
        seconds_left=left / rate if known else None,
    )
