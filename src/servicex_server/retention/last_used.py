"""When results were last used: noted by every process that serves them, a little later."""

import asyncio
import logging
import time

from sqlalchemy.exc import OperationalError

from servicex_server.database import stored_objects
from servicex_server.database.connection import Database

log = logging.getLogger(__name__)

AGAIN_SECONDS = 3600.0
"""Seconds in which a further use of the same result is not noted: results are kept for days."""

TOGETHER_SECONDS = 2.0
"""Seconds for which uses are collected, so that a download of many results is one write."""

MOST_KNOWN = 100_000
"""Results whose last use is remembered."""


class LastUsed:
    """Notes the uses of results in the database, beside the work that uses them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, float] = {}
        self._pending: set[str] = set()
        self._writing: asyncio.Task[None] | None = None

    def note(self, key: str) -> None:
        """Note that the result with this key is used now."""
        moment = time.monotonic()
        if moment - self._known.get(key, -AGAIN_SECONDS) < AGAIN_SECONDS:
            return
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[key] = moment
        self._pending.add(key)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_later(), name="last uses of results")

    async def close(self) -> None:
        """Store what is noted."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._write()

    async def _write_later(self) -> None:
        await asyncio.sleep(TOGETHER_SECONDS)
        self._writing = None
        await self._write()

    async def _write(self) -> None:
        keys, self._pending = self._pending, set()
        if not keys:
            return
        try:
            await self._database.write(stored_objects.use, keys)
        except OperationalError as error:
            # they are noted at their next use; a result that is evicted too early is made again
            for key in keys:
                self._known.pop(key, None)
            log.warning("%d uses of results are not noted: %s", len(keys), error)
