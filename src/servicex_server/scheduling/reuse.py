"""Reuse of results that exist already: which they are, and whether the store still has them."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from servicex_server.database import lost_results
from servicex_server.database import result_reuse as rows
from servicex_server.database.connection import Database
from servicex_server.database.tasks import Work
from servicex_server.errors import StoreUnavailableError
from servicex_server.model import ResultFormat, Sharing
from servicex_server.scheduling.result_key import result_key
from servicex_server.scheduling.store_health import StoreHealth
from servicex_server.storage.contract import ObjectStore

log = logging.getLogger(__name__)

MOST_REUSED = 512
"""Files of a request that are looked at together for objects that are there already."""

HEADS_AT_ONCE = 64
"""Objects that the store is asked for at a time."""

_DIGEST_SECONDS = 0.05
"""Seconds that all requests wait while the query of one is compiled."""

Digest: TypeAlias = Callable[[str, str, ResultFormat], Coroutine[Any, Any, str | None]]
"""Returns a digest that is equal for queries of equal meaning; takes language, text and format."""


async def no_digest(language: str, selection: str, result_format: ResultFormat) -> str | None:
    """Return no digest, so that nothing is reused."""
    del language, selection, result_format
    return None


class ResultReuse:
    """Ends files without any work whose result exists, as the policy of sharing permits."""

    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        store: StoreHealth,
        *,
        share: Sharing,
        digest: Digest,
    ) -> None:
        self._database = database
        self._objects = objects
        self._store = store
        self._share = share
        self._digest = digest
        self._digests: dict[str, asyncio.Task[str | None]] = {}
        self._batches: dict[str, int] = {}

    def tasks(self) -> Iterator[asyncio.Task[str | None]]:
        """Yield the tasks that compile queries, to be canceled at the end."""
        yield from self._digests.values()

    def batch(self, request_id: str, count: int) -> int:
        """Return how many files of a request to look at, of which ``count`` may start."""
        return max(count, self._batches.get(request_id, count))

    def forget(self, request_id: str) -> None:
        """Forget a request that has ended or is stopped."""
        self._batches.pop(request_id, None)
        if (digest := self._digests.pop(request_id, None)) is not None:
            digest.cancel()

    async def result_keys(
        self, works: Sequence[Work], when_ready: Callable[[], None]
    ) -> dict[int, str] | None:
        """Return the result keys of tasks of one request, by the id of the task.

        None if its query takes long to compile: ``when_ready`` is called after that.
        """
        if self._share is Sharing.NONE:
            return {}
        first = works[0]  # all have the query of their request
        if (digest := self._digests.get(first.request_id)) is None:
            digest = asyncio.create_task(
                self._digest(first.language, first.selection, first.format)
            )
            self._digests[first.request_id] = digest
        await asyncio.wait([digest], timeout=_DIGEST_SECONDS)
        if not digest.done():
            digest.add_done_callback(lambda _: when_ready())
            return None
        self._digests.pop(first.request_id, None)
        if digest.cancelled():  # the request was stopped meanwhile
            return None
        query = digest.result()
        return {} if query is None else await asyncio.to_thread(_result_keys, works, query)

    async def end(self, works: Sequence[Work], known: Mapping[int, str]) -> set[int]:
        """End the tasks whose result is in the store; return their ids."""
        if not (present := await self._present(works[0].owner, known)):
            return set()
        reused = await self._database.write(rows.reuse, works, present, of=self._share)
        if reused:
            request_id = works[0].request_id
            log.info("%d files were there already", len(reused), extra={"request_id": request_id})
            self._batches[request_id] = min(MOST_REUSED, max(64, 4 * len(reused)))
        return reused

    async def _present(self, owner: str, known: Mapping[int, str]) -> dict[int, str]:
        """Return the result keys of results whose objects are in the store.

        An object may be gone: by a rule of the store, a restore, or a command of an operator.
        """
        if not known:
            return {}
        made = await self._database.read(
            rows.known_objects, set(known.values()), owner=owner, of=self._share
        )
        turn = asyncio.Semaphore(HEADS_AT_ONCE)

        async def is_gone(key: str) -> bool:
            async with turn:
                return await self._objects.head(key) is None

        keys = list(dict.fromkeys(made.values()))
        try:
            answers = await asyncio.gather(*map(is_gone, keys))
        except StoreUnavailableError as error:
            self._store.failed(error.record())
            return {}
        gone = {key for key, answer in zip(keys, answers, strict=True) if answer}
        if gone:
            log.warning("%d results are gone from the object store and are made again", len(gone))
            await self._database.write(lost_results.forget, gone)
        there = {result for result, key in made.items() if key not in gone}
        return {task_id: result for task_id, result in known.items() if result in there}


def _result_keys(works: Sequence[Work], query: str) -> dict[int, str]:
    """Return by id of the task what its work is known by, where that is known.

    The results of parts are nobody else's: they go when they have become one.
    """
    return {
        work.task_id: known
        for work in works
        if work.entries is None and (known := result_key(work, query)) is not None
    }
