"""Workers that are jobs of a batch system, one job each; the scheduler is in this process.

``dask-jobqueue`` writes the job descriptions and knows the commands. What it leaves to a person at
a prompt is done here: jobs that end, or never come to life, are replaced; a batch system that does
not answer is asked again; jobs that a killed service has left are removed.
"""

import asyncio
import hashlib
import logging
import shlex
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Scheduler, SchedulerPlugin, Security

from servicex_server.engines.batch import TLS_FILES, HTCondor, Slurm
from servicex_server.engines.certificate import temporary_security
from servicex_server.engines.clusters import (
    CONFIG,
    Cluster,
    extra,
    first_cause,
    public_environment,
    superfluous,
    variables,
)
from servicex_server.engines.options import JobQueueOptions
from servicex_server.errors import StartupError

log = logging.getLogger(__name__)

ROUND = 2.0
"""Seconds between two looks at which workers are there, which costs nothing."""

LISTING = 30.0
"""Seconds, at most, between two listings of jobs whose workers are not there."""

FIRST_WAIT, LONGEST_WAIT = 15.0, 600.0
"""Seconds between two tries when jobs fail one after the other."""

COMMAND_SECONDS = 10.0
"""How long a command of the batch system may take."""

AT_A_TIME = 8
"""Jobs that are submitted at the same time: a batch system has other users too."""

DEATH_TIMEOUT = 60
"""Seconds after which a worker that finds no scheduler ends its job."""

LOG_DAYS = 7
"""How long logs of jobs are kept, at least."""


