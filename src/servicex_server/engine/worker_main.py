"""Functions that the Dask engine runs on workers."""

import asyncio
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from distributed import get_worker

from servicex_server import __version__
from servicex_server.clusters.messages import (
    Introduction,
    pack_check,
    pack_introduction,
    pack_outcome,
    pack_probe,
)
from servicex_server.clusters.scheduler import METRIC, OUTCOMES
from servicex_server.concurrency import run_in_daemon_thread
from servicex_server.engine.contract import CHECK_SECONDS
from servicex_server.engine.malloc import keep_freed_memory
from servicex_server.model import CheckSpec, ProbeSpec, TaskSpec
from servicex_server.observability.logs import configure_worker
from servicex_server.query_processes.on_worker import WorkerHelpers
from servicex_server.worker.probe import probe
from servicex_server.worker.scratch import confine
from servicex_server.worker.transform import transform

PROBES_AT_ONCE = 4
"""Threads for probes in one worker. They wait most of the time, and share one core."""


_probe_slots = asyncio.Semaphore(PROBES_AT_ONCE)


_steps: dict[str, int] = {}
"""The task that runs in this process, with its number of steps; a worker runs one at a time."""


def run(spec: TaskSpec) -> None:
    """Run a task, report its steps in heartbeats, and publish its outcome.

    The outcome is not the result of the Dask task. The client would have to fetch the result from
    the worker and unpickle it, which takes a third of the time of an empty task.
    """

    def step() -> None:
        _steps[spec.key] = _steps.get(spec.key, 0) + 1

    try:
        outcome = transform(spec, step, _helpers().compile)
    finally:
        _steps.pop(spec.key, None)
    worker = get_worker()
    key = worker.get_current_task()
    worker.log_event(OUTCOMES, {"key": key, "outcome": pack_outcome(outcome, spec)})


async def introduce(dask_worker: Any) -> bytes:
    """Return the version, host and memory limit of this worker, and prepare it for tasks."""
    keep_freed_memory()
    configure_worker()
    confine(Path(dask_worker.local_directory))
    # the nanny accepts calls of the service only, so a worker that closes must not wait for it
    dask_worker.nanny = None
    _helpers().start()
    dask_worker.metrics[METRIC] = _progress
    dask_worker._ongoing_background_tasks.call_soon(_warm)  # noqa: SLF001  # as plugins of Dask's do
    limit = dask_worker.memory_manager.memory_limit or 0
    return pack_introduction(Introduction(__version__, socket.gethostname(), limit))


def _progress(worker: Any) -> dict[str, int]:
    del worker
    return dict(_steps)


async def _warm() -> None:
    await asyncio.to_thread(_import)


def _import() -> None:
    import awkward  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import uproot  # noqa: F401


async def check_on_worker(spec: CheckSpec) -> bytes:
    """Dry-run on this worker; return an empty answer if the deadline passes.

    The deadline applies here too, so that the scheduler does not wait longer.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(CHECK_SECONDS):
            found = await _helpers().dry_run(spec)
            return b"" if found is None else pack_check(found[0])
    return b""


@cache
def _helpers() -> WorkerHelpers:
    """Return the helper processes of this worker; they end with it."""
    return WorkerHelpers(seconds=CHECK_SECONDS)


async def probe_on_worker(spec: ProbeSpec) -> bytes:
    """Probe a replica on this worker."""
    return pack_probe(await run_in_daemon_thread(probe, spec, limit=_probe_slots))


async def end_process(dask_worker: Any) -> bytes:
    """Kill the process of a worker. Runs on its nanny, which then starts another process.

    Dask's own restart asks the worker first, which does not answer if its thread hangs.
    """
    process = dask_worker.process.process
    if process is not None and process.is_alive():
        await process.kill()
    return b""
