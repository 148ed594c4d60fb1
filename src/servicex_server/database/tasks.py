"""Rows of waiting and running tasks: one for each file, or part of a file, of each request.

`servicex_server.database.outcomes` records how tasks end, and
`servicex_server.database.finished_files` reads that for users.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Connection,
    Select,
    bindparam,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from servicex_server.database.datasets import input_file
from servicex_server.database.requests import stored
from servicex_server.database.tables import files, requests, tasks
from servicex_server.model import (
    Demand,
    Entries,
    InputFile,
    RequestState,
    ResultFormat,
    TaskState,
    now,
    object_name,
)

RUNNABLE = [RequestState.LOOKUP, RequestState.RUNNING]
"""States of requests whose files may start."""

LONGEST_PAUSE = timedelta(seconds=96)
"""Longest pause before a retry. A file with a longer one may start: the clock was set back."""


@dataclass(frozen=True, slots=True)
class Work:
    """A task with everything that is needed to run it.

    ``attempt`` is the number of the next attempt. ``object_name`` is the name of the result in the
    bucket. ``seconds`` is the user's time limit, if it is shorter than that of the service.
    ``replicas_refreshed`` says whether the file's replicas were refreshed since the request was
    submitted. ``joins`` are the keys of the results of the file's parts, in order, if the task
    joins them.
    """

    task_id: int
    request_id: str
    owner: str
    file_id: int
    attempt: int
    position: int
    file: InputFile
    entries: Entries | None
    language: str
    selection: str
    format: ResultFormat
    object_name: str
    last_worker: str = ""
    seconds: float | None = None
    replicas_refreshed: bool = False
    joins: tuple[str, ...] = ()

    @property
    def object_key(self) -> str:
        """Key of the result in the object store.

        Each attempt has its own key, so that a late attempt never overwrites another's object.
        """
        return f"{self.request_id}/{self.attempt}/{self.object_name}"

    @property
    def speculative_key(self) -> str:
        """Key of the result of a speculative read of this attempt."""
        return f"{self.request_id}/{self.attempt}-speculative/{self.object_name}"


def add_for_dataset(
    connection: Connection, request_ids: Iterable[str], dataset_id: int, *, start: int = 0
) -> None:
    """Add a waiting task for every file of a dataset from position ``start`` on."""
    for request_id in request_ids:
        wanted = select(
            literal(request_id), files.c.id, literal(TaskState.WAITING.value), *_ZEROS.values()
        ).where(files.c.dataset_id == dataset_id, files.c.position >= start)
        added = connection.execute(
            insert(tasks).from_select(
                ["request_id", "file_id", "state", *_ZEROS],
                wanted.order_by(files.c.position),
                include_defaults=False,
            ),
            execution_options={"preserve_rowcount": True},
        )
        connection.execute(
            update(requests)
            .where(requests.c.id == request_id)
            .values(files=requests.c.files + added.rowcount)
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


def demand(connection: Connection) -> list[Demand]:
    """Return the requests with unfinished files, and the number of their tasks; oldest first.

    For a file that was split, each unfinished part counts.
    """
    left = requests.c.files - requests.c.completed - requests.c.failed
    rows = connection.execute(
        select(requests.c.id, requests.c.owner, left, requests.c.bytes, requests.c.completed)
        .where(requests.c.state.in_(RUNNABLE), left > 0)
        .order_by(requests.c.submitted_at, requests.c.id)
    )
    more = {row.request_id: row.more for row in connection.execute(_PARTS)}
    return [
        Demand(name, owner, left + more.get(name, 0), size / done if done else None)
        for name, owner, left, size, done in rows
    ]


_PARTS = (
    select(
        tasks.c.request_id,
        (func.count() - func.count(tasks.c.part_of.distinct())).label("more"),
    )
    .where(tasks.c.part_of.is_not(None), tasks.c.state.in_((TaskState.WAITING, TaskState.RUNNING)))
    .group_by(tasks.c.request_id)
)
"""By request, by how many its unfinished tasks exceed its unfinished files."""


def waiting(connection: Connection, request_id: str, most: int) -> list[Work]:
    """Return the next tasks of a request that may start, in the dataset's order."""
    moment = now()
    due = or_(
        tasks.c.not_before.is_(None),
        tasks.c.not_before <= moment,
        tasks.c.not_before > moment + LONGEST_PAUSE,
    )
    return _works(
        connection,
        _TASKS.where(
            tasks.c.request_id == request_id, tasks.c.state == TaskState.WAITING, due
        ).limit(most),
    )


def running(connection: Connection) -> list[Work]:
    """Return the tasks in the state running; ``attempt`` is the one that runs."""
    return _works(connection, _TASKS.where(tasks.c.state == TaskState.RUNNING), tried=1)


