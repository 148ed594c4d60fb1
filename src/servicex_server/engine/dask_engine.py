"""The Dask engine: it runs one task at a time on each worker of a cluster.

The queue of tasks is in this process, and not in Dask's scheduler. Therefore

- the engine knows which task a worker runs, so the death of a worker fails this task only;
- a task that is tried again goes to another worker;
- a queued task is dropped without a call to the scheduler;
- no task is lost if the connection to the scheduler is.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from servicex_server import __version__
from servicex_server.clusters.calls import call
from servicex_server.clusters.contract import Cluster
from servicex_server.clusters.messages import (
    NAME,
    Exit,
    MessageError,
    read_event,
    read_exit,
    read_introduction,
    read_memory,
    read_outcome,
    read_steps,
)
from servicex_server.clusters.scheduler import EXITS, METRIC, OUTCOMES
from servicex_server.engine.contract import Engine
from servicex_server.engine.dask_plugins import BATCH_SECONDS, ExitReporter, ImmediateMessages
from servicex_server.engine.watchdog import Watchdog
from servicex_server.engine.worker_calls import call_check, call_probe
from servicex_server.engine.worker_main import end_process, introduce, run
from servicex_server.engine.workers import RunningTask, WorkerState
from servicex_server.errors import ErrorRecord, OverdueError, WorkerDiedError
from servicex_server.model import Attempt, CheckSpec, Outcome, ProbeSpec, TaskSpec, WorkerInfo

log = logging.getLogger(__name__)

_REFRESH = 1.0
"""Seconds between two refreshes of the workers; longer with very many workers."""

_EXIT_SECONDS = 1.0
"""Seconds to wait for a nanny's report on how its worker ended."""

_MAX_SET_BACK = 10.0
"""Seconds by which the wall clock may be set back before the engine reconnects to a scheduler.

Dask uses the wall clock for its timers: until the clock reaches its former time again, heartbeats
stop and batched messages are not sent.
"""


