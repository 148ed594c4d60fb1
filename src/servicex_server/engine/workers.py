"""The state of workers and of their tasks in the Dask engine, and the errors of both."""

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from servicex_server.clusters.messages import Exit
from servicex_server.errors import OverdueError, WorkerDiedError
from servicex_server.model import Attempt, Outcome, TaskSpec, WorkerInfo, now

GRACE_SECONDS = 5.0
"""Seconds after its time limit at which a task is ended together with its worker. At the limit, the
worker ends the function of a user itself, and can say in which line it was."""

_FULL = 0.8
"""The share of the memory limit from which on Dask pauses a worker."""


@dataclass(eq=False)
class RunningTask:
    """A task of the engine: it is queued, or runs on a worker, until it is ``over``.

    ``sent`` is the task as its worker got it. ``future`` is the Dask future while a worker runs the
    task, and ``waiting`` waits for that future. ``stepped`` is the monotonic time at which the
    number of steps last changed; None if the task has not reported steps.
    """

    spec: TaskSpec
    avoid: str = ""
    sent: TaskSpec | None = None
    future: Any = None
    waiting: Any = None
    began: float = 0.0
    steps: int = 0
    stepped: float | None = None
    over: bool = False

    def begin(self) -> None:
        """Start the clocks of the task; a requeued task begins again."""
        self.began, self.stepped, self.steps = time.monotonic(), None, 0

    def heard(self, steps: int) -> None:
        """Record the number of steps of a heartbeat."""
        if self.stepped is None or steps != self.steps:
            self.steps, self.stepped = steps, time.monotonic()

    def overdue(self) -> str:
        """Return why the task has to be ended; empty if it may run on."""
        at, limits = time.monotonic(), self.spec.limits
        if at - self.began > limits.seconds + GRACE_SECONDS:
            return f"it took longer than {limits.seconds:g} s"
        if self.stepped is not None and at - self.stepped > limits.stall:
            return f"it made no progress for {limits.stall:g} s"
        return ""

    def failed(self, error: WorkerDiedError | OverdueError) -> Outcome:
        """Return the outcome of a task for which its worker published none."""
        spec, record = self.spec, error.record()
        seconds = time.monotonic() - self.began
        return Outcome(
            request_id=spec.request_id,
            file_id=spec.file_id,
            attempt=spec.attempt,
            entries=spec.entries,
            error=record,
            attempts=(Attempt(url=spec.path, seconds=seconds, error=record),),
            url=spec.path,
            seconds=seconds,
            speculative=spec.speculative,
        )


@dataclass(eq=False)
class WorkerState:
    """What the engine knows of a worker. A worker with a ``problem`` gets no tasks."""

    address: str
    name: Any
    admission: Any = None
    host: str = ""
    problem: str = "it has just joined"
    task: RunningTask | None = None
    since: datetime = field(default_factory=now)
    done: int = 0
    last_error: str = ""
    memory: int = 0
    limit: int = 0

    @property
    def label(self) -> str:
        """Name for display; a worker that restarts keeps it."""
        return f"{self.host}/{self.name}"

    @property
    def idle(self) -> bool:
        """Whether the worker can get a task."""
        return self.task is None and not self.problem

    def take(self, task: RunningTask | None) -> None:
        """Assign a task to the worker; None makes it idle."""
        self.task, self.since = task, now()

    def death(self, report: Exit | None) -> WorkerDiedError:
        """Return the error for the end of the worker, with the report of its nanny, if any."""
        peak = (report.peak if report else 0) or self.memory
        limit = (report.limit if report else 0) or self.limit
        known = [report.how if report else f"worker {self.label} is gone"]
        if peak:
            known.append(f"it had {peak / 1e9:.2f} GB of memory")
        if limit:
            known.append(f"of {limit / 1e9:.2f} GB")
        full = limit and peak > _FULL * limit
        hint = "it ran out of memory" if full else "the file is tried again on another worker"
        return WorkerDiedError(
            f"the worker ended while it worked on this file: {', '.join(known)}", hint=hint
        )

    def info(self) -> WorkerInfo:
        """Return the public information on the worker."""
        return WorkerInfo(
            address=self.address,
            name=self.label,
            memory=self.memory,
            memory_limit=self.limit,
            task=self.task.spec.key if self.task else "",
            since=self.since,
            done=self.done,
            last_error=self.last_error,
            problem=self.problem,
        )
