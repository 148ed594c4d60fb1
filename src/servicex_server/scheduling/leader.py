"""The leader: the workers, the dispatcher and the look-ups, which only one process has.

The rows say which requests are active. The leader reads them every second, and at once after a
notification. So a notification that is lost delays a request by a second and changes nothing else.
"""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy.exc import OperationalError

from servicex_server.database import active_requests, status_snapshots
from servicex_server.database.connection import Database
from servicex_server.datasets.lookup import Lookups
from servicex_server.engine.contract import Engine
from servicex_server.errors import StoreUnavailableError
from servicex_server.model import RequestState, now
from servicex_server.observability import logs
from servicex_server.replicas.refresh import current_replicas
from servicex_server.replicas.reporting import BadReplicaReporter, sinks_of
from servicex_server.requests.deletion import clear_left
from servicex_server.retention.budget import RetentionPolicy, StoreBudget
from servicex_server.retention.reconciliation import reconcile
from servicex_server.scheduling.autoscaling import Scaling
from servicex_server.scheduling.dispatcher import Dispatcher
from servicex_server.scheduling.policy import DispatchPolicy
from servicex_server.scheduling.reuse import Digest
from servicex_server.scheduling.status_writer import StatusWriter
from servicex_server.settings.service import Settings
from servicex_server.storage.contract import ObjectStore

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Seconds between two reads of the rows, without a notification."""

RECONCILE_EVERY = timedelta(days=1)
"""Time between two reconciliations with the object store."""

RECONCILE_LOOK = timedelta(minutes=10)
"""Time between two looks whether a reconciliation is due."""

BUDGET_SECONDS = 60.0
"""Seconds between two measurements of the object store."""

CLEAR_SECONDS = 15.0
"""Seconds between two looks for deletions that were interrupted."""

_BESIDE = (RequestState.CANCELED, RequestState.BAD_DATASET)
"""States of requests that ended without the dispatcher, which counts all others."""

WAKE = "wake"
"""Notification of another process: the rows have changed."""

STOPPED = "stopped"
"""Notification of another process: this request was cancelled or deleted."""


class Leader:
    """Starts the look-ups of new requests, dispatches their files, and stops cancelled requests.

    Parameters
    ----------
    database
        Refuses writes once this process does not lead any more.
    digest
        Returns the same digest for queries of the same meaning.
    engine
        Runs the tasks; None for the engine of the settings.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        objects: ObjectStore,
        *,
        digest: Digest,
        engine: Engine | None = None,
    ) -> None:
        self._database = database
        self._objects = objects
        self._engine = engine or _workers(settings)
        self._budget = StoreBudget(database, objects, RetentionPolicy.from_settings(settings))
        self.dispatcher = Dispatcher(
            database,
            self._engine,
            objects,
            policy=DispatchPolicy.from_settings(settings),
            scaling=Scaling(
                least=settings.least_workers,
                most=settings.workers,
                patience=settings.scaling.idle_seconds,
            ),
            ask_again=partial(current_replicas, database, settings),
            digest=digest,
            budget=self._budget,
        )
        self.lookups = Lookups(database, self.dispatcher.wake, settings)
        self._status = StatusWriter(database, self.dispatcher, self._engine, objects)
        self._reports = BadReplicaReporter(database, sinks_of(settings))
        self._probe_seconds = settings.reports.probe_seconds
        self._bell = asyncio.Event()
        self._known: set[str] = set()
        self._beside: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the workers and take up what the last leader left.

        Raises
        ------
        StartupError
            The workers cannot be started.
        """
        try:
            await self.dispatcher.recall()
            # the status that the last leader stored is outdated
            await self._status.write()
            await self._budget.measure()
            await self.dispatcher.start()
        except BaseException:
            await self._engine.close()
            raise
        self._keep(self._watch())
        self._keep(self._status.run())
        self._keep(self._status.run_history())
        self._keep(self._reports.run())
        self._keep(self._clear_left())
        self._keep(self._reconcile())
        self._keep(self._keep_budget())
        if self._probe_seconds:
            self._keep(self._probe())

    async def close(self, *, lost: bool = False) -> None:
        """Store what has ended, if this process may still write, and end the workers.

        Parameters
        ----------
        lost
            Whether another process may lead by now.
        """
        if lost:
            self._engine.disown()
        beside = list(self._beside)
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await self.lookups.close()
        try:
            await self.dispatcher.close()
        except Exception as error:  # noqa: BLE001  # the workers have to end in any case
            # in the rows these files still run; the next leader starts them again
            log.warning("the last outcomes could not be stored: %s", error)
            await self._engine.close()

    def wake(self, request_id: str) -> None:
        """Look at the rows now, and begin the new tasks of a request."""
        # also of one that has ended and got new tasks since the last look, which is not new there
        self.dispatcher.wake(request_id)
        self._bell.set()

    async def stop(self, request_id: str) -> None:
        """Drop the files of a request that are inside the engine."""
        try:
            await self.dispatcher.stop(request_id)
        except OperationalError:
            log.warning("the database is away", extra={"request_id": request_id})

    def heard(self, message: str) -> None:
        """Handle a notification of another process."""
        word, _, request_id = message.partition(" ")
        if word == STOPPED:
            self._keep(self.stop(request_id))
        self.wake(request_id)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background, and keep a reference until it is done."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _clear_left(self) -> None:
        """Finish deletions that were interrupted: by the end of a process, or by the store."""
        while True:
            try:
                await clear_left(self._database, self._objects)
            except (OperationalError, StoreUnavailableError) as error:
                log.warning("deleted requests cannot be cleared now: %s", error)
            except Exception:
                log.exception("deleted requests cannot be cleared")
            await asyncio.sleep(CLEAR_SECONDS)

    async def _reconcile(self) -> None:
        """Compare the object store with the rows, once a day."""
        while True:
            await asyncio.sleep(RECONCILE_LOOK.total_seconds())
            try:
                last = await self._database.read(status_snapshots.get, status_snapshots.RECONCILED)
                if last is not None and timedelta() <= now() - last.at < RECONCILE_EVERY:
                    continue
                found = await reconcile(self._database, self._objects, at=now())
                await self._database.write(
                    status_snapshots.put, {status_snapshots.RECONCILED: asdict(found)}
                )
            except (OperationalError, StoreUnavailableError) as error:
                log.warning("the object store cannot be compared with the rows now: %s", error)
            except Exception:
                log.exception("the object store cannot be compared with the rows")

    async def _keep_budget(self) -> None:
        """Measure the store and evict results, now and then every minute."""
        while True:
            before = self._budget.problem
            try:
                await self._budget.look(now())
            except (OperationalError, StoreUnavailableError) as error:
                log.warning("the budget of the object store cannot be kept now: %s", error)
            except Exception:
                log.exception("the budget of the object store cannot be kept")
            if before != self._budget.problem:
                log.warning("%s", self._budget.problem or "files start again: the store has room")
            self.dispatcher.wake()
            await asyncio.sleep(BUDGET_SECONDS)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(self._probe_seconds)
            try:
                found = await self.dispatcher.probe()
            except Exception:
                log.exception("the storage endpoints cannot be probed; they are probed again later")
            else:
                bad = [one for one in found if one.error is not None]
                log.info(
                    "%d storage endpoints were probed, %d attempts failed", len(found), len(bad)
                )

    async def _watch(self) -> None:
        while True:
            self._bell.clear()
            try:
                await self._look()
            except Exception:
                # the database may be away for a moment; nothing is lost, for the rows stay
                log.exception("new requests cannot be read; trying again in a second")
            # not wait_for: before Python 3.12 it loses a cancel that comes together with the bell
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._bell.wait()

    async def _look(self) -> None:
        found, unknown = await self._database.read(active_requests.listed)
        for dataset_id in unknown:
            self.lookups.begin(dataset_id)
        if new := found - self._known:
            self.dispatcher.wake(*new)
        ended = await self._database.read(active_requests.incomplete, self._known - found)
        self._known = found
        self.dispatcher.counts.requests(state for state in ended.values() if state in _BESIDE)
        for request_id in ended:
            self._keep(self.stop(request_id))


def _workers(settings: Settings) -> Engine:
    from servicex_server.clusters.choose import cluster_of
    from servicex_server.engine.dask_engine import DaskEngine

    logs.escape_all()  # distributed was imported with handlers of its own
    cluster = cluster_of(
        settings.engine, memory=settings.limits.worker_memory, folder=settings.data_dir
    )
    return DaskEngine(cluster, workers=settings.least_workers)
