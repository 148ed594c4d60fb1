"""What every engine has to do, on the double and on real worker processes."""

import asyncio
import base64
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from servicex_server.engines.clusters import LocalProcesses
from servicex_server.engines.contract import CHECK_SECONDS, Engine
from servicex_server.engines.dask import DaskEngine
from servicex_server.engines.memory import MemoryEngine
from servicex_server.errors import ErrorRecord
from servicex_server.languages.python_function import PythonFunction
from servicex_server.model import CheckSpec, Limits, Outcome, Replica, ResultFormat, TaskSpec
from servicex_server.transform import check, transform
from tests.integration.servers import http
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
        MemoryEngine(transform, check=partial(check, patience=CHECK_SECONDS))
        if request.param == "memory"
        else DaskEngine(LocalProcesses(memory=1 << 30), workers=2)
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


async def test_a_store_that_takes_nothing_may_be_asked_again(
    running: tuple[Engine, asyncio.Queue[Outcome]], tmp_path: Path
) -> None:
    """A result that is refused, or for which nobody is there, is an error that may pass."""
    engine, ended = running
    with http() as door:
        refusing = door.url("x.parquet")  # it has nothing to put into
        engine.submit(replace(spec(tmp_path, "r"), upload_url=refusing))
        refused = (await next_outcome(ended)).error
    engine.submit(replace(spec(tmp_path, "s"), upload_url=refusing))
    away = (await next_outcome(ended)).error
    words = (r"refused the result: 501 ", r"cannot be reached: .*refused")
    for error, said in zip((refused, away), words, strict=True):
        assert error is not None
        assert (error.kind, error.blame, error.retryable) == ("Upload", "service", True)
        assert re.search(said, error.message)


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
    workers = engine.workers()
    assert len(workers) == engine.slots == 2
    assert {worker.task for worker in workers} == {""}


def question(url: str = HZZ, *, branch: str = "NJet", language: str = "uproot-raw") -> CheckSpec:
    """Return a check of a query of one branch on a file."""
    selection = f'[{{"treename": "events", "filter_name": "{branch}"}}]'
    return CheckSpec((Replica(url),), language, selection, ResultFormat.PARQUET)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (question(), None),
        (question(branch="NJett"), "UnknownName"),
        (question("/no/such.root"), "Missing"),
        (question(language="of-a-plug-in-that-the-workers-lack"), "Request"),
    ],
)
async def test_a_check_says_what_a_task_would(
    running: tuple[Engine, asyncio.Queue[Outcome]], asked: CheckSpec, kind: str | None
) -> None:
    """The error is told with its kind and its hint, and is no task: nothing ends."""
    engine, ended = running
    async with asyncio.timeout(60):
        # workers that have just started import their libraries first
        while (found := await engine.check(asked)) is None and kind:
            await asyncio.sleep(0.1)
    assert (found.kind if found else None) == kind
    if kind == "UnknownName":
        assert found is not None
        assert "did you mean NJet" in found.hint
    assert ended.empty()


async def test_a_check_that_hangs_is_given_up(
    running: tuple[Engine, asyncio.Queue[Outcome]], tmp_path: Path
) -> None:
    """A door that does not answer costs the deadline; meanwhile and after it tasks run."""
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


async def test_many_checks_are_all_answered(
    running: tuple[Engine, asyncio.Queue[Outcome]],
) -> None:
    """More checks than there are places for end, each with what it found or with nothing."""
    engine, _ = running
    found: list[ErrorRecord | None] = []
    async with asyncio.timeout(60):
        while not any(found):  # workers that have just started know nothing in time
            checks = (engine.check(question(branch="NJett")) for _ in range(40))
            found = await asyncio.gather(*checks)
    assert len(found) == 40
    assert {one.kind for one in found if one} == {"UnknownName"}


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


async def test_a_check_needs_no_slot(tmp_path: Path) -> None:
    """A worker in the middle of a task answers, shows the task only, and the task stays."""
    engine = DaskEngine(LocalProcesses(memory=1 << 30), workers=1)
    ended: asyncio.Queue[Outcome] = asyncio.Queue()
    await engine.start(ended.put_nowait)
    try:
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
    finally:
        await engine.close()


async def test_a_worker_that_dies_in_a_check_answers_nothing(tmp_path: Path) -> None:
    """The check is over at once, and the next worker answers the next one."""
    engine = DaskEngine(LocalProcesses(memory=1 << 30), workers=1)
    await engine.start(lambda outcome: None)
    try:
        with http("silent") as door:
            hanging = asyncio.create_task(engine.check(question(door.url("x.root"))))
            async with asyncio.timeout(30):
                while not door.asked:
                    if hanging.done():  # it was still importing
                        hanging = asyncio.create_task(engine.check(question(door.url("x.root"))))
                    await asyncio.sleep(0.01)
            (worker,) = await engine._client.run(os.getpid)
            os.kill((await engine._client.run(os.getpid))[worker], signal.SIGKILL)
            assert await hanging is None
        async with asyncio.timeout(60):
            while (found := await engine.check(question(branch="NJett"))) is None:
                await asyncio.sleep(0.1)
        assert found.kind == "UnknownName"
    finally:
        await engine.close()


