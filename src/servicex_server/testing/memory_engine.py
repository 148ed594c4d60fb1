"""An engine for tests, without processes: it runs a function of the test for each task."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from servicex_server.engine.contract import CHECK_SECONDS, Engine
from servicex_server.errors import ErrorRecord
from servicex_server.model import Attempt, CheckSpec, Outcome, ProbeSpec, TaskSpec, WorkerInfo


def _nothing_known(spec: CheckSpec) -> None:
    """Pass every dry run."""
    del spec


class MemoryEngine(Engine):
    """Runs ``work`` in the event loop, at most ``slots`` tasks at a time, in order.

    Parameters
    ----------
    work
        Returns the outcome of a task.
    slots
        How many tasks run at a time.
    check
        Returns the error of a dry run, or None.
    """

    def __init__(
        self,
        work: Callable[[TaskSpec], Outcome],
        *,
        slots: int = 2,
        check: Callable[[CheckSpec], ErrorRecord | None] = _nothing_known,
    ) -> None:
        self._work = work
        self._check = check
        self._slots = slots
        self._waiting: deque[TaskSpec] = deque()
        self._running: set[str] = set()
        self._ended: Callable[[Outcome], None] | None = None
        self._latest: Callable[[TaskSpec], TaskSpec] = lambda spec: spec
        self.seen: list[TaskSpec] = []
        self.checked: list[CheckSpec] = []
        self.probed: list[ProbeSpec] = []
        self.scaled: list[int] = []

    async def start(
        self,
        ended: Callable[[Outcome], None],
        ready: Callable[[], None] = lambda: None,
        latest: Callable[[TaskSpec], TaskSpec] = lambda spec: spec,
    ) -> None:
        """Store the callbacks; all slots are available from the start."""
        del ready
        self._ended, self._latest = ended, latest

    async def close(self) -> None:
        """Drop all tasks."""
        self._waiting.clear()
        self._running.clear()

    @property
    def slots(self) -> int:
        """How many tasks run at a time."""
        return self._slots

    def submit(self, spec: TaskSpec, *, avoid: str = "") -> None:
        """Queue a task; ``avoid`` is ignored, as there is one worker only."""
        del avoid
        self._waiting.append(spec)
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            spec = self._waiting.popleft()
            self._running.add(spec.key)
            asyncio.get_running_loop().call_soon(self._run, spec)

    def _run(self, spec: TaskSpec) -> None:
        if spec.key not in self._running or self._ended is None:
            return
        spec = self._latest(spec)
        self.seen.append(spec)
        outcome = self._work(spec)
        self._running.discard(spec.key)
        self._ended(outcome)
        self._next()

    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Call the test's function in a thread, as it may block."""
        self.checked.append(spec)
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_SECONDS):
                return await asyncio.to_thread(self._check, spec)
        return None

    async def probe(self, spec: ProbeSpec) -> Attempt | None:
        """Record the probe, and return an attempt without an error."""
        self.probed.append(spec)
        return Attempt(spec.url, 0.0)

    async def stop(self, keys: Iterable[str]) -> None:
        """Drop tasks."""
        dropped = set(keys)
        self._waiting = deque(spec for spec in self._waiting if spec.key not in dropped)
        self._running -= dropped

    async def scale(self, count: int) -> None:
        """Record the number; the slots do not change."""
        self.scaled.append(count)

    def workers(self) -> list[WorkerInfo]:
        """Return one simulated worker for each slot."""
        running = [*self._running, *[""] * self._slots][: self._slots]
        return [
            WorkerInfo(f"memory://{n}", name=f"memory/{n}", task=task)
            for n, task in enumerate(running)
        ]
