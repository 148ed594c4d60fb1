"""Worker processes on this machine."""

import asyncio
import itertools
import logging
import tempfile
from collections.abc import Collection
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import dask
from distributed import Client, Nanny

from servicex_server.clusters.contract import Cluster, Repair
from servicex_server.clusters.dask_config import CONFIG, superfluous, without_secrets
from servicex_server.clusters.nannies import (
    START_SECONDS,
    LocalNanny,
    LocalWorker,
    use_a_fork_server,
)
from servicex_server.clusters.scheduler import GuardedScheduler
from servicex_server.clusters.tls import cluster_security
from servicex_server.credentials import taken
from servicex_server.errors import StartupError
from servicex_server.settings.clusters import LocalOptions
from servicex_server.worker.scratch import clear_left, name_of_account, private_folder

log = logging.getLogger(__name__)

END_SECONDS = 1.0
"""Seconds that a local worker may take to end by itself."""


class LocalProcesses(Cluster):
    """Worker processes on this machine, and a scheduler in this process.

    They communicate by TLS with certificates that are created at the start. So no other program on
    the machine can send work to the workers, and a worker cannot control the others.

    Parameters
    ----------
    memory
        Bytes that one worker may use before it is restarted.
    scratch
        Private folder for temporary files. The default is one in the system's temporary folder.
    """

    Options = LocalOptions

    @classmethod
    def from_settings(cls, options: LocalOptions, *, memory: int, folder: Path) -> Self:
        """Return the cluster of the settings."""
        chosen = options.scratch_folder
        try:
            if chosen is None:
                scratch = private_folder(folder, "scratch")
            else:
                scratch = private_folder(chosen, name_of_account())
        except OSError as error:
            raise StartupError(
                f"the scratch folder cannot be created: {error}",
                hint="choose another with engine.scratch_folder",
            ) from error
        return cls(memory=memory, scratch=scratch.absolute())

    def __init__(self, *, memory: int, scratch: Path | None = None) -> None:
        super().__init__()
        self._memory = memory
        self._scratch = scratch
        self._security: Any = None
        self._scheduler: Any = None
        self._workers: dict[int, LocalWorker] = {}
        self._numbers = itertools.count()

    async def open(self) -> Client:
        """Start a scheduler without workers."""
        try:
            if self._scratch is None:
                self._scratch = private_folder(Path(tempfile.gettempdir()), name_of_account())
            clear_left(self._scratch)
            self._security = cluster_security()
            use_a_fork_server()
            with self._configured():
                self._scheduler = await GuardedScheduler(
                    protocol="tls://",
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    security=self._security.service,
                )
                client: Client = await Client(
                    self._scheduler.address, security=self._security.service, asynchronous=True
                )
        except (OSError, RuntimeError, TimeoutError) as error:
            await self.close()
            raise StartupError(f"the workers cannot be started: {error}") from error
        return client

    def _configured(self) -> AbstractContextManager[Any]:
        """Apply the Dask configuration of the service within a ``with`` block."""
        config: Any = dask.config
        made: AbstractContextManager[Any] = config.set(
            deepcopy(CONFIG) | {"temporary-directory": str(self._scratch)}
        )
        return made

    def _new_nanny(self, name: int) -> Nanny:
        with self._configured():
            return LocalNanny(
                self._scheduler.address,
                without_secrets=without_secrets,
                name=name,
                nthreads=1,
                memory_limit=self._memory,
                local_directory=str(self._scratch),
                host="127.0.0.1",
                protocol="tls://",
                security=self._security.worker,
                dashboard=False,
                silence_logs=logging.WARNING,
                env=taken(),
                config=deepcopy(CONFIG),
            )

    async def scale(self, count: int) -> None:
        """Start or stop processes, and wait until they run or have ended.

        Raises
        ------
        StartupError
            A process cannot be started.
        """
        ended = [self._workers.pop(n) for n in superfluous(self._scheduler, self._workers, count)]
        if ended:
            await self._scheduler.retire_workers(names=[one.name for one in ended])
            await asyncio.gather(*(one.end(patience=END_SECONDS) for one in ended))
        missing = range(len(self._workers), count)
        try:
            new = [LocalWorker(next(self._numbers), self._new_nanny) for _ in missing]
        except OSError as error:
            raise StartupError(f"a worker cannot be started: {error}") from error
        self._workers |= {one.name: one for one in new}
        if new:
            started, _ = await asyncio.wait([one.starting for one in new], timeout=START_SECONDS)
            if failed := next(filter(None, (task.result() for task in started)), ""):
                raise StartupError(f"a worker cannot be started: {failed}")

    async def repair(self, present: Collection[str]) -> Repair:
        """Replace processes that have failed for good, or that hang while they start."""
        lost = []
        for worker in list(self._workers.values()):
            if why := worker.failure(present=str(worker.name) in present):
                log.error("replacing worker %s: %s", worker.name, why)
                lost.append(worker)
        await asyncio.gather(*(worker.replace() for worker in lost))
        return Repair(replaced=len(lost))

    async def close(self) -> None:
        """Stop the processes."""
        workers, self._workers = list(self._workers.values()), {}
        await asyncio.gather(*(worker.end(patience=END_SECONDS) for worker in workers))
        if self._scheduler is not None:
            await self._scheduler.close()

    @property
    def address(self) -> str:
        """The address of the scheduler, for display."""
        return str(self._scheduler.address) if self._scheduler is not None else ""
