"""Random histories of a store with a budget: it holds, and what is evicted can be made again."""

import asyncio
import tempfile
from datetime import timedelta
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from sqlalchemy import select

from servicex_server.database import requests as request_rows
from servicex_server.database import stored_objects
from servicex_server.database.tables import tasks
from servicex_server.model import LOCAL_USER, TaskState
from servicex_server.requests.deletion import clear
from servicex_server.retention.budget import EVICT, RetentionPolicy, StoreBudget
from tests.property.examples import EXAMPLES, made_up
from tests.retention_world import Clock, World, in_place_of_now

BUDGET = 10_000
"""Bytes that the store may hold. A result has at most 60, and two start together: 2 % are room
enough for results that are larger than expected."""

OWNERS = ("ann", "ben")


class Histories(RuleBasedStateMachine):
    """A store with a budget, and requests of two users."""

    asked = Bundle("asked")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        policy = RetentionPolicy(
            budget=BUDGET, unused=timedelta(days=30), least=timedelta(days=1), quota=6_000
        )
        self.clock = Clock()
        self.patched = in_place_of_now(self.clock)
        self.patched.__enter__()
        self.world = World(Path(self.folder.name), policy)
        self.runner.run(self.world.budget.measure())
        self.pinned: set[str] = set()
        self.deleted: set[str] = set()

    def teardown(self) -> None:
        """Make all results again that were evicted: each of them can be."""
        self.world.budget = StoreBudget(self.world.database, self.world.objects, RetentionPolicy())
        self.runner.run(self.world.work())
        for request_id in self.world.sizes.keys() - self.deleted:
            self.runner.run(self.world.read(request_id))
            assert self.missing(request_id) == set()
        self.patched.__exit__(None, None, None)
        self.world.close()
        self.runner.close()
        self.folder.cleanup()

    def missing(self, request_id: str) -> set[str]:
        """Return the results of a request that the store has not; every file is done."""
        query = select(tasks.c.object_key, tasks.c.state).where(tasks.c.request_id == request_id)
        rows = self.runner.run(self.world.database.read(lambda one: one.execute(query).all()))
        assert {state for _, state in rows} <= {TaskState.DONE}
        return {key for key, _ in rows} - self.world.there().keys()

    @rule(
        target=asked,
        owner=st.sampled_from(OWNERS),
        files=st.integers(1, 60),
        size=st.integers(1, 60),
    )
    def ask(self, owner: str, files: int, size: int) -> str:
        """Submit a request, and have done of it what fits."""
        request_id = self.runner.run(self.world.ask(owner, files, size))
        self.runner.run(self.world.work())
        return request_id

    @rule(days=st.integers(0, 40))
    def look(self, days: int) -> None:
        """Let days pass, and measure the store; then what fits goes on."""
        self.clock.moment += timedelta(days=days)
        self.runner.run(self.world.budget.look(self.clock()))
        self.runner.run(self.world.work())

    @rule(request_id=asked)
    def read(self, request_id: str) -> None:
        """Read the results of a request."""
        if request_id not in self.deleted:
            self.runner.run(self.world.read(request_id))

    @rule(request_id=asked, pinned=st.booleans())
    def pin(self, request_id: str, *, pinned: bool) -> None:
        """Pin a request, or pin it no more."""
        if request_id not in self.deleted:
            pin = self.world.database.write(
                stored_objects.pin, LOCAL_USER, request_id, pinned=pinned, most=None
            )
            self.runner.run(pin)
            (self.pinned.add if pinned else self.pinned.discard)(request_id)

    @rule(request_id=asked)
    def delete(self, request_id: str) -> None:
        """Delete a request."""
        if request_id not in self.deleted:
            database = self.world.database
            self.runner.run(database.write(request_rows.mark_deleted, LOCAL_USER, request_id))
            self.runner.run(clear(database, self.world.objects, request_id))
            self.deleted.add(request_id)
            self.pinned.discard(request_id)

    @rule()
    def pinned_results_are_not_evicted(self) -> None:
        """Let a year pass for results that may be evicted; the pinned ones stay."""
        before = {key for key in self.world.there() if key.partition("/")[0] in self.pinned}
        self.look(365)
        assert before <= self.world.there().keys()

    @invariant()
    def budget_holds(self) -> None:
        """Hold the store to its budget, and the rows to what the store holds."""
        there = sum(self.world.there().values())
        assert there <= BUDGET
        assert there == self.runner.run(self.world.database.read(stored_objects.size))


TestHistories = Histories.TestCase
TestHistories.settings = settings(made_up, max_examples=EXAMPLES or 8, stateful_step_count=30)


def test_eviction_frees_no_more_than_is_needed(tmp_path: Path) -> None:
    """Results are evicted down to the share from which on eviction begins, and not further."""
    clock = Clock()
    with in_place_of_now(clock), asyncio.Runner() as runner:
        world = World(tmp_path, RetentionPolicy(budget=BUDGET))
        runner.run(world.budget.measure())
        for _ in range(19):
            runner.run(world.ask("ann", 10, 50))
        runner.run(world.work())
        assert sum(world.there().values()) == 9_500
        clock.moment += timedelta(days=2)
        assert runner.run(world.budget.look(clock())) == 10
        assert sum(world.there().values()) == int(EVICT * BUDGET)
        world.close()
