"""Conformance tests of engines."""

import asyncio
from pathlib import Path

import pytest

from servicex_server.engine.contract import Engine
from servicex_server.errors import ErrorRecord
from servicex_server.model import CheckSpec, Limits, Outcome, Replica, ResultFormat, TaskSpec

EVENTS = 2421
"""Events in the sample file."""

Started = tuple[Engine, asyncio.Queue[Outcome]]


def task(folder: Path, name: str, url: str) -> TaskSpec:
    """Return a task on a file, whose result goes into a folder of that name."""
    return TaskSpec(
        request_id=f"{folder.name}-{name}",
        file_id=1,
        attempt=1,
        replicas=(Replica(url),),
        language="uproot-raw",
        selection='[{"treename": "events", "filter_name": "NJet"}]',
        format=ResultFormat.PARQUET,
        object_name="x.parquet",
        upload_url=(folder / name / "x.parquet").as_uri(),
        limits=Limits(),
    )


def dry_run(url: str, *, branch: str = "NJet", language: str = "uproot-raw") -> CheckSpec:
    """Return a dry run of a query of one branch on a file."""
    selection = f'[{{"treename": "events", "filter_name": "{branch}"}}]'
    return CheckSpec((Replica(url),), language, selection, ResultFormat.PARQUET)


async def next_outcome(ended: asyncio.Queue[Outcome]) -> Outcome:
    """Return the next outcome, for which a minute is waited."""
    return await asyncio.wait_for(ended.get(), 60)


@pytest.mark.anyio
class EngineSuite:
    """Derive a class whose name begins with ``Test``, with a fixture ``running``.

    The fixture starts the engine with two workers and hands its outcomes to a queue:
    ``await engine.start(queue.put_nowait)``. Its workers transform files for real.
    """

    @pytest.fixture
    def running(self) -> Started:
        """Return a started engine and the queue of its outcomes."""
        raise NotImplementedError("return a started engine in a fixture of this name")

    @pytest.fixture
    def sample(self, tmp_path: Path) -> str:
        """Return the path of a ROOT file with a tree ``events`` that has a branch ``NJet``."""
        import numpy as np
        import uproot

        path = tmp_path / "sample.root"
        with uproot.recreate(path) as file:
            file["events"] = {"NJet": np.arange(EVENTS, dtype=np.int32) % 7}
        return str(path)

    async def test_task_ends_with_its_outcome(
        self, running: Started, sample: str, tmp_path: Path
    ) -> None:
        """The outcome says what was read, and the object is complete by then."""
        engine, ended = running
        engine.submit(task(tmp_path, "a", sample))
        outcome = await next_outcome(ended)
        assert outcome.error is None
        assert outcome.events_read == EVENTS
        assert (tmp_path / "a" / "x.parquet").stat().st_size == outcome.bytes_written

    async def test_failed_task_ends_with_an_error(self, running: Started, tmp_path: Path) -> None:
        """A file that does not exist gives an outcome with the error, and not an exception."""
        engine, ended = running
        engine.submit(task(tmp_path, "b", "/no/such.root"))
        outcome = await next_outcome(ended)
        assert outcome.error is not None
        assert outcome.error.kind == "Missing"

    async def test_each_of_many_tasks_ends_once(
        self, running: Started, sample: str, tmp_path: Path
    ) -> None:
        """Twenty tasks give twenty outcomes, one for each task."""
        engine, ended = running
        specs = [task(tmp_path, f"c{n}", sample) for n in range(20)]
        for one in specs:
            engine.submit(one)
        outcomes = [await next_outcome(ended) for _ in specs]
        assert {outcome.request_id for outcome in outcomes} == {one.request_id for one in specs}
        assert ended.empty()

    async def test_idle_engine_has_one_idle_worker_for_each_slot(self, running: Started) -> None:
        """The fixture starts the engine with two workers."""
        engine, _ = running
        workers = engine.workers()
        assert len(workers) == engine.slots == 2
        assert {worker.task for worker in workers} == {""}

    @pytest.mark.parametrize(
        ("branch", "language", "there", "kind"),
        [
            ("NJet", "uproot-raw", True, None),
            ("NJett", "uproot-raw", True, "UnknownName"),
            ("NJet", "uproot-raw", False, "Missing"),
            ("NJet", "of-a-plug-in-that-the-workers-lack", True, "Request"),
        ],
    )
    async def test_dry_run_returns_the_error_of_a_task(
        self,
        running: Started,
        sample: str,
        branch: str,
        language: str,
        there: bool,  # noqa: FBT001  # a parametrized flag is positional
        kind: str | None,
    ) -> None:
        """The error has its kind and its hint. A dry run is not a task, and gives no outcome."""
        engine, ended = running
        asked = dry_run(sample if there else "/no/such.root", branch=branch, language=language)
        async with asyncio.timeout(60):
            # workers that have just started import their libraries first
            while (found := await engine.check(asked)) is None and kind:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert (found.kind if found else None) == kind
        if kind == "UnknownName":
            assert found is not None
            assert "did you mean NJet" in found.hint
        assert ended.empty()

    async def test_many_dry_runs_are_all_answered(self, running: Started, sample: str) -> None:
        """More dry runs than places end, each with its error or with None."""
        engine, _ = running
        found: list[ErrorRecord | None] = []
        async with asyncio.timeout(60):
            while not any(found):  # workers that have just started know nothing in time
                many = (engine.check(dry_run(sample, branch="NJett")) for _ in range(40))
                found = await asyncio.gather(*many)
        assert len(found) == 40
        assert {one.kind for one in found if one} == {"UnknownName"}
