"""Replacement of lost workers, and detection that no worker is available."""

import logging
import time
from collections.abc import Callable, Collection

from servicex_server.clusters.contract import Cluster, Repair, first_cause

log = logging.getLogger(__name__)

ABSENT_SECONDS = 60.0
"""Seconds without an available worker, if any are wanted, before the service is not ready."""

REPAIR_SECONDS = 30.0
"""Seconds between two warnings that lost workers cannot be replaced."""


class Watchdog:
    """Has a cluster replace lost workers, and measures for how long none has been available.

    Parameters
    ----------
    cluster
        The cluster of the workers.
    clock
        A monotonic clock, in seconds.
    """

    def __init__(self, cluster: Cluster, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._clock = clock
        self._absent_since: float | None = None
        self._wanted = 0
        self._problem = ""
        self._warn_at = 0.0
        self.replaced = 0
        self.pending = 0

    def observe(self, *, wanted: int, available: int, problem: str = "") -> None:
        """Record the number of workers.

        Parameters
        ----------
        wanted
            How many workers are wanted.
        available
            How many workers can get tasks.
        problem
            Why other connected workers get no tasks.
        """
        self._wanted, self._problem = wanted, problem
        if available or not wanted:
            self._absent_since = None
        elif self._absent_since is None:
            self._absent_since = self._clock()

    async def repair(self, present: Collection[str]) -> None:
        """Have the cluster replace lost workers. It does not raise.

        Parameters
        ----------
        present
            The names of the workers that the scheduler knows.
        """
        try:
            done = await self._cluster.repair(present)
        except Exception as error:  # noqa: BLE001  # an external server may fail in any way
            if self._clock() >= self._warn_at:
                self._warn_at = self._clock() + REPAIR_SECONDS
                log.warning("lost workers cannot be replaced: %s", first_cause(error))
            done = Repair()
        self.replaced += done.replaced
        self.pending = done.pending

    @property
    def absence(self) -> str:
        """Why no task can run; empty if tasks can, or if a batch system has workers queued."""
        if self._absent_since is None or self.pending:
            return ""
        seconds = self._clock() - self._absent_since
        if seconds < ABSENT_SECONDS:
            return ""
        count = "1 worker is" if self._wanted == 1 else f"{self._wanted} workers are"
        text = f"{count} wanted and none has been available for {seconds:.0f} s"
        return f"{text}: {self._problem}" if self._problem else text
