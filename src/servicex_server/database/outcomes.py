"""How tasks end, and with them requests: each once, whatever is said twice or late."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from random import uniform
from typing import Any

from sqlalchemy import Connection, bindparam, insert, not_, select, update

from servicex_server.database import bad_replicas
from servicex_server.database import datasets as dataset_rows
from servicex_server.database.requests import OPEN, change_state, drop_tasks, stored, unused
from servicex_server.database.tables import datasets, requests, tasks
from servicex_server.database.tasks import LONGEST_PAUSE, RUNNABLE, Work
from servicex_server.errors import ErrorRecord
from servicex_server.model import (
    DatasetState,
    InputFile,
    Outcome,
    Replica,
    RequestState,
    Sharing,
    TaskState,
    now,
)

_READ = 1000
"""Failed files that are looked at for what they have in common."""

_NAMED = 3
"""Files that the end of a request names."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a task, and the object it left behind, if any.

    ``file`` is what it was on, where its replicas were tried; ``named`` are those that its
    catalogue named when it was asked again, and None if it was not.
    """

    task_id: int
    outcome: Outcome
    object_name: str = ""
    object_key: str = ""
    file: InputFile | None = None
    named: tuple[Replica, ...] | None = None


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
        The requests that may have ended by this.
    orphans
        Keys of objects that belong to no task, to be removed.
    """
    clock = _Clock(connection, {result.outcome.request_id for result in results})
    running = _running(connection, [result.task_id for result in results])
    ends: list[dict[str, Any]] = []
    passed_over: list[str] = []
    proofs: list[tuple[Outcome, InputFile]] = []
    named: dict[int, tuple[Replica, ...]] = {}
    nowhere: set[int] = set()
    touched: set[str] = set()
    for result in results:
        outcome = result.outcome
        row = running.get(result.task_id)
        # the number of a deleted task may be that of another one by now
        meant = (outcome.request_id, outcome.file_id, outcome.attempt)
        if row is None or (row.request_id, row.file_id, row.attempts) != meant:
            # an outcome may come twice, when nobody heard that the first write had succeeded
            touched.add(outcome.request_id)
            passed_over.append(result.object_key)
            continue
        del running[result.task_id]
        if outcome.parts:
            _split(connection, row, outcome)
            continue
        if result.named is not None:
            named[outcome.file_id] = _untried_first(result.named, row, outcome)
        ends.append(_ended(result, row, clock, most_attempts))
        if ends[-1]["new_state"] is TaskState.FAILED and of_place(outcome.error):
            nowhere.add(outcome.file_id)
        if result.file is not None:
            proofs.append((outcome, result.file))
        touched.add(outcome.request_id)
    if ends:
        connection.execute(_END, ends)
    bad_replicas.note(connection, proofs)
    dataset_rows.found_again(connection, named, now())
    if nowhere:
        dataset_rows.distrust(connection, nowhere)
    clock.write(connection)
    return touched, unused(connection, filter(None, passed_over))


def _running(connection: Connection, task_ids: Sequence[int]) -> dict[int, Any]:
    rows = connection.execute(
        select(
            tasks.c.id, tasks.c.request_id, tasks.c.file_id, tasks.c.attempts, tasks.c.tried
        ).where(tasks.c.id.in_(task_ids), tasks.c.state == TaskState.RUNNING)
    )
    return {row.id: row for row in rows}


_END = (
    update(tasks)
    .where(tasks.c.id == bindparam("task"))
    .values(
        {
            name: bindparam(f"new_{name}")
            for name in (
                "state finished_at not_before path object_name object_key bytes events seconds "
                "worker error tried log_tail"
            ).split()
        }
    )
)


