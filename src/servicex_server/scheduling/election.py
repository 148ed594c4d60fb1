"""Leader election: this process takes the lead as soon as no other process holds it."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy.exc import OperationalError

from servicex_server.database.leader_lock import Leadership
from servicex_server.errors import ServiceXError, StoreUnavailableError
from servicex_server.scheduling.leader import Leader

log = logging.getLogger(__name__)

TAKE_SECONDS = 1.0
"""Seconds between two attempts to take the lead."""

STOP_SECONDS = 30.0
"""Seconds that the end of a process waits for a leader to finish starting or closing."""


class LeaderElection:
    """Takes the lead when it is free, and gives it up when it is lost or the process stops.

    Parameters
    ----------
    leadership
        The leader lock.
    make
        Makes a leader. Each term has a new one, because the state of the last one may be outdated.
    """

    def __init__(self, leadership: Leadership, make: Callable[[], Leader]) -> None:
        self._leadership = leadership
        self._make = make
        self._running: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._logged = ""
        self.leader: Leader | None = None
        """The leader, while this process leads; otherwise None."""

    async def start(self) -> None:
        """Take the lead if it is free, and try again from now on if it is not.

        Raises
        ------
        StartupError
            This process took the lead, but its workers cannot be started.
        """
        try:
            if not await self._take_lead():
                log.info("another process leads; this one waits")
        except (ConnectionError, OperationalError, StoreUnavailableError) as error:
            self._log(error)
        self._running = asyncio.create_task(self._run(), name="leader election")

    async def close(self) -> None:
        """Stop leading, and release the lock."""
        self._stopping.set()
        if self._running is not None:
            # wait for a leader that is starting: workers cannot be ended while they start
            await asyncio.wait({self._running}, timeout=STOP_SECONDS)
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._leadership.release()

    async def _take_lead(self) -> bool:
        if not await self._leadership.take():
            return False
        leader = self._make()
        try:
            await leader.start()
        except BaseException:
            await self._leadership.release()
            raise
        self.leader = leader
        self._logged = ""
        log.info("this process leads")
        return True

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.leader is not None or await self._take_lead():
                    await self._lead()
            except (ConnectionError, OperationalError, ServiceXError) as error:
                self._log(error)
            except Exception:
                log.exception("this process cannot lead")
            with suppress(TimeoutError):
                async with asyncio.timeout(TAKE_SECONDS):
                    await self._stopping.wait()

    async def _lead(self) -> None:
        """Lead until the lock is lost, or the process has to stop."""
        leader = self.leader
        assert leader is not None  # noqa: S101  # the caller has checked
        watching = asyncio.create_task(self._leadership.watch(leader.heard))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
            self.leader = None
            # the lock is still watched: outcomes are stored only while it is held
            await leader.close(lost=watching.done())
        finally:
            for task in (watching, stopping):
                task.cancel()
            await asyncio.wait({watching, stopping})
            await self._leadership.release()
        if not watching.cancelled():
            watching.result()

    def _log(self, error: Exception) -> None:
        """Log why this process cannot lead, once and not every second."""
        said = " ".join(str(error).split())
        if said != self._logged:
            log.warning("this process cannot lead: %s", said)
        self._logged = said
