"""Tasks and dry runs when the only worker ends, hangs or is busy."""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from servicex_server.engine.dask_engine import DaskEngine
from servicex_server.model import Limits, Outcome
from tests.contract.test_engines import (
    KILLS_ITS_WORKER,
    coded,
    endless,
    next_outcome,
    question,
    spec,
    started,
    until_it_runs,
)
from tests.integration.servers import http
from tests.support import on_workers

pytestmark = pytest.mark.anyio

Running = tuple[DaskEngine, asyncio.Queue[Outcome]]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Run asynchronous tests, and the engine that they share, on asyncio."""
    return "asyncio"


@pytest.fixture(scope="module")
async def shared(anyio_backend: str) -> AsyncIterator[Running]:
    """Give an engine with one worker that the tests share."""
    async with started() as made:
        yield made


@pytest.fixture
async def alone(shared: Running) -> Running:
    """Give the shared engine once its worker is there, which the test before may have ended."""
    engine, ended = shared
    async with asyncio.timeout(60):
        while engine.slots != 1 or any(worker.task for worker in engine.workers()):
            await asyncio.sleep(0.05)
    assert ended.empty()
    return engine, ended


async def test_dry_run_needs_no_slot(alone: Running, tmp_path: Path) -> None:
    """A worker in the middle of a task answers, shows the task only, and continues it."""
    engine, ended = alone
    long = endless(tmp_path, "j")
    engine.submit(long)
    await until_it_runs(engine, long)
    async with asyncio.timeout(60):
        while (found := await engine.check(question(branch="NJett"))) is None:
            await asyncio.sleep(0.1)
    assert found.kind == "UnknownName"
    assert [worker.task for worker in engine.workers()] == [long.key]
    with http("silent") as door:
        hanging = asyncio.create_task(engine.check(question(door.url("x.root"))))
        async with asyncio.timeout(30):
            while not door.asked:
                await asyncio.sleep(0.01)
        assert [worker.task for worker in engine.workers()] == [long.key]
        # what is stopped is the task; with it the worker goes, and the check knows nothing
        await engine.stop([long.key])
        assert await hanging is None
    assert ended.empty()


async def test_dry_run_ends_without_an_answer_when_its_worker_dies(
    alone: Running,
) -> None:
    """It ends at once, and the next worker answers the next dry run."""
    engine, _ = alone
    with http("silent") as door:
        hanging = asyncio.create_task(engine.check(question(door.url("x.root"))))
        async with asyncio.timeout(30):
            while not door.asked:
                if hanging.done():  # it was still importing
                    hanging = asyncio.create_task(engine.check(question(door.url("x.root"))))
                await asyncio.sleep(0.01)
        (pid,) = (await on_workers(engine._client, os.getpid)).values()
        os.kill(pid, signal.SIGKILL)
        assert await hanging is None
    async with asyncio.timeout(60):
        while (found := await engine.check(question(branch="NJett"))) is None:
            await asyncio.sleep(0.1)
    assert found.kind == "UnknownName"


async def test_stopping_a_running_task_ends_its_worker(alone: Running, tmp_path: Path) -> None:
    """The task gives no outcome, its processes end, and the worker is soon there again."""
    told = tmp_path / "told"
    forks = (
        "import os\ndef run_query(path):\n    os.fork() or os.setsid()\n"
        f"    open({str(told)!r}, 'a').write(f'{{os.getpid()}} ')\n    while True: pass\n"
    )
    engine, ended = alone
    task = coded(tmp_path, "d", forks)
    engine.submit(task)
    async with asyncio.timeout(60):
        while len(numbers := _read(told).split()) < 2:
            await asyncio.sleep(0.01)
    began = time.monotonic()
    await engine.stop([task.key])
    assert time.monotonic() - began < 8
    engine.submit(spec(tmp_path, "e"))
    outcome = await next_outcome(ended)
    assert outcome.request_id.endswith("-e")
    assert ended.empty()
    async with asyncio.timeout(10):
        while any(psutil.pid_exists(int(number)) for number in numbers):
            await asyncio.sleep(0.01)


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii") if path.exists() else ""


async def test_killed_worker_fails_only_its_task(alone: Running, tmp_path: Path) -> None:
    """The error of the task has the cause. The next worker does the tasks behind it."""
    engine, ended = alone
    engine.submit(coded(tmp_path, "f", KILLS_ITS_WORKER))
    for number in range(3):
        engine.submit(spec(tmp_path, f"g{number}"))
    outcomes = [await next_outcome(ended) for _ in range(4)]
    (error,) = (one.error for one in outcomes if one.error is not None)
    (lost,) = (one.request_id for one in outcomes if one.error is not None)
    assert lost.endswith("-f")
    assert (error.kind, error.retryable) == ("WorkerDied", True)
    told = r"signal 9 \(SIGKILL\), it had 0\.\d\d GB of memory, of 1\.07 GB"
    assert re.search(told, error.message)


async def test_the_only_worker_is_not_avoided(alone: Running, tmp_path: Path) -> None:
    """A task that failed on the worker goes to it again."""
    engine, ended = alone
    (only,) = engine.workers()
    engine.submit(spec(tmp_path, "l"), avoid=only.name)
    assert (await next_outcome(ended)).worker == only.name


@pytest.mark.parametrize(
    ("limits", "words"),
    [(Limits(seconds=2), "longer than 2 s"), (Limits(stall=2), "made no progress for 2 s")],
)
async def test_hanging_read_ends_with_its_worker(
    alone: Running, tmp_path: Path, limits: Limits, words: str
) -> None:
    """A silent storage endpoint costs the deadline. The worker is soon there for the next task."""
    engine, ended = alone
    with http("silent") as door:
        engine.submit(replace(spec(tmp_path, "m", door.url("x.root")), limits=limits))
        outcome = await next_outcome(ended)
    assert outcome.error is not None
    assert (outcome.error.kind, outcome.error.retryable) == ("Overdue", True)
    assert words in outcome.error.message
    assert outcome.attempts[0].url == door.url("x.root")
    engine.submit(spec(tmp_path, "n"))
    assert (await next_outcome(ended)).error is None
