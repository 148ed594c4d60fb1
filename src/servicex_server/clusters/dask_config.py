"""The configuration of Dask, and the environment that workers inherit."""

import importlib
import os
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from distributed import Scheduler

from servicex_server.credentials import taken
from servicex_server.errors import StartupError
from servicex_server.text.hints import install

T = TypeVar("T", int, str)


CONFIG = {
    # the dispatcher, and not Dask, retries a file whose worker died: it counts attempts
    "distributed.scheduler.allowed-failures": 0,
    # Dask's dashboard would show the files of all users to everyone on the machine
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # the engine chooses the worker of each task, and a task leaves no data on its worker
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.active-memory-manager.start": False,
    # measurements for the dashboard: a hundred stack samples a second, disk counters, and the
    # latency of the event loop fifty times a second
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.tick.limit": "30s",
    "distributed.comm.timeouts.connect": "10s",
    # logs of events and transitions, which nothing reads
    "distributed.admin.low-level-log-length": 16,
}
"""The configuration of schedulers and workers that we start. Copy it: a scheduler changes the lists
in its configuration."""


NANNY_MEMORY = 512 << 20
"""Bytes that a job or a pod requests in addition to the memory of its worker."""


SECRETS = ("SERVICEX_SERVER_", "AWS_", "PGPASSWORD")
"""Prefixes of environment variables that workers do not inherit."""


def public_environment() -> dict[str, str]:
    """Return the environment this process began with, but for what workers must not inherit."""
    began = {**taken(), **os.environ}
    return {k: v for k, v in began.items() if not k.startswith(SECRETS)}


class without_secrets:  # noqa: N801  # reads as a statement
    """Hide the variables of `SECRETS` while a worker process starts. Several starts may overlap."""

    _hidden: ClassVar[dict[str, str]] = {}
    _starts = 0

    def __enter__(self) -> None:
        without_secrets._starts += 1
        for name in [name for name in os.environ if name.startswith(SECRETS)]:
            self._hidden[name] = os.environ.pop(name)

    def __exit__(self, *exception: object) -> None:
        without_secrets._starts -= 1
        if not self._starts:
            os.environ.update(self._hidden)
            self._hidden.clear()


def extra(module: str, kind: str) -> Any:
    """Import a module of an optional package.

    Raises
    ------
    StartupError
        The package is not installed; the hint says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StartupError(
            f"workers of kind {kind} need a package that is not installed: {error}",
            hint=install(kind),
        ) from error


def variables(config: Mapping[str, Any]) -> dict[str, str]:
    """Return a Dask configuration as environment variables, for processes that start elsewhere.

    Examples
    --------
    >>> variables({"distributed.scheduler.allowed-failures": 0})
    {'DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES': '0'}
    """
    return {
        f"DASK_{key.upper().replace('.', '__').replace('-', '_')}": str(value)
        for key, value in config.items()
    }


def superfluous(scheduler: Scheduler, names: Iterable[T], count: int) -> list[T]:
    """Return which workers to stop so that ``count`` of them are left.

    Workers that have not connected yet are chosen first, then idle ones, then busy ones.
    """
    names = list(names)
    excess = max(0, len(names) - count)
    here = {worker.name for worker in scheduler.workers.values()}
    chosen = [name for name in reversed(names) if name not in here][:excess]
    if rest := excess - len(chosen):
        idle_first: Any = scheduler.workers_to_close(n=rest, attribute="name")
        chosen += idle_first
    return chosen
