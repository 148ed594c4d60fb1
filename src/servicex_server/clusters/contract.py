"""The contract of a cluster, which provides a Dask scheduler and its workers.

`servicex_server.clusters.choose` returns the cluster that the settings name.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from distributed import Client
from pydantic import BaseModel

from servicex_server.clusters.wire import protect

log = logging.getLogger(__name__)


TELL_SECONDS, AGAIN_SECONDS = 30.0, 10.0
"""Seconds that a server may take to accept the number of workers, and the pause after a failure."""


CLOSE_SECONDS = 3.0
"""Seconds that a server may take to end a cluster."""


@dataclass(frozen=True, slots=True)
class Repair:
    """The result of a search for missing workers."""

    replaced: int = 0
    """Workers that were lost, and for which new ones are starting."""
    pending: int = 0
    """Workers that a batch system or Kubernetes has not started yet, which is normal."""


class Cluster(ABC):
    """A scheduler, and a number of workers with one thread each.

    The constructor starts nothing; `open` does.
    """

    Options: ClassVar[type[BaseModel]]
    """The options of the setting ``engine``, with its ``kind``."""

    def __init__(self) -> None:
        protect()

    @classmethod
    @abstractmethod
    def from_settings(cls, options: Any, *, memory: int, folder: Path) -> Self:
        """Return the cluster of the settings, without starting it.

        Parameters
        ----------
        options
            An instance of `Options`.
        memory
            Bytes that one worker may use.
        folder
            The data folder of the service.

        Raises
        ------
        StartupError
            The cluster needs a package or a program that is missing; the hint says how to get it.
        """

    @abstractmethod
    async def open(self) -> Client:
        """Connect to the scheduler, or start one; return an asynchronous client.

        Raises
        ------
        StartupError
            The scheduler cannot be reached or started; the message says why.
        """

    @abstractmethod
    async def scale(self, count: int) -> None:
        """Change the number of workers; workers on other machines may start much later."""

    async def repair(self, present: Collection[str]) -> Repair:
        """Replace workers that will not come back; called every second while some are missing.

        Parameters
        ----------
        present
            The names of the workers that the scheduler knows.
        """
        del present
        return Repair()

    @abstractmethod
    async def close(self) -> None:
        """Stop all that this object started; nothing is left running."""

    disowned = False

    def disown(self) -> None:
        """Have `close` leave batch jobs and pods running, as `Engine.disown` says."""
        self.disowned = True

    @property
    def address(self) -> str:
        """The address of the scheduler, for display."""
        return ""


class Managed(Cluster):
    """A cluster that an external server scales; the number of workers is sent until it succeeds."""

    def __init__(self) -> None:
        super().__init__()
        self._cluster: Any = None
        self._wanted = 0
        self._telling: asyncio.Task[None] | None = None

    @abstractmethod
    async def _end(self) -> None:
        """Have the external server end the cluster; if it fails, the next start tries again."""

    async def scale(self, count: int) -> None:
        """Send the number to the external server, which also chooses the workers to stop."""
        self._wanted = count
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        sent = -1
        while sent != self._wanted:
            count = self._wanted
            try:
                async with asyncio.timeout(TELL_SECONDS):
                    await self._cluster.scale(count)
                sent = count
            except Exception as error:  # noqa: BLE001  # an external server may fail in any way
                why = first_cause(error) or f"no answer in {TELL_SECONDS:g} s"
                log.warning("cannot scale the cluster to %d workers: %s", count, why)
                await asyncio.sleep(AGAIN_SECONDS)

    async def repair(self, present: Collection[str]) -> Repair:
        """Count missing workers as pending: the external server replaces workers by itself."""
        return Repair(pending=max(0, self._wanted - len(present)))

    async def close(self) -> None:
        """Stop scaling, and end the cluster."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._end()
        except Exception as error:  # noqa: BLE001  # an external server may fail in any way
            why = first_cause(error) or f"no answer in {CLOSE_SECONDS:g} s"
            log.warning("the cluster at %s could not be ended: %s", self.address, why)

    @property
    def address(self) -> str:
        """The address of the scheduler, for display."""
        return str(self._cluster.scheduler_address) if self._cluster is not None else ""


def first_cause(error: BaseException) -> str:
    """Return the text of the root cause of an error in one line, or the last text before it."""
    said = error
    while cause := error.__cause__ or (not error.__suppress_context__ and error.__context__):
        error = cause
        if isinstance(cause, Exception) and str(cause):
            said = cause
    return " ".join(str(said).split())
