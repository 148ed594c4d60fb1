"""Running finders: a dataset's files become rows in batches, each runnable at once."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from servicex_server import plugins
from servicex_server.database import datasets as dataset_rows
from servicex_server.database import requests as request_rows
from servicex_server.database import tasks as task_rows
from servicex_server.database.connection import Database
from servicex_server.dispatch import Dispatcher
from servicex_server.errors import DatasetError, ServiceXError, UnknownDatasetError
from servicex_server.finders.contract import Finder
from servicex_server.model import DatasetState, InputFile, RequestState

log = logging.getLogger(__name__)

BATCH = 1000
"""Files that are stored at a time; the first batch is smaller, so that work starts early."""

FIRST_BATCH = 50

_WAITING = (RequestState.LOOKUP, RequestState.PENDING_LOOKUP, RequestState.SUBMITTED)


class Lookups:
    """The look-ups that run in this process, one for a dataset at a time."""

    def __init__(self, database: Database, dispatcher: Dispatcher) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._running: dict[int, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Break off; who begins a look-up again goes on with it."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def begin(self, dataset_id: int) -> None:
        """Look a dataset up, unless that is being done."""
        if dataset_id in self._running:
            return
        task = asyncio.create_task(self._look_up(dataset_id), name=f"lookup-{dataset_id}")
        self._running[dataset_id] = task
        task.add_done_callback(lambda _: self._running.pop(dataset_id, None))

    async def _look_up(self, dataset_id: int) -> None:
        try:
            await self._look_up_or_fail(dataset_id)
        except OperationalError as error:
            # nobody's fault; whoever asks for this look-up next goes on with it
            log.warning("a look-up is broken off: %s", error, extra={"dataset_id": dataset_id})

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
        finder: Finder = plugins.load("finders", name, wire_name="did")()
        await self._database.write(dataset_rows.set_state, dataset_id, DatasetState.LOOKING)
        # a look-up that was broken off goes on after the files it has stored
        stored = await self._database.read(dataset_rows.count_files, dataset_id)
        batch: list[InputFile] = []
        seen = 0
        options: Mapping[str, str] = reference.get("options", {})
        async for file in finder.find(reference["value"], options):
            seen += 1
            if seen <= stored:
                continue
            batch.append(file)
            if len(batch) >= (BATCH if stored else FIRST_BATCH):
                stored = await self._store(dataset_id, stored, batch)
                batch = []
        if batch:
            await self._store(dataset_id, stored, batch)
        requests = await self._database.write(_complete, dataset_id)
        self._dispatcher.wake(*requests)

    async def _store(self, dataset_id: int, stored: int, batch: Sequence[InputFile]) -> int:
        await self._database.write(_store, dataset_id, stored, batch)
        self._dispatcher.wake()
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


def split_options(reference: str) -> tuple[str, dict[str, str]]:
    """Split what follows the last ``?`` off a dataset reference, if it is ``files=N``.

    Examples
    --------
    >>> split_options("scope:name?files=3")
    ('scope:name', {'files': '3'})
    >>> split_options("root://host//a?b.root")
    ('root://host//a?b.root', {})
    """
    body, mark, tail = reference.rpartition("?")
    if not mark or "=" not in tail:
        return reference, {}
    options: dict[str, Any] = dict(part.split("=", 1) for part in tail.split("&") if "=" in part)
    return body, options
