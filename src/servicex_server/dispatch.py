"""Choosing files fairly from the rows, feeding the engine, and writing down how they end.

A bounded window of tasks is inside the engine; everything else is rows. The loop may be killed at
any line: at the next start, what was running is waiting again, or done if its object is there.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from servicex_server.credentials import refused
from servicex_server.database import bad_replicas as bad_replica_rows
from servicex_server.database import outcomes as outcome_rows
from servicex_server.database import requests as request_rows
from servicex_server.database import snapshots
from servicex_server.database import tasks as rows
from servicex_server.database.connection import Database
from servicex_server.elsewhere import MOST, Ask, Elsewhere
from servicex_server.engines.contract import Engine
from servicex_server.errors import ErrorRecord
from servicex_server.fairness import Caps, shares
from servicex_server.identity import identity
from servicex_server.model import (
    RACED,
    Attempt,
    CheckSpec,
    Credential,
    Demand,
    Limits,
    Outcome,
    ProbeSpec,
    Replica,
    RequestState,
    Sharing,
    TaskSpec,
    WorkerInfo,
    now,
)
from servicex_server.objects.contract import UNFINISHED, ObjectStore
from servicex_server.racing import Races
from servicex_server.replicas import BAD_FOR, Doors
from servicex_server.scaling import Decision, Scaling
from servicex_server.telemetry import Counts

log = logging.getLogger(__name__)

WINDOW = 2
"""Tasks inside the engine for each slot: one that runs, one that is ready behind it."""

MOST_REUSED = 512
"""Files of a request that are looked at together for objects that are there already."""

PROBES = 4
"""Doors of sites that are looked at at a time."""

_AT_ONCE = 50
"""Files that are handed over before others have a turn: there may be thousands of slots."""

UPLOAD_SECONDS = 7 * 24 * 3600.0
"""How long an upload URL works: as long as S3 signatures may, for a task may wait."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What dispatch keeps to.

    ``limits`` is what the work on one file may use; ``attempts`` how often a file is tried when
    its error may pass; ``fatal_after`` the files with the same query error that end a request;
    ``share`` whose objects may be the result of another request for the same. Of ``credentials``,
    ``caches``, ``whole`` files and the ``race`` of replicas the settings tell.
    """

    limits: Limits
    attempts: int
    fatal_after: int
    caps: Caps = Caps()  # noqa: RUF009  # it is frozen
    share: Sharing = Sharing.OWN
    credentials: tuple[Credential, ...] = ()
    caches: tuple[str, ...] = ()
    whole: bool = False
    race: bool = False


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
        rules: Rules,
        scaling: Scaling,
        ask_again: Ask = _nowhere,
    ) -> None:
        self._database = database
        self._engine = engine
        self._objects = objects
        self._rules = rules
        self._scaling = scaling
        self.counts = Counts()
        self.doors = Doors()
        self._bell = asyncio.Event()
        self._inside: dict[str, rows.Work] = {}
        self._looked: dict[str, int] = {}
        self._resting: set[str] = set()
        self._ended: list[Outcome] = []
        self._elsewhere = Elsewhere(ask_again, self._again)
        self._races = Races()
        self._beside: set[asyncio.Task[None]] = set()
        self._checks: set[str] = set()
        self._in_doubt = False
        self._loop: asyncio.Task[None] | None = None
        self._asked = scaling.last.workers
        self._asking: asyncio.Task[None] | None = None

    async def recall(self) -> None:
        """Have in mind how doors and replicas were when it was last written down."""
        known = await self._database.read(snapshots.get, snapshots.SITES)
        bad = await self._database.read(
            bad_replica_rows.listed, since=now() - timedelta(seconds=BAD_FOR)
        )
        self.doors = Doors(known.value["doors"] if known else None, (one.url for one in bad))

    async def start(self) -> None:
        """Take up what the last run left, and begin."""
        await self._engine.start(self._on_end, self._bell.set, self._latest)
        await self._take_up(await self._database.read(rows.running))
        self._loop = asyncio.create_task(self._run(), name="dispatch")

    async def _take_up(self, left: Sequence[rows.Work]) -> None:
        """Record what was finished when the service ended; let the rest start again.

        What workers have written in part when they were killed is removed, whatever they were on.
        """
        unfinished = {one.request_id for one in await self._database.read(rows.demand)}
        there = {
            info.key: info.size
            for request_id in unfinished | {work.request_id for work in left}
            for info in await self._objects.list(request_id)
        }
        await self._objects.delete(
            key for key in there if key.rpartition("/")[2].startswith(UNFINISHED)
        )
        await self._objects.delete(work.raced_key for work in left if work.raced_key in there)
        finished = [
            outcome_rows.Recorded(
                work.task_id,
                Outcome(
                    work.request_id,
                    work.file_id,
                    work.attempt,
                    entries=work.entries,
                    url=work.file.path,
                    events_read=work.file.events,
                    bytes_written=there[work.object_key],
                ),
                object_name=work.object_name,
                object_key=work.object_key,
            )
            for work in left
            if work.object_key in there
        ]
        if finished:
            await self._database.write(outcome_rows.record, finished, most_attempts=1)
        taken_up = await self._database.write(rows.recover)
        self._checks |= {work.request_id for work in left}
        if left:
            log.info(
                "%d files were running when the service ended: %d are done, %d start again",
                len(left),
                len(finished),
                taken_up,
            )

    async def close(self) -> None:
        """Write down what has ended and stop; what runs is taken up at the next start."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await self._record()
        await self._elsewhere.close()
        for beside in filter(None, (self._asking, *self._beside)):
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
        await self._engine.close()

    @property
    def healthy(self) -> bool:
        """Whether the loop runs."""
        return self._loop is not None and not self._loop.done()

    @property
    def decision(self) -> Decision:
        """How many workers there should be, and why."""
        return self._scaling.last

    def workers(self) -> list[tuple[WorkerInfo, rows.Work | None]]:
        """Return the workers, each with what it is on, if anything."""
        return [
            (worker, self._inside.get(worker.task.removesuffix(RACED)))
            for worker in self._engine.workers()
        ]

    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Hold a query against a file, beside the tasks; return the error found, if any."""
        as_ours = replace(
            spec,
            replicas=self._in_order(spec.replicas, "", probe=False),
            limits=self._rules.limits,
            credentials=self._rules.credentials,
        )
        return await self._engine.check(as_ours)

    async def probe(self) -> list[Attempt]:
        """Look at a replica of every door that is known, from a worker, and learn from that."""
        turn = asyncio.Semaphore(PROBES)

        async def look(url: str) -> Attempt | None:
            spec = ProbeSpec(url, self._rules.limits, self._rules.credentials)
            async with turn:
                return await self._engine.probe(spec)

        found = await asyncio.gather(*map(look, self.doors.urls()))
        attempts = [one for one in found if one is not None]
        for one in attempts:
            self.doors.heard([one])
        return attempts

    def wake(self, *request_ids: str) -> None:
        """Look at the rows now; and whether the given requests have ended."""
        self._checks.update(request_ids)
        self._bell.set()

    async def stop(self, request_id: str) -> None:
        """Drop the files of a request that are inside the engine."""
        chosen = [key for key, work in self._inside.items() if work.request_id == request_id]
        works = [self._inside.pop(key) for key in chosen]
        left = [key for work in works for key in (work.object_key, work.raced_key)]
        self._looked.pop(request_id, None)
        await self._engine.stop([one for key in chosen for one in self._races.dropped(key)])
        self._races.forget(request_id)
        # one that ended in the meantime may have left an object that no row will name; the answer
        # comes from the writer, behind what is being recorded at this moment
        await self._objects.delete(await self._database.write(request_rows.unused, left))
        self._bell.set()

    def _on_end(self, outcome: Outcome) -> None:
        work = self._inside.get(outcome.of)
        rses = {one.url: one.rse for one in work.file.replicas} if work else {}
        self.doors.heard(outcome.attempts, read=outcome.bytes_read, rses=rses)
        ended, loser = self._races.ended(outcome)
        if ended is not None:
            self._ended.append(ended)
            self._bell.set()
        if loser and work is not None:
            left = work.object_key if outcome.raced else work.raced_key
            task = asyncio.create_task(self._end_loser(loser, left))
            self._beside.add(task)
            task.add_done_callback(self._beside.discard)

    async def _end_loser(self, key: str, object_key: str) -> None:
        await self._engine.stop([key])
        await self._objects.delete([object_key])

    def _again(self, outcomes: Sequence[Outcome]) -> None:
        self._ended += outcomes
        self._bell.set()

    def _latest(self, spec: TaskSpec) -> TaskSpec:
        """Return a task with its replicas in the order that is best by now."""
        key = spec.name or spec.path
        ranked = self._in_order(spec.replicas, key, probe=not spec.raced)
        if spec.raced and ranked:  # the first is what it is raced with
            slow = ranked[0].url
            ranked = tuple(sorted(ranked, key=lambda replica: replica.url == slow))
        return replace(spec, replicas=ranked)

    def _in_order(
        self, replicas: tuple[Replica, ...], key: str, *, probe: bool
    ) -> tuple[Replica, ...]:
        ranked = self.doors.ranked(replicas, probe=probe)
        return self.doors.by_cache(ranked, key, self._rules.caches, probe=probe)

    async def _run(self) -> None:
        while True:
            self._bell.clear()
            try:
                await self._record()
                await self._reconcile()
                wait = await self._feed()
                self._race()
            except Exception:
                # the database may be away for a moment; nothing is lost, for the rows stay
                log.exception("dispatch is interrupted; it goes on in a second")
                wait, self._in_doubt = 1.0, True
            # not wait_for: in Python 3.11 that may swallow the cancellation that ends this loop
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._bell.wait()

    def _race(self) -> None:
        """Have slow files read from another replica too, by workers that are idle."""
        if not self._rules.race:
            return
        workers = self._engine.workers()
        idle = sum(not worker.task and not worker.problem for worker in workers)
        for worker in workers:
            work = self._inside.get(worker.task)
            if not idle or work is None or worker.since is None or len(work.file.replicas) == 1:
                continue
            seconds = (now() - worker.since).total_seconds()
            if self._races.is_raced(worker.task) or not self._races.worth_it(
                work.request_id, seconds
            ):
                continue
            idle -= 1
            rival = self._spec(work, raced=True)
            self._races.begin(work.request_id, worker.task, rival.key)
            log.info("file is raced after %.1f s", seconds, extra={"request_id": work.request_id})
            self._engine.submit(rival, avoid=worker.name)

    async def _reconcile(self) -> None:
        """Let files wait again that the rows call running, after an answer of theirs was lost."""
        if self._in_doubt:
            inside = [work.task_id for work in self._inside.values()]
            await self._database.write(rows.recover, keep=inside)
            self._in_doubt = False

    async def _record(self) -> None:
        ended, checks = self._ended, self._checks
        self._ended, self._checks = [], set()
        try:
            await self._write(ended, checks)
        except BaseException:
            self._ended, self._checks = ended + self._ended, checks | self._checks
            raise

    async def _write(self, ended: list[Outcome], checks: Iterable[str]) -> None:
        results = []
        for outcome in ended:
            named = self._elsewhere.named(outcome)
            if (work := self._inside.get(outcome.of)) is None:
                continue
            if named is None and self._elsewhere.takes(work, outcome):
                continue
            made = outcome.error is None and not outcome.parts
            results.append(
                outcome_rows.Recorded(
                    work.task_id,
                    outcome,
                    object_name=work.object_name if made else "",
                    object_key=(work.raced_key if outcome.raced else work.object_key)
                    if made
                    else "",
                    file=work.file,
                    named=named,
                )
            )
        wanted = set(checks)
        orphans: list[str] = []
        if results:
            touched, orphans = await self._database.write(
                outcome_rows.record, results, most_attempts=self._rules.attempts
            )
            wanted |= touched
        for result in results:
            if self._inside.pop(result.outcome.of, None) and not result.outcome.parts:
                self.counts.task(result.outcome)
            _tell(result.outcome)
        self._resting -= wanted
        await self._objects.delete(orphans)
        if wanted:
            states = await self._database.write(
                outcome_rows.finish, wanted, fatal_after=self._rules.fatal_after
            )
            self.counts.requests(states.values())
            for request_id, state in states.items():
                log.info("request ended: %s", state.value, extra={"request_id": request_id})
                self._looked.pop(request_id, None)
                self._races.forget(request_id)
                if state is RequestState.FATAL:
                    await self.stop(request_id)

    async def _feed(self) -> float | None:
        """Hand files to the engine; return the seconds for which that is all, None for any time."""
        demand = await self._database.read(rows.demand)
        self._scale(sum(one.left for one in demand))
        free = WINDOW * self._engine.slots - (len(self._inside) - len(self._elsewhere))
        if len(self._elsewhere) > MOST:
            free = 0  # the catalogue is slow
        again = False
        if free > 0:
            awake = [one for one in demand if one.request_id not in self._resting]
            at_work = Counter(work.request_id for work in self._inside.values())
            for request_id, count in shares(awake, at_work, free, self._rules.caps).items():
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
        most = max(count, self._looked.get(request_id, count))
        works = await self._database.read(rows.waiting, request_id, most)
        if len(works) < count:
            self._resting.add(request_id)
        if not works:
            return False
        known: dict[int, str] = {}
        if self._rules.share is not Sharing.NONE:
            known = await asyncio.to_thread(_identities, works)
        reused: set[int] = set()
        if known:
            reused = await self._database.write(
                outcome_rows.reuse, works, known, of=self._rules.share
            )
        chosen = [work for work in works if work.task_id not in reused][:count]
        for number, work in enumerate(await self._database.write(rows.begin, chosen, known)):
            self._submit(work)
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        if reused:
            self.counts.reused(len(reused))
            log.info("%d files were there already", len(reused), extra={"request_id": request_id})
            self._looked[request_id] = min(MOST_REUSED, max(64, 4 * len(reused)))
            self._checks.add(request_id)
            self._resting.discard(request_id)
        return bool(reused)

    def _submit(self, work: rows.Work) -> None:
        spec = self._spec(work)
        self._inside[spec.key] = work
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

    def _spec(self, work: rows.Work, *, raced: bool = False) -> TaskSpec:
        limits = self._rules.limits
        url = self._objects.upload_url(
            work.raced_key if raced else work.object_key, seconds=UPLOAD_SECONDS
        )
        return TaskSpec(
            request_id=work.request_id,
            file_id=work.file_id,
            attempt=work.attempt,
            replicas=work.file.replicas,
            language=work.language,
            selection=work.selection,
            format=work.format,
            object_name=work.object_name,
            upload_url=url,
            limits=limits if work.seconds is None else replace(limits, seconds=work.seconds),
            entries=work.entries,
            name=work.file.name,
            size=work.file.size,
            adler32=work.file.adler32,
            whole=self._rules.whole,
            credentials=self._rules.credentials,
            raced=raced,
        )

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


def _identities(works: Sequence[rows.Work]) -> dict[int, str]:
    """Return by id of the task what its work is known by, where that is known."""
    return {work.task_id: known for work in works if (known := identity(work)) is not None}


def _tell(outcome: Outcome) -> None:
    extra = {
        "request_id": outcome.request_id,
        "file_id": outcome.file_id,
        "worker": outcome.worker or None,
    }
    if outcome.parts:
        log.info("file is done in %d parts", len(outcome.parts), extra=extra)
    elif outcome.error is None:
        log.debug("file done in %.3f s", outcome.seconds, extra=extra)
    else:
        log.info("file failed: %s: %s", outcome.error.kind, outcome.error.message, extra=extra)