async def test_an_engine_ends_while_a_check_hangs(tmp_path: Path) -> None:
    """Nobody waits for the thread that waits for a door."""
    engine = DaskEngine(LocalProcesses(memory=1 << 30), workers=1)
    await engine.start(lambda outcome: None)
    with http("silent") as door:
        hanging = asyncio.create_task(engine.check(question(door.url("x.root"))))
        async with asyncio.timeout(30):
            while not (door.asked or hanging.done()):
                await asyncio.sleep(0.01)
        pids = (await engine._client.run(os.getpid)).values()
        async with asyncio.timeout(20):
            await engine.close()
            assert await hanging is None
        assert not any(map(psutil.pid_exists, pids))


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


def coded(folder: Path, name: str, source: str) -> TaskSpec:
    """Return a task that runs a function of Python."""
    selection = base64.b64encode(source.encode()).decode()
    return spec(folder, name, language=PythonFunction.name, selection=selection)


KILLS_ITS_WORKER = (
    "import os, signal\ndef run_query(path):\n    os.kill(os.getppid(), signal.SIGKILL)\n"
)


async def test_a_task_that_runs_is_stopped_with_its_worker(tmp_path: Path) -> None:
    """A stopped task gives no outcome, its processes end, and its worker is soon there again."""
    told = tmp_path / "told"
    forks = (
        "import os\ndef run_query(path):\n    os.fork() or os.setsid()\n"
        f"    open({str(told)!r}, 'a').write(f'{{os.getpid()}} ')\n    while True: pass\n"
    )
    async with started() as (engine, ended):
        task = coded(tmp_path, "d", forks)
        engine.submit(task)
        async with asyncio.timeout(60):
            while len(numbers := _read(told).split()) < 2:
                await asyncio.sleep(0.01)
        began = time.monotonic()
        await engine.stop([task.key])
        assert time.monotonic() - began < 2
        engine.submit(spec(tmp_path, "e"))
        outcome = await next_outcome(ended)
        assert outcome.request_id.endswith("-e")
        assert ended.empty()
        async with asyncio.timeout(10):
            while any(psutil.pid_exists(int(number)) for number in numbers):
                await asyncio.sleep(0.01)


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii") if path.exists() else ""


async def test_a_killed_worker_costs_its_task_only(tmp_path: Path) -> None:
    """What ends it is told with its task; the tasks behind it are done by the next worker."""
    async with started() as (engine, ended):
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


async def test_a_task_is_tried_again_by_another_worker(tmp_path: Path) -> None:
    """The worker that has failed is avoided, unless it is the only one."""
    async with started(2) as (engine, ended):
        names = sorted(worker.name for worker in engine.workers())
        for avoided in names * 3:
            engine.submit(spec(tmp_path, "k"), avoid=avoided)
            assert (await next_outcome(ended)).worker == next(n for n in names if n != avoided)
    async with started(1) as (engine, ended):
        (only,) = engine.workers()
        engine.submit(spec(tmp_path, "l"), avoid=only.name)
        assert (await next_outcome(ended)).worker == only.name


@pytest.mark.parametrize(
    ("limits", "words"),
    [(Limits(seconds=2), "longer than 2 s"), (Limits(stall=2), "did not go on for 2 s")],
)
async def test_a_read_that_hangs_ends_with_its_worker(
    tmp_path: Path, limits: Limits, words: str
) -> None:
    """A door that never answers costs its deadline; the worker is soon there for the next one."""
    async with started() as (engine, ended):
        with http("silent") as door:
            engine.submit(replace(spec(tmp_path, "m", door.url("x.root")), limits=limits))
            outcome = await next_outcome(ended)
        assert outcome.error is not None
        assert (outcome.error.kind, outcome.error.retryable) == ("Overdue", True)
        assert words in outcome.error.message
        assert outcome.attempts[0].url == door.url("x.root")
        engine.submit(spec(tmp_path, "n"))
        assert (await next_outcome(ended)).error is None


async def test_workers_of_another_version_get_no_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with them is shown, and nothing is lost: the task waits for a fit one."""
    monkeypatch.setattr("servicex_server.engines.dask.__version__", "0.0.0")
    async with started() as (engine, ended):
        assert engine.slots == 0
        (worker,) = engine.workers()
        assert re.search(r"it has version \S+ of servicex-server, not 0\.0\.0", worker.problem)
        engine.submit(spec(tmp_path, "o"))
        monkeypatch.undo()
        await engine.scale(2)
        assert (await next_outcome(ended)).error is None
        assert [bool(one.problem) for one in engine.workers()] == [True, False]


async def test_workers_come_and_go(tmp_path: Path) -> None:
    """Where fewer are wanted, those end that are idle; the one on a task goes on with it."""
    async with started(0) as (engine, ended):
        assert engine.slots == 0
        engine.submit(spec(tmp_path, "p"))
        await engine.scale(2)
        assert (await next_outcome(ended)).error is None
        long = endless(tmp_path, "q")
        engine.submit(long)
        scheduler = engine._client.cluster.scheduler
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
