"""Workers as jobs of a batch system, one worker per job; the scheduler runs in this process.

``dask-jobqueue`` writes the job descriptions and knows the commands. This module adds what an
unattended service needs: it replaces jobs that end or never start a worker, retries when the batch
system does not answer, and cancels jobs that a killed service has left.
"""

import asyncio
import hashlib
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import dask
from distributed import Client, Scheduler, SchedulerPlugin, Security

from servicex_server.clusters.backoff import Backoff
from servicex_server.clusters.batch_systems import TLS_FILES, HTCondor, Slurm
from servicex_server.clusters.contract import Cluster, Repair, first_cause
from servicex_server.clusters.dask_config import (
    CONFIG,
    extra,
    public_environment,
    superfluous,
    variables,
)
from servicex_server.clusters.scheduler import GuardedScheduler
from servicex_server.clusters.tls import cluster_security
from servicex_server.errors import StartupError
from servicex_server.settings.clusters import JobQueueOptions
from servicex_server.worker.scratch import private_folder

log = logging.getLogger(__name__)

ROUND = 2.0
"""Seconds between two checks of which workers are connected; a check is cheap."""

LISTING = 30.0
"""Maximum of seconds between two listings of jobs while workers are absent."""

HUNG_SECONDS = 180.0
"""Seconds that a job may run while its worker is absent, as it starts or restarts; then the job is
cancelled."""

FIRST_WAIT, LONGEST_WAIT = 15.0, 600.0
"""Seconds between two submissions when jobs fail one after the other, the first and the longest."""

COMMAND_SECONDS = 10.0
"""Seconds that a command of the batch system may take."""

AT_A_TIME = 8
"""Jobs that are submitted concurrently; few, as a batch system has other users too."""

DEATH_TIMEOUT = 60
"""Seconds after which a worker that cannot reach its scheduler ends its job."""

LOG_DAYS = 7
"""Days for which logs of jobs are kept at least."""


