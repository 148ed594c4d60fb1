"""The service replaces lost workers, whatever the cause."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import dask
import numpy as np
import psutil
import pytest
import uproot
from distributed import Scheduler, Status

from servicex_server.clusters import local
from servicex_server.clusters.contract import Cluster, Repair
from servicex_server.clusters.existing import ExistingScheduler
from servicex_server.clusters.local import LocalProcesses
from servicex_server.clusters.nannies import LocalNanny
from servicex_server.engine import watchdog
from servicex_server.engine.dask_engine import DaskEngine
from servicex_server.engine.watchdog import Watchdog
from servicex_server.errors import StartupError
from servicex_server.model import Limits, Outcome
from servicex_server.settings.clusters import AddressOptions
from tests.contract.test_engines import KILLS_ITS_WORKER, coded, endless, spec, until_it_runs

pytestmark = pytest.mark.anyio

DEADLINE = 120
"""Seconds for what takes a few on an idle machine."""


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio."""
    return "asyncio"


@asynccontextmanager
async def engine_of(
    scratch: Path, workers: int, *, memory: int = 1 << 30
) -> AsyncIterator[tuple[DaskEngine, LocalProcesses, asyncio.Queue[Outcome]]]:
    """Run an engine of worker processes; give also its cluster and the queue of its outcomes."""
    cluster = LocalProcesses(memory=memory, scratch=scratch)
    engine = DaskEngine(cluster, workers=workers)
    ended: asyncio.Queue[Outcome] = asyncio.Queue()
    await engine.start(ended.put_nowait)
    try:
        yield engine, cluster, ended
    finally:
        await engine.close()


async def until(true: Callable[[], Any]) -> None:
    """Wait until something is so that nobody announces."""
    async with asyncio.timeout(DEADLINE):
        while not true():
            await asyncio.sleep(0.02)


def nanny_of(cluster: LocalProcesses) -> LocalNanny:
    """Return the nanny of the only worker."""
    (worker,) = cluster._workers.values()
    nanny = worker._nanny
    assert isinstance(nanny, LocalNanny)
    return nanny


def pid_of(cluster: LocalProcesses) -> int:
    """Return the process of the only worker; 0 while there is none."""
    return nanny_of(cluster).pid or 0


async def until_another(cluster: LocalProcesses, engine: DaskEngine, pid: int) -> None:
    """Wait until the only worker has another process."""
    await until(lambda: pid_of(cluster) not in (0, pid) and engine.slots)


async def delivers(engine: DaskEngine, ended: asyncio.Queue[Outcome], folder: Path) -> None:
    """Have a file done."""
    engine.submit(spec(folder, "delivered"))
    outcome = await asyncio.wait_for(ended.get(), DEADLINE)
    assert outcome.error is None


