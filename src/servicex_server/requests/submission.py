"""Submission of requests: validate a request, dry-run its query, and store it."""

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
from servicex_server.database.disk_reserve import DISK_FULL, MAKE_ROOM
from servicex_server.datasets.finder_registry import open_finder, split_count
from servicex_server.errors import (
    DatabaseFullError,
    DatasetError,
    ErrorRecord,
    QueryError,
    RequestError,
    TooLargeError,
    refusal,
)
from servicex_server.finders.file_list import FileList
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
from servicex_server.query_processes.compiler import QueryCompiler
from servicex_server.requests.language_policy import LanguagePolicy
from servicex_server.requests.quotas import Quotas
from servicex_server.settings.service import Settings
from servicex_server.text.escaping import redacted

log = logging.getLogger(__name__)

MAX_TITLE = 10_240
"""Characters of a title; the API announces this limit to clients."""

MAX_DID = 64 << 10
"""Characters of a dataset reference; hundreds of patterns separated by commas fit."""

FILE_LIST_DID = "File List Provided in Request"
"""The dataset name of a request on a list of files."""


@dataclass(frozen=True, slots=True)
class Order:
    """The submission of a user: a dataset reference or a list of files, and a query."""

    selection: str
    language: str
    format: ResultFormat
    did: str | None = None
    files: Sequence[str] | None = None
    title: str | None = None
    file_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class _Reference:
    """A dataset as it is stored: its name, its finder, and the ``value`` for the finder.

    ``repeated`` is the number of entries of a file list that name the same file as another entry.
    """

    name: str
    finder: str
    did: str
    owner: str | None
    value: Any
    files: int | None = None
    repeated: int = 0


