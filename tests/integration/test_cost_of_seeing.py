"""The queue reads only open work, and a page has as many statements for many rows as for few."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, select, text

from servicex_server.database import (
    active_requests,
    finished_files,
    page_queries,
    request_timeline,
    stored_objects,
)
from servicex_server.database import datasets as dataset_rows
from servicex_server.database import requests as request_rows
from servicex_server.database.connection import Database
from servicex_server.database.tables import datasets, files, requests, tasks
from servicex_server.model import LOCAL_USER, RequestState, TaskState, now

pytestmark = pytest.mark.anyio

ENDED_REQUESTS, ENDED_FILES = 1000, 10_000
RUNNING, LATELY, WAITING = 3, 4, 5


def fill(
    connection: Connection, ended_requests: int = ENDED_REQUESTS, ended_files: int = ENDED_FILES
) -> None:
    """Make many ended requests, and a running one of which most files have ended."""
    all_ids = range(1, ended_files + LATELY + RUNNING + WAITING + 1)
    moment = now()
    old, fresh = moment - timedelta(hours=5), moment - timedelta(seconds=20)
    about = {"id": 1, "name": "d", "finder": "file-list", "reference": {}, "state": "complete"}
    connection.execute(insert(datasets).values(**about, last_used=old, last_updated=old))
    connection.execute(
        insert(files),
        [{"id": n, "dataset_id": 1, "position": n, "replicas": []} for n in all_ids],
    )
    same = {
        "owner": "local",
        "dataset_id": 1,
        "did": "d",
        "language": "uproot-raw",
        "selection": "q" * 100,
        "format": "parquet",
        "app_version": "0",
        "submitted_at": old,
    }
    ended = [{"id": f"e{n}", "state": RequestState.COMPLETE} for n in range(ended_requests)]
    counters = {"files": len(all_ids), "completed": ended_files + LATELY, "failed": 0}
    going_on = {"id": "open", "state": RequestState.RUNNING}
    none = dict.fromkeys(counters, 0)
    rows = [one | same | none for one in ended] + [going_on | same | counters]
    connection.execute(insert(requests), rows)
    states = (
        [(TaskState.DONE, old)] * ended_files
        + [(TaskState.DONE, fresh)] * LATELY
        + [(TaskState.RUNNING, None)] * RUNNING
        + [(TaskState.WAITING, None)] * WAITING
    )
    connection.execute(
        insert(tasks),
        [
            {"request_id": "open", "file_id": n, "state": state, "finished_at": finished}
            for n, (state, finished) in zip(all_ids, states, strict=True)
        ],
    )


def know(connection: Connection) -> None:
    """Let PostgreSQL analyze its tables, as it does by itself. SQLite never does."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("analyze"))


def read_rows(plan: dict[str, Any]) -> Iterator[float]:
    """Yield the number of rows that each scan in a plan of PostgreSQL read."""
    below = plan.get("Plans", [])
    if "Scan" in plan["Node Type"]:
        seen = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        yield plan["Actual Loops"] * (seen + plan.get("Rows Removed by Index Recheck", 0))
    for one in below:
        yield from read_rows(one)