class _Clock:
    """Counters and times of the requests whose tasks change in this transaction.

    A client asks for what is not older than the newest it has seen, so times never go back.
    """

    def __init__(self, connection: Connection, request_ids: Iterable[str]) -> None:
        rows = stored(connection, request_ids)
        self._latest: dict[str, datetime | None] = {k: row.last_ended for k, row in rows.items()}
        self._counts: dict[str, Counter[TaskState]] = defaultdict(Counter)
        self._bytes: Counter[str] = Counter()

    def end(self, request_id: str, state: TaskState, size: int) -> datetime:
        """Count a task that ends, and the bytes of its result, and return when it does."""
        moment, latest = now(), self._latest.get(request_id)
        if latest is not None and moment <= latest:
            moment = latest + timedelta(microseconds=1)
        self._latest[request_id] = moment
        self._counts[request_id][state] += 1
        if state is TaskState.DONE:
            self._bytes[request_id] += size
        return moment

    def write(self, connection: Connection) -> None:
        """Write down what has changed."""
        changes = [
            {
                "request": request_id,
                "done": counts[TaskState.DONE],
                "lost": counts[TaskState.FAILED],
                "size": self._bytes[request_id],
                "moment": self._latest[request_id],
            }
            for request_id, counts in self._counts.items()
        ]
        if changes:
            connection.execute(
                update(requests)
                .where(requests.c.id == bindparam("request"))
                .values(
                    completed=requests.c.completed + bindparam("done"),
                    failed=requests.c.failed + bindparam("lost"),
                    bytes=requests.c.bytes + bindparam("size"),
                    last_ended=bindparam("moment"),
                ),
                changes,
            )


def _ended(result: Recorded, row: Any, clock: _Clock, most_attempts: int) -> dict[str, Any]:
    outcome = result.outcome
    values: dict[str, Any] = {
        "state": TaskState.DONE,
        "finished_at": None,
        "not_before": None,
        "path": outcome.url,
        "object_name": result.object_name or None,
        "object_key": result.object_key or None,
        "bytes": outcome.bytes_written,
        "events": outcome.events_read,
        "seconds": outcome.seconds,
        "worker": outcome.worker,
        "error": outcome.error.as_dict() if outcome.error else None,
        "tried": [*(row.tried or []), *(asdict(attempt) for attempt in outcome.attempts)],
        "log_tail": outcome.log_tail,
    }
    if outcome.error is not None:
        if result.named and set(_urls(result.named)) - _tried(row, outcome):
            values["state"] = TaskState.WAITING
        elif outcome.error.retryable and outcome.attempt < most_attempts:
            # not all at once, where a door closed on many
            wait = timedelta(seconds=2.0 ** (outcome.attempt - 1) * uniform(0.5, 1.5))  # noqa: S311  # no secret
            values |= {
                "state": TaskState.WAITING,
                "not_before": now() + min(wait, LONGEST_PAUSE),
            }
        else:
            values["state"] = TaskState.FAILED
    if values["state"] is not TaskState.WAITING:
        values["finished_at"] = clock.end(
            outcome.request_id, values["state"], outcome.bytes_written
        )
    return {"task": row.id} | {f"new_{name}": value for name, value in values.items()}


def of_place(error: ErrorRecord | None) -> bool:
    """Whether a file was at none of the places that were tried, or not as it should be."""
    return error is not None and error.blame in ("replica", "site")


def _tried(row: Any, outcome: Outcome) -> set[str]:
    """Return the URLs at which a file has been tried for its request."""
    return {one["url"] for one in row.tried or []} | {one.url for one in outcome.attempts}


def _urls(replicas: Iterable[Replica]) -> list[str]:
    return [replica.url for replica in replicas]


def _untried_first(named: Iterable[Replica], row: Any, outcome: Outcome) -> tuple[Replica, ...]:
    tried = _tried(row, outcome)
    return tuple(sorted(named, key=lambda replica: replica.url in tried))


