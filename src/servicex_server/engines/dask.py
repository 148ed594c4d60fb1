"""Dask: one task at a time on each of the workers that a cluster has.

The queue of tasks is here and not in Dask's scheduler. So it is known which task a worker is on,
and its death costs no other; a task that is tried again goes to another worker; one that waits is
dropped without a word to anybody; and a scheduler that is lost loses nothing.
"""

import asyncio
import itertools
import logging
import pickle
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from servicex_server import __version__
from servicex_server.engines.checking import ask, look
from servicex_server.engines.clusters import Cluster
from servicex_server.engines.contract import Engine
from servicex_server.engines.on_worker import (
    COLLECTED,
    EXITS,
    METRIC,
    OUTCOMES,
    Prompt,
    Watch,
    end_process,
    introduce,
    run,
)
from servicex_server.engines.roster import Job, Worker
from servicex_server.errors import ErrorRecord, OverdueError, WorkerDiedError
from servicex_server.model import Attempt, CheckSpec, Outcome, ProbeSpec, TaskSpec, WorkerInfo

log = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds between two looks at the workers; with very many workers, more."""

_EXIT_SECONDS = 1.0
"""How long it is waited for a nanny to tell how its worker ended."""

_SET_BACK = 10.0
"""Seconds by which the wall clock may be set back before a scheduler is given up.

