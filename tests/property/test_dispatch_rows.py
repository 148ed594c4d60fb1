"""Random histories of requests, compared with a model of their state."""

import sqlite3
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, create_engine, select, update
from sqlalchemy.pool import StaticPool

from servicex_server.database import outcomes as outcome_rows
from servicex_server.database import request_completion
from servicex_server.database import requests as request_rows
from servicex_server.database import tasks as task_rows
from servicex_server.database.connection import Database
from servicex_server.database.tables import requests, tasks
from servicex_server.errors import CorruptError, UnknownNameError, UnreachableError
from servicex_server.model import (
    LOCAL_USER,
    Outcome,
    RequestState,
    TaskState,
)
from servicex_server.scheduling.fair_share import Caps, fair_shares
from tests.postgres import Postgres
from tests.property.examples import EXAMPLES, made_up
from tests.services import store

ATTEMPTS, FATAL_AFTER = 2, 2
ERRORS = {
    "corrupt": CorruptError("bad"),
    "away": UnreachableError("away"),
    "query": UnknownNameError("no branch x"),
}


@cache
def _migrated() -> sqlite3.Connection:
    """Return an empty database of today's tables, in memory."""
    empty = sqlite3.connect(":memory:")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.sqlite"
        database = Database(f"sqlite:///{path}")
        database.migrate()
        database.close()
        made = sqlite3.connect(path)
        made.backup(empty)
        made.close()
    return empty


@dataclass
class Model:
    """A request: for each file its state, the number of its attempts, and its last error."""

    state: RequestState = RequestState.RUNNING
    files: dict[int, str] = field(default_factory=dict)
    tries: Counter[int] = field(default_factory=Counter)
    errors: dict[int, str] = field(default_factory=dict)

    def count(self, state: str) -> int:
        """Return how many files have this state."""
        return list(self.files.values()).count(state)

    def end(self, number: int, how: str) -> None:
        """Record how the work on a file ended, and what that means for the request."""
        if how == "away" and self.tries[number] < ATTEMPTS:
            self.files[number] = "waiting"
            return
        self.files[number] = "done" if how == "done" else "failed"
        self.errors[number] = how
        failed = [self.errors[n] for n, state in self.files.items() if state == "failed"]
        left = self.count("waiting") + self.count("running")
        if not left:
            lost = failed and not self.count("done")
            self.state = RequestState.FATAL if lost else RequestState.COMPLETE
        elif not self.count("done") and set(failed) == {"query"} and len(failed) >= FATAL_AFTER:
            self.close(RequestState.FATAL)

    def close(self, state: RequestState) -> None:
        """End the request before its files have ended."""
        self.state = state
        for number, how in self.files.items():
            self.files[number] = "canceled" if how == "running" else how


