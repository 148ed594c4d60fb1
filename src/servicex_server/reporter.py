"""Writing down what only the leader knows, for every process to show: workers and counts.

Only what has changed is written, so that a service without work leaves its database alone; but how
the service is goes into its history each minute.
"""

import asyncio
import logging
from collections import Counter
from typing import Any

from sqlalchemy.exc import OperationalError

from servicex_server.database import history, open_requests, snapshots, use
from servicex_server.database.connection import Database
from servicex_server.database.tasks import Work
from servicex_server.dispatch import Dispatcher
from servicex_server.engines.contract import Engine
from servicex_server.model import TaskState, WorkerInfo, now
from servicex_server.objects.contract import ObjectStore

log = logging.getLogger(__name__)

WRITE_SECONDS = 2.0
"""Seconds between two looks at what has changed; with very many workers, up to five times that."""

HISTORY_SECONDS = 60.0
"""Seconds between two rows of the history."""

_MANY = 1000
"""Workers from which on a look is taken more seldom."""

_MEMORY = 10_000_000
"""Bytes that memory is rounded to: less says nothing, and would change all the time."""

_ERROR = 500
"""Characters of an error that are shown."""


class Reporter:
    """Writes down how the dispatcher and its workers do.

    Parameters
    ----------
    database
        Refuses writes once this process does not lead any more.
    objects
        Where results are, which may become full.
    """

    def __init__(
        self, database: Database, dispatcher: Dispatcher, engine: Engine, objects: ObjectStore
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._engine = engine
        self._objects = objects
        self._written: dict[str, dict[str, Any]] = {}

    async def run(self) -> None:
        """Write again and again."""
        while True:
            workers = len(self._engine.workers())
            await asyncio.sleep(WRITE_SECONDS * min(5.0, max(1.0, workers / _MANY)))
            try:
                await self.write()
            except OperationalError as error:
                log.info("how the workers do is not written down: %s", error)
            except Exception:
                log.exception("how the workers do cannot be written down")

    async def run_history(self) -> None:
        """Write a row of the history now, and then again and again."""
        while True:
            try:
                await self.write_history()
            except OperationalError as error:
                log.info("the history has a gap: %s", error)
            except Exception:
                log.exception("the history cannot be written")
            await asyncio.sleep(HISTORY_SECONDS)

    async def write_history(self) -> None:
        """Write down how the service is at this moment."""
        states = Counter(state_of(worker) for worker in self._engine.workers())
        disk = await self._objects.disk()
        totals = await self._database.read(open_requests.totals)
        seen = history.Moment(
            at=now(),
            wanted=self._dispatcher.decision.workers,
            there=states.total(),
            busy=states["busy"],
            waiting=totals.files[TaskState.WAITING],
            stored=await self._database.read(use.stored),
            free=disk.free if disk else None,
        )
        await self._database.write(history.put, seen)

    async def write(self) -> None:
        """Write down what has changed since the last time."""
        there = self._dispatcher.workers()
        wanted = self._dispatcher.decision
        seen: dict[str, dict[str, Any]] = {
            snapshots.WORKERS: {
                "workers": [_worker(worker, work) for worker, work in there],
                "wanted": wanted.workers,
                "reason": wanted.reason,
                "scheduler": self._engine.address,
            },
            snapshots.SITES: {"doors": self._dispatcher.doors.as_dict()},
            snapshots.COUNTS: self._dispatcher.counts.as_dict()
            | {
                "idle": sum(state_of(worker) == "idle" for worker, _ in there),
                "busy": sum(state_of(worker) == "busy" for worker, _ in there),
                "unfit": sum(state_of(worker) == "unfit" for worker, _ in there),
                "wanted": wanted.workers,
                "restarts": self._engine.restarts,
            },
        }
        changed = {name: one for name, one in seen.items() if one != self._written.get(name)}
        if changed:
            await self._database.write(snapshots.put, changed)
            self._written |= changed


def state_of(worker: WorkerInfo) -> str:
    """Return in a word how a worker does: whether it may have tasks, and has one."""
    if worker.problem:
        return "unfit"
    return "busy" if worker.task else "idle"


def _worker(worker: WorkerInfo, work: Work | None) -> dict[str, Any]:
    return {
        "name": worker.name,
        "address": worker.address,
        "state": state_of(worker),
        "problem": worker.problem[:_ERROR],
        "request": work.request_id if work else None,
        "file": work.file.path if work else None,
        "since": worker.since.isoformat() if worker.since else None,
        "memory": round(worker.memory / _MEMORY) * _MEMORY,
        "limit": worker.memory_limit,
        "done": worker.done,
        "error": worker.last_error[:_ERROR],
    }
