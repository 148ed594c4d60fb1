"""Worker processes on this machine, each started and restarted by a Dask nanny.

Dask's own `LocalCluster` is not used. It does not replace a worker that has been absent for
``lost-worker-timeout``, or whose nanny has given up. And if one worker hangs while it starts,
`LocalCluster` starts no other worker.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import dask
from distributed import Nanny, Status
from distributed.utils import get_mp_context

from servicex_server.clusters.backoff import Backoff
from servicex_server.worker.process_tree import end_left_by
from servicex_server.worker.scratch import remove

log = logging.getLogger(__name__)

START_SECONDS = 60.0
"""Seconds that a worker may be absent while it starts or restarts; then it is replaced."""

FIRST_WAIT, LONGEST_WAIT = 5.0, 300.0
"""Seconds between two replacements of the same worker."""

_KILL_SECONDS = 5.0
"""Seconds that a killed process may take to end; one that hangs in the kernel may never end."""


_WORKER_MODULES = (
    "distributed",
    "awkward",
    "uproot",
    "pyarrow.parquet",
    "servicex_server.query_processes.on_worker",
    "servicex_server.worker.probe",
    "servicex_server.worker.transform",
    "servicex_server.clusters.gc_freeze",
)
"""Modules that every worker imports. The last one must stay the last."""


def use_a_fork_server() -> None:
    """Have nannies start workers as copies of a process that has imported their modules.

    A worker, also one that replaces another, then costs a tenth of the processor time of a new
    interpreter, and workers share the memory of the modules. This process, the fork server of
    Python's `multiprocessing`, starts with the first worker and inherits what a worker inherits. It
    has one thread and no connections. If it ends, the workers end, and the next one starts another.
    """
    config: Any = dask.config
    config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    context: Any = get_mp_context()  # which sets modules of its own the first time
    context.set_forkserver_preload(list(_WORKER_MODULES))


class LocalNanny(Nanny):
    """A nanny whose worker processes do not inherit secrets, not even when it restarts them.

    Parameters
    ----------
    without_secrets
        Returns a context in which the environment of this process has no secrets.
    arguments, options
        Arguments of Dask's nanny.
    """

    def __init__(
        self,
        *arguments: Any,
        without_secrets: Callable[[], AbstractContextManager[None]],
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.without_secrets = without_secrets

    async def instantiate(self) -> Status:
        """Start a worker process, and wait until it runs."""
        with ExitStack() as hidden:
            hidden.enter_context(self.without_secrets())
            # Dask's nanny may close itself in `instantiate`, so that call has to stay in this task
            revealing = asyncio.create_task(self._reveal(hidden))
            try:
                return await super().instantiate()
            finally:
                revealing.cancel()

    async def _reveal(self, hidden: ExitStack) -> None:
        """Restore the environment as soon as the process has inherited it."""
        while not (self.process and self.process.pid):  # noqa: ASYNC110  # there is no event
            await asyncio.sleep(0.01)
        hidden.close()


class LocalWorker:
    """A worker process and its nanny, which are replaced when they fail.

    Parameters
    ----------
    name
        Name of the worker; its replacements have the same name.
    new_nanny
        Returns a nanny that has not been started.
    """

    def __init__(self, name: int, new_nanny: Callable[[int], Nanny]) -> None:
        self.name = name
        self._new_nanny = new_nanny
        self._backoff = Backoff(first=FIRST_WAIT, longest=LONGEST_WAIT)
        self._begin()

    def _begin(self) -> None:
        self._nanny = self._new_nanny(self.name)
        self.starting = asyncio.create_task(self._start(), name=f"worker {self.name}")
        self._seen = time.monotonic()

    async def _start(self) -> str:
        """Start the worker; return why that failed, or an empty text."""
        try:
            await self._nanny
        except Exception as error:  # noqa: BLE001  # Dask raises what the worker raised
            return str(error.__cause__ or error)
        return ""

    def failure(self, *, present: bool) -> str:
        """Return why the worker has to be replaced now; empty if it does not."""
        at = time.monotonic()
        if present:
            self._seen = at
            self._backoff.succeeded()
            return ""
        if not self._backoff.over:
            return ""
        if self.starting.done() and self._nanny.status is not Status.running:
            return self.starting.result() or "its nanny has ended"
        if at - self._seen > START_SECONDS:
            return f"it has been absent for {at - self._seen:.0f} s"
        return ""

    async def replace(self) -> None:
        """Kill the process, close the nanny, and begin to start new ones."""
        self._backoff.failed()
        await self.end(patience=0)
        self._begin()

    async def end(self, *, patience: float) -> None:
        """Stop the process and close the nanny.

        Parameters
        ----------
        patience
            Seconds that the process may take to end by itself; then it is killed.
        """
        # a nanny that is closed forgets the process that it was starting
        process = self._nanny.process
        closing = asyncio.create_task(self._nanny.close(timeout=_KILL_SECONDS))
        await asyncio.wait([closing], timeout=patience)
        give_up = time.monotonic() + _KILL_SECONDS
        while not closing.done() and time.monotonic() < give_up:
            await _kill(process)
            await asyncio.wait([closing], timeout=0.05)
        if not closing.done():
            log.error("worker %s cannot be killed and is left behind", self.name)
        elif (error := closing.exception()) is not None:
            log.warning("the nanny of worker %s failed to close: %s", self.name, error)


async def _kill(process: Any) -> None:
    """Kill the process of a nanny, if it runs, with its process tree, and delete its files."""
    if process is None or not (pid := process.pid):
        return
    folder = process.worker_dir
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(_KILL_SECONDS):
            await process.stopped.wait()
    await asyncio.to_thread(end_left_by, pid)
    if folder:
        await asyncio.to_thread(remove, Path(folder))
