"""Recording how tasks end: each once, even if an outcome comes twice or late."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from random import uniform
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, not_, select, update

from servicex_server.database import bad_replicas, stored_objects
from servicex_server.database import datasets as dataset_rows
from servicex_server.database.counter_updates import CounterUpdates
from servicex_server.database.requests import unused
from servicex_server.database.tables import tasks
from servicex_server.database.tasks import LONGEST_PAUSE
from servicex_server.errors import ErrorRecord, costs_no_attempt, is_store_unavailable
from servicex_server.model import (
    InputFile,
    Outcome,
    Replica,
    TaskState,
    now,
)

MOST_TRIED = 50
"""Tries of a file after which a failure of the object store counts as an attempt: a store that
takes every other result may never take this one."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The outcome of a task, and its result in the object store, if any.

    ``file`` is the input file, if its replicas were tried. ``named`` are the replicas that a
    refresh has found; None if they were not refreshed.
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
    """Store how tasks ended.

    Parameters
    ----------
    results
        What the workers reported. An outcome is ignored if its attempt is not running any more: the
        task was canceled or deleted, or the outcome was reported before.
    most_attempts
        Most attempts at a file whose error is temporary.

    Returns
    -------
    touched
        Ids of the requests that may have ended with these tasks.
    orphans
        Keys of objects that no task refers to, which the caller deletes.
    """
    clock = CounterUpdates(connection, {result.outcome.request_id for result in results})
    running = _running(connection, [result.task_id for result in results])
    sums = _sums(connection, [row.id for row in running.values() if row.parts])
    ends: list[dict[str, Any]] = []
    parts: list[tuple[Any, dict[str, Any]]] = []
    joined: list[int] = []
    made: list[tuple[str, str, int]] = []
    passed_over: list[str] = []
    proofs: list[tuple[Outcome, InputFile]] = []
    named: dict[int, tuple[Replica, ...]] = {}
    nowhere: set[int] = set()
    touched: set[str] = set()
    for reported in results:
        result = _with_parts(reported, sums.get(reported.task_id))
        outcome = result.outcome
        row = running.get(result.task_id)
        # the id of a deleted task may have been given to another task
        meant = (outcome.request_id, outcome.file_id, outcome.attempt)
        if row is None or (row.request_id, row.file_id, row.attempts) != meant:
            # an outcome comes twice if the caller did not learn that the first write succeeded
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
        if ends[-1]["new_state"] is TaskState.DONE and result.object_key and row.part_of is None:
            owner = clock.owners[outcome.request_id]
            made.append((result.object_key, owner, outcome.bytes_written))
        if row.part_of is not None:
            parts.append((row, ends[-1]))
        elif row.parts and ends[-1]["new_state"] is not TaskState.WAITING:
            joined.append(row.id)
        if ends[-1]["new_state"] is TaskState.FAILED and of_place(outcome.error):
            nowhere.add(outcome.file_id)
        if result.file is not None:
            proofs.append((outcome, result.file))
        touched.add(outcome.request_id)
    if ends:
        connection.execute(_END, ends)
        stored_objects.add(connection, made)
    joined += _after_parts(connection, parts, clock)
    passed_over += _remove_parts(connection, joined)
    bad_replicas.note(connection, proofs)
    dataset_rows.store_refreshed_replicas(connection, named, now())
    if nowhere:
        dataset_rows.mark_stale_by_files(connection, nowhere)
    clock.write(connection)
    return touched, unused(connection, filter(None, passed_over))


def _running(connection: Connection, task_ids: Sequence[int]) -> dict[int, Any]:
    rows = connection.execute(
        select(
            tasks.c.id,
            tasks.c.request_id,
            tasks.c.file_id,
            tasks.c.attempts,
            tasks.c.tried,
            tasks.c.part_of,
            tasks.c.parts,
            tasks.c.object_name,
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
                "state attempts finished_at not_before path object_name object_key bytes events "
                "events_kept seconds worker error tried log_tail"
            ).split()
        }
    )
)


def _ended(result: Recorded, row: Any, clock: CounterUpdates, most_attempts: int) -> dict[str, Any]:
    outcome = result.outcome
    values: dict[str, Any] = {
        "state": TaskState.DONE,
        "attempts": outcome.attempt,
        "finished_at": None,
        "not_before": None,
        "path": outcome.url,
        # the results of parts are not in the bucket of the request
        "object_name": result.object_name if result.object_name and not row.part_of else None,
        "object_key": result.object_key or None,
        "bytes": outcome.bytes_written,
        "events": outcome.events_read,
        "events_kept": outcome.events_written,
        "seconds": outcome.seconds,
        "worker": outcome.worker,
        "error": outcome.error.as_dict() if outcome.error else None,
        "tried": [*(row.tried or []), *(asdict(attempt) for attempt in outcome.attempts)],
        "log_tail": outcome.log_tail,
    }
    if costs_no_attempt(outcome.error) and len(row.tried or ()) < MOST_TRIED:
        values |= {
            "state": TaskState.WAITING,
            "attempts": outcome.attempt - 1,
            # no file starts while the store is away; a scratch folder has nothing that watches it
            "not_before": now()
            if is_store_unavailable(outcome.error)
            else now() + min(_pause(len(row.tried or ()) + 1), LONGEST_PAUSE),
        }
    elif outcome.error is not None:
        if result.named and set(_urls(result.named)) - _tried(row, outcome):
            values["state"] = TaskState.WAITING
        elif outcome.error.retryable and outcome.attempt < most_attempts + bool(row.parts):
            values |= {
                "state": TaskState.WAITING,
                "not_before": now() + min(_pause(outcome.attempt), LONGEST_PAUSE),
            }
        else:
            values["state"] = TaskState.FAILED
    if values["state"] is TaskState.WAITING:
        # of a lost result that is made again, the name has been given to its readers
        values["object_name"] = row.object_name
    elif row.part_of is not None:
        values["finished_at"] = now()
    else:
        values["finished_at"] = clock.end(
            outcome.request_id,
            values["state"],
            size=outcome.bytes_written,
            events=outcome.events_read,
            kept=outcome.events_written,
        )
    return {"task": row.id} | {f"new_{name}": value for name, value in values.items()}