async def test_worker_that_dies_is_restarted_and_inherits_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask would delete a worker that is absent for as long as a restart takes.

    A user's function can cause the restart. The new process does not get secrets either.
    """
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("SERVICEX_SERVER_MAIL__URL", "smtp://ann:hush@localhost")
    async with engine_of(tmp_path, 1) as (engine, cluster, ended):
        with dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}):
            for by_its_user in (False, True):
                process = psutil.Process(pid_of(cluster))
                assert "hush" not in str(process.environ())
                if by_its_user:
                    engine.submit(coded(tmp_path, "killer", KILLS_ITS_WORKER))
                    outcome = await asyncio.wait_for(ended.get(), DEADLINE)
                    assert outcome.error is not None
                else:
                    process.kill()
                await until_another(cluster, engine, process.pid)
            await delivers(engine, ended, tmp_path)
        assert "hush" not in str(psutil.Process(pid_of(cluster)).environ())
        assert os.environ["AWS_SECRET_ACCESS_KEY"] == "hush"
        assert engine.replaced == 0  # its nanny is enough


async def test_fork_server_that_is_killed_takes_no_file_with_it(tmp_path: Path) -> None:
    """Its workers end with it. Another one starts with the next worker."""
    async with engine_of(tmp_path, 1) as (engine, cluster, ended):
        worker = psutil.Process(pid_of(cluster))
        fork_server = worker.parent()
        assert fork_server is not None
        assert "multiprocessing.forkserver" in " ".join(fork_server.cmdline())
        fork_server.kill()
        await until_another(cluster, engine, worker.pid)
        await delivers(engine, ended, tmp_path)
        await until(lambda: not worker.is_running())


async def test_workers_share_the_memory_of_their_modules(tmp_path: Path) -> None:
    """A worker has less memory of its own than the modules take, and starts with them."""
    async with engine_of(tmp_path, 2) as (_, cluster, _):
        for worker in cluster._workers.values():
            memory = psutil.Process(worker._nanny.pid).memory_full_info()
            assert memory.uss < memory.rss / 2


async def test_worker_whose_nanny_gives_up_is_replaced(tmp_path: Path) -> None:
    """A nanny ends when its process cannot start, here without a scratch folder."""
    scratch = tmp_path / "scratch"
    async with engine_of(scratch, 1) as (engine, cluster, ended):
        nanny = nanny_of(cluster)
        workers = scratch / "dask-scratch-space"
        workers.rename(scratch / "away")
        workers.write_text("no folder")
        os.kill(pid_of(cluster), signal.SIGKILL)
        await until(lambda: nanny.status is Status.closed and not engine.slots)
        workers.unlink()
        await until(lambda: engine.slots)
        await delivers(engine, ended, tmp_path)
        assert engine.replaced >= 1
        assert nanny_of(cluster) is not nanny


@pytest.mark.parametrize("again", [False, True])
async def test_worker_that_hangs_while_it_starts_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, again: bool
) -> None:
    """Whether it hangs at the first start or at a later one, no other worker waits for it."""
    monkeypatch.setattr(local, "START_SECONDS", 0.5)
    async with engine_of(tmp_path, 0) as (engine, cluster, ended):
        scaling = asyncio.create_task(engine.scale(1))
        if again:
            monkeypatch.setattr(local, "START_SECONDS", DEADLINE)
            await scaling
            await until(lambda: engine.slots)
            os.kill(before := pid_of(cluster), signal.SIGKILL)
            await until(lambda: pid_of(cluster) not in (0, before))
        else:
            await until(lambda: cluster._workers and pid_of(cluster))
        hanging = psutil.Process(pid_of(cluster))
        hanging.suspend()
        await scaling
        await until(lambda: not engine.slots)
        (worker,) = cluster._workers.values()
        worker._seen -= 1000  # as if so many seconds had passed
        await until(lambda: engine.slots)
        await delivers(engine, ended, tmp_path)
        assert engine.replaced == 1
        assert not hanging.is_running()
        assert len(engine.workers()) == 1


async def test_first_worker_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    """The service reports the reason, and does not start without workers."""
    cluster = LocalProcesses(memory=1 << 30, scratch=tmp_path)
    client = await cluster.open()
    try:
        (tmp_path / "dask-scratch-space").rename(tmp_path / "away")
        (tmp_path / "dask-scratch-space").write_text("no folder")
        with pytest.raises(StartupError, match="cannot be started"):
            await cluster.scale(1)
    finally:
        await client.close()
        await cluster.close()


@pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.long)])
async def test_soak_of_memory_and_cancels_leaves_all_workers(tmp_path: Path, rounds: int) -> None:
    """Tasks run out of memory, are stopped, or kill their worker. Then the engine still works.

    Each round ends every worker twice. One round guards what three rounds test.
    """
    giant = tmp_path / "giant.root"
    with uproot.recreate(giant, compression=uproot.LZ4(1)) as file:
        tree = file.mktree("events", {"x": "i8"})
        for _ in range(16):
            tree.extend({"x": np.zeros(5_000_000, "i8")})
    large = Limits(chunk=8 << 30, part=8 << 30)
    selection = '[{"treename": "events", "filter_name": "x"}]'
    scratch = tmp_path / "scratch"
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}):
        async with engine_of(scratch, 2, memory=400 << 20) as (engine, _, ended):
            for number in range(rounds):
                task = spec(tmp_path, f"giant{number}", str(giant), selection=selection)
                engine.submit(replace(task, limits=large))
                long = endless(tmp_path, f"endless{number}")
                engine.submit(long)
                await until_it_runs(engine, long)
                await engine.stop([long.key])
                engine.submit(coded(tmp_path, f"killer{number}", KILLS_ITS_WORKER))
                kinds = [(await asyncio.wait_for(ended.get(), DEADLINE)).error for _ in range(2)]
                assert {kind and kind.kind for kind in kinds} == {"WorkerDied"}
            await until(lambda: engine.slots == 2)
            await delivers(engine, ended, tmp_path)
            assert ended.empty()
            assert len(list((scratch / "dask-scratch-space").glob("worker-*/"))) == 2
            assert not list(scratch.rglob("servicex-*"))


# --- what is said of workers that are missing -------------------------------------------------


class Queue(Cluster):
    """A cluster whose workers a batch system starts, some day."""

    def __init__(self) -> None:
        self.found: Repair | Exception = Repair()

    @classmethod
    def from_settings(cls, options: Any, **limits: Any) -> Self:
        """Return one without options."""
        del options, limits
        return cls()

    async def open(self) -> Any:
        """Not needed here."""

    async def scale(self, count: int) -> None:
        """Not needed here."""

    async def close(self) -> None:
        """Not needed here."""

    async def repair(self, present: Any) -> Repair:
        """Tell what it was told to."""
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


async def test_watchdog_reports_how_long_no_worker_was_available() -> None:
    """It does not report at once, if none is wanted, or while a batch system queues workers."""
    queue, now = Queue(), [100.0]
    dog = Watchdog(queue, clock=lambda: now[0])
    dog.observe(wanted=2, available=0)
    assert dog.absence == ""
    now[0] += watchdog.ABSENT_SECONDS + 5
    assert dog.absence == "2 workers are wanted and none has been available for 65 s"
    dog.observe(wanted=1, available=0, problem="host/0: it has version 0")
    assert dog.absence.startswith("1 worker is wanted")
    assert dog.absence.endswith("65 s: host/0: it has version 0")
    queue.found = Repair(replaced=3, pending=1)
    await dog.repair(())
    assert (dog.absence, dog.replaced, dog.pending) == ("", 3, 1)
    queue.found = OSError("no route")
    await dog.repair(())
    assert "available for 65 s" in dog.absence
    assert dog.replaced == 3
    dog.observe(wanted=0, available=0)
    assert dog.absence == ""


async def test_absent_workers_of_an_existing_scheduler_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The service cannot start workers of a scheduler that it does not own."""
    monkeypatch.setattr(watchdog, "ABSENT_SECONDS", 0.1)
    async with Scheduler(host="127.0.0.1", dashboard_address="127.0.0.1:0") as scheduler:
        options = AddressOptions(kind="address", allow_plain_tcp=True, scheduler=scheduler.address)
        engine = DaskEngine(ExistingScheduler(options), workers=1)
        await engine.start(lambda outcome: None)
        try:
            await until(lambda: "1 worker is wanted and none" in engine.absence)
        finally:
            await engine.close()