_TASKS = (
    select(
        tasks.c.id.label("task_id"),
        tasks.c.request_id,
        tasks.c.attempts,
        tasks.c.first_entry,
        tasks.c.last_entry,
        tasks.c.worker,
        tasks.c.parts,
        files,
    )
    .join_from(tasks, files, tasks.c.file_id == files.c.id)
    .order_by(tasks.c.id)
)


def _works(connection: Connection, query: Select[Any], *, tried: int = 0) -> list[Work]:
    rows = connection.execute(query).all()
    # once for each request: a query text may be long, and a request may have many files
    asked = connection.execute(
        select(
            requests.c.id,
            requests.c.owner,
            requests.c.language,
            requests.c.selection,
            requests.c.format,
            requests.c.file_seconds,
            requests.c.submitted_at,
        ).where(requests.c.id.in_({row.request_id for row in rows}))
    )
    by_id = {row.id: row for row in asked}
    joins = _joins(connection, [row.task_id for row in rows if row.parts])
    return [
        _work(row, by_id[row.request_id], row.attempts + 1 - tried, joins.get(row.task_id, ()))
        for row in rows
    ]


def _joins(connection: Connection, split: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Return the keys of the parts' results, in order, by the task of the file."""
    found: dict[int, tuple[str, ...]] = {}
    if split:
        parts = select(tasks.c.part_of, tasks.c.object_key).where(tasks.c.part_of.in_(split))
        for row in connection.execute(parts.order_by(tasks.c.part_of, tasks.c.first_entry)):
            found[row.part_of] = (*found.get(row.part_of, ()), row.object_key)
    return found


def _work(row: Any, asked: Any, attempt: int, joins: tuple[str, ...]) -> Work:
    file, entries, result_format = input_file(row), entries_of(row), ResultFormat(asked.format)
    return Work(
        task_id=row.task_id,
        request_id=row.request_id,
        owner=asked.owner,
        file_id=row.id,
        attempt=attempt,
        position=row.position,
        file=file,
        entries=entries,
        language=asked.language,
        selection=asked.selection,
        format=result_format,
        seconds=asked.file_seconds,
        object_name=object_name(row.position, file, result_format, entries),
        last_worker=row.worker,
        replicas_refreshed=row.asked_again is not None and row.asked_again >= asked.submitted_at,
        joins=joins,
    )


def entries_of(row: Any) -> Entries | None:
    """Return the range of entries of a task; None for the whole file."""
    return None if row.last_entry is None else (row.first_entry, row.last_entry)


def begin(
    connection: Connection, works: Sequence[Work], result_keys: Mapping[int, str]
) -> list[Work]:
    """Mark tasks as running; return them, without those whose request has ended.

    Parameters
    ----------
    works
        The tasks to start.
    result_keys
        Result keys, by task id. A finished task can be found by its key.
    """
    open_requests = {
        request_id
        for request_id, row in stored(connection, {work.request_id for work in works}).items()
        if row.state in RUNNABLE
    }
    begun = [work for work in works if work.request_id in open_requests]
    if begun:
        start = (
            update(tasks)
            .where(tasks.c.state == TaskState.WAITING)
            .values(state=TaskState.RUNNING, attempts=tasks.c.attempts + 1, not_before=None)
        )
        known = [work.task_id for work in begun if work.task_id in result_keys]
        if unknown := [work.task_id for work in begun if work.task_id not in result_keys]:
            connection.execute(start.where(tasks.c.id.in_(unknown)).values(identity=None))
        if known:
            connection.execute(
                start.where(tasks.c.id == bindparam("task")).values(identity=bindparam("known_by")),
                [{"task": task_id, "known_by": result_keys[task_id]} for task_id in known],
            )
    return begun


def recover(connection: Connection, *, keep: Collection[int] = ()) -> int:
    """Return running tasks to the queue, without counting the attempt; return their number.

    Parameters
    ----------
    keep
        Ids of tasks that are really running.
    """
    found = set(connection.scalars(select(tasks.c.id).where(tasks.c.state == TaskState.RUNNING)))
    stray = [{"task": task_id} for task_id in sorted(found - set(keep))]
    if stray:
        connection.execute(
            update(tasks)
            .where(tasks.c.id == bindparam("task"), tasks.c.state == TaskState.RUNNING)
            .values(state=TaskState.WAITING, attempts=tasks.c.attempts - 1),
            stray,
        )
    return len(stray)


def next_due(connection: Connection) -> datetime | None:
    """Return when the earliest of the tasks that wait for a retry may start; None without one."""
    first, last = connection.execute(
        select(func.min(tasks.c.not_before), func.max(tasks.c.not_before))
        .join_from(tasks, requests, tasks.c.request_id == requests.c.id)
        .where(
            tasks.c.not_before.is_not(None),
            tasks.c.state == TaskState.WAITING,
            requests.c.state.in_(RUNNABLE),
        )
    ).one()
    moment = now()
    due: datetime | None = first
    return moment if last is not None and last > moment + LONGEST_PAUSE else due