def statements(connection: Connection, function: Callable[..., object]) -> list[tuple[str, Any]]:
    """Return the statements of a function, with their parameters."""
    asked: list[tuple[str, Any]] = []

    def note(conn: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        asked.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    function(connection)
    event.remove(connection, "before_cursor_execute", note)
    assert asked
    return asked


def costs(connection: Connection, function: Callable[..., object], *arguments: Any) -> list[str]:
    """Return the parts of a function's query plans that read more rows than necessary."""
    found = []
    for statement, parameters in statements(connection, lambda one: function(one, *arguments)):
        if connection.dialect.name == "sqlite":
            plan = connection.exec_driver_sql(f"explain query plan {statement}", parameters)
            steps = [str(row[-1]) for row in plan]
            # of the running tasks all are wanted, and their index has no others
            found += [one for one in steps if "SCAN" in one and "ix_tasks_running" not in one]
        else:
            explain = f"explain (analyze, format json) {statement}"
            (plan,) = connection.exec_driver_sql(explain, parameters).scalar_one()
            seen = sum(read_rows(plan["Plan"]))
            found += [json.dumps(plan)] if seen > 50 else []
    return found


async def test_queue_and_totals_read_no_ended_work(database: Database) -> None:
    """The numbers are right, and the statements find them from open work alone."""
    await database.write(fill)
    await database.write(know)
    (found,) = await database.read(active_requests.queue, LOCAL_USER)
    assert (found.waiting, found.running) == (WAITING, RUNNING)
    assert found.done == ENDED_FILES + LATELY
    assert 60 * found.rate == pytest.approx(LATELY)
    assert found.seconds_left == pytest.approx(60 * (WAITING + RUNNING) / LATELY)
    assert await database.read(costs, active_requests.queue, LOCAL_USER) == []
    totals = await database.read(active_requests.totals)
    assert totals.files == {
        TaskState.WAITING: WAITING,
        TaskState.RUNNING: RUNNING,
        TaskState.DONE: ENDED_FILES + LATELY,
        TaskState.FAILED: 0,
    }
    assert {state: number for state, number in totals.requests.items() if number} == {
        RequestState.RUNNING: 1
    }
    assert await database.read(costs, active_requests.totals) == []


async def test_scan_of_all_files_is_detected(database: Database) -> None:
    """The test above must be able to find a statement that counts all files."""
    await database.write(fill)
    await database.write(know)

    def count(connection: Connection) -> None:
        connection.execute(text("select count(*) from tasks where finished_at is not null"))

    assert len(await database.read(costs, count)) == 1


STEP = 1_000_000
"""Larger than any id."""

LOOKS: dict[str, Callable[[Connection], object]] = {
    "requests": lambda one: page_queries.requests_page(one, LOCAL_USER),
    "queue": lambda one: active_requests.queue(one, LOCAL_USER),
    "request": lambda one: request_rows.get(one, LOCAL_USER, "open"),
    "files": lambda one: page_queries.tasks_page(one, LOCAL_USER, "open"),
    "failures": lambda one: page_queries.failures(one, LOCAL_USER, "open"),
    "plots": lambda one: request_timeline.steps(
        one,
        LOCAL_USER,
        "open",
        began=now() - timedelta(hours=6),
        length=timedelta(minutes=31),
        count=12,
    ),
    "results": lambda one: finished_files.listed(one, LOCAL_USER, "open"),
    "errors": lambda one: finished_files.failed(one, LOCAL_USER, "open"),
    "statistics": lambda one: finished_files.statistics(one, LOCAL_USER, "open"),
    "datasets": lambda one: page_queries.datasets_page(one, LOCAL_USER),
    "files of a dataset": lambda one: page_queries.files_page(one, LOCAL_USER, 1),
    "places": lambda one: page_queries.places_of(one, LOCAL_USER, 1, most=2000),
    "users": lambda one: stored_objects.largest_owners(one, most=10),
}
"""What the pages, and the API for the same, read."""


def more(connection: Connection) -> None:
    """Copy all rows twice: three times as many of everything, all of the same user."""
    there = {
        table: connection.execute(select(table)).mappings().all()
        for table in (datasets, files, tasks, requests)
    }
    for copy in (1, 2):
        for table, keys in ((datasets, "id"), (files, "id dataset_id"), (tasks, "id file_id")):
            moved = [
                {**row, **{key: row[key] + copy * STEP for key in keys.split()}}
                for row in there[table]
            ]
            connection.execute(insert(table), moved)
        ours = [{**row, "id": f"copy{copy}-{row['id']}"} for row in there[requests]]
        connection.execute(insert(requests), ours)


def one_by_one(connection: Connection) -> None:
    """Read each dataset by a statement of its own, which the test has to find."""
    for dataset_id in connection.scalars(select(datasets.c.id)).all():
        dataset_rows.get(connection, LOCAL_USER, dataset_id)


async def test_page_has_the_same_statements_for_more_rows(database: Database) -> None:
    """A statement for each row would make a page slow."""
    looks = {**LOOKS, "one by one": one_by_one}

    def asked(connection: Connection) -> dict[str, list[str]]:
        return {
            what: [statement for statement, _ in statements(connection, look)]
            for what, look in looks.items()
        }

    await database.write(fill, 300, 1000)
    before = await database.read(asked)
    await database.write(more)
    after = await database.read(asked)
    assert [what for what in looks if before[what] != after[what]] == ["one by one"]
