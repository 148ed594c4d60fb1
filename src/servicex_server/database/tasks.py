"""Rows of tasks, one for each file of each request, or part of one: chosen, ended, reported."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, case, func, insert, literal, or_, select, update

from servicex_server.database.datasets import input_file
from servicex_server.database.requests import OPEN, change_state, drop_tasks
from servicex_server.database.tables import datasets, files, requests, tasks
from servicex_server.errors import ErrorRecord
from servicex_server.model import (
    Attempt,
    DatasetState,
    Entries,
    InputFile,
    Outcome,
    Replica,
    RequestState,
    ResultFormat,
    TaskReport,
    TaskState,
    now,
)

_RUNNABLE = [RequestState.LOOKUP, RequestState.RUNNING]


@dataclass(frozen=True, slots=True)
class Claimed:
    """A task that was chosen to run, with all that its work needs."""

    request_id: str
    file_id: int
    attempt: int
    position: int
    file: InputFile
    entries: Entries | None
    language: str
    selection: str
    format: ResultFormat


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a finished task: the object it left behind, if any."""

    outcome: Outcome
    object_name: str = ""
    object_key: str = ""


def add_for_dataset(
    connection: Connection, request_ids: Iterable[str], dataset_id: int, *, start: int = 0
) -> None:
    """Make a waiting task of every file of a dataset from position ``start`` on."""
    for request_id in request_ids:
        wanted = select(
            literal(request_id), files.c.id, literal(TaskState.WAITING.value), *_ZEROS.values()
        ).where(files.c.dataset_id == dataset_id, files.c.position >= start)
        connection.execute(
            insert(tasks).from_select(
                ["request_id", "file_id", "state", *_ZEROS],
                wanted.order_by(files.c.position),
                include_defaults=False,
            )
        )


_ZEROS = {
    "first_entry": literal(0),
    "attempts": literal(0),
    "bytes": literal(0),
    "events": literal(0),
    "seconds": literal(0.0),
    "worker": literal(""),
    "log_tail": literal(""),
}


def claim(connection: Connection, slots: int) -> list[Claimed]:
    """Choose waiting tasks and mark them running.

    Fair first across users, then across a user's requests, those with the fewest files left
    first: a giant request takes what the others leave.
    """
    is_waiting = case((tasks.c.state == TaskState.WAITING, 1), else_=0)
    due = or_(tasks.c.not_before.is_(None), tasks.c.not_before <= now())
    demand = connection.execute(
        select(
            requests.c.id,
            requests.c.owner,
            requests.c.submitted_at,
            func.sum(is_waiting).label("waiting"),
            func.count().label("left"),
        )
        .join_from(requests, tasks, tasks.c.request_id == requests.c.id)
        .where(
            requests.c.state.in_(_RUNNABLE),
            or_(
                tasks.c.state == TaskState.RUNNING,
                (tasks.c.state == TaskState.WAITING) & due,
            ),
        )
        .group_by(requests.c.id)
    ).all()
    claimed: list[Claimed] = []
    for request_id, count in _shares(demand, slots).items():
        claimed += _take(connection, request_id, count)
    return claimed


def _shares(demand: Sequence[Any], slots: int) -> dict[str, int]:
    """Deal out slots: to the user with the fewest running, of theirs to the shortest request."""
    waiting = {row.id: int(row.waiting) for row in demand}
    busy = Counter({row.owner: 0 for row in demand})
    for row in demand:
        busy[row.owner] += int(row.left) - int(row.waiting)
    queues = {
        owner: sorted(
            (row for row in demand if row.owner == owner),
            key=lambda row: (int(row.left), row.submitted_at),
        )
        for owner in busy
    }
    shares: Counter[str] = Counter()
    while slots > 0:
        hungry = [o for o, queue in queues.items() if any(waiting[row.id] for row in queue)]
        if not hungry:
            break
        owner = min(hungry, key=lambda o: busy[o])
        first = next(row.id for row in queues[owner] if waiting[row.id])
        waiting[first] -= 1
        shares[first] += 1
        busy[owner] += 1
        slots -= 1
    return shares


def _take(connection: Connection, request_id: str, count: int) -> list[Claimed]:
    rows = connection.execute(
        select(
            tasks.c.id.label("task_id"),
            tasks.c.attempts,
            tasks.c.first_entry,
            tasks.c.last_entry,
            files,
            requests.c.language,
            requests.c.selection,
            requests.c.format,
        )
        .join_from(tasks, files, tasks.c.file_id == files.c.id)
        .join(requests, tasks.c.request_id == requests.c.id)
        .where(
            tasks.c.request_id == request_id,
            tasks.c.state == TaskState.WAITING,
            or_(tasks.c.not_before.is_(None), tasks.c.not_before <= now()),
        )
        .order_by(tasks.c.id)
        .limit(count)
    ).all()
    connection.execute(
        update(tasks)
        .where(tasks.c.id.in_([row.task_id for row in rows]))
        .values(state=TaskState.RUNNING, attempts=tasks.c.attempts + 1, not_before=None)
    )
    return [
        Claimed(
            request_id=request_id,
            file_id=row.id,
            attempt=row.attempts + 1,
            position=row.position,
            file=input_file(row),
            entries=_entries(row),
            language=row.language,
            selection=row.selection,
            format=ResultFormat(row.format),
        )
        for row in rows
    ]


