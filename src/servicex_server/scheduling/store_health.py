"""The health of the object store: a circuit breaker that stops new work while the store is away.

A worker that cannot store a result has kept it and tried for a while (`worker.upload`). Then the
breaker opens: no file starts, and the store is probed, at growing intervals, until it takes an
object again. The interval starts anew only when a result was stored, because a store that is nearly
full takes a small object and no result.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from servicex_server.errors import ErrorRecord, StoreUnavailableError
from servicex_server.model import now
from servicex_server.storage.contract import ObjectStore

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a probe of a store that was away; each failure doubles the pause."""

PROBE_SECONDS = 20.0
"""Seconds that a probe may take."""


class StoreHealth:
    """The circuit breaker of the object store.

    Parameters
    ----------
    objects
        The store.
    closed
        Called when the breaker closes.
    """

    def __init__(self, objects: ObjectStore, closed: Callable[[], None]) -> None:
        self._objects = objects
        self._closed = closed
        self._pause = FIRST_PAUSE
        self._probing: asyncio.Task[None] | None = None
        self._since: datetime | None = None
        self._last_error = ""

    @property
    def open(self) -> bool:
        """Whether no file may start."""
        return self._since is not None

    @property
    def problem(self) -> str:
        """What is wrong, and since when; empty if the store works."""
        if self._since is None:
            return ""
        return f"no file starts since {self._since:%Y-%m-%d %H:%M:%S} UTC: {self._last_error}"

    def begin(self) -> None:
        """Probe the store once, beside the work."""
        self._probing = asyncio.create_task(self._first(), name="first probe of the object store")

    def stored(self) -> None:
        """Note that a worker has stored a result."""
        self._pause = FIRST_PAUSE

    def failed(self, error: ErrorRecord) -> None:
        """Note that a worker could not store a result; the breaker opens."""
        self._last_error = error.message
        if self._since is None:
            self._since = now()
            log.warning("no file starts until the object store works: %s", error.message)
            self._probing = asyncio.create_task(self._probe(), name="probe of the object store")

    async def close(self) -> None:
        """End the probes."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _first(self) -> None:
        if (error := await self._tried()) is not None:
            self.failed(error.record())

    async def _probe(self) -> None:
        error: StoreUnavailableError | None = StoreUnavailableError(self._last_error)
        while error is not None:
            self._last_error = error.message
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            error = await self._tried()
        assert self._since is not None  # noqa: S101  # nothing else sets it
        seconds = (now() - self._since).total_seconds()
        log.warning("the object store works again, after %.0f s", seconds)
        self._since = None
        self._closed()

    async def _tried(self) -> StoreUnavailableError | None:
        """Probe the store once; return why it does not work, or None if it works."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._objects.probe()
        except TimeoutError:
            return StoreUnavailableError(
                f"the object store has not answered in {PROBE_SECONDS:g} s"
            )
        except StoreUnavailableError as error:
            return error
        except Exception as error:
            # the probes must go on: no file starts before one of them works
            log.exception("the object store cannot be probed")
            return StoreUnavailableError(f"the object store: {type(error).__name__}")
        return None
