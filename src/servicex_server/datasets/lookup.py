"""Look-up of datasets: a finder yields the files of a dataset, which are stored in batches.

The tasks of a batch can run as soon as it is stored.
"""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from servicex_server.database import datasets as dataset_rows
from servicex_server.database import requests as request_rows
from servicex_server.database import tasks as task_rows
from servicex_server.database.connection import Database
from servicex_server.datasets.finder_registry import open_finder
from servicex_server.errors import (
    CatalogueError,
    DatasetError,
    ServiceXError,
    UnknownDatasetError,
)
from servicex_server.finders.contract import Finder
from servicex_server.model import DatasetState, InputFile, RequestState
from servicex_server.settings.service import Settings

log = logging.getLogger(__name__)


BATCH = 1000
"""Files that are stored at a time; the first batch is smaller, so that work starts early."""


FIRST_BATCH = 50


BATCH_SECONDS = 1.0
"""Seconds after which a batch is stored although it is not full, if a catalogue is slow."""


TRIES, PAUSE = 3, 1.0
"""Attempts at a catalogue that fails, and the seconds before the second one. The pause doubles with
each further attempt."""


_WAITING = (RequestState.LOOKUP, RequestState.PENDING_LOOKUP, RequestState.SUBMITTED)


class Lookups:
    """The look-ups that run in this process, at most one for each dataset.

    Parameters
    ----------
    database
        Where datasets, their files and the requests for them are stored.
    on_files
        Called after files were stored, with the ids of requests that may have ended.
    settings
        The settings of the service, for the finders.
    """

    def __init__(
        self, database: Database, on_files: Callable[..., None], settings: Settings
    ) -> None:
        self._database = database
        self._on_files = on_files
        self._settings = settings
        self._running: dict[int, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Cancel all look-ups; a later `begin` continues them."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def begin(self, dataset_id: int) -> None:
        """Start the look-up of a dataset, unless it is running."""
        if dataset_id in self._running:
            return
        task = asyncio.create_task(self._look_up(dataset_id), name=f"lookup-{dataset_id}")
        self._running[dataset_id] = task
        task.add_done_callback(lambda _: self._running.pop(dataset_id, None))

    async def _look_up(self, dataset_id: int) -> None:
        try:
            await self._look_up_or_fail(dataset_id)
        except OperationalError as error:
            # the database does not answer; the next `begin` continues the look-up
            log.warning("look-up interrupted: %s", error, extra={"dataset_id": dataset_id})

    async def _look_up_or_fail(self, dataset_id: int) -> None:
        try:
            await self._find(dataset_id)
        except OperationalError:
            raise
        except ServiceXError as error:
            state = DatasetState.INTERNAL_FAILURE
            if isinstance(error, UnknownDatasetError):
                state = DatasetState.DOES_NOT_EXIST
            elif isinstance(error, DatasetError):
                state = DatasetState.BAD_NAME
            await self._fail(dataset_id, state, str(error))
        except Exception as error:
            log.exception("a finder failed", extra={"dataset_id": dataset_id})
            await self._fail(
                dataset_id, DatasetState.INTERNAL_FAILURE, f"{type(error).__name__}: {error}"
            )

    async def _find(self, dataset_id: int) -> None:
        name, reference = await self._database.read(dataset_rows.reference_of, dataset_id)
        finder = open_finder(name, self._settings)
        await self._database.write(dataset_rows.set_state, dataset_id, DatasetState.LOOKING)
        for tried in itertools.count(1):
            try:
                await self._stream(dataset_id, finder, reference)
                break
            except CatalogueError as error:
                if not error.retryable or tried == TRIES:
                    raise
                log.warning("%s; trying again", error, extra={"dataset_id": dataset_id})
                await asyncio.sleep(PAUSE * 2 ** (tried - 1))
        requests = await self._database.write(_complete, dataset_id)
        self._on_files(*requests)

    async def _stream(self, dataset_id: int, finder: Finder, reference: Any) -> None:
        """Store the files that a finder yields, without those of an interrupted look-up."""
        names = await self._database.read(dataset_rows.keys_of, dataset_id)
        stored, known = len(names), Counter(names)
        most = reference.get("files")
        batch: list[InputFile] = []
        last = time.monotonic()
        if most is not None and stored >= most:
            return
        async with aclosing(finder.find(reference["value"])) as found:
            async for file in found:
                if known[file.key]:
                    known[file.key] -= 1
                    continue
                batch.append(file)
                full = len(batch) >= (BATCH if stored else FIRST_BATCH)
                enough = stored + len(batch) == most
                if full or enough or time.monotonic() - last > BATCH_SECONDS:
                    stored = await self._store(dataset_id, stored, batch)
                    batch, last = [], time.monotonic()
                if enough:
                    return
        if batch:
            await self._store(dataset_id, stored, batch)

    async def _store(self, dataset_id: int, stored: int, batch: Sequence[InputFile]) -> int:
        await self._database.write(_store, dataset_id, stored, batch)
        self._on_files()
        return stored + len(batch)

    async def _fail(self, dataset_id: int, state: DatasetState, message: str) -> None:
        log.warning("look-up failed: %s", message, extra={"dataset_id": dataset_id})
        await self._database.write(_failed, dataset_id, state, message)


def _store(
    connection: Connection, dataset_id: int, stored: int, batch: Sequence[InputFile]
) -> None:
    dataset_rows.add_files(connection, dataset_id, stored, batch)
    waiting = request_rows.of_dataset(connection, dataset_id, _WAITING)
    request_rows.change_state(connection, waiting, RequestState.LOOKUP)
    task_rows.add_for_dataset(connection, waiting, dataset_id, start=stored)


def _complete(connection: Connection, dataset_id: int) -> list[str]:
    dataset_rows.set_state(connection, dataset_id, DatasetState.COMPLETE)
    waiting = request_rows.of_dataset(connection, dataset_id, _WAITING)
    request_rows.change_state(connection, waiting, RequestState.RUNNING)
    return waiting


def _failed(connection: Connection, dataset_id: int, state: DatasetState, message: str) -> None:
    dataset_rows.set_state(connection, dataset_id, state, message)
    waiting = request_rows.of_dataset(connection, dataset_id, _WAITING)
    request_rows.change_state(connection, waiting, RequestState.BAD_DATASET, failure=message)
    for request_id in waiting:
        request_rows.drop_tasks(connection, request_id)
