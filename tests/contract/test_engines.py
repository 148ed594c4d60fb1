"""What every engine has to do, on the double and on real worker processes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from servicex_server.engines.contract import Engine
from servicex_server.engines.dask import DaskEngine
from servicex_server.engines.memory import MemoryEngine
from servicex_server.languages.python_function import PythonFunction
from servicex_server.model import Limits, Outcome, Replica, ResultFormat, TaskSpec
from servicex_server.transform import transform
from tests.support import sample

pytestmark = pytest.mark.anyio

HZZ = str(sample("uproot-HZZ.root"))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio."""
    return "asyncio"


@pytest.fixture(scope="module", params=["memory", "dask"])
async def running(
    request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[tuple[Engine, asyncio.Queue[Outcome]]]:
    """Give a started engine and the queue that its outcomes go to."""
    engine: Engine = (
        MemoryEngine(transform)
        if request.param == "memory"
        else DaskEngine(workers=2, memory=1 << 30)
    )
    ended: asyncio.Queue[Outcome] = asyncio.Queue()
    before = set(psutil.Process().children(recursive=True))
    await engine.start(ended.put_nowait)
    yield engine, ended
    # Python's own tracker of shared memory stays as long as the tests do
    below = [
        process
        for process in set(psutil.Process().children(recursive=True)) - before
        if "resource_tracker" not in " ".join(process.cmdline())
    ]
    await engine.close()
    _, alive = await asyncio.to_thread(psutil.wait_procs, below, 10)
    assert alive == []


def spec(folder: Path, name: str, url: str = HZZ, **changes: str) -> TaskSpec:
    """Return a task on a file."""
    return TaskSpec(
        request_id=f"{folder.name}-{name}",
        file_id=1,
        attempt=1,
        replicas=(Replica(url),),
        language=changes.get("language", "uproot-raw"),
        selection=changes.get("selection", '[{"treename": "events", "filter_name": "NJet"}]'),
        format=ResultFormat.PARQUET,
        object_name="x.parquet",
        upload_url=(folder / name / "x.parquet").as_uri(),
        limits=Limits(),
    )


async def next_outcome(ended: asyncio.Queue[Outcome]) -> Outcome:
    """Return the next outcome."""
    return await asyncio.wait_for(ended.get(), 60)


async def test_a_task_ends_with_its_outcome(
    running: tuple[Engine, asyncio.Queue[Outcome]], tmp_path: Path
) -> None:
    """The outcome says what was read, and the object is there by then."""
    engine, ended = running
    engine.submit(spec(tmp_path, "a"))
    outcome = await next_outcome(ended)
    assert outcome.error is None
    assert outcome.events_read == 2421
    assert (tmp_path / "a" / "x.parquet").stat().st_size == outcome.bytes_written


async def test_a_failure_is_an_outcome_too(
    running: tuple[Engine, asyncio.Queue[Outcome]], tmp_path: Path
) -> None:
    """A file that is not there ends its task with the error, not with an exception."""
    engine, ended = running
    engine.submit(spec(tmp_path, "b", "/no/such.root"))
    outcome = await next_outcome(ended)
    assert outcome.error is not None
    assert outcome.error.kind == "Missing"


async def test_each_of_many_tasks_ends_once(
    running: tuple[Engine, asyncio.Queue[Outcome]], tmp_path: Path
) -> None:
    """Twenty tasks give twenty outcomes, each for one of them."""
    engine, ended = running
    specs = [spec(tmp_path, f"c{n}") for n in range(20)]
    for one in specs:
        engine.submit(one)
    outcomes = [await next_outcome(ended) for _ in specs]
    assert {outcome.request_id for outcome in outcomes} == {one.request_id for one in specs}
    assert ended.empty()


async def test_slots_are_workers(running: tuple[Engine, asyncio.Queue[Outcome]]) -> None:
    """An idle engine has as many idle workers as slots."""
    engine, _ = running
    workers = await engine.workers()
    assert len(workers) == engine.slots == 2
    assert {worker.task for worker in workers} == {""}


async def test_a_task_that_runs_is_stopped_with_its_worker(tmp_path: Path) -> None:
    """A stopped task gives no outcome, and its worker is soon there for others."""
    import base64

    engine = DaskEngine(workers=1, memory=1 << 30)
    ended: asyncio.Queue[Outcome] = asyncio.Queue()
    await engine.start(ended.put_nowait)
    try:
        source = "def run_query(path):\n    open('started', 'w')\n    while True: pass\n"
        selection = base64.b64encode(source.encode()).decode()
        endless = spec(tmp_path, "d", language=PythonFunction.name, selection=selection)
        engine.submit(endless)
        async with asyncio.timeout(30):
            while not any(worker.task == endless.key for worker in await engine.workers()):
                await asyncio.sleep(0.05)
        await engine.stop([endless.key])
        engine.submit(spec(tmp_path, "e"))
        outcome = await next_outcome(ended)
        assert outcome.request_id.endswith("-e")
        assert ended.empty()
    finally:
        await engine.close()


async def test_a_killed_worker_costs_its_task_only(tmp_path: Path) -> None:
    """A worker that is killed gives an outcome that says so, and a new worker comes."""
    import base64

    engine = DaskEngine(workers=1, memory=1 << 30)
    ended: asyncio.Queue[Outcome] = asyncio.Queue()
    await engine.start(ended.put_nowait)
    try:
        source = (
            "import os, signal\ndef run_query(path):\n    os.kill(os.getppid(), signal.SIGKILL)\n"
        )
        selection = base64.b64encode(source.encode()).decode()
        engine.submit(spec(tmp_path, "f", language="python", selection=selection))
        outcome = await next_outcome(ended)
        assert outcome.error is not None
        assert (outcome.error.kind, outcome.error.retryable) == ("WorkerDied", True)
        engine.submit(spec(tmp_path, "g"))
        assert (await next_outcome(ended)).error is None
    finally:
        await engine.close()
