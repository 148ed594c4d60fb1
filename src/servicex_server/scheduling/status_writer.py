"""Stores the status that only the leader knows, so that every process can show it.

Only changes are stored, so that an idle service does not write. Once a minute, a row of the history
is stored.
"""

import asyncio
import logging
from collections import Counter
from typing import Any

from sqlalchemy.exc import OperationalError

from servicex_server.database import (
    active_requests,
    service_history,
    status_snapshots,
    stored_objects,
)
from servicex_server.database.connection import Database
from servicex_server.database.tasks import Work
from servicex_server.engine.contract import Engine
from servicex_server.model import TaskState, WorkerInfo, now
from servicex_server.scheduling.dispatcher import Dispatcher
from servicex_server.storage.contract import ObjectStore
from servicex_server.text.escaping import redacted

log = logging.getLogger(__name__)

WRITE_SECONDS = 2.0
"""Seconds between two checks for changes; with very many workers, up to five times as many."""

HISTORY_SECONDS = 60.0
"""Seconds between two rows of the history."""

_MANY = 1000
"""Number of workers above which changes are checked less often."""

_MEMORY = 10_000_000
"""Bytes that memory is rounded to. A smaller unit would change all the time."""

_ERROR = 500
"""Characters of an error that are shown."""


class StatusWriter:
    """Stores the status of the dispatcher and its workers.

    Parameters
    ----------
    database
        Refuses writes once this process does not lead any more.
    objects
        The object store, whose free space is part of the history.
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
        """Store changes every few seconds."""
        while True:
            workers = len(self._engine.workers())
            await asyncio.sleep(WRITE_SECONDS * min(5.0, max(1.0, workers / _MANY)))
            try:
                await self.write()
            except OperationalError as error:
                log.info("the status is not stored: %s", error)
            except Exception:
                log.exception("the status cannot be stored")

    async def run_history(self) -> None:
        """Store a row of the history now, and then every minute."""
        while True:
            try:
                await self.write_history()
            except OperationalError as error:
                log.info("the history has a gap: %s", error)
            except Exception:
                log.exception("the history cannot be written")
            await asyncio.sleep(HISTORY_SECONDS)

    async def write_history(self) -> None:
        """Store the present state of the service."""
        states = Counter(state_of(worker) for worker in self._engine.workers())
        disk = await self._objects.disk()
        totals = await self._database.read(active_requests.totals)
        seen = service_history.Moment(
            at=now(),
            wanted=self._dispatcher.decision.workers,
            there=states.total(),
            busy=states["busy"],
            waiting=totals.files[TaskState.WAITING],
            stored=await self._database.read(stored_objects.size),
            free=disk.free if disk else None,
        )
        await self._database.write(service_history.put, seen)

    async def write(self) -> None:
        """Store what has changed since the last call."""
        there = self._dispatcher.workers()
        wanted = self._dispatcher.decision
        seen: dict[str, dict[str, Any]] = {
            status_snapshots.WORKERS: {
                "workers": [_worker(worker, work) for worker, work in there],
                "wanted": wanted.workers,
                "reason": self._dispatcher.store_problem or wanted.reason,
                "pending": self._engine.pending,
                "store": self._dispatcher.store_problem,
                "scheduler": self._engine.address,
            },
            status_snapshots.SITES: {"endpoints": self._dispatcher.endpoints.as_dict()},
            status_snapshots.COUNTS: self._dispatcher.counts.as_dict()
            | {
                "idle": sum(state_of(worker) == "idle" for worker, _ in there),
                "busy": sum(state_of(worker) == "busy" for worker, _ in there),
                "unfit": sum(state_of(worker) == "unfit" for worker, _ in there),
                "wanted": wanted.workers,
                "restarts": self._engine.restarts,
                "replaced": self._engine.replaced,
                "pending": self._engine.pending,
                "store_open": bool(self._dispatcher.store_problem),
            },
        }
        changed = {name: one for name, one in seen.items() if one != self._written.get(name)}
        if changed:
            await self._database.write(status_snapshots.put, changed)
            self._written |= changed


def state_of(worker: WorkerInfo) -> str:
    """Return the state of a worker: ``unfit``, ``busy`` or ``idle``."""
    if worker.problem:
        return "unfit"
    return "busy" if worker.task else "idle"


def _worker(worker: WorkerInfo, work: Work | None) -> dict[str, Any]:
    return {
        "name": worker.name,
        "address": worker.address,
        "state": state_of(worker),
        "problem": redacted(worker.problem)[:_ERROR],
        "request": work.request_id if work else None,
        "file": redacted(work.file.path) if work else None,
        "since": worker.since.isoformat() if worker.since else None,
        "memory": round(worker.memory / _MEMORY) * _MEMORY,
        "limit": worker.memory_limit,
        "done": worker.done,
        "error": redacted(worker.last_error)[:_ERROR],
    }
