"""A process that leads as soon as no other one does, and for as long as it can."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy.exc import OperationalError

from servicex_server.database.leadership import Leadership
from servicex_server.errors import ServiceXError
from servicex_server.leader import Leader

log = logging.getLogger(__name__)

STAND_SECONDS = 1.0
"""How often a process that does not lead tries to."""

STOP_SECONDS = 30.0
"""How long the end of a process waits for a term to begin and end."""


class Candidate:
    """Stands for the lead.

    Parameters
    ----------
    leadership
        Who decides.
    make
        Makes a leader. Each term has its own: what the last one knew may be wrong by then.
    """

    def __init__(self, leadership: Leadership, make: Callable[[], Leader]) -> None:
        self._leadership = leadership
        self._make = make
        self._campaign: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._told = ""
        self.leader: Leader | None = None
        """What this process has while it leads."""

    async def start(self) -> None:
        """Lead now if nobody else does, and stand for it from now on.

        Raises
        ------
        StartupError
            This process would lead, but its workers cannot be started.
        """
        try:
            if not await self._stand():
                log.info("another process leads; this one waits")
        except (ConnectionError, OperationalError) as error:
            self._tell(error)
        self._campaign = asyncio.create_task(self._run(), name="candidate")

    async def close(self) -> None:
        """Stop, and leave the lead to others."""
        self._stopping.set()
        if self._campaign is not None:
            # a leader that is starting is let start: workers cannot be ended half-way
            await asyncio.wait({self._campaign}, timeout=STOP_SECONDS)
            self._campaign.cancel()
            await asyncio.gather(self._campaign, return_exceptions=True)
        await self._leadership.release()

    async def _stand(self) -> bool:
        if not await self._leadership.take():
            return False
        leader = self._make()
        try:
            await leader.start()
        except BaseException:
            await self._leadership.release()
            raise
        self.leader = leader
        self._told = ""
        log.info("this process leads")
        return True

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.leader is not None or await self._stand():
                    await self._lead()
            except (ConnectionError, OperationalError, ServiceXError) as error:
                self._tell(error)
            except Exception:
                log.exception("this process cannot lead")
            with suppress(TimeoutError):
                async with asyncio.timeout(STAND_SECONDS):
                    await self._stopping.wait()

    async def _lead(self) -> None:
        """Lead until that is lost, or this process has to stop."""
        leader = self.leader
        assert leader is not None  # noqa: S101  # who calls has looked
        watching = asyncio.create_task(self._leadership.watch(leader.heard))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
            self.leader = None
            # the lock is still watched: what has ended is written down only while it is held
            await leader.close(lost=watching.done())
        finally:
            for task in (watching, stopping):
                task.cancel()
            await asyncio.wait({watching, stopping})
            await self._leadership.release()
        if not watching.cancelled():
            watching.result()

    def _tell(self, error: Exception) -> None:
        """Log what is in the way, once and not every second."""
        said = " ".join(str(error).split())
        if said != self._told:
            log.warning("this process cannot lead: %s", said)
        self._told = said