def _split(connection: Connection, row: Any, outcome: Outcome) -> None:
    """Put the parts of a file in the place of its task; the first part takes the row itself."""
    (_, end), *others = outcome.parts
    connection.execute(
        update(tasks)
        .where(tasks.c.id == row.id)
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
    connection.execute(
        update(requests)
        .where(requests.c.id == outcome.request_id)
        .values(files=requests.c.files + len(others))
    )


def reuse(
    connection: Connection, works: Sequence[Work], identities: Mapping[int, str], *, of: Sharing
) -> set[int]:
    """End those tasks whose object was made before; return their ids.

    Parameters
    ----------
    works
        Tasks of one request that wait.
    identities
        By id of the task, what the work is known by.
    of
        Whose objects count.
    """
    request_id, owner = works[0].request_id, works[0].owner
    asked = stored(connection, [request_id]).get(request_id)
    if asked is None or asked.state not in RUNNABLE:
        return set()
    made = (
        select(tasks.c.identity, tasks.c.object_key, tasks.c.bytes, tasks.c.events)
        .join_from(tasks, requests, tasks.c.request_id == requests.c.id)
        .where(
            tasks.c.identity.in_(set(identities.values())),
            tasks.c.state == TaskState.DONE,
            not_(requests.c.deleted),  # its objects go
        )
    )
    if of is Sharing.OWN:
        made = made.where(requests.c.owner == owner)
    known = {row.identity: row for row in connection.execute(made) if row.object_key}
    clock = _Clock(connection, [request_id])
    ends = [
        {
            "task": work.task_id,
            "known_by": identities[work.task_id],
            "moment": clock.end(request_id, TaskState.DONE, found.bytes),
            "url": work.file.path,
            "name": work.object_name,
            "key": found.object_key,
            "size": found.bytes,
            "number": found.events,
        }
        for work in works
        if (found := known.get(identities.get(work.task_id, "")))
    ]
    if ends:
        connection.execute(_REUSE, ends)
        clock.write(connection)
    return {end["task"] for end in ends}


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
    )
)


def finish(
    connection: Connection, request_ids: Iterable[str], *, fatal_after: int
) -> dict[str, RequestState]:
    """End those of the requests that have nothing left to do; return how each ended.

    A request of which every file failed is `Fatal`, so that nobody takes silence for a result;
    so is one whose first files all fail with one and the same query error.
    """
    ended: dict[str, RequestState] = {}
    for request_id, row in stored(connection, request_ids).items():
        if row.state in OPEN and (end := _end_of(connection, row, fatal_after)):
            state, failure = end
            if change_state(connection, [request_id], state, failure=failure):
                drop_tasks(connection, request_id)
                ended[request_id] = state
    return ended


def _end_of(connection: Connection, row: Any, fatal_after: int) -> tuple[RequestState, str] | None:
    """Return how a request ends now, and why; None if it goes on."""
    if row.files == row.completed + row.failed:
        query = select(datasets.c.state).where(datasets.c.id == row.dataset_id)
        if connection.scalar(query) == DatasetState.COMPLETE:
            lost = row.failed and not row.completed
            state = RequestState.FATAL if lost else RequestState.COMPLETE
            return state, _common(connection, row.id, row.failed) if row.failed else ""
    if row.failed >= fatal_after and not row.completed:
        failure = _one_query_error(connection, row.id, fatal_after)
        return (RequestState.FATAL, failure) if failure else None
    return None


def _errors(connection: Connection, request_id: str) -> list[tuple[ErrorRecord, int, str]]:
    """Return errors, ids and paths of the first failed files."""
    rows = connection.execute(
        select(tasks.c.error, tasks.c.file_id, tasks.c.path)
        .where(tasks.c.request_id == request_id, tasks.c.state == TaskState.FAILED)
        .order_by(tasks.c.id)
        .limit(_READ)
    )
    return [(ErrorRecord(**row.error), row.file_id, row.path or "") for row in rows]


def _text(error: ErrorRecord) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


def _one_query_error(connection: Connection, request_id: str, fatal_after: int) -> str:
    """Return the query error that all failed files have; empty if it is not one in enough files."""
    found = _errors(connection, request_id)
    if len({(error.message, error.hint) for error, _, _ in found}) > 1:
        return ""
    error = found[0][0]
    paths = {file_id: path for _, file_id, path in found}
    if error.blame != "query" or len(paths) < fatal_after:
        return ""
    return f"{_text(error)} [the first {len(paths)} files: {_named(list(paths.values()))}]"


def _named(paths: Sequence[str]) -> str:
    more = len(paths) - _NAMED
    return ", ".join(paths[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _common(connection: Connection, request_id: str, failed: int) -> str:
    """Return what failed files have in common."""
    errors = [error for error, _, _ in _errors(connection, request_id)]
    texts = Counter(map(_text, errors))
    text, count = texts.most_common(1)[0]
    files = f"{failed} file{'s' if failed > 1 else ''} failed"
    if len(texts) == 1:
        return f"{files}: {text}"
    at_least = "at least " if failed > len(errors) else ""
    return f"{files}; {at_least}{count} with: {text}"
