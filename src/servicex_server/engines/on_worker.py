"""What runs on workers, their nannies and the scheduler, on behalf of the Dask engine."""

import asyncio
import pickle
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import psutil
from distributed import NannyPlugin, Scheduler, SchedulerPlugin, Status, get_worker
from tornado.ioloop import PeriodicCallback

from servicex_server import __version__
from servicex_server.columnar.allocator import keep_freed_memory
from servicex_server.engines.beside import beside
from servicex_server.engines.contract import CHECK_SECONDS
from servicex_server.errors import ErrorRecord
from servicex_server.languages.family import end_left_by
from servicex_server.model import Attempt, CheckSpec, Outcome, ProbeSpec, TaskSpec
from servicex_server.probe import probe
from servicex_server.transform import check, transform

METRIC = "servicex"
"""Under this name the heartbeats of a worker tell of its task."""

OUTCOMES = "servicex-outcomes"
"""The topic under which workers tell how tasks ended."""

EXITS = "servicex-exits"
"""The topic under which nannies tell how workers ended."""

COLLECTED = 0.0005
"""Seconds for which messages are collected: while they are, a worker waits for its next task."""

_steps: dict[str, int] = {}
"""The task this process is on, with the steps it has made; a worker has one thread for tasks."""


def run(spec: TaskSpec) -> Outcome:
    """Do a task, let heartbeats tell how it goes on, and tell at once how it has ended.

    For a result the client asks the scheduler, and that the worker: a third of the time that a
    task without any work takes.
    """

    def step() -> None:
        _steps[spec.key] = _steps.get(spec.key, 0) + 1

    try:
        outcome = transform(spec, step)
    finally:
        _steps.pop(spec.key, None)
    worker = get_worker()
    told = {
        "worker": worker.contact_address,
        "key": worker.get_current_task(),
        "outcome": pickle.dumps(outcome),
    }
    worker.log_event(OUTCOMES, told)
    return outcome


async def introduce(dask_worker: Any) -> dict[str, Any]:
    """Say what this worker is, and make it ready for its first task."""
    keep_freed_memory()
    dask_worker.metrics[METRIC] = _progress
    dask_worker._ongoing_background_tasks.call_soon(_warm)  # noqa: SLF001  # as plugins of Dask's do
    return {
        "version": __version__,
        "host": socket.gethostname(),
        "limit": dask_worker.memory_manager.memory_limit or 0,
    }


def _progress(worker: Any) -> dict[str, int]:
    del worker
    return dict(_steps)


async def _warm() -> None:
    await asyncio.to_thread(_import)


def _import() -> None:
    import awkward  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import uproot  # noqa: F401


async def checked(spec: CheckSpec) -> tuple[ErrorRecord | None] | None:
    """Check on a worker. The deadline holds here too, so that the scheduler does not wait on."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CHECK_SECONDS):
            return (await beside(partial(check, spec, patience=CHECK_SECONDS)),)
    return None


async def probed(spec: ProbeSpec) -> Attempt:
    """Look at a replica on a worker."""
    return await beside(partial(probe, spec))


async def end_process(dask_worker: Any) -> None:
    """End the process of a worker at once; run on its nanny, which starts another one.

    Dask's own way asks first, and a thread that hangs does not answer.
    """
    process = dask_worker.process.process
    if process is not None and process.is_alive():
        await process.kill()


class Prompt(SchedulerPlugin):
    """Lets a scheduler send to workers at once what it collects for five milliseconds otherwise."""

    name = "servicex-prompt"

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Have the messages to a worker collected for a moment only."""
        scheduler.stream_comms[worker].interval = COLLECTED


class Watch(NannyPlugin):
    """Tells how a worker ended: by which signal, and how much memory it had by then."""

    name = "servicex-watch"

    def setup(self, nanny: Any) -> None:
        """Look at the memory ten times a second, and at every end."""
        self._peak = self._pid = 0
        self._address = ""
        self._sampling = PeriodicCallback(partial(self._sample, nanny), 100)
        self._sampling.start()
        told: Callable[[int], Any] = nanny._on_worker_exit  # noqa: SLF001  # there is no other way

        async def on_exit(exitcode: int) -> None:
            about = {
                "worker": self._address,
                "how": _how(exitcode),
                "peak": max(self._peak, self._exceeded(nanny)),
                "limit": nanny.memory_manager.memory_limit or 0,
            }
            self._peak = 0
            end_left_by(self._pid)
            if nanny.status is Status.running:
                with suppress(OSError):  # the scheduler has ended too
                    await nanny.scheduler.log_event(topic=EXITS, msg=about)
            await told(exitcode)

        nanny._on_worker_exit = on_exit  # noqa: SLF001  # there is no other way

    def _exceeded(self, nanny: Any) -> int:
        """Return the bytes that a worker had at least, if its nanny has ended it for them."""
        manager = nanny.memory_manager
        if self._pid != manager._last_terminated_pid:  # noqa: SLF001  # it tells nobody else
            return 0
        return int(manager.memory_terminate_fraction * manager.memory_limit)

    def teardown(self, nanny: Any) -> None:
        """Stop looking."""
        del nanny
        self._sampling.stop()

    def _sample(self, nanny: Any) -> None:
        if nanny.pid is not None and nanny.worker_address is not None:
            self._pid, self._address = nanny.pid, nanny.worker_address
            with suppress(psutil.Error):
                self._peak = max(self._peak, psutil.Process(nanny.pid).memory_info().rss)


def _how(exitcode: int) -> str:
    if exitcode < 0:
        number = -exitcode
        known = number in signal.valid_signals()
        return f"signal {number} ({signal.Signals(number).name})" if known else f"signal {number}"
    return f"exit code {exitcode}"