Dask waits by that clock: heartbeats stop until it is again what it was, and a message that was to
go out in half a millisecond goes out then.
"""


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
        self._count = workers
        self._client: Any = None
        self._ready: deque[Job] = deque()
        self._jobs: dict[str, Job] = {}
        self._workers: dict[str, Worker] = {}
        self._exits: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._beside: set[asyncio.Task[Any]] = set()
        self._joined = asyncio.Event()
        self._changing = asyncio.Lock()
        self._turn = 0
        self._ahead = _ahead()
        self._run, self._numbers = uuid4().hex[:8], itertools.count()
        self._ended: Callable[[Outcome], None] = _nobody
        self._more: Callable[[], None] = lambda: None
        self._latest: Callable[[TaskSpec], TaskSpec] = lambda spec: spec
        self.restarts = 0

    async def start(
        self,
        ended: Callable[[Outcome], None],
        ready: Callable[[], None] = lambda: None,
        latest: Callable[[TaskSpec], TaskSpec] = lambda spec: spec,
    ) -> None:
        """Reach the scheduler, bring workers up, and begin to look after them."""
        self._ended, self._more, self._latest = ended, ready, latest
        await self._reach()
        await self._look()
        await asyncio.gather(*(worker.admission for worker in self._workers.values()))
        self._keep(self._watch())

    async def _reach(self) -> None:
        self._client = await self._cluster.open()
        # by itself it collects what it sends for ten milliseconds, while a worker waits
        self._client.scheduler_comm.interval = COLLECTED
        self._client.subscribe_topic("all", self._on_event)
        self._client.subscribe_topic(EXITS, self._on_exit)
        self._client.subscribe_topic(OUTCOMES, self._on_outcome)
        await self._client.register_plugin(Prompt())
        await self._client.register_plugin(Watch())
        await self._cluster.scale(self._count)

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
        await self._leave()

    async def _leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            for topic in ("all", EXITS, OUTCOMES):
                client.unsubscribe_topic(topic)
            with suppress(OSError, TimeoutError):
                await client.close(timeout=1)
        await self._cluster.close()

    @property
    def _connected(self) -> bool:
        return self._client is not None and self._client.status == "running"

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
        job = Job(spec, avoid)
        self._jobs[spec.key] = job
        self._ready.append(job)
        self._assign()

    def _assign(self) -> None:
        """Give tasks to workers until either are used up; none while the scheduler is lost."""
        if not (self._ready and self._connected):
            return
        alone = self.slots == 1
        for worker in [worker for worker in self._workers.values() if worker.idle]:
            fit = (job for job in self._ready if alone or job.avoid != worker.label)
            if (job := next(fit, None)) is not None:
                self._ready.remove(job)
                self._give(worker, job)

    def _give(self, worker: Worker, job: Job) -> None:
        worker.take(job)
        job.begin()
        # under a key of its own: what a scheduler has left of an earlier run is something else
        job.future = self._client.submit(
            run,
            self._latest(job.spec),
            key=f"{job.spec.key}/{self._run}/{next(self._numbers)}",
            workers=[worker.address],
            allow_other_workers=False,
            pure=False,
            retries=0,
        )
        job.waiting = self._keep(self._wait(worker, job, job.future))

    def _on_outcome(self, event: tuple[float, dict[str, Any]]) -> None:
        told = event[1]
        worker = self._workers.get(told["worker"])
        job = worker.job if worker is not None else None
        if worker is None or job is None or job.future is None or job.future.key != told["key"]:
            return  # it is of no interest any more
        job.waiting.cancel()
        job.future = None  # so that the scheduler forgets it
        self._finished(worker, job, pickle.loads(told["outcome"]))  # noqa: S301  # as Dask does

    async def _wait(self, worker: Worker, job: Job, future: Any) -> None:
        """Wait for a task to end in another way than to tell its outcome."""
        try:
            outcome = await future
        except asyncio.CancelledError:
            return  # its outcome is there, or the service stops
        except KilledWorker:
            await self._lost(worker)
            return
        except (FutureCancelledError, CommClosedError):
            # the worker has not failed it: its scheduler does not know of it, or does not answer
            if job.future is future:
                self._again(worker, job)
            return
        except Exception as error:
            log.exception(
                "a task ended in a way it should not", extra={"file_id": job.spec.file_id}
            )
            outcome = job.failed(WorkerDiedError(f"{type(error).__name__}: {error}"))
        self._finished(worker, job, outcome)

    def _finished(self, worker: Worker, job: Job, outcome: Outcome) -> None:
        if worker.job is job:
            worker.take(None)
            worker.done += 1
        self._over(worker, job, outcome)
        self._assign()

    def _over(self, worker: Worker, job: Job, outcome: Outcome) -> None:
        """End a task, once."""
        if job.over:
            return
        job.over = True
        self._jobs.pop(job.spec.key, None)
        if outcome.error is not None:
            worker.last_error = outcome.error.message
        self._ended(replace(outcome, worker=worker.label))

    def _again(self, worker: Worker, job: Job) -> None:
        """Have a task done anew, before all others; it has not been tried."""
        worker.take(None)
        job.future = None
        if not job.over:
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

    async def _end(self, worker: Worker, why: str) -> None:
        """End the process of a worker and its task; a new one takes its place and its name."""
        log.info("worker %s is started again: %s", worker.label, why)
        self._workers.pop(worker.address, None)
        if (client := self._client) is None:
            return  # the scheduler is lost, and its workers with it
        try:
            await client.run(end_process, workers=[worker.address], nanny=True)
        except Exception as error:  # noqa: BLE001  # whatever it was, there is a slower way
            log.info("its nanny does not do it (%s); the scheduler is asked", error)
            with suppress(OSError, TimeoutError):
                await client.restart_workers([worker.address], raise_for_error=False)
        if worker.job is not None:
            await self._cancel(worker.job.future)

    async def _cancel(self, future: Any) -> None:
        """Have the scheduler forget a task: one that is not ours may wait for a worker for ever."""
        if self._client is not None:
            with suppress(OSError):  # it is lost, and what it knew with it
                await self._client.cancel([future], force=True)

    # workers

    def _on_event(self, event: tuple[float, dict[str, Any]]) -> None:
        # the client waits for what this returns before it hears of anything else
        message = event[1]
        if message.get("action") == "add-worker":
            self._joined.set()
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

    async def _lost(self, worker: Worker, *, expected: bool = False) -> None:
        """Forget a worker that has ended; its task, if any, has failed with it.

        One that was told to end as it got a task is not the task's fault: another one does it. Nor
        is one of a scheduler that is given up meanwhile.
        """
        if self._workers.get(worker.address) is not worker:
            return
        del self._workers[worker.address]
        told = self._exits.setdefault(worker.address, asyncio.Future())
        restarts = self.restarts
        if (job := worker.job) is not None:
            future = job.future
            if expected:
                self._again(worker, job)
            else:
                job.future = None  # what becomes of it does not matter any more
            await self._cancel(future)
            if not (expected or job.over):
                about: dict[str, Any] = {}
                with suppress(TimeoutError):
                    async with asyncio.timeout(_EXIT_SECONDS):
                        about = await asyncio.shield(told)
                if self.restarts > restarts or self._set_back() > _SET_BACK:
                    self._again(worker, job)
                else:
                    self._over(worker, job, job.failed(worker.death(about)))
        self._exits.pop(worker.address, None)

    async def _watch(self) -> None:
        """Look at the workers again and again, and for a scheduler that is lost."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(_LOOK, len(self._workers) / 200)):
                    await self._joined.wait()
            self._joined.clear()
            try:
                self._check_clock()
                await self._look()
                self._end_overdue()
            except Exception as error:  # noqa: BLE001  # whatever it is, there is no other scheduler
                log.warning("the scheduler is lost (%s); it is looked for", error)
                await self._reach_again()

    def _set_back(self) -> float:
        """Return by how many seconds the clock was set back since it was looked at last."""
        return self._ahead - _ahead()

    def _check_clock(self) -> None:
        seconds, self._ahead = self._set_back(), _ahead()
        if seconds > _SET_BACK:
            raise ConnectionError(f"the clock was set back by {seconds:.0f} s")

    async def _reach_again(self) -> None:
        """Have a scheduler again; what was on workers waits for new ones, as if never begun."""
        self.restarts += 1
        workers, self._workers = self._workers, {}
        for worker in workers.values():
            if (job := worker.job) is not None and job.future is not None:
                self._again(worker, job)
        async with self._changing:
            try:
                await self._leave()
                await self._reach()
            except Exception as error:  # noqa: BLE001  # at the next look it is tried again
                log.warning("no scheduler yet: %s", error)

    async def _look(self) -> None:
        """Note which workers there are and how they do."""
        if not self._connected:
            raise ConnectionError("the connection is broken")
        found = (await self._client.scheduler.identity(n_workers=-1))["workers"]
        for address, about in found.items():
            worker = self._workers.get(address)
            if worker is None:
                worker = self._workers[address] = Worker(address, about["name"])
                worker.admission = self._keep(self._admit(worker))
            metrics = about.get("metrics") or {}
            worker.memory = int(metrics.get("memory", 0))
            if job := worker.job:
                steps = (metrics.get(METRIC) or {}).get(job.spec.key)
                if steps is not None:
                    job.heard(steps)
        for worker in [one for at, one in self._workers.items() if at not in found]:
            await self._lost(worker)

    async def _admit(self, worker: Worker) -> None:
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

    def _end_overdue(self) -> None:
        """End tasks that have taken too long, or do not go on."""
        for worker in list(self._workers.values()):
            job = worker.job
            if job is not None and not job.over and (why := job.overdue()):
                error = OverdueError(f"the work on this file was ended: {why}")
                self._over(worker, job, job.failed(error))
                self._keep(self._end(worker, why))

    async def scale(self, count: int) -> None:
        """Ask for so many workers; where fewer are wanted, idle ones end first."""
        self._count = count
        async with self._changing:
            await self._cluster.scale(count)

    def workers(self) -> list[WorkerInfo]:
        """Return who is there and what they do."""
        return [worker.info() for worker in self._workers.values()]

    @property
    def address(self) -> str:
        """Where the scheduler is, for people."""
        return self._cluster.address

    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Ask the worker with the least to do, and another one if that is slow."""
        return await ask(self._client, self._least_busy()[:2], spec)

    async def probe(self, spec: ProbeSpec) -> Attempt | None:
        """Ask the worker with the least to do."""
        chosen = self._least_busy()[:1]
        return await look(self._client, chosen[0], spec) if chosen else None

    def _least_busy(self) -> list[str]:
        """Return the addresses of workers, in turn where they have as much to do."""
        self._turn += 1
        workers = [worker for worker in self._workers.values() if not worker.problem]
        turn = self._turn % max(1, len(workers))
        in_turn = workers[turn:] + workers[:turn]
        least_first = sorted(in_turn, key=lambda worker: worker.job is not None)
        return [worker.address for worker in least_first]


def _ahead() -> float:
    """Return how far the wall clock is ahead of the clock that nobody sets, in seconds."""
    return time.time() - time.monotonic()


def _nobody(outcome: Outcome) -> None:
    """Hear of an outcome before anybody wants to."""
    del outcome
