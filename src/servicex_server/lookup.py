"""Running finders: a dataset's files become rows in batches, each runnable at once."""

import asyncio
import itertools
import logging
import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from servicex_server import plugins
from servicex_server.database import datasets as dataset_rows
from servicex_server.database import requests as request_rows
from servicex_server.database import tasks as task_rows
from servicex_server.database.connection import Database
from servicex_server.dispatch import Dispatcher
from servicex_server.errors import (
    CatalogueError,
    DatasetError,
    ServiceXError,
    StartupError,
    UnknownDatasetError,
    did_you_mean,
)
from servicex_server.finders.contract import Finder
from servicex_server.model import DatasetState, InputFile, Replica, RequestState
from servicex_server.settings import Settings

log = logging.getLogger(__name__)

BATCH = 1000
"""Files that are stored at a time; the first batch is smaller, so that work starts early."""

FIRST_BATCH = 50

BATCH_SECONDS = 1.0
"""For how long files are gathered, where a catalogue is slow."""

TRIES, PAUSE = 3, 1.0
"""How often a catalogue is asked that fails, and the seconds before it is asked again: each time
twice as many."""

_WAITING = (RequestState.LOOKUP, RequestState.PENDING_LOOKUP, RequestState.SUBMITTED)


class Lookups:
    """The look-ups that run in this process, one for a dataset at a time."""

    def __init__(self, database: Database, dispatcher: Dispatcher, settings: Settings) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._settings = settings
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
        finder = open_finder(name, self._settings)
        await self._database.write(dataset_rows.set_state, dataset_id, DatasetState.LOOKING)
        for tried in itertools.count(1):
            try:
                await self._stream(dataset_id, finder, reference)
                break
            except CatalogueError as error:
                if not error.retryable or tried == TRIES:
                    raise
                log.warning("%s; it is asked again", error, extra={"dataset_id": dataset_id})
                await asyncio.sleep(PAUSE * 2 ** (tried - 1))
        requests = await self._database.write(_complete, dataset_id)
        self._dispatcher.wake(*requests)

    async def _stream(self, dataset_id: int, finder: Finder, reference: Any) -> None:
        """Store what a finder finds, but for what a look-up has stored that was broken off."""
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


async def places_of(
    database: Database, settings: Settings, names: Mapping[int, str]
) -> dict[int, tuple[Replica, ...]]:
    """Ask catalogues once more where files are, which were at none of the places they had named.

    Parameters
    ----------
    names
        By id of a file what its catalogue calls it.

    Returns
    -------
    By id the replicas that there are by now. What a catalogue that does not answer would have said
    is not in it.
    """
    finders = await database.read(dataset_rows.finders_of, names)
    by_scheme: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for file_id, scheme in finders.items():
        by_scheme[scheme][names[file_id]].append(file_id)
    found: dict[int, tuple[Replica, ...]] = {}
    for scheme, ids in by_scheme.items():
        try:
            places = await open_finder(scheme, settings).replicas_again(list(ids))
        except ServiceXError as error:
            log.warning("%d files are not looked for at other places: %s", len(ids), error)
            continue
        for name, replicas in places.items():
            found |= dict.fromkeys(ids.get(name, ()), replicas)
    return found


def open_finder(scheme: str, settings: Settings) -> Finder:
    """Return the finder of a scheme with what the operator chose for it.

    Raises
    ------
    RequestError
        There is none.
    StartupError
        What was chosen is wrong; names the setting.
    """
    kind: type[Finder] = plugins.load("finders", scheme, wire_name="did")
    try:
        options = kind.Options.model_validate(settings.finders.get(scheme, {}))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(name, kind.Options.model_fields)
            raise StartupError(f"there is no setting finders.{scheme}.{name}", hint=hint) from None
        said = first["msg"].removeprefix("Value error, ")
        raise StartupError(f"setting finders.{scheme}.{name}: {said}") from None
    return kind(options)


def check_finders(settings: Settings) -> None:
    """Refuse settings of finders that cannot be right.

    Raises
    ------
    StartupError
        Names the setting.
    """
    known = plugins.available("finders")
    for scheme in settings.finders:
        if scheme not in known:
            raise StartupError(
                f"there is no setting finders.{scheme}",
                hint=did_you_mean(scheme, sorted(known), otherwise="there are finders for"),
            )
        open_finder(scheme, settings)


_TAIL = re.compile(r"\?((?:files|get)=[^?&]*(?:&(?:files|get)=[^?&]*)*)$")


def split_count(reference: str) -> tuple[str, int | None]:
    """Split ``?files=N`` off a dataset reference; a ``?`` may also be part of a name.

    Upstream's ``get=all`` and ``get=available`` mean nothing, there as here.

    Raises
    ------
    DatasetError
        It is not a number of files.

    Examples
    --------
    >>> split_count("scope:name?files=3")
    ('scope:name', 3)
    >>> split_count("root://host//a?b.root")
    ('root://host//a?b.root', None)
    """
    if not (found := _TAIL.search(reference)):
        return reference, None
    given = dict(part.split("=", 1) for part in found[1].split("&"))
    count = given.get("files", "1")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", count):
        raise DatasetError(
            f"did: files={count[:100]!r} is no number of files", hint="as in ?files=3"
        )
    return reference[: found.start()], int(count) if "files" in given else None
