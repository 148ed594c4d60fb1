"""Choosing files fairly from the rows, feeding the engine, and writing down how they end.

A bounded window of tasks is inside the engine; everything else is rows. The loop may be killed at
any line: at the next start, what was running is waiting again.
"""

import asyncio
import logging
from collections.abc import Iterable

from servicex_server.database import tasks as rows
from servicex_server.database.connection import Database
from servicex_server.engines.contract import Engine
from servicex_server.errors import ErrorRecord
from servicex_server.model import (
    CheckSpec,
    Limits,
    Outcome,
    RequestState,
    TaskSpec,
    WorkerInfo,
    now,
    object_name,
)
from servicex_server.objects.contract import UNFINISHED, ObjectStore

log = logging.getLogger(__name__)

WINDOW = 2
"""Tasks inside the engine for each slot: one that runs, one that is ready behind it."""

UPLOAD_SECONDS = 7 * 24 * 3600.0
"""How long an upload URL works: as long as S3 signatures may, for a task may wait."""


class Dispatcher:
    """Moves files from the rows to the engine and their outcomes back.

    Parameters
    ----------
    limits
        What the work on one file may use.
    most_attempts
        How often a file is tried when its error may pass.
    fatal_after
        Files with the same query error that end a request.
    """

    def __init__(
        self,
        database: Database,
        engine: Engine,
        objects: ObjectStore,
        *,
        limits: Limits,
        most_attempts: int,
        fatal_after: int,
    ) -> None:
        self._database = database
        self._engine = engine
        self._objects = objects
        self._limits = limits
        self._most_attempts = most_attempts
        self._fatal_after = fatal_after
        self._bell = asyncio.Event()
        self._inside: dict[str, TaskSpec] = {}
        self._keys: dict[str, str] = {}
        self._ended: list[Outcome] = []
        self._checks: set[str] = set()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up what the last run left, and begin."""
        await self._engine.start(self._on_end)
        await self._sweep(await self._database.read(rows.interrupted))
        taken_up = await self._database.write(rows.recover)
        if taken_up:
            log.info("%d files were running when the service ended; they start again", taken_up)
        self._loop = asyncio.create_task(self._run(), name="dispatch")

    async def _sweep(self, request_ids: Iterable[str]) -> None:
        """Remove what workers had written in part when they were killed."""
        for request_id in request_ids:
            found = await self._objects.list(request_id)
            names = {info.key: info.key.rpartition("/")[2] for info in found}
            await self._objects.delete(
                k for k, name in names.items() if name.startswith(UNFINISHED)
            )

    async def close(self) -> None:
        """Write down what has ended and stop; what runs is taken up at the next start."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await self._record()
        await self._engine.close()

    @property
    def healthy(self) -> bool:
        """Whether the loop runs."""
        return self._loop is not None and not self._loop.done()

    async def workers(self) -> list[WorkerInfo]:
        """Return the workers, idle or busy."""
        return await self._engine.workers()

    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Hold a query against a file, beside the tasks; return the error found, if any."""
        return await self._engine.check(spec)

    def wake(self, *request_ids: str) -> None:
        """Look at the rows now; and whether the given requests have ended."""
        self._checks.update(request_ids)
        self._bell.set()

    async def stop(self, request_id: str) -> None:
        """Drop the files of a request that are inside the engine."""
        chosen = [key for key, spec in self._inside.items() if spec.request_id == request_id]
        for key in chosen:
            self._inside.pop(key, None)
        await self._engine.stop(chosen)
        # one that ended in the meantime may have left an object that no row will name; the answer
        # comes from the writer, behind what is being recorded at this moment
        left = [self._keys.pop(key) for key in chosen if key in self._keys]
        await self._objects.delete(await self._database.write(rows.unnamed, request_id, left))
        self._bell.set()

    def _on_end(self, outcome: Outcome) -> None:
        self._ended.append(outcome)
        self._bell.set()

    async def _run(self) -> None:
        while True:
            self._bell.clear()
            try:
                await self._record()
                await self._feed()
                wait = await self._patience()
            except Exception:
                # the database may be away for a moment; nothing is lost, for the rows stay
                log.exception("dispatch is interrupted; it goes on in a second")
                wait = 1.0
            try:
                await asyncio.wait_for(self._bell.wait(), wait)
            except TimeoutError:
                continue

    async def _patience(self) -> float | None:
        """Return how long there is nothing to do, in seconds; None until the bell rings."""
        if len(self._inside) >= WINDOW * self._engine.slots:
            return None
        due = await self._database.read(rows.next_due)
        return None if due is None else max(0.05, (due - now()).total_seconds())

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
            key = outcome.key
            spec = self._inside.get(key)
            if spec is None:
                continue
            made = outcome.error is None and not outcome.parts
            results.append(
                rows.Recorded(
                    outcome,
                    object_name=spec.object_name if made else "",
                    object_key=self._keys[key] if made else "",
                )
            )
        touched, orphans = (
            await self._database.write(rows.record, results, most_attempts=self._most_attempts)
            if results
            else (set(), [])
        )
        for result in results:
            outcome = result.outcome
            self._inside.pop(outcome.key, None)
            self._keys.pop(outcome.key, None)
            _tell(outcome)
        await self._objects.delete(orphans)
        if wanted := touched | set(checks):
            states = await self._database.write(rows.finish, wanted, fatal_after=self._fatal_after)
            for request_id, state in states.items():
                log.info("request ended: %s", state.value, extra={"request_id": request_id})
                if state is RequestState.FATAL:
                    await self.stop(request_id)

    async def _feed(self) -> None:
        free = WINDOW * self._engine.slots - len(self._inside)
        if free <= 0:
            return
        for claimed in await self._database.write(rows.claim, free):
            name = object_name(claimed.position, claimed.file, claimed.format, claimed.entries)
            # each attempt has a key of its own: a late one never writes over another's object
            key = f"{claimed.request_id}/{claimed.attempt}/{name}"
            spec = TaskSpec(
                request_id=claimed.request_id,
                file_id=claimed.file_id,
                attempt=claimed.attempt,
                replicas=claimed.file.replicas,
                language=claimed.language,
                selection=claimed.selection,
                format=claimed.format,
                object_name=name,
                upload_url=self._objects.upload_url(key, seconds=UPLOAD_SECONDS),
                limits=self._limits,
                entries=claimed.entries,
            )
            self._inside[spec.key] = spec
            self._keys[spec.key] = key
            self._engine.submit(spec)


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