class JobQueue(Cluster):
    """Keeps as many jobs in a batch system as workers are wanted.

    Parameters
    ----------
    options
        Which batch system, and what it is told.
    memory
        Bytes that one worker may use before it is restarted.
    folder
        The data folder of the service.

    Raises
    ------
    StartupError
        dask-jobqueue, or a program of the batch system, is not there.
    """

    def __init__(self, options: JobQueueOptions, *, memory: int, folder: Path) -> None:
        self._options = options
        self._memory = memory
        self._folder = options.job_folder or folder / "jobs"
        # the same at each start, so that jobs left from before are known again
        self._name = f"servicex-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:8]}"
        kind = Slurm if options.system == "slurm" else HTCondor
        self._system = kind(options, self._name, memory)
        self._job_class = getattr(extra(self._system.module, "jobqueue"), self._system.job)
        for program in self._system.programs:
            if shutil.which(program) is None:
                raise StartupError(
                    f"there is no {program} here, which jobs of {options.system} need",
                    hint="run the service on a machine from which jobs are submitted",
                )
        self._jobs: dict[str, Any] = {}
        self._joined: set[str] = set()
        self._count = 0
        self._wanted = 0
        self._failures = 0
        self._not_before = 0.0
        self._list_after = ROUND
        self._list_at = 0.0
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._scheduler: Any = None

    async def open(self) -> Client:
        """Start a scheduler, and try whether the batch system would take a job."""
        security = self._prepare()
        options = self._options
        try:
            with dask.config.set(deepcopy(CONFIG)):
                self._scheduler = await Scheduler(
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
        """Make the folder, and the certificates without which nobody is let in."""
        security: Any = temporary_security()
        contents = (security.tls_ca_file, security.tls_worker_cert, security.tls_worker_key)
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
        made: Security = security
        return made

    def _job(self, name: str) -> Any:
        """Return a job that has not been submitted yet."""
        options = self._options
        files = [str(self._folder.absolute() / file) for file in TLS_FILES]
        seen = TLS_FILES if self._system.carries_files else files
        security = Security(**dict(zip(_TLS_FIELDS, seen, strict=True)), require_encryption=True)
        exports = [f"export {k}={shlex.quote(v)}" for k, v in variables(CONFIG).items()]
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
            local_directory=options.scratch_folder,
            log_directory=str(self._folder.absolute() / "logs"),
            job_script_prologue=[*exports, *options.prologue],
            interface=options.worker_interface,
            worker_extra_args=["--no-dashboard", *options.worker_arguments],
            **self._system.arguments(files),
        )

    async def _remove_all(self) -> None:
        """End all jobs of this service, also those of its former lives."""
        try:
            await self._call(self._system.removal)
        except RuntimeError:
            # that there is none to be removed is an error for some batch systems
            if self._system.alive(await self._call(self._system.listing)):
                raise

    async def _try_one(self) -> None:
        with self._job("trial").job_file() as description:
            await self._call(self._system.trial(description))

    async def scale(self, count: int) -> None:
        """Ask for so many workers; they come as the batch system sees fit."""
        self._wanted = count
        self._changed.set()

    async def _keep(self) -> None:
        """Keep the jobs at what is wanted, until cancelled."""
        while True:
            self._changed.clear()
            try:
                await self._look()
                await self._end()
                await self._submit()
            except (OSError, RuntimeError, ValueError) as error:
                self._fail(f"the batch system does not do what it is asked: {first_cause(error)}")
            with suppress(TimeoutError):
                async with asyncio.timeout(ROUND):
                    await self._changed.wait()

    def _fail(self, why: str) -> None:
        """Say what is wrong, and wait before the next job is submitted, longer each time."""
        wait = min(FIRST_WAIT * 2**self._failures, LONGEST_WAIT)
        self._failures += 1
        self._not_before = time.monotonic() + wait
        log.error("%s; the next job is submitted in %g s", why, wait)

    async def _look(self) -> None:
        """Forget the jobs that are no more."""
        here = self._here()
        absent = [name for name in self._jobs if name not in here]
        if not absent or time.monotonic() < self._list_at:
            return
        self._list_after = min(2 * self._list_after, LISTING)
        self._list_at = time.monotonic() + self._list_after
        alive = self._system.alive(await self._call(self._system.listing))
        gone = [name for name in absent if self._jobs[name].job_id not in alive]
        unused = [self._jobs[name].job_id for name in gone if name not in self._joined]
        self._forget(gone)
        if unused:
            self._fail(
                f"jobs {', '.join(unused[:8])} ended before a worker came of them,"
                f" see {self._folder / 'logs'}"
            )

    def _list_soon(self) -> None:
        """List the jobs at the next look, and then less and less often."""
        self._list_after, self._list_at = ROUND, time.monotonic() + ROUND / 2

    def joined(self, name: str) -> None:
        """Hear of a worker that came."""
        self._joined.add(name)
        self._failures = 0

    def left(self) -> None:
        """Hear that a worker went."""
        self._list_soon()

    def _here(self) -> set[str]:
        return {str(worker.name) for worker in self._scheduler.workers.values()}

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            del self._jobs[name]
            self._joined.discard(name)

    async def _end(self) -> None:
        """End the workers and the jobs that are too many."""
        chosen = superfluous(self._scheduler, self._jobs, self._wanted)
        names = [name for name in chosen if name in self._jobs]
        if not names or time.monotonic() < self._not_before:
            return
        if here := sorted(set(names) & self._here()):
            await self._scheduler.retire_workers(names=here, remove=True, close_workers=True)
        numbers = [self._jobs[name].job_id for name in names]
        try:
            await self._call([*shlex.split(self._job_class.cancel_command), *numbers])
        except RuntimeError:
            # that one has ended since is an error for some batch systems
            if not self._system.alive(await self._call(self._system.listing)).isdisjoint(numbers):
                raise
        self._forget(names)

    async def _submit(self) -> None:
        """Submit the jobs that are missing, some at a time."""
        while len(self._jobs) < self._wanted and time.monotonic() >= self._not_before:
            missing = min(AT_A_TIME, self._wanted - len(self._jobs))
            jobs = [self._job(f"{self._name}-{self._count + n}") for n in range(missing)]
            self._count += missing
            self._list_soon()
            done = await asyncio.gather(*map(self._submitted, jobs), return_exceptions=True)
            for job, error in zip(jobs, done, strict=True):
                if error is None:
                    self._jobs[job.name] = job
            for error in filter(None, done):
                raise error

    async def _submitted(self, job: Any) -> None:
        with job.job_file() as description:
            said = await self._call([*shlex.split(job.submit_command), description])
        job.job_id = job._job_id_from_submit_output(said)  # noqa: SLF001  # it has no other name

    async def _call(self, command: Sequence[str]) -> str:
        """Run a command of the batch system; return what it prints.

        Raises
        ------
        RuntimeError
            It failed, or did not end in time.
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
            raise RuntimeError(f"{command[0]} did not end in {COMMAND_SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            said = err.decode(errors="replace") or out.decode(errors="replace")
            raise RuntimeError(f"{command[0]}: {said}")
        return out.decode(errors="replace")

    async def close(self) -> None:
        """End the jobs, also those that are just being submitted."""
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
                    "jobs are left, and end when they find no scheduler: %s", first_cause(error)
                )
        await self._scheduler.close()
        if not self.disowned:
            for name in TLS_FILES:
                (self._folder / name).unlink(missing_ok=True)

    @property
    def address(self) -> str:
        """Where the scheduler is, for people."""
        return str(self._scheduler.address) if self._scheduler is not None else ""


class _Watch(SchedulerPlugin):
    """Tells of workers that come and go."""

    name = "servicex-jobs"

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Tell the name of one that came."""
        self._queue.joined(str(scheduler.workers[worker].name))

    def remove_worker(self, scheduler: Scheduler, worker: str, **how: Any) -> None:
        """Tell that one went."""
        del scheduler, worker, how
        self._queue.left()


_TLS_FIELDS = ("tls_ca_file", "tls_worker_cert", "tls_worker_key")
