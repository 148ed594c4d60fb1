"""What an engine does: run tasks on workers, and tell how each ended.

An engine promises one `Outcome` for every task it was given, whatever happens to the worker;
only a task that was stopped has none.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from servicex_server.errors import ErrorRecord
from servicex_server.model import Attempt, CheckSpec, Outcome, ProbeSpec, TaskSpec, WorkerInfo

CHECK_SECONDS = 2.0
"""How long a check may take: a person waits for the answer to what they have just submitted.

A local file takes a twentieth of a second, and the dozen answers that a file on another continent
takes are a second and a half. What takes longer is better found out by the task.
"""


class Engine(ABC):
    """Runs tasks."""

    restarts = 0
    """How often its scheduler was lost and reached again."""

    @property
    def address(self) -> str:
        """Where its scheduler is, for people; empty if it has none."""
        return ""

    @abstractmethod
    async def start(
        self,
        ended: Callable[[Outcome], None],
        ready: Callable[[], None] = lambda: None,
        latest: Callable[[TaskSpec], TaskSpec] = lambda spec: spec,
    ) -> None:
        """Bring the workers up.

        Parameters
        ----------
        ended
            Called in the event loop with the outcome of every task.
        ready
            Called in the event loop when there are more slots.
        latest
            Called in the event loop when a worker is to have a task; returns it as it is to be
            done by what is known now, which may be more than when it was handed over.

        Raises
        ------
        StartupError
            The workers cannot be started.
        """

    @abstractmethod
    async def close(self) -> None:
        """End all workers; nothing is left running."""

    def disown(self) -> None:  # noqa: B027  # most have nothing outside of their process
        """Leave alone from now on what another process of this service may have taken over.

        Only `close` comes after it. What is outside of this process, jobs and pods, is known by
        its name; it is ended by who leads next, which may have begun to.
        """

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many tasks can run at a time right now."""

    @abstractmethod
    def submit(self, spec: TaskSpec, *, avoid: str = "") -> None:
        """Hand over a task.

        Parameters
        ----------
        spec
            What to do.
        avoid
            Name of a worker, as `Outcome.worker` has it, that has failed at it: another one is to
            do it, if there is one.
        """

    @abstractmethod
    async def scale(self, count: int) -> None:
        """Ask for so many workers. Where there are more, those end first that are idle."""

    @abstractmethod
    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Hold a query against a file on a worker, beside the tasks: it needs no slot.

        Returns
        -------
        The error, whosever it is; None if there is none, and if nothing is known after
        `CHECK_SECONDS` or because a worker ended. Nothing is raised, and nothing of it keeps a
        task or the end of the engine waiting.
        """

    @abstractmethod
    async def probe(self, spec: ProbeSpec) -> Attempt | None:
        """Look at a replica from a worker, beside the tasks.

        Returns
        -------
        How that went; None if there is no worker, or it ended, or said nothing for longer than the
        deadlines allow. Nothing is raised.
        """

    @abstractmethod
    async def stop(self, keys: Iterable[str]) -> None:
        """Drop tasks by their ``TaskSpec.key``; those that run are ended with their worker."""

    @abstractmethod
    def workers(self) -> list[WorkerInfo]:
        """Return who is there and what they do."""
