"""The dispatcher: chooses files fairly, gives them to the engine, and has their outcomes stored.

A bounded window of tasks is inside the engine (`InFlight`); everything else is rows. The loop
records, reconciles, feeds and starts speculative reads. It may be killed at any line: at the next
start, `recover` records what is finished, and the rest starts again.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from servicex_server.credentials import refused
from servicex_server.database import bad_replicas as bad_replica_rows
from servicex_server.database import requests as request_rows
from servicex_server.database import status_snapshots
from servicex_server.database import tasks as rows
from servicex_server.database.connection import Database
from servicex_server.database.disk_reserve import DISK_FULL
from servicex_server.engine.contract import Engine
from servicex_server.errors import ErrorRecord, is_store_unavailable
from servicex_server.model import (
    SPECULATIVE,
    Attempt,
    CheckSpec,
    Demand,
    Outcome,
    ProbeSpec,
    Replica,
    RequestState,
    WorkerInfo,
    now,
)
from servicex_server.observability.counters import Counts
from servicex_server.replicas.health import BAD_FOR, StorageEndpoints
from servicex_server.retention.budget import RetentionPolicy, StoreBudget
from servicex_server.scheduling.autoscaling import Decision, Scaling
from servicex_server.scheduling.fair_share import fair_shares
from servicex_server.scheduling.in_flight import InFlight
from servicex_server.scheduling.outcome_recorder import OutcomeRecorder
from servicex_server.scheduling.policy import DispatchPolicy
from servicex_server.scheduling.recovery import recover
from servicex_server.scheduling.replica_refresh import BATCH, AskCatalogues, ReplicaRefresh
from servicex_server.scheduling.reuse import Digest, ResultReuse, no_digest
from servicex_server.scheduling.speculation import SpeculativeReads
from servicex_server.scheduling.store_health import StoreHealth
from servicex_server.scheduling.task_specs import TaskSpecs
from servicex_server.storage.contract import ObjectStore

log = logging.getLogger(__name__)

WINDOW = 2
"""Tasks inside the engine for each slot: one that runs, one that is ready behind it."""

PROBES = 4
"""Storage endpoints that are probed at a time."""

_AT_ONCE = 50
"""Files that are handed over before others have a turn: there may be thousands of slots."""


async def _nowhere(names: Mapping[int, str]) -> Mapping[int, tuple[Replica, ...]]:
    del names
    return {}


class Dispatcher:
    """Moves files from the rows to the engine and their outcomes back."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        objects: ObjectStore,
        *,
        policy: DispatchPolicy,
        scaling: Scaling,
        ask_again: AskCatalogues = _nowhere,
        digest: Digest = no_digest,
        budget: StoreBudget | None = None,
    ) -> None:
        self._database = database
        self._engine = engine
        self._objects = objects
        self._policy = policy
        self._scaling = scaling
        self.counts = Counts()
        self.endpoints = StorageEndpoints()
        self._bell = asyncio.Event()
        self._in_flight = InFlight()
        self._specs = TaskSpecs(policy, objects, self.endpoints)
        self.store = StoreHealth(objects, self._bell.set)
        self.budget = budget or StoreBudget(database, objects, RetentionPolicy())
        self._reuse = ResultReuse(database, objects, self.store, share=policy.share, digest=digest)
        self._refresh = ReplicaRefresh(ask_again, self._in_flight, self._bell.set)
        self._recorder = OutcomeRecorder(
            database, objects, self._in_flight, self._refresh, policy, self.counts
        )
        self._speculation = SpeculativeReads()
        self._resting: set[str] = set()
        self._beside: set[asyncio.Task[None]] = set()
        self._in_doubt = False
        self._loop: asyncio.Task[None] | None = None
        self._asked = scaling.last.workers
        self._asking: asyncio.Task[None] | None = None

    async def recall(self) -> None:
        """Load the health of storage endpoints and replicas that was stored last."""
        known = await self._database.read(status_snapshots.get, status_snapshots.SITES)
        bad = await self._database.read(
            bad_replica_rows.listed, since=now() - timedelta(seconds=BAD_FOR)
        )
        known_endpoints = known.value.get("endpoints") if known else None
        self.endpoints = StorageEndpoints(known_endpoints, (one.url for one in bad))
        self._specs = TaskSpecs(self._policy, self._objects, self.endpoints)

    async def start(self) -> None:
        """Start the engine, take up what the last leader left, and begin."""
        self.store.begin()
        await self._engine.start(self._on_end, self._bell.set, self._specs.latest)
        self._recorder.check(await recover(self._database, self._objects))
        self._loop = asyncio.create_task(self._run(), name="dispatch")

    async def close(self) -> None:
        """Store what has ended and stop; what runs is taken up at the next start."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await self._record()
        await self._refresh.close()
        await self.store.close()
        for beside in filter(None, (self._asking, *self._beside, *self._reuse.tasks())):
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
        await self._engine.close()

    @property
    def healthy(self) -> bool:
        """Whether the loop runs."""
        return self._loop is not None and not self._loop.done()

    @property
    def absence(self) -> str:
        """Why no file can be worked on although workers are wanted, or nothing."""
        full = DISK_FULL if self._database.disk_full else ""
        return full or self.store_problem or self._engine.absence

    @property
    def store_problem(self) -> str:
        """Why no file starts because of the object store; empty if that is not so."""
        return self.store.problem or self.budget.problem

    @property
    def decision(self) -> Decision:
        """How many workers there should be, and why."""
        return self._scaling.last

    def workers(self) -> list[tuple[WorkerInfo, rows.Work | None]]:
        """Return the workers, each with the work that it does, if any."""
        return [
            (worker, self._in_flight.work_of(worker.task.removesuffix(SPECULATIVE)))
            for worker in self._engine.workers()
        ]

    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Do a dry run of a query on a file, beside the tasks; return the error found, if any."""
        as_ours = replace(
            spec,
            replicas=self._specs.in_order(spec.replicas, "", probe=False),
            limits=self._policy.limits,
            credentials=self._policy.credentials,
        )
        return await self._engine.check(as_ours)

    async def probe(self) -> list[Attempt]:
        """Probe a replica of every known storage endpoint from a worker; note how each did."""
        turn = asyncio.Semaphore(PROBES)

        async def look(url: str) -> Attempt | None:
            spec = ProbeSpec(url, self._policy.limits, self._policy.credentials)
            async with turn:
                return await self._engine.probe(spec)

        found = await asyncio.gather(*map(look, self.endpoints.urls()))
        attempts = [one for one in found if one is not None]
        for one in attempts:
            self.endpoints.observe([one])
        return attempts

    def wake(self, *request_ids: str) -> None:
        """Look at the rows now; and whether the given requests have ended."""
        self._recorder.check(request_ids)
        self._bell.set()

    async def stop(self, request_id: str) -> None:
        """Drop the files of a request that are inside the engine."""
        dropped = self._in_flight.drop(request_id)
        self._forget(request_id)
        await self._engine.stop(dropped.tasks)
        # one that ended in the meantime may have left an object that no row will name; the answer
        # comes from the writer, behind what is being recorded at this moment
        left = [key for work in dropped.works for key in (work.object_key, work.speculative_key)]
        await self._recorder.delete(await self._database.write(request_rows.unused, left))
        self._bell.set()

    def _forget(self, request_id: str) -> None:
        self._reuse.forget(request_id)
        self._speculation.forget(request_id)

    def _on_end(self, outcome: Outcome) -> None:
        work = self._in_flight.work_of(outcome.of)
        rses = {one.url: one.rse for one in work.file.replicas} if work else {}
        self.endpoints.observe(outcome.attempts, read=outcome.bytes_read, rses=rses)
        if outcome.error is None and not outcome.parts:
            self.store.stored()
        elif is_store_unavailable(outcome.error):
            self.store.failed(outcome.error)
        ended, losers = self._in_flight.end(outcome)
        if ended is None or work is None:
            return
        if outcome.error is None and not outcome.parts:
            self.budget.wrote(work.owner, outcome.bytes_written)
        self._speculation.ended(ended)
        self._bell.set()
        for loser in losers:
            left = work.object_key if outcome.speculative else work.speculative_key
            task = asyncio.create_task(self._stop_loser(loser, left))
            self._beside.add(task)
            task.add_done_callback(self._beside.discard)

    async def _stop_loser(self, key: str, object_key: str) -> None:
        await self._engine.stop([key])
        await self._recorder.delete([object_key])

    async def _run(self) -> None:
        while True:
            self._bell.clear()
            try:
                await self._record()
                await self._reconcile()
                wait = await self._feed()
                self._speculate()
            except Exception:
                # the database may be away for a moment; nothing is lost, for the rows stay
                log.exception("dispatch is interrupted; it goes on in a second")
                wait, self._in_doubt = 1.0, True
            # not wait_for: in Python 3.11 that may swallow the cancellation that ends this loop
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._bell.wait()

    def _speculate(self) -> None:
        """Start speculative reads of slow files from another replica, by workers that are idle."""
        if not self._policy.speculative:
            return
        workers = self._engine.workers()
        idle = sum(not worker.task and not worker.problem for worker in workers)
        for worker in workers:
            work = self._in_flight.work_of(worker.task)
            if not idle or work is None or worker.since is None:
                continue
            if work.joins or len(work.file.replicas) == 1 or self._in_flight.has_copy(worker.task):
                continue
            seconds = (now() - worker.since).total_seconds()
            if not self._speculation.worth_it(work.request_id, seconds):
                continue
            idle -= 1
            copy = self._specs.of(work, speculative=True)
            self._in_flight.add_copy(worker.task, copy.key)
            self._speculation.started(work.request_id)
            log.info(
                "speculative read after %.1f s", seconds, extra={"request_id": work.request_id}
            )
            self._engine.submit(copy, avoid=worker.name)

    async def _reconcile(self) -> None:
        """Let files wait again that the rows call running, after an answer of theirs was lost."""
        if self._in_doubt:
            inside = [work.task_id for work in self._in_flight.works()]
            await self._database.write(rows.recover, keep=inside)
            self._in_doubt = False

    async def _record(self) -> None:
        looked_at, states = await self._recorder.record()
        self._resting -= looked_at
        for request_id, state in states.items():
            self._forget(request_id)
            if state is RequestState.FATAL:
                await self.stop(request_id)

    async def _feed(self) -> float | None:
        """Hand files to the engine; return the seconds for which that is all, None for any time."""
        demand = await self._database.read(rows.demand)
        self._scale(sum(one.left for one in demand))
        free = WINDOW * self._engine.slots - (len(self._in_flight) - self._in_flight.held)
        if self._in_flight.held > BATCH or self.store.open:
            free = 0  # the catalogue is slow, or no result could be stored
        if self._database.disk_full:
            free = 0  # what is left is for cancels and deletions
        again = False
        if free > 0:
            awake = [one for one in demand if one.request_id not in self._resting]
            at_work = self._in_flight.by_request()
            admitted = self.budget.admitted(awake, at_work)
            shares = fair_shares(admitted, at_work, free, self._policy.caps)
            for request_id, count in self.budget.allowed(shares, awake, at_work).items():
                again |= await self._start(request_id, count)
        if again:
            return 0.0
        if not demand:
            return self._scaling.patience if self._scaling.shrinks else None
        return await self._patience(demand)

    async def _patience(self, demand: Sequence[Demand]) -> float:
        """Return how long to wait for files that are to be tried again, and for the engine."""
        if not self._resting.issuperset(one.request_id for one in demand):
            return 1.0  # the engine may have got workers
        due = await self._database.read(rows.next_due)
        self._resting.clear()
        return 1.0 if due is None else max(0.05, (due - now()).total_seconds())

    async def _start(self, request_id: str, count: int) -> bool:
        """Begin so many files of a request; return whether to look again at once.

        Those whose object is there already need no worker, and many of them are done together.
        """
        works = await self._database.read(
            rows.waiting, request_id, self._reuse.batch(request_id, count)
        )
        if len(works) < count:
            self._resting.add(request_id)
        if not works:
            return False
        known = await self._reuse.result_keys(works, lambda: self.wake(request_id))
        if known is None:  # a query that takes long holds up its own request only
            self._resting.add(request_id)
            return False
        reused = await self._reuse.end(works, known)
        if reused:
            self.counts.reused(len(reused))
            self._recorder.check([request_id])
            self._resting.discard(request_id)
        if self.store.open:
            return bool(reused)
        chosen = [work for work in works if work.task_id not in reused][:count]
        for number, work in enumerate(await self._database.write(rows.begin, chosen, known)):
            self._submit(work)
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        return bool(reused)

    def _submit(self, work: rows.Work) -> None:
        spec = self._specs.of(work)
        self._in_flight.add(spec.key, work)
        urls = [replica.url for replica in spec.replicas]
        if (expired := refused(urls, spec.credentials)) is not None:
            self._on_end(
                Outcome(
                    spec.request_id,
                    spec.file_id,
                    spec.attempt,
                    entries=spec.entries,
                    url=spec.path,
                    error=expired.record(),
                )
            )
            return
        self._engine.submit(spec, avoid=work.last_worker)

    def _scale(self, files: int) -> None:
        """Ask for as many workers as the files justify, unless that is what was asked for."""
        wanted = self._scaling.decide(files, time.monotonic())
        asking = self._asking is not None and not self._asking.done()
        if wanted.workers != self._asked and not asking:
            self._asking = asyncio.create_task(self._ask_for(wanted), name="scale")

    async def _ask_for(self, wanted: Decision) -> None:
        log.info("%d workers are wanted, %d before: %s", wanted.workers, self._asked, wanted.reason)
        try:
            await self._engine.scale(wanted.workers)
        except Exception:
            log.exception("the engine cannot be asked for workers; it is asked again")
        else:
            self._asked = wanted.workers
            self._bell.set()