def _entries(row: Any) -> Entries | None:
    return None if row.last_entry is None else (row.first_entry, row.last_entry)


def interrupted(connection: Connection) -> list[str]:
    """Return the requests that had files running when the service ended."""
    running = select(tasks.c.request_id).where(tasks.c.state == TaskState.RUNNING).distinct()
    return list(connection.scalars(running))


def recover(connection: Connection) -> int:
    """Take up again what was running when the service ended; return how many files."""
    result = connection.execute(
        update(tasks)
        .where(tasks.c.state == TaskState.RUNNING)
        .values(state=TaskState.WAITING, attempts=tasks.c.attempts - 1)
    )
    return result.rowcount


def next_due(connection: Connection) -> datetime | None:
    """Return when the earliest of the files that wait for a retry may start."""
    due: datetime | None = connection.scalar(
        select(func.min(tasks.c.not_before)).where(
            tasks.c.state == TaskState.WAITING, tasks.c.not_before.is_not(None)
        )
    )
    return due


def record(
    connection: Connection, results: Sequence[Recorded], *, most_attempts: int
) -> tuple[set[str], list[str]]:
    """Write down how tasks ended.

    Parameters
    ----------
    results
        What the workers reported. A task that is not running this attempt any more (cancelled,
        deleted, reported twice) is passed over.
    most_attempts
        How often a file is tried when its error may pass.

    Returns
    -------
    touched
        The requests whose counters changed.
    orphans
        Keys of objects that belong to no task, to be removed.
    """
    touched: set[str] = set()
    orphans: list[str] = []
    latest = _latest(connection, {result.outcome.request_id for result in results})
    for result in results:
        outcome = result.outcome
        row = connection.execute(
            select(tasks.c.id, tasks.c.tried).where(
                tasks.c.request_id == outcome.request_id,
                tasks.c.file_id == outcome.file_id,
                tasks.c.first_entry == (outcome.entries[0] if outcome.entries else 0),
                tasks.c.state == TaskState.RUNNING,
                tasks.c.attempts == outcome.attempt,
            )
        ).first()
        if row is None:
            # an outcome may come twice, when nobody heard that the first write had succeeded
            touched.add(outcome.request_id)
            if result.object_key:
                orphans += unnamed(connection, outcome.request_id, [result.object_key])
            continue
        if outcome.parts:
            _split(connection, row.id, outcome)
            continue
        # a client asks for what is not older than the newest it has seen: never go back
        moment = max(
            now(), latest.get(outcome.request_id, datetime.min.replace(tzinfo=now().tzinfo))
        ) + timedelta(microseconds=1)
        latest[outcome.request_id] = moment
        values: dict[str, Any] = {
            "tried": [*(row.tried or []), *(asdict(attempt) for attempt in outcome.attempts)],
            "seconds": outcome.seconds,
            "worker": outcome.worker,
            "log_tail": outcome.log_tail,
            "path": outcome.url,
        }
        values |= _ending(result, moment, most_attempts)
        connection.execute(update(tasks).where(tasks.c.id == row.id).values(**values))
        touched.add(outcome.request_id)
    return touched, orphans


def unnamed(connection: Connection, request_id: str, object_keys: Sequence[str]) -> list[str]:
    """Return those of the keys whose object is the result of no task of the request."""
    named = set(
        connection.scalars(
            select(tasks.c.object_key).where(
                tasks.c.request_id == request_id, tasks.c.object_key.in_(object_keys)
            )
        )
    )
    return [key for key in object_keys if key not in named]


def _split(connection: Connection, task_id: int, outcome: Outcome) -> None:
    """Put the parts of a file in the place of its task; the first part takes the row itself."""
    (_, end), *others = outcome.parts
    connection.execute(
        update(tasks)
        .where(tasks.c.id == task_id)
        .values(state=TaskState.WAITING, last_entry=end, attempts=tasks.c.attempts - 1)
    )
    same = {"request_id": outcome.request_id, "file_id": outcome.file_id}
    connection.execute(
        insert(tasks),
        [
            {**same, "state": TaskState.WAITING, "first_entry": first, "last_entry": last}
            for first, last in others
        ],
    )


def _latest(connection: Connection, request_ids: set[str]) -> dict[str, datetime]:
    rows = connection.execute(
        select(tasks.c.request_id, func.max(tasks.c.finished_at))
        .where(tasks.c.request_id.in_(request_ids))
        .group_by(tasks.c.request_id)
    )
    return {row[0]: row[1] for row in rows if row[1] is not None}


def _ending(result: Recorded, moment: datetime, most_attempts: int) -> dict[str, Any]:
    outcome = result.outcome
    if outcome.error is None:
        return {
            "state": TaskState.DONE,
            "finished_at": moment,
            "object_name": result.object_name,
            "object_key": result.object_key,
            "bytes": outcome.bytes_written,
            "events": outcome.events_read,
            "error": None,
        }
    error = outcome.error.as_dict()
    if outcome.error.retryable and outcome.attempt < most_attempts:
        wait = timedelta(seconds=2.0 ** (outcome.attempt - 1))
        return {"state": TaskState.WAITING, "not_before": now() + wait, "error": error}
    return {"state": TaskState.FAILED, "finished_at": moment, "error": error}