class LeaderClient(Protocol):
    """The leader, in this process or in another one."""

    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Dry-run a query on a worker; return the error, or None if none is known."""

    async def wake(self, request_id: str) -> None:
        """Have the leader begin a new request."""


class Submission:
    """Validates and stores requests.

    Parameters
    ----------
    database
        Stores requests.
    leader
        Runs dry runs, and begins stored requests.
    settings
        The settings of the service.
    queries
        Compiles queries in child processes.
    languages
        Decides which languages a user may use.
    """

    def __init__(
        self,
        database: Database,
        leader: LeaderClient,
        settings: Settings,
        queries: QueryCompiler,
        languages: LanguagePolicy,
    ) -> None:
        self._database = database
        self._leader = leader
        self._queries = queries
        self._settings = settings
        self._languages = languages
        self._quotas = Quotas(
            a_minute=settings.limits.requests_per_user_a_minute,
            at_once=settings.limits.requests_per_user_at_once,
            stored=settings.limits.bytes_per_user,
        )

    async def accept(self, principal: Principal, order: Order) -> str:
        """Validate an order and store it as a request; return the id of the request.

        Raises
        ------
        RequestError
            A field is invalid, and the message names it; or the principal has reached a quota.
            Nothing is stored.
        DatabaseFullError
            The disk of SQLite is full.
        """
        if self._database.disk_full:
            raise DatabaseFullError(DISK_FULL, hint=MAKE_ROOM)
        await self._database.read(self._quotas.check, principal.user)
        # checking 100,000 URLs takes a moment; in a thread, it does not block other requests
        reference = await asyncio.to_thread(self._checked, principal, order)
        # in a child process, as compiling a few kilobytes can take minutes, or all memory
        query = await self._queries.compile(
            principal.user, order.language, order.selection, order.format
        )
        if not query.is_code:
            await self._dry_run(order, reference)
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
        await self._leader.wake(request.id)
        return request.id

    async def _dry_run(self, order: Order, reference: _Reference) -> None:
        """Reject a query that fails in a dry run on the first and on the last file.

        One odd file does not reject the request: both files have to give the same error. A dry run
        that does not finish in time does not reject it either.
        """
        if order.files is None:
            files = await self._database.read(
                dataset_rows.first_and_last,
                reference.name,
                reference.owner,
                since=self._since(reference),
            )
        else:
            first, last = reference.value[0], reference.value[-1]
            files = [FileList.file(entry) for entry in dict.fromkeys((first, last))]
        checks = [asyncio.create_task(self._refusal(order, file)) for file in files]
        try:
            for check in asyncio.as_completed(checks):
                if await check is None:
                    return  # one file is fine, so the other does not matter
        finally:
            for one in checks:
                one.cancel()
        errors = [error for one in checks if (error := one.result()) is not None]
        if len({error.message for error in errors}) == 1:
            log.info("request refused: %s", type(errors[0]).__name__)
            raise errors[0]

    def _since(self, reference: _Reference) -> datetime | None:
        """Return the time after which a look-up is fresh; None for a list, which never changes."""
        if reference.finder == FileList.scheme:
            return None
        return now() - timedelta(seconds=self._settings.reading.dataset_seconds)

    async def _refusal(self, order: Order, file: InputFile) -> QueryError | None:
        spec = CheckSpec(file.replicas, order.language, order.selection, order.format)
        found = await self._leader.check(spec)
        return None if found is None else refusal(found, "selection", file.path)

    def _checked(self, principal: Principal, order: Order) -> _Reference:
        """Validate all of an order but its query, and return its dataset reference."""
        if order.title is not None and len(order.title) > MAX_TITLE:
            raise RequestError(
                f"title: {len(order.title)} characters are too many; at most {MAX_TITLE}"
            )
        seconds, most = order.file_seconds, self._settings.limits.file_seconds
        if seconds is not None and seconds > most:
            raise RequestError(f"file-seconds: {seconds:g} are too many; at most {most:g}")
        self._check_language(principal, order)
        return self._reference(principal, order)

    def _check_language(self, principal: Principal, order: Order) -> None:
        size = len(order.selection.encode(errors="surrogatepass"))
        most = self._settings.limits.selection_bytes
        if size > most:
            raise TooLargeError(f"selection: {size} bytes are too many; at most {most}")
        language = self._languages.language(order.language, principal)
        language.check_format(order.format)

    def _reference(self, principal: Principal, order: Order) -> _Reference:
        if (order.did is None) == (order.files is None):
            found = "both are given" if order.did is not None else "none is given"
            raise RequestError(f"did, file-list: give exactly one of them; {found}")
        if order.files is not None:
            return self._file_list(principal, order.files)
        assert order.did is not None  # noqa: S101  # one of the two is
        if len(order.did) > MAX_DID:
            raise TooLargeError(f"did: {len(order.did)} characters are too many; at most {MAX_DID}")
        scheme, mark, rest = order.did.partition("://")
        if not mark and "rucio" in self._settings.finders:
            scheme, rest = "rucio", order.did
        elif not mark:
            raise DatasetError(
                f"did: {redacted(order.did)[:200]!r} has no scheme",
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
            raise DatasetError("file-list: the list is empty", hint="name at least one file")
        most = self._settings.limits.files_per_request
        if len(files) > most:
            raise DatasetError(f"file-list: {len(files)} entries are too many; at most {most}")
        entries = FileList.cleaned(files)
        FileList().check_entries(
            entries,
            folders=self._settings.local_folders,
            network=self._settings.network_policy,
        )
        digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
        distinct = FileList.distinct(entries)
        return _Reference(
            name=digest,
            finder=FileList.scheme,
            did=FILE_LIST_DID,
            owner=principal.user,
            value=distinct,
            repeated=len(entries) - len(distinct),
        )


def _store(
    connection: Connection,
    request: Request,
    reference: _Reference,
    since: datetime | None,
    quotas: Quotas,
) -> None:
    """Store the request, and the dataset if it is new."""
    quotas.check(connection, request.owner)  # the user may have submitted others meanwhile
    dataset_id = dataset_rows.find_fresh(connection, reference.name, reference.owner, since=since)
    state = RequestState.PENDING_LOOKUP
    if dataset_id is None:
        dataset_id = dataset_rows.create(
            connection,
            name=reference.name,
            finder=reference.finder,
            owner=reference.owner,
            reference={
                "value": reference.value,
                "files": reference.files,
                "repeated": reference.repeated,
            },
        )
        state = RequestState.LOOKUP
    else:
        dataset_rows.touch(connection, dataset_id)
        if dataset_rows.state_of(connection, dataset_id) is DatasetState.COMPLETE:
            state = RequestState.RUNNING
    request_rows.create(connection, replace(request, dataset_id=dataset_id, state=state))
    # files that are known already can start; the look-up adds the others
    task_rows.add_for_dataset(connection, [request.id], dataset_id)