def _pause(failures: int) -> timedelta:
    """Return how long a file waits that has failed so often.

    At random, because many files may have failed at the same storage endpoint.
    """
    return timedelta(seconds=2.0 ** min(failures - 1, 10) * uniform(0.5, 1.5))  # noqa: S311  # no secret


def of_place(error: ErrorRecord | None) -> bool:
    """Whether an error is to blame on the replicas or their sites, and not on the query."""
    return error is not None and error.blame in ("replica", "site")


def _tried(row: Any, outcome: Outcome) -> set[str]:
    """Return the URLs of all replicas of a file that were tried for its request."""
    return {one["url"] for one in row.tried or []} | {one.url for one in outcome.attempts}


def _urls(replicas: Iterable[Replica]) -> list[str]:
    return [replica.url for replica in replicas]


def _untried_first(named: Iterable[Replica], row: Any, outcome: Outcome) -> tuple[Replica, ...]:
    tried = _tried(row, outcome)
    return tuple(sorted(named, key=lambda replica: replica.url in tried))


def _split(connection: Connection, row: Any, outcome: Outcome) -> None:
    """Add tasks for the parts of a file. The task of the file waits until they are done."""
    connection.execute(
        update(tasks)
        .where(tasks.c.id == row.id)
        .values(state=TaskState.SPLIT, parts=len(outcome.parts))
    )
    same = {
        "request_id": outcome.request_id,
        "file_id": outcome.file_id,
        "state": TaskState.WAITING,
        "part_of": row.id,
    }
    connection.execute(
        insert(tasks),
        [{**same, "first_entry": first, "last_entry": last} for first, last in outcome.parts],
    )


def _sums(connection: Connection, split: Sequence[int]) -> dict[int, Any]:
    """Return the sums over the parts of files, by the task of the file."""
    if not split:
        return {}
    rows = connection.execute(
        select(
            tasks.c.part_of,
            func.count().label("parts"),
            func.count(tasks.c.events_kept).label("known"),
            func.sum(tasks.c.events).label("events"),
            func.sum(tasks.c.events_kept).label("kept"),
            func.sum(tasks.c.seconds).label("seconds"),
            func.max(tasks.c.log_tail).label("log_tail"),
        )
        .where(tasks.c.part_of.in_(split))
        .group_by(tasks.c.part_of)
    )
    return {row.part_of: row for row in rows}


def _with_parts(result: Recorded, parts: Any) -> Recorded:
    """Return the result of a file; if its parts were joined, with the sums over the parts."""
    outcome = result.outcome
    if parts is None or outcome.error is not None:
        return result
    joined = replace(
        outcome,
        events_read=int(parts.events),
        events_written=int(parts.kept) if parts.known == parts.parts else None,
        seconds=outcome.seconds + parts.seconds,
        log_tail=parts.log_tail,
    )
    return replace(result, outcome=joined)


def _after_parts(
    connection: Connection, ended: Iterable[tuple[Any, dict[str, Any]]], clock: CounterUpdates
) -> list[int]:
    """Queue files whose parts are all done for joining; return the tasks of files that failed.

    Parameters
    ----------
    ended
        Rows of parts, and the values with which they were updated.
    """
    failed: dict[int, tuple[Any, dict[str, Any]]] = {}
    done: set[int] = set()
    for row, values in ended:
        if values["new_state"] is TaskState.FAILED:
            failed.setdefault(row.part_of, (row, values))
        elif values["new_state"] is TaskState.DONE:
            done.add(row.part_of)
    if failed:
        connection.execute(
            _END,
            [
                values
                | {
                    "task": part_of,
                    "new_finished_at": clock.end(
                        row.request_id, TaskState.FAILED, size=0, events=0, kept=0
                    ),
                }
                for part_of, (row, values) in failed.items()
            ],
        )
    if whole := done - failed.keys():
        parts = tasks.alias("parts")
        unfinished = (
            select(parts.c.id)
            .where(parts.c.part_of == tasks.c.id, parts.c.state != TaskState.DONE)
            .exists()
        )
        connection.execute(
            update(tasks)
            .where(tasks.c.id.in_(whole), tasks.c.state == TaskState.SPLIT, not_(unfinished))
            .values(state=TaskState.WAITING)
        )
    return list(failed)


def _remove_parts(connection: Connection, ended: Sequence[int]) -> list[str]:
    """Delete the tasks of parts of finished files; return the keys of their results."""
    if not ended:
        return []
    parts = tasks.c.part_of.in_(ended)
    keys = list(connection.scalars(select(tasks.c.object_key).where(parts)))
    connection.execute(delete(tasks).where(parts))
    return [key for key in keys if key]