class JobQueue(Cluster):
    """Keeps as many jobs in a batch system as workers are wanted.

    Parameters
    ----------
    options
        The batch system, and the options of its jobs.
    memory
        Bytes that one worker may use before it is restarted.
    folder
        The data folder of the service.

    Raises
    ------
    StartupError
        dask-jobqueue, or a program of the batch system, is not installed.
    """

    Options = JobQueueOptions

    @classmethod
    def from_settings(cls, options: JobQueueOptions, *, memory: int, folder: Path) -> Self:
        """Return the cluster of the settings."""
        return cls(options, memory=memory, folder=folder)

    def __init__(self, options: JobQueueOptions, *, memory: int, folder: Path) -> None:
        super().__init__()
        self._options = options
        self._memory = memory
        self._data_folder = folder
        self._folder = options.job_folder or folder / "jobs"
        # the same at each start, so that jobs of a former process are recognized
        self._name = f"servicex-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:8]}"
        kind = Slurm if options.system == "slurm" else HTCondor
        self._system = kind(options, self._name, memory)
        self._job_class = getattr(extra(self._system.module, "jobqueue"), self._system.job)
        for program in self._system.programs:
            if shutil.which(program) is None:
                raise StartupError(
                    f"there is no {program} on this machine, which jobs of {options.system} need",
                    hint="run the service on a machine from which jobs can be submitted",
                )
        self._jobs: dict[str, Any] = {}
        self._joined: set[str] = set()
        self._count = 0
        self._wanted = 0
        self._backoff = Backoff(first=FIRST_WAIT, longest=LONGEST_WAIT)
        self._queued: set[str] = set()
        self._absent_since: dict[str, float] = {}
        self._replaced = 0
        self._list_after = ROUND
        self._list_at = 0.0
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._scheduler: Any = None

    async def open(self) -> Client:
        """Start a scheduler, and check that the batch system would accept a job."""
        security = self._prepare()
        options = self._options
        try:
            scratch = private_folder(self._data_folder, "scratch")
            with dask.config.set(deepcopy(CONFIG) | {"temporary-directory": str(scratch)}):
                self._scheduler = await GuardedScheduler(
                    protocol="tls://",
                    host=options.scheduler_host,
                    interface=options.scheduler_interface,
                    port=options.scheduler_port,
                    dashboard_address="127.0.0.1:0",
                    security=security,
                )
                self._scheduler.add_plugin(_Watch(self))
                await self._remove_all()
                await self._try_one()
                client: Client = await Client(
                    self._scheduler.address, security=security, asynchronous=True
                )
        except (OSError, RuntimeError, ValueError) as error:
            await self.close()
            raise StartupError(f"jobs cannot be started: {first_cause(error)}") from error
        self._keeper = asyncio.create_task(self._keep())
        return client

    def _prepare(self) -> Security:
        """Create the folder of the jobs and the TLS certificates; delete old logs."""
        security = cluster_security()
        worker: Any = security.worker
        contents = (worker.tls_ca_file, worker.tls_worker_cert, worker.tls_worker_key)
        logs = self._folder / "logs"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name, content in zip(TLS_FILES, contents, strict=True):
                file = self._folder / name
                file.unlink(missing_ok=True)
                file.touch(0o600)
                file.write_text(str(content), encoding="ascii")
            logs.mkdir(exist_ok=True)
            for old in logs.iterdir():
                if old.stat().st_mtime < time.time() - LOG_DAYS * 86400:
                    old.unlink()
        except OSError as error:
            raise StartupError(
                f"the folder of the jobs {self._folder} cannot be written: {error.strerror}",
                hint="choose another with engine.job_folder",
            ) from error
        return security.service

    def _job(self, name: str) -> Any:
        """Return a job that has not been submitted yet."""
        options = self._options
        files = [str(self._folder.absolute() / file) for file in TLS_FILES]
        seen = TLS_FILES if self._system.carries_files else files
        security = Security(**dict(zip(_TLS_FIELDS, seen, strict=True)), require_encryption=True)
        exports = [f"export {k}={shlex.quote(v)}" for k, v in variables(CONFIG).items()]
        # the shell of the job expands variables in the folder; HTCondor would expand "$(...)"
        parent = options.scratch_folder or "${TMPDIR:-/tmp}"
        make = f'{options.python or sys.executable} -m servicex_server.worker.scratch "{parent}"'
        scratch = [
            f"DASK_TEMPORARY_DIRECTORY=`{make}` || exit 1",
            "export DASK_TEMPORARY_DIRECTORY",
        ]
        return self._job_class(
            self._scheduler.contact_address or self._scheduler.address,
            name=name,
            cores=1,
            processes=1,
            memory=f"{self._memory}B",
            nanny=True,
            protocol="tls://",
            security=security,
            python=options.python,
            job_name=self._name,
            death_timeout=DEATH_TIMEOUT,
            log_directory=str(self._folder.absolute() / "logs"),
            job_script_prologue=[*exports, *options.prologue, *scratch],
            interface=options.worker_interface,
            worker_extra_args=["--no-dashboard", *options.worker_arguments],
            **self._system.arguments(files),
        )

    async def _remove_all(self) -> None:
        """Cancel all jobs of this service, also those of its former processes."""
        try:
            await self._call(self._system.removal)
        except RuntimeError:
            # some batch systems report an error if there is no job to cancel
            if self._system.alive(await self._call(self._system.listing)):
                raise

    async def _try_one(self) -> None:
        with self._job("trial").job_file() as description:
            await self._call(self._system.trial(description))

    async def scale(self, count: int) -> None:
        """Change the number of workers; the batch system decides when they start."""
        self._wanted = count
        self._changed.set()

    async def _keep(self) -> None:
        """Keep the number of jobs at the number of wanted workers, until cancelled."""
        while True:
            self._changed.clear()
            try:
                await self._look()
                await self._end()
                await self._submit()
            except (OSError, RuntimeError, ValueError) as error:
                self._fail(f"the batch system failed: {first_cause(error)}")
            with suppress(TimeoutError):
                async with asyncio.timeout(ROUND):
                    await self._changed.wait()

    def _fail(self, why: str) -> None:
        """Log a failure, and delay the next submission, longer each time."""
        log.error("%s; submitting the next job in %g s", why, self._backoff.failed())

    async def _look(self) -> None:
        """Forget jobs that have ended."""
        here = self._here()
        absent = [name for name in self._jobs if name not in here]
        self._queued.intersection_update(absent)
        self._absent_since = {n: at for n, at in self._absent_since.items() if n in absent}
        if not absent or time.monotonic() < self._list_at:
            return
        self._list_after = min(2 * self._list_after, LISTING)
        self._list_at = time.monotonic() + self._list_after
        listed = await self._call(self._system.listing)
        alive, running = self._system.alive(listed), self._system.running(listed)
        gone = [name for name in absent if self._jobs[name].job_id not in alive]
        await self._end_hung([name for name in absent if self._jobs[name].job_id in running])
        self._queued = {n for n in absent if self._jobs[n].job_id in alive - running}
        self._replaced += sum(name in self._joined for name in gone)
        unused = [self._jobs[name].job_id for name in gone if name not in self._joined]
        self._forget(gone)
        if unused:
            self._fail(
                f"jobs {', '.join(unused[:8])} ended before their workers connected,"
                f" see {self._folder / 'logs'}"
            )

    async def _end_hung(self, running: Collection[str]) -> None:
        """Cancel running jobs whose workers have been absent for too long: they hang."""
        at = time.monotonic()
        for name in running:
            self._absent_since.setdefault(name, at)
        hung = [n for n in running if at - self._absent_since[n] > HUNG_SECONDS]
        if hung:
            numbers = [self._jobs[name].job_id for name in hung]
            await self._call([*shlex.split(self._job_class.cancel_command), *numbers])
            self._replaced += len(hung)
            self._fail(f"jobs {', '.join(numbers[:8])} ran without a worker and were cancelled")

    async def repair(self, present: Collection[str]) -> Repair:
        """Return the number of replaced and of queued jobs; `_keep` replaces jobs continuously."""
        del present
        replaced, self._replaced = self._replaced, 0
        return Repair(replaced=replaced, pending=len(self._queued))

    def _list_soon(self) -> None:
        """List the jobs at the next check, and then less and less often."""
        self._list_after, self._list_at = ROUND, time.monotonic() + ROUND / 2

    def joined(self, name: str) -> None:
        """Record that a worker connected."""
        self._joined.add(name)
        self._backoff.succeeded()

    def left(self) -> None:
        """Record that a worker disconnected."""
        self._list_soon()

    def _here(self) -> set[str]:
        return {str(worker.name) for worker in self._scheduler.workers.values()}

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            del self._jobs[name]
            self._joined.discard(name)
            self._queued.discard(name)
            self._absent_since.pop(name, None)

    async def _end(self) -> None:
        """Stop excess workers and cancel their jobs."""
        chosen = superfluous(self._scheduler, self._jobs, self._wanted)
        names = [name for name in chosen if name in self._jobs]
        if not names or not self._backoff.over:
            return
        if here := sorted(set(names) & self._here()):
            await self._scheduler.broadcast(
                msg={"op": "close_gracefully", "reason": "fewer workers are wanted"},
                workers=[self._scheduler.aliases[name] for name in here],
                nanny=True,
                on_error="ignore",
            )
            await self._scheduler.retire_workers(names=here, remove=True, close_workers=True)
        numbers = [self._jobs[name].job_id for name in names]
        try:
            await self._call([*shlex.split(self._job_class.cancel_command), *numbers])
        except RuntimeError:
            # some batch systems report an error if a job has ended meanwhile
            if not self._system.alive(await self._call(self._system.listing)).isdisjoint(numbers):
                raise
        self._forget(names)

    async def _submit(self) -> None:
        """Submit the missing jobs, some at a time."""
        while len(self._jobs) < self._wanted and self._backoff.over:
            missing = min(AT_A_TIME, self._wanted - len(self._jobs))
            jobs = [self._job(f"{self._name}-{self._count + n}") for n in range(missing)]
            self._count += missing
            self._list_soon()
            done = await asyncio.gather(*map(self._submitted, jobs), return_exceptions=True)
            for job, error in zip(jobs, done, strict=True):
                if error is None:
                    self._jobs[job.name] = job
                    self._queued.add(job.name)
            for error in filter(None, done):
                raise error

    async def _submitted(self, job: Any) -> None:
        with job.job_file() as description:
            said = await self._call([*shlex.split(job.submit_command), description])
        job.job_id = job._job_id_from_submit_output(said)  # noqa: SLF001  # there is no public name

    async def _call(self, command: Sequence[str]) -> str:
        """Run a command of the batch system; return its output.

        Raises
        ------
        RuntimeError
            The command failed, or did not end in time.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=public_environment(),
            cwd=self._folder,
        )
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                out, err = await process.communicate()
        except TimeoutError:
            raise RuntimeError(f"{command[0]} did not end within {COMMAND_SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            said = err.decode(errors="replace") or out.decode(errors="replace")
            raise RuntimeError(f"{command[0]}: {said}")
        return out.decode(errors="replace")

    async def close(self) -> None:
        """Cancel all jobs, also those that are being submitted, and close the scheduler."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._scheduler is None:
            return
        if not self.disowned:
            try:
                await self._remove_all()
            except (OSError, RuntimeError) as error:
                log.warning(
                    "jobs could not be cancelled; they end as they find no scheduler: %s",
                    first_cause(error),
                )
        await self._scheduler.close()
        if not self.disowned:
            for name in TLS_FILES:
                (self._folder / name).unlink(missing_ok=True)

    @property
    def address(self) -> str:
        """The address of the scheduler, for display."""
        return str(self._scheduler.address) if self._scheduler is not None else ""


class _Watch(SchedulerPlugin):
    """Notifies a `JobQueue` of workers that connect and disconnect."""

    name = "servicex-jobs"

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Notify of a worker that connected."""
        self._queue.joined(str(scheduler.workers[worker].name))

    def remove_worker(self, scheduler: Scheduler, worker: str, **how: Any) -> None:
        """Notify of a worker that disconnected."""
        del scheduler, worker, how
        self._queue.left()


_TLS_FIELDS = ("tls_ca_file", "tls_worker_cert", "tls_worker_key")
