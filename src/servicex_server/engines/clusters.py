"""Where Dask's workers come from: processes of this machine, or a cluster that is there."""

import asyncio
import logging
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import dask
from distributed import Client, LocalCluster, Security

from servicex_server.errors import StartupError

log = logging.getLogger(__name__)

CONFIG = {
    # a file whose worker dies is tried again by the dispatcher, which counts and tells
    "distributed.scheduler.allowed-failures": 0,
    # its pages would show every user's files to everybody on the machine
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # samples of stacks, a hundred a second, and of the machine's disks, for pages nobody sees
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.tick.limit": "30s",
    "distributed.comm.timeouts.connect": "10s",
}
"""What schedulers and workers are told that we start."""

_PATIENCE = 2.0
"""Seconds that worker processes have to end by themselves."""

SECRETS = ("SERVICEX_SERVER_", "AWS_", "PGPASSWORD")
"""Environment variables that begin so are not handed to workers."""


class Cluster(ABC):
    """A scheduler, and workers of one thread each in whatever number is asked for."""

    @abstractmethod
    async def open(self) -> Client:
        """Reach the scheduler, or start one; return an asynchronous client.

        Raises
        ------
        StartupError
            There is no scheduler, and none can be started; says why.
        """

    @abstractmethod
    async def scale(self, count: int, *, idle: Collection[Any] = ()) -> None:
        """Ask for so many workers; those of other machines may come much later.

        Parameters
        ----------
        count
            How many.
        idle
            Names of workers that have nothing to do and will get nothing any more: where there are
            more than wanted, these end.
        """

    @abstractmethod
    async def close(self) -> None:
        """End what was started; nothing is left running."""

    @property
    def address(self) -> str:
        """Where the scheduler is, for people."""
        return ""


class LocalProcesses(Cluster):
    """Worker processes on this machine, and the scheduler in this process.

    The link between them is TLS with certificates made at the start, so that nobody else on the
    machine can hand work to our workers.

    Parameters
    ----------
    memory
        Bytes that one worker may use before it is restarted.
    """

    def __init__(self, *, memory: int) -> None:
        self._memory = memory
        self._cluster: Any = None

    async def open(self) -> Client:
        """Start a scheduler without workers."""
        with dask.config.set(CONFIG):
            try:
                self._cluster = await LocalCluster(
                    n_workers=0,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    memory_limit=self._memory,
                    security=Security.temporary(),
                    asynchronous=True,
                )
            except (OSError, RuntimeError, TimeoutError) as error:
                raise StartupError(f"the workers cannot be started: {error}") from error
            client: Client = await Client(self._cluster, asynchronous=True)
            return client

    async def scale(self, count: int, *, idle: Collection[Any] = ()) -> None:
        """Start or end processes."""
        with dask.config.set(CONFIG), _without_secrets():
            if idle:
                await self._cluster.scale_down(list(idle))
            if count > len(self._cluster.worker_spec):
                self._cluster.scale(count)
            await self._cluster

    async def close(self) -> None:
        """End the processes."""
        if self._cluster is None:
            return
        closing = asyncio.ensure_future(self._cluster.close())
        await asyncio.wait({closing}, timeout=_PATIENCE)
        if not closing.done():
            # a worker may be restarting, or the machine be busy: nothing of it is needed
            log.warning("the workers did not end in time and are killed")
            for nanny in self._cluster.workers.values():
                if nanny.pid is not None:
                    with suppress(ProcessLookupError):
                        os.kill(nanny.pid, signal.SIGKILL)
        await closing

    @property
    def address(self) -> str:
        """Where the scheduler is, for people."""
        return str(self._cluster.scheduler_address) if self._cluster is not None else ""


class _without_secrets:  # noqa: N801  # reads as a statement
    """Hide what workers must not inherit while they are started."""

    def __enter__(self) -> None:
        self._hidden = {k: v for k, v in os.environ.items() if k.startswith(SECRETS)}
        for name in self._hidden:
            del os.environ[name]

    def __exit__(self, *exception: object) -> None:
        os.environ.update(self._hidden)
