"""Accepting a request: all that can be known to be wrong is said now, then it becomes a row."""

import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import Connection

from servicex_server import __version__, plugins
from servicex_server.database import datasets as dataset_rows
from servicex_server.database import requests as request_rows
from servicex_server.database import tasks as task_rows
from servicex_server.database.connection import Database
from servicex_server.errors import (
    DatasetError,
    ErrorRecord,
    QueryError,
    RequestError,
    TooLargeError,
    refusal,
)
from servicex_server.finders.file_list import FileList
from servicex_server.languages.contract import Language, Program
from servicex_server.lookup import open_finder, split_count
from servicex_server.model import (
    CheckSpec,
    DatasetState,
    InputFile,
    Principal,
    Request,
    RequestState,
    ResultFormat,
    now,
)
from servicex_server.quotas import Quotas
from servicex_server.settings import Settings

log = logging.getLogger(__name__)

MAX_TITLE = 10_240
"""Characters a title may have; announced to clients."""

FILE_LIST_DID = "File List Provided in Request"
"""What a request on a list of files has for a dataset name."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a user sends: a dataset reference or a list of files, and a query."""

    selection: str
    language: str
    format: ResultFormat
    did: str | None = None
    files: Sequence[str] | None = None
    title: str | None = None
    file_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class _Reference:
    """A dataset as it is stored: its name, its finder, and what to give that."""

    name: str
    finder: str
    did: str
    owner: str | None
    value: Any
    files: int | None = None


