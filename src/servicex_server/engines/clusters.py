"""Where Dask's workers come from: processes of this machine, or a cluster that is there.

`Cluster` is the contract, `LocalProcesses` the kind that needs nothing, and `cluster_of` chooses;
each of the other kinds is a file beside this one.
"""

import asyncio
import importlib
import logging
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import dask
import psutil
from distributed import Client, LocalCluster, Scheduler, Status

from servicex_server.engines.certificate import temporary_security
from servicex_server.engines.options import (
    AddressOptions,
    EngineOptions,
    GatewayOptions,
    JobQueueOptions,
    KubernetesOptions,
)
from servicex_server.errors import StartupError

log = logging.getLogger(__name__)

CONFIG = {
    # a file whose worker dies is tried again by the dispatcher, which counts and tells
    "distributed.scheduler.allowed-failures": 0,
    # its pages would show every user's files to everybody on the machine
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # for pages nobody sees: samples of stacks, a hundred a second, and of the machine's disks, and
    # how late each loop is, fifty times a second
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.tick.limit": "30s",
    "distributed.comm.timeouts.connect": "10s",
}
"""What schedulers and workers are told that we start; a scheduler changes the lists it is given."""

NANNY_MEMORY = 512 << 20
"""Bytes that a job or a pod asks for beside the memory of its worker."""

TELL_SECONDS, AGAIN_SECONDS = 30.0, 10.0
"""How long a server may take to hear how many workers are wanted, and the pause after a failure."""

CLOSE_SECONDS = 3.0
"""How long a server may take to hear that its cluster is not needed."""

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
    async def scale(self, count: int) -> None:
        """Ask for so many workers; those of other machines may come much later."""

    @abstractmethod
    async def close(self) -> None:
        """End what was started; nothing is left running."""

    disowned = False

    def disown(self) -> None:
        """Have `close` leave what another process may have taken over, as `Engine.disown` says."""
        self.disowned = True

    @property
    def address(self) -> str:
        """Where the scheduler is, for people."""
        return ""


