"""Plug-ins of Dask's scheduler and nannies, and the names of Dask that they replace."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from distributed import NannyPlugin, Scheduler, SchedulerPlugin, Status
from tornado.ioloop import PeriodicCallback

from servicex_server.clusters.messages import (
    Exit,
    pack_exit,
)
from servicex_server.clusters.scheduler import EXITS
from servicex_server.worker.process_tree import end_left_by
from servicex_server.worker.scratch import remove

BATCH_SECONDS = 0.0005
"""Seconds for which Dask batches messages. Meanwhile a worker waits for its next task."""


class ImmediateMessages(SchedulerPlugin):
    """Has the scheduler send messages to workers at once; by default it batches them for 5 ms."""

    name = "servicex-prompt"

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Shorten the batch interval of messages to a worker."""
        scheduler.stream_comms[worker].interval = BATCH_SECONDS


class ExitReporter(NannyPlugin):
    """Publishes how a worker process ended: its signal or exit code, and its peak memory."""

    name = "servicex-watch"

    def setup(self, nanny: Any) -> None:
        """Sample the memory of the worker ten times a second, and observe every exit."""
        self._peak = self._pid = 0
        self._process: psutil.Process | None = None
        self._address = ""
        self._folder: Path | None = None
        self._sampling = PeriodicCallback(partial(self._sample, nanny), 100)
        self._sampling.start()
        dask_on_exit: Callable[[int], Any] = nanny._on_worker_exit  # noqa: SLF001  # there is no public hook

        async def on_exit(exitcode: int) -> None:
            ended = Exit(
                worker=self._address,
                how=_how(exitcode),
                peak=max(self._peak, self._exceeded(nanny)),
                limit=nanny.memory_manager.memory_limit or 0,
            )
            self._peak = 0
            await asyncio.to_thread(end_left_by, self._pid)
            if nanny.status is Status.running:
                with suppress(OSError):  # the scheduler ended too
                    await nanny.scheduler.log_event(topic=EXITS, msg=pack_exit(ended))
            if self._folder is not None:
                # Dask removed it before the child processes of the worker were killed
                await asyncio.to_thread(remove, self._folder)
            await dask_on_exit(exitcode)

        nanny._on_worker_exit = on_exit  # noqa: SLF001  # there is no public hook

    def _exceeded(self, nanny: Any) -> int:
        """Return the memory limit that a worker exceeded, if its nanny ended it for that; or 0."""
        manager = nanny.memory_manager
        if self._pid != manager._last_terminated_pid:  # noqa: SLF001  # there is no public name
            return 0
        return int(manager.memory_terminate_fraction * manager.memory_limit)

    def teardown(self, nanny: Any) -> None:
        """Stop sampling."""
        del nanny
        self._sampling.stop()

    def _sample(self, nanny: Any) -> None:
        # while a worker starts, its nanny has its process, but not its address and folder
        if nanny.pid is not None and nanny.worker_dir is not None:
            with suppress(psutil.Error):
                if self._process is None or self._pid != nanny.pid:
                    self._pid, self._address = nanny.pid, nanny.worker_address
                    self._folder = Path(nanny.worker_dir)
                    self._process = psutil.Process(nanny.pid)
                self._peak = max(self._peak, self._process.memory_info().rss)


def _how(exitcode: int) -> str:
    if exitcode < 0:
        number = -exitcode
        known = number in signal.valid_signals()
        return f"signal {number} ({signal.Signals(number).name})" if known else f"signal {number}"
    return f"exit code {exitcode}"