class DaskEngine(Engine):
    """Runs tasks on the workers of a cluster.

    Parameters
    ----------
    cluster
        The cluster of the workers.
    workers
        The number of workers at the start.
    """

    def __init__(self, cluster: Cluster, *, workers: int) -> None:
        self._cluster = cluster
        self._count = workers
        self._client: Any = None
        self._ready: deque[RunningTask] = deque()
        self._tasks: dict[str, RunningTask] = {}
        self._workers: dict[str, WorkerState] = {}
        self._assigned: dict[str, tuple[WorkerState, RunningTask]] = {}
        self._exits: dict[str, asyncio.Future[Exit]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._joined = asyncio.Event()
        self._changing = asyncio.Lock()
        self._turn = 0
        self._clock_lead = _clock_lead()
        self._watchdog = Watchdog(cluster)
        self._repairing: asyncio.Task[None] | None = None
        self._ended: Callable[[Outcome], None] = _ignore
        self._more: Callable[[], None] = lambda: None
        self._latest: Callable[[TaskSpec], TaskSpec] = lambda spec: spec
        self.restarts = 0

    async def start(
        self,
        ended: Callable[[Outcome], None],
        ready: Callable[[], None] = lambda: None,
        latest: Callable[[TaskSpec], TaskSpec] = lambda spec: spec,
    ) -> None:
        """Connect to the scheduler, start the workers, and begin to watch them."""
        self._ended, self._more, self._latest = ended, ready, latest
        await self._connect()
        await self._refresh_workers()
        await asyncio.gather(*(worker.admission for worker in self._workers.values()))
        self._run_in_background(self._watch())

    async def _connect(self) -> None:
        self._client = await self._cluster.open()
        # by default a client batches messages for 10 ms, in which a worker waits
        self._client.scheduler_comm.interval = BATCH_SECONDS
        self._client.subscribe_topic("all", self._on_event)
        self._client.subscribe_topic(EXITS, self._on_exit)
        self._client.subscribe_topic(OUTCOMES, self._on_outcome)
        await self._client.register_plugin(ImmediateMessages())
        await self._client.register_plugin(ExitReporter())
        await self._cluster.scale(self._count)

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine in the background, and keep a reference until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def close(self) -> None:
        """Stop all background work, the connection and the cluster."""
        background = list(self._background)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await self._disconnect()

    async def _disconnect(self) -> None:
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
        """Have the cluster give up its batch jobs and pods."""
        self._cluster.disown()

    # tasks

    @property
    def slots(self) -> int:
        """How many workers can get tasks."""
        return sum(not worker.problem for worker in self._workers.values())

    def submit(self, spec: TaskSpec, *, avoid: str = "") -> None:
        """Queue a task; another worker than the one to avoid gets it, if there is one."""
        task = RunningTask(spec, avoid)
        self._tasks[spec.key] = task
        self._ready.append(task)
        self._assign()

    def _assign(self) -> None:
        """Send queued tasks to idle workers, unless the scheduler is lost."""
        if not (self._ready and self._connected):
            return
        alone = self.slots == 1
        for worker in [worker for worker in self._workers.values() if worker.idle]:
            fit = (task for task in self._ready if alone or task.avoid != worker.label)
            if (task := next(fit, None)) is not None:
                self._ready.remove(task)
                self._send(worker, task)

    def _send(self, worker: WorkerState, task: RunningTask) -> None:
        worker.take(task)
        task.begin()
        task.sent = self._latest(task.spec)
        # the outcome has to name this key, which only the worker with the task knows
        key = f"{task.spec.key}/{secrets.token_urlsafe(16)}"
        self._assigned[key] = worker, task
        task.future = self._client.submit(
            run,
            task.sent,
            key=key,
            workers=[worker.address],
            allow_other_workers=False,
            pure=False,
            retries=0,
        )
        task.waiting = self._run_in_background(self._wait(worker, task, task.future))
        task.waiting.add_done_callback(lambda _: self._assigned.pop(key, None))

    def _on_outcome(self, event: tuple[float, Any]) -> None:
        try:
            key, message = read_event(event[1])
        except MessageError as error:
            log.warning("invalid event of a worker: %s", error)
            return
        worker, task = self._assigned.pop(key, (None, None))
        if worker is None or task is None or task.future is None or task.future.key != key:
            return  # the task was stopped, or runs elsewhere
        task.waiting.cancel()
        task.future = None  # so that the scheduler forgets it
        try:
            outcome = read_outcome(message, task.sent or task.spec)
        except MessageError as error:
            log.warning("invalid outcome of worker %s: %s", worker.label, error)
            outcome = task.failed(WorkerDiedError(f"the worker sent no valid outcome: {error}"))
        self._finished(worker, task, outcome)

    async def _wait(self, worker: WorkerState, task: RunningTask, future: Any) -> None:
        """Wait until a task ends without having published its outcome."""
        try:
            # awaiting the future itself would fetch and unpickle its result
            await future._state.wait()  # noqa: SLF001  # `distributed.wait` needs a default client
        except asyncio.CancelledError:
            return  # the outcome has arrived, or the service stops
        if future.cancelled():
            # not a failure of the worker: the scheduler lost the task, or does not answer
            if task.future is future:
                self._requeue(worker, task)
            return
        try:
            gone = worker.address not in await self._known_workers()
        except OSError as error:
            log.info("cannot ask the scheduler whether %s is gone: %s", worker.label, error)
            return  # the scheduler is lost, and all tasks are queued again
        if gone:
            await self._worker_lost(worker)
        elif task.future is future:
            log.error("a task ended without an outcome", extra={"file_id": task.spec.file_id})
            silent = WorkerDiedError("the worker ended the work on this file without an outcome")
            self._finished(worker, task, task.failed(silent))

    def _finished(self, worker: WorkerState, task: RunningTask, outcome: Outcome) -> None:
        if worker.task is task:
            worker.take(None)
            worker.done += 1
        self._end_task(worker, task, outcome)
        self._assign()

    def _end_task(self, worker: WorkerState, task: RunningTask, outcome: Outcome) -> None:
        """Report the outcome of a task, unless it was reported before."""
        if task.over:
            return
        task.over = True
        self._tasks.pop(task.spec.key, None)
        if outcome.error is not None:
            worker.last_error = outcome.error.message
        self._ended(replace(outcome, worker=worker.label))

    def _requeue(self, worker: WorkerState, task: RunningTask) -> None:
        """Put a task at the front of the queue again; it does not count as an attempt."""
        worker.take(None)
        task.future = None
        if not task.over:
            self._ready.appendleft(task)
            self._assign()

    async def stop(self, keys: Iterable[str]) -> None:
        """Drop tasks; a worker that runs one of them is restarted."""
        chosen = [self._tasks.pop(key) for key in list(keys) if key in self._tasks]
        for task in chosen:
            task.over = True
            with suppress(ValueError):
                self._ready.remove(task)
        wanted = set(chosen)
        busy = [worker for worker in self._workers.values() if worker.task in wanted]
        await asyncio.gather(*(self._restart(worker, "its task was stopped") for worker in busy))

    async def _restart(self, worker: WorkerState, why: str) -> None:
        """Restart the process of a worker, which ends its task; the new process keeps its name."""
        log.info("restarting worker %s: %s", worker.label, why)
        self._workers.pop(worker.address, None)
        if (client := self._client) is None:
            return  # the scheduler is lost, and so are its workers
        try:
            await call(client, worker.address, end_process, nanny=True)
        except Exception as error:  # noqa: BLE001  # whatever it was, the scheduler can do it
            log.info("its nanny did not restart it (%s); asking the scheduler", error)
            with suppress(OSError, TimeoutError):
                await client.restart_workers([worker.address], raise_for_error=False)
        if worker.task is not None:
            await self._cancel(worker.task.future)

    async def _cancel(self, future: Any) -> None:
        """Have the scheduler forget a task, which would else wait for its worker for ever."""
        if self._client is not None:
            with suppress(OSError):  # the scheduler is lost, and so is the task
                await self._client.cancel([future], force=True)

    # workers

    def _on_event(self, event: tuple[float, Any]) -> None:
        # not a coroutine: the client would await it before it handles the next message
        message = event[1] if isinstance(event[1], dict) else {}
        if message.get("action") == "add-worker":
            self._joined.set()
        elif message.get("action") == "remove-worker":
            address = message.get("worker")
            worker = self._workers.get(address) if isinstance(address, str) else None
            if worker is not None:
                self._run_in_background(
                    self._confirm_removal(worker, expected=message.get("expected") is True)
                )

    async def _confirm_removal(self, worker: WorkerState, *, expected: bool) -> None:
        """Handle the event that a worker ended, if the scheduler confirms it.

        The confirmation is needed, as another worker could have published the event.
        """
        try:
            gone = worker.address not in await self._known_workers()
        except OSError as error:
            log.info("cannot ask the scheduler whether %s is gone: %s", worker.label, error)
            return  # the scheduler is lost, which the next refresh notices
        if gone:
            await self._worker_lost(worker, expected=expected)

    def _on_exit(self, event: tuple[float, Any]) -> None:
        try:
            report = read_exit(event[1])
        except MessageError as error:
            log.warning("invalid event of a nanny: %s", error)
            return
        if report.worker in self._workers or report.worker in self._exits:
            ended = self._exits.setdefault(report.worker, asyncio.Future())
            if not ended.done():
                ended.set_result(report)

    async def _worker_lost(self, worker: WorkerState, *, expected: bool = False) -> None:
        """Remove a worker that has ended, and fail its task.

        The task is requeued instead if the end of the worker was requested, or if the engine has
        reconnected to a scheduler meanwhile: the task is then not the cause.
        """
        if self._workers.get(worker.address) is not worker:
            return
        del self._workers[worker.address]
        report = self._exits.setdefault(worker.address, asyncio.Future())
        restarts = self.restarts
        if (task := worker.task) is not None:
            future = task.future
            if expected:
                self._requeue(worker, task)
            else:
                task.future = None  # later events of this future are ignored
            await self._cancel(future)
            if not (expected or task.over):
                about: Exit | None = None
                with suppress(TimeoutError):
                    async with asyncio.timeout(_EXIT_SECONDS):
                        about = await asyncio.shield(report)
                if self.restarts > restarts or self._clock_set_back() > _MAX_SET_BACK:
                    self._requeue(worker, task)
                else:
                    self._end_task(worker, task, task.failed(worker.death(about)))
        self._exits.pop(worker.address, None)

    async def _watch(self) -> None:
        """Refresh the workers periodically, and reconnect if the scheduler is lost."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(_REFRESH, len(self._workers) / 200)):
                    await self._joined.wait()
            self._joined.clear()
            self._observe()
            try:
                self._check_clock()
                await self._refresh_workers()
                self._end_overdue()
                self._repair()
            except Exception as error:  # noqa: BLE001  # whatever it is, only a reconnection helps
                log.warning("the scheduler is lost (%s); reconnecting", error)
                await self._reconnect()

    def _observe(self) -> None:
        workers = self._workers.values()
        problem = next((f"{one.label}: {one.problem}" for one in workers if one.problem), "")
        if not self._connected:
            problem = "the scheduler is lost"
        self._watchdog.observe(wanted=self._count, available=self.slots, problem=problem)

    def _repair(self) -> None:
        """Start the replacement of lost workers in the background, unless one is running."""
        if self._repairing is None or self._repairing.done():
            self._repairing = self._run_in_background(self._repaired())

    async def _repaired(self) -> None:
        async with self._changing:
            await self._watchdog.repair({str(one.name) for one in self._workers.values()})

    @property
    def absence(self) -> str:
        """Why no task can run although workers are wanted; empty if tasks can run."""
        return self._watchdog.absence

    @property
    def replaced(self) -> int:
        """How many lost workers were replaced."""
        return self._watchdog.replaced

    @property
    def pending(self) -> int:
        """How many workers wait for a batch system or Kubernetes to start them."""
        return self._watchdog.pending

    def _clock_set_back(self) -> float:
        """Return by how many seconds the wall clock was set back since the last check."""
        return self._clock_lead - _clock_lead()

    def _check_clock(self) -> None:
        seconds, self._clock_lead = self._clock_set_back(), _clock_lead()
        if seconds > _MAX_SET_BACK:
            raise ConnectionError(f"the clock was set back by {seconds:.0f} s")

    async def _reconnect(self) -> None:
        """Connect to a scheduler again; tasks of lost workers are queued as if never begun."""
        self.restarts += 1
        workers, self._workers = self._workers, {}
        for worker in workers.values():
            if (task := worker.task) is not None and task.future is not None:
                self._requeue(worker, task)
        async with self._changing:
            try:
                await self._disconnect()
                await self._connect()
            except Exception as error:  # noqa: BLE001  # the next refresh tries again
                log.warning("no scheduler yet: %s", error)

    async def _known_workers(self) -> dict[str, Any]:
        """Return the workers that the scheduler knows, by address.

        Raises
        ------
        OSError
            The scheduler does not answer, or the engine is closing.
        """
        if not self._connected:
            raise ConnectionError("the connection is broken")
        found: dict[str, Any] = (await self._client.scheduler.identity(n_workers=-1))["workers"]
        return found

    async def _refresh_workers(self) -> None:
        """Update the list of workers, their memory and the progress of their tasks."""
        found = await self._known_workers()
        for address, about in found.items():
            worker = self._workers.get(address)
            if worker is None:
                name = str(about["name"])[:NAME]
                worker = self._workers[address] = WorkerState(address, name)
                worker.admission = self._run_in_background(self._admit(worker))
            metrics = about.get("metrics")
            worker.memory = read_memory(metrics)
            if task := worker.task:
                steps = read_steps(metrics, METRIC, task.spec.key)
                if steps is not None:
                    task.heard(steps)
        for worker in [one for at, one in self._workers.items() if at not in found]:
            await self._worker_lost(worker)

    async def _admit(self, worker: WorkerState) -> None:
        """Ask a worker for its version; only one with the version of the service gets tasks."""
        try:
            report = read_introduction(await call(self._client, worker.address, introduce))
        except Exception as error:  # noqa: BLE001  # another version may fail in any way
            if worker.address not in self._workers:
                return
            worker.problem = f"it does not answer as a worker of servicex-server: {error}"
        else:
            worker.host, worker.limit = report.host, report.limit
            worker.problem = ""
            if report.version != __version__:
                worker.problem = (
                    f"it has version {report.version} of servicex-server, not {__version__}"
                )
        if worker.problem:
            log.error("worker %s gets no tasks: %s", worker.address, worker.problem)
            return
        log.info("worker %s has joined", worker.label)
        self._assign()
        self._more()

    def _end_overdue(self) -> None:
        """End tasks that have taken too long, or make no progress."""
        for worker in list(self._workers.values()):
            task = worker.task
            if task is not None and not task.over and (why := task.overdue()):
                error = OverdueError(f"the work on this file was ended: {why}")
                self._end_task(worker, task, task.failed(error))
                self._run_in_background(self._restart(worker, why))

    async def scale(self, count: int) -> None:
        """Change the number of workers; if there are more, idle ones stop first."""
        self._count = count
        async with self._changing:
            await self._cluster.scale(count)

    def workers(self) -> list[WorkerInfo]:
        """Return all workers, with the task of each."""
        return [worker.info() for worker in self._workers.values()]

    @property
    def address(self) -> str:
        """The address of the scheduler, for display."""
        return self._cluster.address

    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Dry-run on the least busy worker, and on a second one if the first is slow."""
        return await call_check(self._client, self._least_busy()[:2], spec)

    async def probe(self, spec: ProbeSpec) -> Attempt | None:
        """Probe from the least busy worker."""
        chosen = self._least_busy()[:1]
        return await call_probe(self._client, chosen[0], spec) if chosen else None

    def _least_busy(self) -> list[str]:
        """Return the addresses of workers, idle ones first, and round-robin among equals."""
        self._turn += 1
        workers = [worker for worker in self._workers.values() if not worker.problem]
        turn = self._turn % max(1, len(workers))
        in_turn = workers[turn:] + workers[:turn]
        least_first = sorted(in_turn, key=lambda worker: worker.task is not None)
        return [worker.address for worker in least_first]


def _clock_lead() -> float:
    """Return the difference of the wall clock and the monotonic clock, in seconds."""
    return time.time() - time.monotonic()


def _ignore(outcome: Outcome) -> None:
    """Ignore an outcome that arrives before the engine has started."""
    del outcome
