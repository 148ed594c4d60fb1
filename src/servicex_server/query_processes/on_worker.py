"""Compiles and dry-runs queries on a worker, beside the task that its process is running.

A query that takes all memory or never ends kills only a helper, not the worker with the task of
another user.
"""

import asyncio
from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory

from servicex_server.columnar.plan import Query
from servicex_server.errors import ErrorRecord
from servicex_server.languages.contract import Program
from servicex_server.model import CheckSpec, ResultFormat
from servicex_server.query_processes.client import (
    ForkServerProcess,
    HelperDiedError,
    LimitExceededError,
    NoHelperError,
)
from servicex_server.query_processes.compiler import LIMITS, compiled
from servicex_server.query_processes.jobs import dry_run_job, record_of
from servicex_server.query_processes.limits import JobLimits
from servicex_server.query_processes.pool import HelperPool
from servicex_server.worker import transform

DRY_RUN_MEMORY = 512 << 20
"""Bytes that a dry run may use; XRootD's client takes 100 MiB of them for thread stacks."""

MOST_DRY_RUNS = 4
"""Concurrent dry runs on one worker; each mostly waits for a file server."""

MOST_PASSED = 64
"""Queries that are not compiled in a helper again; `transform.compiled` caches as many."""

LIBRARIES = (
    "numpy",
    "awkward",
    "uproot",
    "pyarrow.parquet",
    "servicex_server.columnar.writing.root_writer",
)
"""Modules that a dry run needs besides the languages; importing them takes a second."""


class WorkerHelpers:
    """The helper processes of one worker.

    Parameters
    ----------
    seconds
        The time limit of a dry run, in seconds.
    """

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._server = ForkServerProcess(LIBRARIES)
        self._compiles = HelperPool(self._server, LIMITS, ready=1)
        dry_run = JobLimits(processor=seconds, wall=seconds, memory=DRY_RUN_MEMORY)
        self._dry_runs = HelperPool(self._server, dry_run, ready=1)
        self._places = asyncio.Semaphore(MOST_DRY_RUNS)
        self._passed: deque[tuple[str, str, ResultFormat]] = deque(maxlen=MOST_PASSED)

    def start(self) -> None:
        """Start the helpers; call it in the event loop. Jobs wait until helpers are ready."""
        self._loop = asyncio.get_running_loop()
        self._compiles.start()
        self._dry_runs.start()

    async def close(self) -> None:
        """End all helpers."""
        await self._compiles.close()
        await self._dry_runs.close()
        self._server.close()

    async def dry_run(self, spec: CheckSpec) -> tuple[ErrorRecord | None] | None:
        """Dry-run a query on a file.

        Returns
        -------
        A tuple with the error, or with None if there is none. None instead of a tuple means that
        nothing is known: the dry run exceeded a limit or could not run.
        """
        async with self._places:
            with TemporaryDirectory(prefix="servicex-check-") as scratch:
                job = dry_run_job(spec, patience=self._seconds, scratch=Path(scratch))
                try:
                    found = (await self._dry_runs.run(job))["error"]
                except (LimitExceededError, HelperDiedError, NoHelperError):
                    return None
        return (None if found is None else record_of(found),)

    def compile(
        self, language: str, selection: str, result_format: ResultFormat
    ) -> Query | Program:
        """Compile a query in the thread of a task; a new query is first compiled in a helper.

        Raises
        ------
        QueryError
            The query does not compile, or not within the limits.
        """
        key = language, selection, result_format
        if key not in self._passed:
            trial = compiled(self._compiles, LIMITS, *key)
            asyncio.run_coroutine_threadsafe(trial, self._loop).result()
            self._passed.append(key)
        return transform.compiled(*key, accepted=True)
