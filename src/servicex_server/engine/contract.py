"""The contract of an engine: it runs tasks on workers, and reports the outcome of each.

An engine reports exactly one `Outcome` for every task that was submitted, whatever happens to the
worker. The only exception is a task that was stopped: it has no outcome.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from servicex_server.errors import ErrorRecord
from servicex_server.model import Attempt, CheckSpec, Outcome, ProbeSpec, TaskSpec, WorkerInfo

CHECK_SECONDS = 2.0
"""Seconds that a dry run may take: a user waits for the answer to a submission.

A local file takes 0.05 s. A file on another continent takes a dozen round trips, which are 1.5 s.
If a dry run would take longer, the task finds the error instead.
"""


class Engine(ABC):
    """Runs tasks."""

    restarts = 0
    """How often the engine has lost its scheduler and connected again."""

    @property
    def replaced(self) -> int:
        """How many workers were lost and replaced."""
        return 0

    @property
    def pending(self) -> int:
        """How many workers wait for a batch system or Kubernetes to start them."""
        return 0

    @property
    def absence(self) -> str:
        """Why no task can run although workers have been wanted for a while; empty if tasks can."""
        return ""

    @property
    def address(self) -> str:
        """The address of the scheduler, for display; empty if there is none."""
        return ""

    @abstractmethod
    async def start(
        self,
        ended: Callable[[Outcome], None],
        ready: Callable[[], None] = lambda: None,
        latest: Callable[[TaskSpec], TaskSpec] = lambda spec: spec,
    ) -> None:
        """Start the workers.

        Parameters
        ----------
        ended
            Called in the event loop with the outcome of every task.
        ready
            Called in the event loop when more slots are available.
        latest
            Called in the event loop when a task is sent to a worker. Returns the task updated with
            what is known now, which may be more than when the task was submitted.

        Raises
        ------
        StartupError
            The workers cannot be started.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop all workers; nothing is left running."""

    def disown(self) -> None:  # noqa: B027  # most engines have nothing outside of their process
        """Give up batch jobs and pods, which the next leader may have taken over.

        The next leader finds jobs and pods by their names and ends them. Only `close` may be called
        after this method.
        """

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many tasks can run at a time now."""

    @abstractmethod
    def submit(self, spec: TaskSpec, *, avoid: str = "") -> None:
        """Queue a task.

        Parameters
        ----------
        spec
            The task.
        avoid
            Name of a worker, as in `Outcome.worker`, that has failed at the task. Another worker
            gets the task if there is one.
        """

    @abstractmethod
    async def scale(self, count: int) -> None:
        """Change the number of workers to ``count``. If there are more, idle ones stop first."""

    @abstractmethod
    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Dry-run a query on a worker, concurrently with tasks and without using a slot.

        A dry run delays neither tasks nor the end of the engine. It does not raise.

        Returns
        -------
        The error of the dry run, whatever its ``blame``. None if there is no error, if the dry run
        takes longer than `CHECK_SECONDS`, or if the worker ended.
        """

    @abstractmethod
    async def probe(self, spec: ProbeSpec) -> Attempt | None:
        """Open a replica on a worker, concurrently with tasks and without using a slot.

        A probe does not raise.

        Returns
        -------
        The attempt. None if there is no worker, if the worker ended, or if it did not answer within
        the deadlines of the probe.
        """

    @abstractmethod
    async def stop(self, keys: Iterable[str]) -> None:
        """Drop tasks by their ``TaskSpec.key``; a worker that runs one of them is restarted."""

    @abstractmethod
    def workers(self) -> list[WorkerInfo]:
        """Return all workers, with the task of each."""
