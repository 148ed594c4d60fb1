"""Dask: one task at a time on each of the workers that a cluster has.

The queue of tasks is here and not in Dask's scheduler. So it is known which task a worker is on,
and its death costs no other; a task that is tried again goes to another worker; one that waits is
dropped without a word to anybody; and a scheduler that is lost loses nothing.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from servicex_server import __version__
from servicex_server.engines.clusters import Cluster
from servicex_server.engines.contract import CHECK_SECONDS, Engine
from servicex_server.engines.on_worker import (
    COLLECTED,
    EXITS,
    METRIC,
    Prompt,
    Watch,
    checked,
    end_process,
    introduce,
    run,
)
from servicex_server.errors import ErrorRecord, OverdueError, StartupError, WorkerDiedError
from servicex_server.model import Attempt, CheckSpec, Outcome, TaskSpec, WorkerInfo, now

log = logging.getLogger(__name__)

_SLOW = 0.5
"""Seconds without an answer after which a check is given to another worker too.

A worker that has just started answers nobody while it imports its libraries.
"""

_LOOK = 1.0
"""Seconds between two looks at the workers; with very many workers, more."""

_EXIT_SECONDS = 1.0
"""How long it is waited for a nanny to tell how its worker ended."""

_REACH_SECONDS = 30.0
"""How long one attempt to reach a lost scheduler may take."""


@dataclass(eq=False)
class _Job:
    """A task: it waits, or is on a worker, until it is over."""

    spec: TaskSpec
    avoid: str = ""
    future: Any = None
    began: float = 0.0
    steps: int = 0
    stepped: float | None = None
    over: bool = False


@dataclass(eq=False)
class _Worker:
    """A worker, as far as it is known. One with a problem gets no tasks."""

    address: str
    name: Any
    admission: Any = None
    host: str = ""
    problem: str = "it has just joined"
    job: _Job | None = None
    since: datetime = field(default_factory=now)
    done: int = 0
    last_error: str = ""
    memory: int = 0
    limit: int = 0

    @property
    def label(self) -> str:
        """Name for people; a worker that is started again keeps it."""
        return f"{self.host}/{self.name}"

    @property
    def idle(self) -> bool:
        """Whether it can have a task."""
        return self.job is None and not self.problem


class DaskEngine(Engine):
    """Runs tasks on the workers of a cluster.

    Parameters
    ----------
    cluster
        Where the workers come from.
    workers
        How many are asked for at the start.
    """

    def __init__(self, cluster: Cluster, *, workers: int) -> None:
        self._cluster = cluster
        self._first = workers
        self._client: Any = None
        self._ready: deque[_Job] = deque()
        self._jobs: dict[str, _Job] = {}
        self._workers: dict[str, _Worker] = {}
        self._exits: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._beside: set[asyncio.Task[Any]] = set()
        self._scaling = asyncio.Lock()
        self._turn = 0
        self._run, self._numbers = uuid4().hex[:8], itertools.count()
        self._ended: Callable[[Outcome], None] = _nobody
        self._more: Callable[[], None] = lambda: None
        self.restarts = 0

    async def start(
        self, ended: Callable[[Outcome], None], ready: Callable[[], None] = lambda: None
    ) -> None:
        """Reach the scheduler, bring workers up, and begin to look after them."""
        self._ended, self._more = ended, ready
        await self._reach()
        await self._cluster.scale(self._first)
        await self._look()
        await asyncio.gather(*(worker.admission for worker in self._workers.values()))
        self._keep(self._watch())

    async def _reach(self) -> None:
        self._client = await self._cluster.open()
        # by itself it collects what it sends for ten milliseconds, while a worker waits
        self._client.scheduler_comm.interval = COLLECTED
        self._client.subscribe_topic("all", self._on_event)
        self._client.subscribe_topic(EXITS, self._on_exit)
        await self._client.register_plugin(Prompt())
        await self._client.register_plugin(Watch())

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside, and hold on to it until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task

    async def close(self) -> None:
        """End what was started."""
        beside = list(self._beside)
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        if self._client is not None:
            for topic in ("all", EXITS):
                self._client.unsubscribe_topic(topic)
            await self._client.close(timeout=1)
        await self._cluster.close()

    def disown(self) -> None:
        """Leave what is outside of this process."""
        self._cluster.disown()

    # tasks

    @property
    def slots(self) -> int:
        """How many workers can have tasks."""
        return sum(not worker.problem for worker in self._workers.values())

    def submit(self, spec: TaskSpec, *, avoid: str = "") -> None:
        """Queue a task, to be done by another worker than the one to avoid, if there is one."""
        job = _Job(spec, avoid)
        self._jobs[spec.key] = job
        self._ready.append(job)
        self._assign()

    def _assign(self) -> None:
        """Give tasks to workers until either are used up."""
        if not self._ready:
            return
        alone = self.slots == 1
        for worker in [worker for worker in self._workers.values() if worker.idle]:
            fit = (job for job in self._ready if alone or job.avoid != worker.label)
            if (job := next(fit, None)) is not None:
                self._ready.remove(job)
                self._give(worker, job)

    def _give(self, worker: _Worker, job: _Job) -> None:
        worker.job, worker.since = job, now()
        job.began, job.stepped, job.steps = time.monotonic(), None, 0
        # under a key of its own: what a scheduler has left of an earlier run is something else
        future = self._client.submit(
            run,
            job.spec,
            key=f"{job.spec.key}/{self._run}/{next(self._numbers)}",
            workers=[worker.address],
            allow_other_workers=False,
            pure=False,
            retries=0,
        )
        self._keep(self._wait(worker, job, future))

    async def _wait(self, worker: _Worker, job: _Job, future: Any) -> None:
        job.future = future
        try:
            outcome = await future
        except asyncio.CancelledError:
            return  # the service stops
        except KilledWorker:
            await self._lost(worker)
            return
        except FutureCancelledError:
            if job.future is future:
                self._again(worker, job)  # it was not the worker: nobody knows of the task any more
            return
        except Exception as error:
            log.exception(
                "a task ended in a way it should not", extra={"file_id": job.spec.file_id}
            )
            outcome = _failed(job, WorkerDiedError(f"{type(error).__name__}: {error}"))
        self._over(worker, job, outcome)

    def _over(self, worker: _Worker, job: _Job, outcome: Outcome) -> None:
        """End a task, once, and give its worker the next one."""
        if worker.job is job:
            worker.job, worker.since = None, now()
            worker.done += 1
        if not job.over:
            job.over = True
            self._report(worker, job, outcome)
        self._assign()

    def _report(self, worker: _Worker, job: _Job, outcome: Outcome) -> None:
        self._jobs.pop(job.spec.key, None)
        if outcome.error is not None:
            worker.last_error = outcome.error.message
        self._ended(replace(outcome, worker=worker.label))

    def _again(self, worker: _Worker, job: _Job) -> None:
        if worker.job is job:
            worker.job = None
        if not job.over and job not in self._ready:
            self._ready.appendleft(job)
            self._assign()

    async def stop(self, keys: Iterable[str]) -> None:
        """Drop tasks; a worker that is in the middle of one is started again."""
        chosen = [self._jobs.pop(key) for key in list(keys) if key in self._jobs]
        for job in chosen:
            job.over = True
            with suppress(ValueError):
                self._ready.remove(job)
        wanted = set(chosen)
        busy = [worker for worker in self._workers.values() if worker.job in wanted]
        await asyncio.gather(*(self._end(worker, "its task was stopped") for worker in busy))

    async def _end(self, worker: _Worker, why: str) -> None:
        """End the process of a worker and its task; a new one takes its place and its name."""
        log.info("worker %s is started again: %s", worker.label, why)
        self._workers.pop(worker.address, None)
        try:
            await self._client.run(end_process, workers=[worker.address], nanny=True)
        except Exception as error:  # noqa: BLE001  # whatever it was, there is a slower way
            log.info("its nanny does not do it (%s); the scheduler is asked", error)
            await self._client.restart_workers([worker.address], raise_for_error=False)
        if worker.job is not None:
            await self._client.cancel([worker.job.future], force=True)

    # workers

    def _on_event(self, event: tuple[float, dict[str, Any]]) -> None:
        # the client waits for what this returns before it hears of anything else
        message = event[1]
        if message.get("action") == "add-worker":
            self._keep(self._look())
        elif message.get("action") == "remove-worker":
            worker = self._workers.get(message["worker"])
            if worker is not None:
                self._keep(self._lost(worker, expected=bool(message.get("expected"))))

    def _on_exit(self, event: tuple[float, dict[str, Any]]) -> None:
        address = event[1]["worker"]
        if address in self._workers or address in self._exits:
            told = self._exits.setdefault(address, asyncio.Future())
            if not told.done():
                told.set_result(event[1])

    async def _lost(self, worker: _Worker, *, expected: bool = False) -> None:
        """Forget a worker that has ended; its task, if any, has failed with it.

        One that was told to end as it got a task is not the task's fault: another one does it.
        """
        if self._workers.get(worker.address) is not worker:
            return
        del self._workers[worker.address]
        told = self._exits.setdefault(worker.address, asyncio.Future())
        job, worker.job = worker.job, None
        if job is not None and expected:
            former, job.future = job.future, None
            self._again(worker, job)
            await self._client.cancel([former], force=True)
        elif job is not None:
            ended_before, job.over = job.over, True
            # a scheduler that is not ours may wait for the worker to come back
            await self._client.cancel([job.future], force=True)
            if not ended_before:
                about: dict[str, Any] = {}
                with suppress(TimeoutError):
                    async with asyncio.timeout(_EXIT_SECONDS):
                        about = await asyncio.shield(told)
                self._report(worker, job, _failed(job, _death(worker, about)))
        self._exits.pop(worker.address, None)

    async def _watch(self) -> None:
        """Look at the workers again and again, and for a scheduler that is lost."""
        while True:
            await asyncio.sleep(max(_LOOK, len(self._workers) / 200))
            try:
                await self._look()
                self._overdue()
            except (OSError, TimeoutError) as error:
                log.warning("the scheduler is lost (%s); it is looked for", error)
                await self._reach_again()

    async def _reach_again(self) -> None:
        self.restarts += 1
        for worker in list(self._workers.values()):
            if worker.job is not None:
                self._again(worker, worker.job)
        self._workers.clear()
        with suppress(OSError, TimeoutError):
            await self._client.close(timeout=1)
        try:
            async with asyncio.timeout(_REACH_SECONDS):
                await self._reach()
        except (StartupError, OSError, TimeoutError) as error:
            log.warning("no scheduler yet: %s", error)

    async def _look(self) -> None:
        """Note which workers there are and how they do."""
        found = (await self._client.scheduler.identity(n_workers=-1))["workers"]
        for address, about in found.items():
            worker = self._workers.get(address)
            if worker is None:
                worker = self._workers[address] = _Worker(address, about["name"])
                worker.admission = self._keep(self._admit(worker))
            metrics = about.get("metrics") or {}
            worker.memory = int(metrics.get("memory", 0))
            job = worker.job
            steps = (metrics.get(METRIC) or {}).get(job.spec.key) if job else None
            if job and steps is not None and (job.stepped is None or steps != job.steps):
                job.steps, job.stepped = steps, time.monotonic()
        for worker in [one for at, one in self._workers.items() if at not in found]:
            await self._lost(worker)

    async def _admit(self, worker: _Worker) -> None:
        """Ask a worker what it is; only one that runs this version gets tasks."""
        try:
            answer = (await self._client.run(introduce, workers=[worker.address]))[worker.address]
        except Exception as error:  # noqa: BLE001  # another version may fail in any way
            if worker.address not in self._workers:
                return
            worker.problem = f"it does not answer as a worker of servicex-server: {error}"
        else:
            worker.host, worker.limit = answer["host"], answer["limit"]
            worker.problem = ""
            if answer["version"] != __version__:
                worker.problem = (
                    f"it has version {answer['version']} of servicex-server, not {__version__}"
                )
        if worker.problem:
            log.error("worker %s gets no tasks: %s", worker.address, worker.problem)
            return
        log.info("worker %s has joined", worker.label)
        self._assign()
        self._more()

    def _overdue(self) -> None:
        """End tasks that have taken too long, or do not go on."""
        at = time.monotonic()
        for worker in list(self._workers.values()):
            job = worker.job
            if job is None or job.over:
                continue
            limits = job.spec.limits
            if at - job.began > limits.seconds:
                why = f"it took longer than {limits.seconds:g} s"
            elif job.stepped is not None and at - job.stepped > limits.stall:
                why = f"it did not go on for {limits.stall:g} s"
            else:
                continue
            job.over = True
            error = OverdueError(f"the work on this file was ended: {why}")
            self._report(worker, job, _failed(job, error))
            self._keep(self._end(worker, why))

    async def scale(self, count: int) -> None:
        """Ask for so many workers; where fewer are wanted, idle ones end first."""
        async with self._scaling:
            await self._cluster.scale(count)

    def workers(self) -> list[WorkerInfo]:
        """Return who is there and what they do."""
        return [
            WorkerInfo(
                address=worker.address,
                name=worker.label,
                memory=worker.memory,
                memory_limit=worker.limit,
                task=worker.job.spec.key if worker.job else "",
                since=worker.since,
                done=worker.done,
                last_error=worker.last_error,
                problem=worker.problem,
            )
            for worker in self._workers.values()
        ]

    @property
    def address(self) -> str:
        """Where the scheduler is, for people."""
        return self._cluster.address

    # checks

    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Ask the worker with the least to do, and another one if that is slow or ends.

        It is no task of Dask's: such a one waits behind those that run, and if it hangs it holds
        its slot until the worker is started again.
        """
        addresses = self._least_busy()
        pending: set[asyncio.Task[tuple[ErrorRecord | None] | None]] = set()
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                while pending or addresses:
                    if addresses:
                        pending.add(asyncio.create_task(self._ask(addresses.pop(0), spec)))
                    done, pending = await asyncio.wait(
                        pending,
                        timeout=_SLOW if addresses else None,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    for answer in filter(None, (task.result() for task in done)):
                        return answer[0]
        except TimeoutError:
            log.info("a check knows nothing after %g s", CHECK_SECONDS)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        return None

    def _least_busy(self) -> list[str]:
        """Return addresses of two workers, in turn where they have as much to do."""
        self._turn += 1
        workers = [worker for worker in self._workers.values() if not worker.problem]
        turn = self._turn % max(1, len(workers))
        in_turn = workers[turn:] + workers[:turn]
        chosen = sorted(in_turn, key=lambda worker: worker.job is not None)[:2]
        return [worker.address for worker in chosen]

    async def _ask(self, address: str, spec: CheckSpec) -> tuple[ErrorRecord | None] | None:
        """Return what a worker found; None if it did not find out."""
        try:
            answers = await self._client.run(checked, spec, workers=[address], on_error="return")
        except OSError:
            return None  # the scheduler ends
        answer = answers.get(address)
        return answer if isinstance(answer, tuple) else None


def _nobody(outcome: Outcome) -> None:
    """Hear of an outcome before anybody wants to."""
    del outcome


def _death(worker: _Worker, about: dict[str, Any]) -> WorkerDiedError:
    """Return what is known of the end of a worker."""
    peak, limit = about.get("peak", 0) or worker.memory, about.get("limit", 0) or worker.limit
    known = [about.get("how", f"worker {worker.label} is gone")]
    if peak:
        known.append(f"it had {peak / 1e9:.2f} GB of memory")
    if limit:
        known.append(f"of {limit / 1e9:.2f} GB")
    full = limit and peak > 0.8 * limit  # from where on Dask keeps a worker waiting
    hint = "it ran out of memory" if full else "the file is tried again on another worker"
    return WorkerDiedError(
        f"the worker ended while it worked on this file: {', '.join(known)}", hint=hint
    )


def _failed(job: _Job, error: WorkerDiedError | OverdueError) -> Outcome:
    spec, record = job.spec, error.record()
    url = spec.replicas[0].url if spec.replicas else ""
    seconds = time.monotonic() - job.began
    return Outcome(
        request_id=spec.request_id,
        file_id=spec.file_id,
        attempt=spec.attempt,
        entries=spec.entries,
        error=record,
        attempts=(Attempt(url=url, seconds=seconds, error=record),),
        url=url,
        seconds=seconds,
    )
