"""Replica refresh: files that no replica delivered are held until their catalogues have answered.

If the leader dies meanwhile, their outcomes are not stored, and the files are read again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from servicex_server.database.outcomes import of_place
from servicex_server.model import Replica
from servicex_server.scheduling.in_flight import Ended, InFlight

log = logging.getLogger(__name__)

BATCH = 200
"""Files in one question to the catalogues."""

AskCatalogues: TypeAlias = Callable[
    [Mapping[int, str]], Awaitable[Mapping[int, tuple[Replica, ...]]]
]
"""Takes names of files by file id, and returns their current replicas by file id."""


class ReplicaRefresh:
    """Asks catalogues for the replicas of the files that `InFlight` holds.

    Parameters
    ----------
    ask
        Asks the catalogues.
    in_flight
        The files inside the engine.
    released
        Called when files are held no longer.
    """

    def __init__(
        self, ask: AskCatalogues, in_flight: InFlight, released: Callable[[], None]
    ) -> None:
        self._ask = ask
        self._in_flight = in_flight
        self._released = released
        self._asking: asyncio.Task[None] | None = None

    def hold(self, one: Ended) -> bool:
        """Hold a file if it may have other replicas; return whether it is held."""
        if one.work.replicas_refreshed or not one.work.file.name or not of_place(one.outcome.error):
            return False
        self._in_flight.hold(one.key)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._run(), name="replica refresh")
        return True

    async def _run(self) -> None:
        while held := self._in_flight.held_files(BATCH):
            names = {work.file_id: work.file.name for work in held}
            found: Mapping[int, tuple[Replica, ...]] = {}
            try:
                found = await self._ask(names)
            except Exception:
                log.exception("the replicas of %d files cannot be refreshed", len(names))
            self._in_flight.release(names, found)
            self._released()

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