class Work(Protocol):
    """The work on requests, in this process or in another one."""

    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Hold a query against a file; return the error found, None if nothing is known."""

    async def wake(self, request_id: str) -> None:
        """Begin the work on a new request."""


class Submission:
    """Accepts requests."""

    def __init__(self, database: Database, work: Work, settings: Settings) -> None:
        self._database = database
        self._work = work
        self._settings = settings
        self._quotas = Quotas(
            a_minute=settings.requests_per_user_a_minute,
            at_once=settings.requests_per_user_at_once,
            stored=settings.bytes_per_user,
        )

    async def accept(self, principal: Principal, order: Order) -> str:
        """Check an order and store it as a request; return the request's id.

        Raises
        ------
        RequestError
            Something in the order is wrong, and the field is named; or the principal has as much
            as they may. Nothing is stored then.
        """
        await self._database.read(self._quotas.check, principal.user)
        # a hundred thousand URLs take a moment to look at; the service answers others meanwhile
        reference, is_code = await asyncio.to_thread(self._checked, principal, order)
        if not is_code:
            await self._hold(order, reference)
        request = Request(
            id=str(uuid.uuid4()),
            title=order.title,
            owner=principal.user,
            dataset_id=0,
            did=reference.did,
            language=order.language,
            selection=order.selection,
            format=order.format,
            state=RequestState.SUBMITTED,
            submitted_at=now(),
            finished_at=None,
            failure="",
            app_version=__version__,
            file_seconds=order.file_seconds,
        )
        await self._database.write(_store, request, reference, self._since(reference), self._quotas)
        log.info("request accepted: %s", order.language, extra={"request_id": request.id})
        await self._work.wake(request.id)
        return request.id

    async def _hold(self, order: Order, reference: _Reference) -> None:
        """Refuse a query that its files cannot answer, as far as a look at them tells in time.

        A file that is odd fails alone and refuses nobody: where there are several, the first and
        the last have to say the same.
        """
        if order.files is None:
            files = await self._database.read(
                dataset_rows.first_and_last,
                reference.name,
                reference.owner,
                since=self._since(reference),
            )
        else:
            first = order.files[0]
            last = next((entry for entry in reversed(order.files) if entry != first), first)
            files = [FileList.file(entry) for entry in dict.fromkeys((first, last))]
        checks = [asyncio.create_task(self._refusal(order, file)) for file in files]
        try:
            for check in asyncio.as_completed(checks):
                if await check is None:
                    return  # what the other one says does not matter
        finally:
            for one in checks:
                one.cancel()
        errors = [error for one in checks if (error := one.result()) is not None]
        if len({error.message for error in errors}) == 1:
            log.info("request refused: %s", type(errors[0]).__name__)
            raise errors[0]

    def _since(self, reference: _Reference) -> datetime | None:
        """Return since when a dataset may be known; a list is always what it was."""
        if reference.finder == FileList.scheme:
            return None
        return now() - timedelta(seconds=self._settings.dataset_seconds)

    async def _refusal(self, order: Order, file: InputFile) -> QueryError | None:
        spec = CheckSpec(file.replicas, order.language, order.selection, order.format)
        found = await self._work.check(spec)
        return None if found is None else refusal(found, "selection", file.path)

    def _checked(self, principal: Principal, order: Order) -> tuple[_Reference, bool]:
        """Return what the order is on, and whether its query is code."""
        if order.title is not None and len(order.title) > MAX_TITLE:
            raise RequestError(
                f"title: {len(order.title)} characters are too many; at most {MAX_TITLE}"
            )
        seconds, most = order.file_seconds, self._settings.file_seconds
        if seconds is not None and seconds > most:
            raise RequestError(f"file-seconds: {seconds:g} are too many; at most {most:g}")
        is_code = self._check_query(order)
        return self._reference(principal, order), is_code

    def _check_query(self, order: Order) -> bool:
        size = len(order.selection.encode(errors="surrogatepass"))
        if size > self._settings.selection_bytes:
            raise TooLargeError(
                f"selection: {size} bytes are too many; at most {self._settings.selection_bytes}"
            )
        language: Language = plugins.load("languages", order.language, wire_name="codegen")()
        language.check_format(order.format)
        return isinstance(language.compile(order.selection, order.format), Program)

    def _reference(self, principal: Principal, order: Order) -> _Reference:
        if (order.did is None) == (order.files is None):
            found = "both are there" if order.did is not None else "neither is there"
            raise RequestError(f"did, file-list: exactly one of them is needed; {found}")
        if order.files is not None:
            return self._file_list(principal, order.files)
        assert order.did is not None  # noqa: S101  # one of the two is
        scheme, mark, rest = order.did.partition("://")
        if not mark and "rucio" in self._settings.finders:
            scheme, rest = "rucio", order.did
        elif not mark:
            raise DatasetError(
                f"did: {order.did[:200]!r} has no scheme",
                hint=f"write one of {', '.join(f'{s}://…' for s in self.schemes()) or 'none'}",
            )
        if scheme not in self.schemes():
            near = ", ".join(self.schemes()) or "none: send a file-list"
            raise DatasetError(
                f"did: the scheme {scheme!r} is not supported here", hint=f"supported are {near}"
            )
        value, count = split_count(rest)
        open_finder(scheme, self._settings).check(value)
        return _Reference(order.did, scheme, order.did, None, value, count)

    @staticmethod
    def schemes() -> list[str]:
        """Return the schemes of dataset references that are installed."""
        return sorted(set(plugins.available("finders")) - {FileList.scheme})

    def _file_list(self, principal: Principal, files: Sequence[str]) -> _Reference:
        if not files:
            raise DatasetError("file-list: it is empty", hint="name at least one file")
        most = self._settings.files_per_request
        if len(files) > most:
            raise DatasetError(f"file-list: {len(files)} entries are too many; at most {most}")
        FileList().check_entries(files, folders=self._settings.local_folders)
        digest = hashlib.sha256(json.dumps(list(files)).encode()).hexdigest()
        return _Reference(digest, FileList.scheme, FILE_LIST_DID, principal.user, list(files))


def _store(
    connection: Connection,
    request: Request,
    reference: _Reference,
    since: datetime | None,
    quotas: Quotas,
) -> None:
    """Add the request, and the dataset if it is not known."""
    quotas.check(connection, request.owner)  # others of the same user may have come meanwhile
    dataset_id = dataset_rows.find_fresh(connection, reference.name, reference.owner, since=since)
    state = RequestState.PENDING_LOOKUP
    if dataset_id is None:
        dataset_id = dataset_rows.create(
            connection,
            name=reference.name,
            finder=reference.finder,
            owner=reference.owner,
            reference={"value": reference.value, "files": reference.files},
        )
        state = RequestState.LOOKUP
    else:
        dataset_rows.touch(connection, dataset_id)
        if dataset_rows.state_of(connection, dataset_id) is DatasetState.COMPLETE:
            state = RequestState.RUNNING
    request_rows.create(connection, replace(request, dataset_id=dataset_id, state=state))
    # whatever is known already can start; the rest comes with the look-up
    task_rows.add_for_dataset(connection, [request.id], dataset_id)
