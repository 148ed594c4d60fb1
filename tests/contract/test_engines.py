"""The contract of engines, on the engine in memory and on real worker processes."""

import asyncio
import base64
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from servicex_server.clusters.local import LocalProcesses
from servicex_server.engine.contract import CHECK_SECONDS, Engine
from servicex_server.engine.dask_engine import DaskEngine
from servicex_server.languages.python_function import PythonFunction
from servicex_server.model import (
    CheckSpec,
    Limits,
    Outcome,
    Replica,
    ResultFormat,
    SandboxChoice,
    TaskSpec,
)
from servicex_server.testing.engine_suite import EngineSuite, Started
from servicex_server.testing.memory_engine import MemoryEngine
from servicex_server.worker.transform import check, transform
from tests.integration.servers import http
from tests.support import FORK_SERVER, command_of, on_workers, sample

pytestmark = pytest.mark.anyio

HZZ = str(sample("uproot-HZZ.root"))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio."""
    return "asyncio"


def _is_pythons_own(command: str) -> bool:
    return "resource_tracker" in command or FORK_SERVER in command


@pytest.fixture(scope="module", params=["memory", "dask"])
async def running(
    request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[tuple[Engine, asyncio.Queue[Outcome]]]:
    """Give a started engine and the queue that its outcomes go to."""
    engine: Engine = (
        MemoryEngine(transform, check=partial(check, patience=CHECK_SECONDS))
        if request.param == "memory"
        else DaskEngine(LocalProcesses(memory=1 << 30), workers=2)
    )
    ended: asyncio.Queue[Outcome] = asyncio.Queue()
    before = set(psutil.Process().children(recursive=True))
    await engine.start(ended.put_nowait)
    yield engine, ended
    # Python's own tracker of shared memory and its fork server stay as long as the tests do
    stay = {one for one in psutil.Process().children() if _is_pythons_own(command_of(one))}
    below = list(set(psutil.Process().children(recursive=True)) - before - stay)
    await engine.close()
    _, alive = await asyncio.to_thread(psutil.wait_procs, below, 60)
    assert alive == []


class TestEveryEngine(EngineSuite):
    """The engine in memory, and Dask on processes of this machine."""

    @pytest.fixture
    def running(self, running: Started) -> Started:
        """Return a started engine and the queue of its outcomes."""
        return running


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


async def test_failed_upload_is_a_retryable_error(
    running: tuple[Engine, asyncio.Queue[Outcome]], tmp_path: Path
) -> None:
    """The store rejects the result, or does not answer."""
    engine, ended = running
    at_once = Limits(upload=0)
    with http() as door:
        refusing = door.url("x.parquet")  # it has nothing to put into
        engine.submit(replace(spec(tmp_path, "r"), upload_url=refusing, limits=at_once))
        refused = (await next_outcome(ended)).error
    engine.submit(replace(spec(tmp_path, "s"), upload_url=refusing, limits=at_once))
    away = (await next_outcome(ended)).error
    for error, kind, said in (
        (refused, "Upload", r"refused the result: 501 "),
        (away, "StoreUnavailable", r"cannot be reached: .*refused"),
    ):
        assert error is not None
        assert (error.kind, error.blame, error.retryable) == (kind, "service", True)
        assert re.search(said, error.message)


def question(url: str = HZZ, *, branch: str = "NJet", language: str = "uproot-raw") -> CheckSpec:
    """Return a check of a query of one branch on a file."""
    selection = f'[{{"treename": "events", "filter_name": "{branch}"}}]'
    return CheckSpec((Replica(url),), language, selection, ResultFormat.PARQUET)


async def test_hanging_dry_run_ends_at_the_deadline(
    running: tuple[Engine, asyncio.Queue[Outcome]], tmp_path: Path
) -> None:
    """The storage endpoint does not answer. Tasks run during the dry run and after it."""
    engine, ended = running
    with http("silent") as door:
        began = time.monotonic()
        hanging = asyncio.create_task(engine.check(question(door.url("x.root"))))
        engine.submit(spec(tmp_path, "h"))
        assert (await next_outcome(ended)).error is None
        found = await hanging
        assert found is None or found.blame == "site"
        assert time.monotonic() - began < CHECK_SECONDS + 10
        assert {worker.task for worker in engine.workers()} == {""}
        engine.submit(spec(tmp_path, "i"))
        assert (await next_outcome(ended)).error is None


def endless(folder: Path, name: str) -> TaskSpec:
    """Return a task that does not end by itself."""
    source = "def run_query(path):\n    while True: pass\n"
    selection = base64.b64encode(source.encode()).decode()
    return spec(folder, name, language=PythonFunction.name, selection=selection)


async def until_it_runs(engine: Engine, task: TaskSpec) -> None:
    """Wait until a worker is on a task."""
    async with asyncio.timeout(30):
        while not any(worker.task == task.key for worker in engine.workers()):
            await asyncio.sleep(0.05)


@asynccontextmanager
async def started(workers: int = 1) -> AsyncIterator[tuple[DaskEngine, asyncio.Queue[Outcome]]]:
    """Run an engine of worker processes; give also the queue that its outcomes go to."""
    engine = DaskEngine(LocalProcesses(memory=1 << 30), workers=workers)
    ended: asyncio.Queue[Outcome] = asyncio.Queue()
    await engine.start(ended.put_nowait)
    try:
        yield engine, ended
    finally:
        await engine.close()


async def test_engine_closes_during_a_hanging_dry_run(tmp_path: Path) -> None:
    """It does not wait for the thread that waits for a storage endpoint."""
    engine = DaskEngine(LocalProcesses(memory=1 << 30), workers=1)
    await engine.start(lambda outcome: None)
    with http("silent") as door:
        hanging = asyncio.create_task(engine.check(question(door.url("x.root"))))
        async with asyncio.timeout(30):
            while not (door.asked or hanging.done()):
                await asyncio.sleep(0.01)
        pids = (await on_workers(engine._client, os.getpid)).values()
        async with asyncio.timeout(20):
            await engine.close()
            assert await hanging is None
        assert not any(map(psutil.pid_exists, pids))


def coded(folder: Path, name: str, source: str) -> TaskSpec:
    """Return a task that runs a function of Python, which can do to its worker what it wants."""
    selection = base64.b64encode(source.encode()).decode()
    task = spec(folder, name, language=PythonFunction.name, selection=selection)
    return replace(task, sandbox=SandboxChoice.NONE)


KILLS_ITS_WORKER = (
    "import os, signal\ndef run_query(path):\n    os.kill(os.getppid(), signal.SIGKILL)\n"
)


@pytest.mark.parametrize("running", ["dask"], indirect=True)
async def test_task_runs_on_another_worker_than_the_avoided_one(
    running: tuple[Engine, asyncio.Queue[Outcome]], tmp_path: Path
) -> None:
    """The engine avoids the worker that has failed if there is another one."""
    engine, ended = running
    names = sorted(worker.name for worker in engine.workers())
    for avoided in names * 3:
        engine.submit(spec(tmp_path, "k"), avoid=avoided)
        assert (await next_outcome(ended)).worker == next(n for n in names if n != avoided)


async def test_workers_of_another_version_get_no_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine shows the problem. The task is not lost, and waits for a suitable worker."""
    monkeypatch.setattr("servicex_server.engine.dask_engine.__version__", "0.0.0")
    async with started() as (engine, ended):
        assert engine.slots == 0
        (worker,) = engine.workers()
        assert re.search(r"it has version \S+ of servicex-server, not 0\.0\.0", worker.problem)
        engine.submit(spec(tmp_path, "o"))
        monkeypatch.undo()
        await engine.scale(2)
        assert (await next_outcome(ended)).error is None
        assert [bool(one.problem) for one in engine.workers()] == [True, False]


async def test_engine_scales_workers_up_and_down(tmp_path: Path) -> None:
    """If fewer are wanted, idle workers end. A busy worker continues its task."""
    async with started(0) as (engine, ended):
        assert engine.slots == 0
        engine.submit(spec(tmp_path, "p"))
        await engine.scale(2)
        assert (await next_outcome(ended)).error is None
        long = endless(tmp_path, "q")
        engine.submit(long)
        scheduler = cast("Any", engine._cluster)._scheduler
        async with asyncio.timeout(30):
            # who has nothing to do is seen by Dask, which hears of a task a moment later
            while not any(
                task.key.startswith(long.key)
                for worker in scheduler.workers.values()
                for task in worker.processing
            ):
                await asyncio.sleep(0.01)
        await engine.scale(1)
        async with asyncio.timeout(30):
            while len(engine.workers()) > 1:
                await asyncio.sleep(0.05)
        assert [worker.task for worker in engine.workers()] == [long.key]
        await engine.stop([long.key])
