"""Rows of tasks, one for each file of each request, or part of one: chosen, and running.

How they end is in `servicex_server.database.outcomes`, and what users are told of that in
`servicex_server.database.ended_files`.
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
"""No file waits longer to be tried again; one that seems to is due, for the clock was set back."""


@dataclass(frozen=True, slots=True)
class Work:
    """A task with all that is needed to do it.

    ``attempt`` is the number of the next try, ``object_name`` that of the result in the bucket,
    ``seconds`` what the user allows for it, if less than the service does; ``asked_again`` whether
    the catalogue has been, since there is this request, where else the file is.
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
    asked_again: bool = False

    @property
    def object_key(self) -> str:
        """Key of the result in the store.

        Each attempt has one of its own: a late one never writes over another's object.
        """
        return f"{self.request_id}/{self.attempt}/{self.object_name}"

    @property
    def raced_key(self) -> str:
        """Key of the result in the store of one who races the attempt."""
        return f"{self.request_id}/{self.attempt}-raced/{self.object_name}"


def add_for_dataset(
    connection: Connection, request_ids: Iterable[str], dataset_id: int, *, start: int = 0
) -> None:
    """Make a waiting task of every file of a dataset from position ``start`` on."""
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
    """Return the requests that have files which have not ended, the oldest first."""
    left = requests.c.files - requests.c.completed - requests.c.failed
    rows = connection.execute(
        select(requests.c.id, requests.c.owner, left)
        .where(requests.c.state.in_(RUNNABLE), left > 0)
        .order_by(requests.c.submitted_at, requests.c.id)
    )
    return [Demand(*row) for row in rows]


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
    """Return what was running when the service ended; ``attempt`` is the one that ran."""
    return _works(connection, _TASKS.where(tasks.c.state == TaskState.RUNNING), tried=1)


_TASKS = (
    select(
        tasks.c.id.label("task_id"),
        tasks.c.request_id,
        tasks.c.attempts,
        tasks.c.first_entry,
        tasks.c.last_entry,
        tasks.c.worker,
        files,
    )
    .join_from(tasks, files, tasks.c.file_id == files.c.id)
    .order_by(tasks.c.id)
)


def _works(connection: Connection, query: Select[Any], *, tried: int = 0) -> list[Work]:
    rows = connection.execute(query).all()
    # once for each request: a query may be long, and its files many
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
    return [_work(row, by_id[row.request_id], row.attempts + 1 - tried) for row in rows]


def _work(row: Any, asked: Any, attempt: int) -> Work:
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
        asked_again=row.asked_again is not None and row.asked_again >= asked.submitted_at,
    )


def entries_of(row: Any) -> Entries | None:
    """Return which entries of its file a task is for; None for all of them."""
    return None if row.last_entry is None else (row.first_entry, row.last_entry)


def begin(
    connection: Connection, works: Sequence[Work], identities: Mapping[int, str]
) -> list[Work]:
    """Mark tasks running; return those that are, which a cancelled request's are not.

    Parameters
    ----------
    works
        What is to start.
    identities
        By id of the task, what the work is known by once it is done.
    """
    open_requests = {
        request_id
        for request_id, row in stored(connection, {work.request_id for work in works}).items()
        if row.state in RUNNABLE
    }
    begun = [work for work in works if work.request_id in open_requests]
    if begun:
        connection.execute(
            update(tasks)
            .where(tasks.c.id == bindparam("task"), tasks.c.state == TaskState.WAITING)
            .values(
                state=TaskState.RUNNING,
                attempts=bindparam("attempt"),
                not_before=None,
                identity=bindparam("known_by"),
            ),
            [
                {
                    "task": work.task_id,
                    "attempt": work.attempt,
                    "known_by": identities.get(work.task_id),
                }
                for work in begun
            ],
        )
    return begun


def recover(connection: Connection, *, keep: Collection[int] = ()) -> int:
    """Let what was running wait again, as if it had not been tried; return how many tasks.

    Parameters
    ----------
    keep
        Ids of tasks that do run.
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
    """Return when the earliest of the files that wait for a retry may start."""
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