class Requests(RuleBasedStateMachine):
    """The rows of a service, and the models that they have to agree with."""

    asked = Bundle("asked")

    def __init__(self) -> None:
        super().__init__()
        self.engine = self.open()
        self.names = 0
        self.models: dict[str, Model] = {}
        self.running: list[task_rows.Work] = []
        self.told: list[outcome_rows.Recorded] = []

    def open(self) -> Engine:
        """Return an empty database."""
        engine = create_engine("sqlite://", poolclass=StaticPool)
        with engine.connect() as connection:
            inside: Any = connection.connection.driver_connection
            _migrated().backup(inside)
            inside.execute("PRAGMA foreign_keys=ON")
        return engine

    def teardown(self) -> None:
        """Remove the database."""
        self.engine.dispose()

    @rule(target=asked, files=st.integers(1, 4), owner=st.sampled_from(["ann", "bob"]))
    def submit(self, files: int, owner: str) -> str:
        """Submit a request for some files."""
        self.names += 1
        with self.engine.begin() as connection:
            name = store(connection, owner, str(self.names), files)
        self.models[name] = Model(files=dict.fromkeys(range(files), "waiting"))
        return name

    @rule(slots=st.integers(1, 6))
    def begin(self, slots: int) -> None:
        """Give waiting files to workers, at most one for each slot."""
        at_work = Counter(work.request_id for work in self.running)
        begun = []
        with self.engine.begin() as connection:
            wanted = fair_shares(task_rows.demand(connection), at_work, slots, Caps())
            for request_id, count in wanted.items():
                works = task_rows.waiting(connection, request_id, count)
                begun += task_rows.begin(connection, works, {})
        for work in begun:
            model = self.models[work.request_id]
            assert model.state is RequestState.RUNNING
            assert model.files[work.position] == "waiting"
            model.files[work.position] = "running"
            model.tries[work.position] += 1
            assert work.attempt == model.tries[work.position]
        self.running += begun

    @rule(data=st.data(), how=st.sampled_from(["done", *ERRORS]))
    def end(self, data: st.DataObject, how: str) -> None:
        """Record the outcome of a file, whose request may have ended already."""
        if not self.running:
            return
        work = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        outcome = Outcome(
            work.request_id,
            work.file_id,
            work.attempt,
            url=f"/{work.position}",
            bytes_written=work.position + 1,
        )
        if how != "done":
            outcome = replace(outcome, error=ERRORS[how].record())
        key = work.object_key if how == "done" else ""
        result = outcome_rows.Recorded(work.task_id, outcome, work.object_name if key else "", key)
        model = self.models.get(work.request_id)
        counts = model is not None and model.files[work.position] == "running"
        orphans = self._record(result)
        assert orphans == ([key] if key and not counts else [])
        if model is not None and counts:
            model.end(work.position, how)
        self.told.append(result)

    @rule(data=st.data())
    def tell_again(self, data: st.DataObject) -> None:
        """Record an outcome again: nothing changes, and no result is lost."""
        if self.told:
            result = data.draw(st.sampled_from(self.told))
            orphans = self._record(result)
            assert (
                not orphans
                or result.outcome.request_id not in self.models
                or (self.models[result.outcome.request_id].state is RequestState.CANCELED)
            )

    def _record(self, result: outcome_rows.Recorded) -> list[str]:
        with self.engine.begin() as connection:
            touched, orphans = outcome_rows.record(connection, [result], most_attempts=ATTEMPTS)
        with self.engine.begin() as connection:
            request_completion.finish(connection, touched, fatal_after=FATAL_AFTER)
        return orphans

    @rule()
    def time_passes(self) -> None:
        """Let the files that wait for their next attempt start now."""
        with self.engine.begin() as connection:
            connection.execute(update(tasks).values(not_before=None))

    @rule(request_id=asked)
    def cancel(self, request_id: str) -> None:
        """End a request, as its user, if it has not ended."""
        model = self.models.get(request_id)
        if model is None or model.state is not RequestState.RUNNING:
            return
        with self.engine.begin() as connection:
            request_rows.cancel(connection, LOCAL_USER, request_id)
        model.close(RequestState.CANCELED)

    @rule(request_id=consumes(asked))
    def delete(self, request_id: str) -> None:
        """Delete a request; each of its objects is listed once."""
        model = self.models.pop(request_id)
        with self.engine.begin() as connection:
            request_rows.mark_deleted(connection, LOCAL_USER, request_id)
        with self.engine.begin() as connection:
            task_ids, told = request_rows.tasks_to_remove(connection, request_id)
            request_rows.remove_tasks(connection, task_ids)
            request_rows.remove(connection, request_id)
        assert len(task_ids) == len(model.files)
        assert len(told) == len(set(told)) == model.count("done")

    @rule()
    def restart(self) -> None:
        """Restart the service: running files wait again, and their last attempt does not count."""
        with self.engine.begin() as connection:
            task_rows.recover(connection)
        for model in self.models.values():
            for number, how in model.files.items():
                if how == "running":
                    model.files[number] = "waiting"
                    model.tries[number] -= 1
        self.running = []

    @invariant()
    def rows_are_as_they_should_be(self) -> None:
        """Compare states, counters and rows with the model and with each other."""
        with self.engine.begin() as connection:
            found = {
                one.id: one
                for owner in ("ann", "bob")
                for one in request_rows.listed(connection, LOCAL_USER, owner=owner)
            }
            rows = connection.execute(
                select(
                    tasks.c.request_id,
                    tasks.c.state,
                    tasks.c.object_key,
                    tasks.c.finished_at,
                    tasks.c.bytes,
                )
            ).all()
            counted = {
                row.id: row.bytes
                for row in connection.execute(select(requests.c.id, requests.c.bytes))
            }
        sizes = Counter[str]()
        for row in rows:
            sizes[row.request_id] += row.bytes if row.state == TaskState.DONE else 0
        assert found.keys() == self.models.keys()
        for request_id, model in self.models.items():
            request = found[request_id]
            states = Counter(row.state for row in rows if row.request_id == request_id)
            assert request.state is model.state
            assert states == Counter(model.files.values())
            assert request.files == len(model.files)
            assert request.completed == states[TaskState.DONE]
            assert request.failed == states[TaskState.FAILED]
            assert counted[request_id] == sizes[request_id]
        keys = [row.object_key for row in rows if row.object_key]
        assert len(keys) == len(set(keys)) == sum(row.state == TaskState.DONE for row in rows)


TestRequests: Any = Requests.TestCase
TestRequests.settings = settings(TestRequests.settings, max_examples=EXAMPLES or 40)


@pytest.mark.long
def test_many_histories_agree_with_the_model() -> None:
    """`TestRequests` checks fewer histories in the same way."""
    run_state_machine_as_test(Requests, settings=made_up)


def test_histories_on_postgresql_agree_with_the_model(postgresql: Postgres) -> None:
    """The number of examples is smaller, because each statement goes through a socket."""
    postgresql.run("create database modelled template template")
    engine = create_engine(postgresql.url("modelled"), poolclass=StaticPool)

    class OnPostgresql(Requests):
        def open(self) -> Engine:
            return engine

        def teardown(self) -> None:
            with engine.begin() as connection:
                connection.exec_driver_sql("truncate requests, tasks, datasets, files")

    fewer = settings(made_up, max_examples=EXAMPLES or 15)
    run_state_machine_as_test(OnPostgresql, settings=fewer)
    engine.dispose()
    postgresql.run("drop database modelled")