class Managed(Cluster):
    """A cluster whose size somebody else's server keeps, which is told until it has heard."""

    def __init__(self) -> None:
        self._cluster: Any = None
        self._wanted = 0
        self._telling: asyncio.Task[None] | None = None

    @abstractmethod
    async def _end(self) -> None:
        """Have that server end what is ours; whatever is raised, the next start tries again."""

    async def scale(self, count: int) -> None:
        """Have that server told; which workers go when there are too many is its choice."""
        self._wanted = count
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        told = -1
        while told != self._wanted:
            count = self._wanted
            try:
                async with asyncio.timeout(TELL_SECONDS):
                    await self._cluster.scale(count)
                told = count
            except Exception as error:  # noqa: BLE001  # it is another's server: anything can be
                why = first_cause(error) or f"no answer in {TELL_SECONDS:g} s"
                log.warning("%d workers are wanted, which cannot be told: %s", count, why)
                await asyncio.sleep(AGAIN_SECONDS)

    async def close(self) -> None:
        """Tell nothing any more, and end what was started."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._end()
        except Exception as error:  # noqa: BLE001  # it is another's server: anything can be
            why = first_cause(error) or f"no answer in {CLOSE_SECONDS:g} s"
            log.warning("a cluster is left at %s: %s", self.address, why)

    @property
    def address(self) -> str:
        """Where the scheduler is, for people."""
        return str(self._cluster.scheduler_address) if self._cluster is not None else ""


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
        with dask.config.set(deepcopy(CONFIG)):
            try:
                self._cluster = await LocalCluster(
                    n_workers=0,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    memory_limit=self._memory,
                    security=temporary_security(),
                    asynchronous=True,
                )
            except (OSError, RuntimeError, TimeoutError) as error:
                raise StartupError(f"the workers cannot be started: {error}") from error
            client: Client = await Client(self._cluster, asynchronous=True)
            return client

    async def scale(self, count: int) -> None:
        """Start or end processes."""
        with dask.config.set(deepcopy(CONFIG)), _without_secrets():
            names = superfluous(self._cluster.scheduler, self._cluster.worker_spec, count)
            if names:
                await self._cluster.scale_down(names)
            else:
                self._cluster.scale(count)
                await self._cluster

    async def close(self) -> None:
        """End the processes."""
        if self._cluster is None:
            return
        nannies = list(self._cluster.workers.values())
        # a nanny that is closed knows no more of a process that it was starting
        begun = [nanny.process for nanny in nannies]
        try:
            await self._cluster.close(timeout=1)
        except TimeoutError:
            # a worker may be restarting, or in the middle of something: nothing of it is needed
            log.warning("the workers did not end in time and are killed")
            begun += [nanny.process for nanny in nannies]
            await _killed(begun)
            # so that it is closed once more: the scheduler is still there
            self._cluster.status = Status.failed
            with suppress(TimeoutError):
                await self._cluster.close(timeout=1)
        await _killed(begun)

    @property
    def address(self) -> str:
        """Where the scheduler is, for people."""
        return str(self._cluster.scheduler_address) if self._cluster is not None else ""


async def _killed(processes: Iterable[Any]) -> None:
    """Kill processes of nannies, and wait for a moment until they are gone."""
    pids = {process.pid for process in processes if process is not None and process.pid}
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            while any(map(psutil.pid_exists, pids)):  # noqa: ASYNC110  # Dask reaps them
                await asyncio.sleep(0.01)


def public_environment() -> dict[str, str]:
    """Return the environment of this process, but for what workers must not inherit."""
    return {k: v for k, v in os.environ.items() if not k.startswith(SECRETS)}


class _without_secrets:  # noqa: N801  # reads as a statement
    """Hide what workers must not inherit while they are started."""

    def __enter__(self) -> None:
        self._hidden = {k: v for k, v in os.environ.items() if k.startswith(SECRETS)}
        for name in self._hidden:
            del os.environ[name]

    def __exit__(self, *exception: object) -> None:
        os.environ.update(self._hidden)


def cluster_of(options: EngineOptions, *, memory: int, folder: Path) -> Cluster:
    """Return the cluster that an operator chose; nothing is started yet.

    Parameters
    ----------
    options
        The choice.
    memory
        Bytes that one worker may use.
    folder
        The data folder of the service.

    Raises
    ------
    StartupError
        The kind needs a package or a program that is not there; says how to get it.
    """
    if isinstance(options, AddressOptions):
        from servicex_server.engines.address import ExistingScheduler

        return ExistingScheduler(options)
    if isinstance(options, JobQueueOptions):
        from servicex_server.engines.jobqueue import JobQueue

        return JobQueue(options, memory=memory, folder=folder)
    if isinstance(options, KubernetesOptions):
        from servicex_server.engines.kubernetes import KubernetesPods

        return KubernetesPods(options, memory=memory)
    if isinstance(options, GatewayOptions):
        from servicex_server.engines.gateway import GatewayWorkers

        return GatewayWorkers(options, folder=folder)
    return LocalProcesses(memory=memory)


def extra(module: str, kind: str) -> Any:
    """Import a module of an optional package.

    Raises
    ------
    StartupError
        It is not installed; says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StartupError(
            f"workers of kind {kind} need a package that is not here: {error}",
            hint=f"pip install 'servicex-server[{kind}]'",
        ) from error


def variables(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables by which Dask, started elsewhere, has a configuration.

    Examples
    --------
    >>> variables({"distributed.scheduler.allowed-failures": 0})
    {'DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES': '0'}
    """
    return {
        f"DASK_{key.upper().replace('.', '__').replace('-', '_')}": str(value)
        for key, value in config.items()
    }


def superfluous(scheduler: Scheduler, names: Iterable[str], count: int) -> list[str]:
    """Return which of our workers to end so that so many are left.

    Those that have not come yet go first, then idle ones, and one that works only if it must be.
    """
    names = list(names)
    excess = max(0, len(names) - count)
    here = {worker.name for worker in scheduler.workers.values()}
    chosen = [name for name in reversed(names) if name not in here][:excess]
    if rest := excess - len(chosen):
        chosen += scheduler.workers_to_close(n=rest, attribute="name")
    return chosen


def first_cause(error: BaseException) -> str:
    """Return the first cause of an error that says something, in one line."""
    said = error
    while cause := error.__cause__ or (not error.__suppress_context__ and error.__context__):
        error = cause
        if isinstance(cause, Exception) and str(cause):
            said = cause
    return " ".join(str(said).split())
