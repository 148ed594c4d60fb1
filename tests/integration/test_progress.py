"""The timeline of a request agrees with its rows, step by step."""

import random
from datetime import datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import Connection, bindparam, select, update

from servicex_server.database import request_timeline
from servicex_server.database.connection import Database
from servicex_server.database.tables import requests, tasks
from servicex_server.errors import NotFoundError
from servicex_server.model import Principal, TaskState, now
from tests.services import store

pytestmark = pytest.mark.anyio

ANN, BEN = Principal("ann"), Principal("ben")
LENGTH, COUNT = 7.5, 40


def made_up(connection: Connection, request_id: str) -> datetime:
    """Let tasks have ended at any time and after any; return when the request came."""
    chance = random.Random(1)
    mine = select(tasks.c.id).where(tasks.c.request_id == request_id)
    came = select(requests.c.submitted_at).where(requests.c.id == request_id)
    began: datetime = connection.execute(came).scalar_one()
    rows = []
    for task_id in connection.scalars(mine):
        # not at the edge of a step: SQLite tells times apart by milliseconds
        ended = LENGTH * chance.randrange(COUNT) + chance.uniform(0.1, LENGTH - 0.1)
        rows.append(
            {
                "task": task_id,
                "how": chance.choice([TaskState.DONE] * 3 + [TaskState.FAILED]),
                "when": began + timedelta(seconds=ended),
                "took": chance.choice([0, chance.uniform(0, 1), chance.uniform(0, ended)]),
                "size": chance.randrange(10**9),
                "number": chance.randrange(10**6),
            }
        )
    rows[0] |= {"how": TaskState.CANCELED}
    rows[1] |= {"how": TaskState.WAITING, "when": None}
    connection.execute(
        update(tasks)
        .where(tasks.c.id == bindparam("task"))
        .values(
            state=bindparam("how"),
            finished_at=bindparam("when"),
            seconds=bindparam("took"),
            bytes=bindparam("size"),
            events=bindparam("number"),
        ),
        rows,
    )
    return began


def overlap(began: float, ended: float, step: int) -> float:
    """Return for how long something was within a step."""
    return max(0.0, min(ended, (step + 1) * LENGTH) - max(began, step * LENGTH))


async def test_steps_agree_with_the_rows(database: Database) -> None:
    """A step has files, bytes and events that ended in it, and the work that overlaps with it."""
    request_id = await database.write(store, "ann", "a", 300)
    began = await database.write(made_up, request_id)
    found = await database.read(
        request_timeline.steps,
        ANN,
        request_id,
        began=began,
        length=timedelta(seconds=LENGTH),
        count=COUNT,
    )

    def ended(connection: Connection) -> list[tuple[float, float, int, int, bool]]:
        states = [TaskState.DONE, TaskState.FAILED]
        return [
            (
                (row.finished_at - began).total_seconds(),
                row.seconds,
                row.bytes,
                row.events,
                row.state == TaskState.DONE,
            )
            for row in connection.execute(select(tasks).where(tasks.c.state.in_(states)))
        ]

    rows = await database.read(ended)
    assert len(rows) == 298
    for number, step in enumerate(found):
        here = [row for row in rows if row[0] // LENGTH == number]
        assert step.files == len(here)
        assert step.bytes == sum(size for *_, size, _, done in here if done)
        assert step.events == sum(events for *_, events, done in here if done)
        work = sum(overlap(end - took, end, number) for end, took, *_ in rows)
        assert step.work == pytest.approx(work, abs=0.3)  # of 300 files, each to a millisecond
    assert sum(step.work for step in found) == pytest.approx(sum(row[1] for row in rows), abs=0.3)
    assert max(step.work for step in found) > 10 * LENGTH


async def test_last_step_contains_all_later_files(database: Database) -> None:
    """The time of a file may be later than all steps. The timeline does not lose the file."""
    request_id = await database.write(store, "ann", "a", 30)
    began = await database.write(made_up, request_id)
    short = timedelta(seconds=1)
    found = await database.read(
        request_timeline.steps, ANN, request_id, began=began, length=short, count=3
    )
    assert sum(step.files for step in found) == 28


async def test_a_request_without_files_has_empty_steps(database: Database) -> None:
    """No file has ended yet. For another user, the request does not exist."""
    request_id = await database.write(store, "ann", "a", 0)
    steps = partial(request_timeline.steps, began=now(), length=timedelta(seconds=1), count=3)
    assert await database.read(steps, ANN, request_id) == [request_timeline.Step()] * 3
    with pytest.raises(NotFoundError):
        await database.read(steps, BEN, request_id)
