"""What only the process has that leads: the workers, the dispatcher, the look-ups.

Which requests there are is told by the rows. The leader reads them about every second, and at once
when it is told to; so a word that is lost, of a process that died or over a connection that broke,
delays something by that second and changes nothing else.
"""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy.exc import OperationalError

from servicex_server.database import open_requests
from servicex_server.database.connection import Database
from servicex_server.dispatch import Dispatcher, Rules
from servicex_server.engines.contract import Engine
from servicex_server.fairness import Caps
from servicex_server.lookup import Lookups, places_of
from servicex_server.model import Limits, RequestState
from servicex_server.objects.contract import ObjectStore
from servicex_server.reporter import Reporter
from servicex_server.reporting import Reports, sinks_of
from servicex_server.retention import clear_left
from servicex_server.scaling import Scaling
from servicex_server.settings import Settings

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often the rows are read when nobody says that there is something new."""

_BESIDE = (RequestState.CANCELED, RequestState.BAD_DATASET)
"""How requests end without the dispatcher, which counts all others."""

WAKE = "wake"
"""Word of another process: there is something new in the rows."""

STOPPED = "stopped"
"""Word of another process: this request was cancelled or deleted."""


class Leader:
    """Begins the look-up of new requests, has their files done, and stops what was cancelled.

    Parameters
    ----------
    database
        Refuses writes once this process does not lead any more.
    engine
        Where tasks run; a test's double instead of worker processes.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        objects: ObjectStore,
        *,
        engine: Engine | None = None,
    ) -> None:
        self._database = database
        self._objects = objects
        self._engine = engine or _workers(settings)
        self.dispatcher = Dispatcher(
            database,
            self._engine,
            objects,
            rules=Rules(
                limits=Limits(
                    seconds=settings.file_seconds,
                    stall=settings.stall_seconds,
                    opening=settings.open_seconds,
                    silence=settings.silence_seconds,
                    memory=settings.worker_memory,
                    chunk=settings.chunk_bytes,
                    part=settings.part_bytes,
                ),
                attempts=settings.attempts,
                fatal_after=settings.fatal_after,
                caps=Caps(
                    user=settings.files_per_user_at_once,
                    request=settings.files_per_request_at_once,
                ),
                share=settings.share_results,
                credentials=settings.credentials,
                caches=settings.caches,
                whole=settings.whole_files,
                race=settings.race_replicas,
            ),
            scaling=Scaling(
                least=settings.least_workers,
                most=settings.workers,
                patience=settings.idle_seconds,
            ),
            ask_again=partial(places_of, database, settings),
        )
        self.lookups = Lookups(database, self.dispatcher, settings)
        self._reporter = Reporter(database, self.dispatcher, self._engine, objects)
        self._reports = Reports(database, sinks_of(settings))
        self._probe_seconds = settings.probe_seconds
        self._bell = asyncio.Event()
        self._known: set[str] = set()
        self._beside: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bring the workers up and take up what the last leader left.

        Raises
        ------
        StartupError
            The workers cannot be started.
        """
        try:
            await self.dispatcher.recall()
            # what the last leader wrote down of its workers is not so any more
            await self._reporter.write()
            await self.dispatcher.start()
        except BaseException:
            await self._engine.close()
            raise
        self._keep(self._watch())
        self._keep(self._reporter.run())
        self._keep(self._reporter.run_history())
        self._keep(self._reports.run())
        self._keep(self._clear_left())
        if self._probe_seconds:
            self._keep(self._probe())

    async def close(self, *, lost: bool = False) -> None:
        """Write down what has ended, if this process may still write, and end the workers.

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
        except Exception as error:  # noqa: BLE001  # whatever it is, the workers have to end
            # the next leader finds these files running in the rows, and has them done again
            log.warning("what has ended last could not be written down: %s", error)
            await self._engine.close()

    def wake(self) -> None:
        """Look at the rows now."""
        self._bell.set()

    async def stop(self, request_id: str) -> None:
        """Drop the files of a request that are inside the engine."""
        try:
            await self.dispatcher.stop(request_id)
        except OperationalError:
            log.warning("the database is away", extra={"request_id": request_id})

    def heard(self, message: str) -> None:
        """Act on what another process tells."""
        word, _, request_id = message.partition(" ")
        if word == STOPPED:
            self._keep(self.stop(request_id))
        self.wake()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside, and hold on to it until it is done."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _clear_left(self) -> None:
        try:
            await clear_left(self._database, self._objects)
        except Exception:
            log.exception("deleted requests are not cleared; the next leader goes on with it")

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(self._probe_seconds)
            try:
                found = await self.dispatcher.probe()
            except Exception:
                log.exception("the doors of sites cannot be looked at; it is tried again")
            else:
                bad = [one for one in found if one.error is not None]
                log.info("%d doors of sites were looked at, %d are not well", len(found), len(bad))

    async def _watch(self) -> None:
        while True:
            self._bell.clear()
            try:
                await self._look()
            except Exception:
                # the database may be away for a moment; nothing is lost, for the rows stay
                log.exception("new requests cannot be seen; the next look is in a second")
            # not wait_for: before Python 3.12 it loses a cancel that comes together with the bell
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._bell.wait()

    async def _look(self) -> None:
        found, unknown = await self._database.read(open_requests.listed)
        for dataset_id in unknown:
            self.lookups.begin(dataset_id)
        if new := found - self._known:
            self.dispatcher.wake(*new)
        ended = await self._database.read(open_requests.broken_off, self._known - found)
        self._known = found
        self.dispatcher.counts.requests(state for state in ended.values() if state in _BESIDE)
        for request_id in ended:
            self._keep(self.stop(request_id))


def _workers(settings: Settings) -> Engine:
    from servicex_server.engines.clusters import cluster_of
    from servicex_server.engines.dask import DaskEngine

    cluster = cluster_of(settings.engine, memory=settings.worker_memory, folder=settings.data_dir)
    return DaskEngine(cluster, workers=settings.least_workers)
