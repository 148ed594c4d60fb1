"""Operations on requests, for the API and the pages: submit, cancel, delete, pin and resubmit."""

import logging
from collections.abc import Awaitable, Callable

from servicex_server.database import datasets as dataset_rows
from servicex_server.database import lost_results, stored_objects
from servicex_server.database import requests as request_rows
from servicex_server.database.connection import Database
from servicex_server.errors import StoreUnavailableError
from servicex_server.model import Principal
from servicex_server.requests.deletion import clear
from servicex_server.requests.submission import FILE_LIST_DID, Order, Submission
from servicex_server.storage.contract import ObjectStore

log = logging.getLogger(__name__)


class RequestService:
    """Operations on requests. Each but `make_again` reads rows through the principal of the caller.

    Parameters
    ----------
    database
        Where requests are stored.
    objects
        Where results are stored.
    submission
        Checks and stores new requests.
    wake
        Called after a request has new tasks, so that the leader starts them.
    stopped
        Called after a request was cancelled or deleted, so that the leader drops its tasks.
    most_pinned
        Bytes that the pinned results of one user may have; None: no limit.
    """

    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        submission: Submission,
        wake: Callable[[str], Awaitable[None]],
        stopped: Callable[[str], Awaitable[None]],
        most_pinned: int | None = None,
    ) -> None:
        self._database = database
        self._objects = objects
        self._submission = submission
        self._wake = wake
        self._stopped = stopped
        self._most_pinned = most_pinned

    async def submit(self, principal: Principal, order: Order) -> str:
        """Check and store a request; return its id.

        Raises
        ------
        RequestError
            The request is not valid, or the user may not submit it; names the field.
        """
        return await self._submission.accept(principal, order)

    async def cancel(self, principal: Principal, request_id: str) -> None:
        """Cancel a request. Results that were delivered are kept.

        Raises
        ------
        NotFoundError
            The principal has no such request.
        RequestError
            It has ended already.
        """
        await self._database.write(request_rows.cancel, principal, request_id)
        await self._stopped(request_id)

    async def delete(self, principal: Principal, request_id: str) -> None:
        """Delete a request, its rows and its results.

        The request is gone at once. If the object store does not answer, the leader deletes the
        results when it works again.

        Raises
        ------
        NotFoundError
            The principal has no such request.
        """
        await self._database.write(request_rows.mark_deleted, principal, request_id)
        await self._stopped(request_id)
        try:
            await clear(self._database, self._objects, request_id)
        except StoreUnavailableError as error:
            log.warning("results are deleted later: %s", error, extra={"request_id": request_id})

    async def pin(self, principal: Principal, request_id: str, *, pinned: bool) -> None:
        """Keep the results of a request from eviction, or let them be evicted again.

        Raises
        ------
        NotFoundError
            The principal has no such request.
        TooLargeError
            The pinned results of its owner would exceed the quota.
        """
        await self._database.write(
            stored_objects.pin, principal, request_id, pinned=pinned, most=self._most_pinned
        )

    async def make_again(self, request_id: str, object_key: str) -> bool:
        """Make a result again that was evicted or is gone; return whether work was queued.

        The caller has verified the keys of the bucket, which are all that a reader shows. Nothing
        is queued if the request was canceled or deleted, or if another reader came first.
        """
        again = await self._database.write(lost_results.make_again, request_id, object_key)
        if again:
            log.info(
                "result %s is not in the object store any more, and is made again",
                object_key,
                extra={"request_id": request_id},
            )
            await self._wake(request_id)
        return again

    async def resubmit(self, principal: Principal, request_id: str) -> str:
        """Submit the same request again; return the id of the new one.

        Raises
        ------
        NotFoundError
            The principal has no such request.
        RequestError
            It is not valid any more, or the user may not submit it.
        """
        found = await self._database.read(request_rows.get, principal, request_id)
        did: str | None = found.did
        files: list[str] | None = None
        if found.did == FILE_LIST_DID:
            _, reference = await self._database.read(dataset_rows.reference_of, found.dataset_id)
            did, files = None, reference["value"]
        order = Order(
            selection=found.selection,
            language=found.language,
            format=found.format,
            did=did,
            files=files,
            title=found.title,
            file_seconds=found.file_seconds,
        )
        return await self.submit(principal, order)