def finish(
    connection: Connection, request_ids: Iterable[str], *, fatal_after: int
) -> dict[str, RequestState]:
    """End those of the requests that have nothing left to do; return how each ended.

    A request of which every file failed is `Fatal`, so that nobody takes silence for a result;
    so is one whose first files all fail with one and the same query error.
    """
    ended: dict[str, RequestState] = {}
    for request_id in request_ids:
        row = connection.execute(
            select(requests.c.state, datasets.c.state.label("dataset_state"))
            .join_from(requests, datasets, requests.c.dataset_id == datasets.c.id)
            .where(requests.c.id == request_id)
        ).first()
        if row is None or row.state not in OPEN:
            continue
        by_state = connection.execute(
            select(tasks.c.state, func.count())
            .where(tasks.c.request_id == request_id)
            .group_by(tasks.c.state)
        )
        counts: Counter[str] = Counter()
        for row_state, count in by_state:
            counts[row_state] = count
        left = counts[TaskState.WAITING] + counts[TaskState.RUNNING]
        done, failed = counts[TaskState.DONE], counts[TaskState.FAILED]
        known = row.dataset_state == DatasetState.COMPLETE
        if known and not left:
            state = RequestState.FATAL if failed and not done else RequestState.COMPLETE
        elif failed >= fatal_after and not done:
            state = RequestState.FATAL
        else:
            continue
        failure = _why(connection, request_id, left=left) if failed else ""
        if state is RequestState.FATAL and left and not failure:
            continue
        if change_state(connection, [request_id], state, failure=failure):
            drop_tasks(connection, request_id)
            ended[request_id] = state
    return ended


def _why(connection: Connection, request_id: str, *, left: int) -> str:
    """Return what the failed files have in common.

    While files are left, only one and the same query error in all of them counts; the text is
    empty otherwise.
    """
    rows = connection.execute(
        select(tasks.c.error).where(
            tasks.c.request_id == request_id, tasks.c.state == TaskState.FAILED
        )
    ).scalars()
    errors = [ErrorRecord(**error) for error in rows]
    kinds = Counter((error.blame, error.message, error.hint) for error in errors)
    (blame, message, hint), count = kinds.most_common(1)[0]
    text = f"{message} ({hint})" if hint else message
    if left:
        return f"{text} [the first {count} files]" if len(kinds) == 1 and blame == "query" else ""
    files_failed = f"{len(errors)} file{'s' if len(errors) > 1 else ''} failed"
    return f"{files_failed}: {text}" if len(kinds) == 1 else f"{files_failed}; {count} with: {text}"


def reports(
    connection: Connection,
    request_id: str,
    states: Iterable[TaskState],
    *,
    later_than: datetime | None = None,
) -> list[TaskReport]:
    """Return the ended files of a request, in the order they ended.

    ``later_than`` is inclusive: two files may end in one moment.
    """
    query = (
        select(tasks, files.c.replicas)
        .join_from(tasks, files, tasks.c.file_id == files.c.id)
        .where(tasks.c.request_id == request_id, tasks.c.state.in_(list(states)))
        .order_by(tasks.c.finished_at, tasks.c.id)
    )
    if later_than is not None:
        query = query.where(tasks.c.finished_at >= later_than)
    return [_report(row) for row in connection.execute(query)]


def _report(row: Any) -> TaskReport:
    replicas = tuple(Replica(url, rse) for url, rse in row.replicas)
    return TaskReport(
        id=row.id,
        file_id=row.file_id,
        state=TaskState(row.state),
        path=row.path or (replicas[0].url if replicas else ""),
        object_name=row.object_name or "",
        bytes=row.bytes,
        events=row.events,
        seconds=row.seconds,
        finished_at=row.finished_at,
        worker=row.worker,
        replicas=replicas,
        entries=_entries(row),
        attempts=tuple(
            Attempt(
                url=tried["url"],
                seconds=tried["seconds"],
                error=ErrorRecord(**tried["error"]) if tried["error"] else None,
            )
            for tried in row.tried or []
        ),
        error=ErrorRecord(**row.error) if row.error else None,
        log_tail=row.log_tail,
    )


def statistics(connection: Connection, request_id: str) -> dict[str, float] | None:
    """Return seconds, bytes and events of the finished files; None before the first."""
    row = connection.execute(
        select(
            func.count().label("count"),
            func.min(tasks.c.seconds).label("least"),
            func.max(tasks.c.seconds).label("most"),
            func.sum(tasks.c.seconds).label("total"),
            func.sum(tasks.c.bytes).label("bytes"),
            func.sum(tasks.c.events).label("events"),
        ).where(tasks.c.request_id == request_id, tasks.c.state == TaskState.DONE)
    ).one()
    found = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's documented way to rows by name
    return found if found["count"] else None
