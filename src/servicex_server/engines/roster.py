"""Who is there and what each is on, as the Dask engine keeps it; what is said when one fails."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from servicex_server.errors import OverdueError, WorkerDiedError
from servicex_server.model import Attempt, Outcome, TaskSpec, WorkerInfo, now

_FULL = 0.8
"""The share of its memory from which on Dask keeps a worker waiting."""


@dataclass(eq=False)
class Job:
    """A task: it waits, or is on a worker, until it is over.

    ``future`` is Dask's, while it is on a worker, and ``waiting`` waits for it. ``stepped`` tells
    when it was seen to have gone on, by a clock that never goes back; None if it tells of no steps.
    """

    spec: TaskSpec
    avoid: str = ""
    future: Any = None
    waiting: Any = None
    began: float = 0.0
    steps: int = 0
    stepped: float | None = None
    over: bool = False

    def begin(self) -> None:
        """Note that it begins, maybe anew."""
        self.began, self.stepped, self.steps = time.monotonic(), None, 0

    def heard(self, steps: int) -> None:
        """Note how many steps it has made."""
        if self.stepped is None or steps != self.steps:
            self.steps, self.stepped = steps, time.monotonic()

    def overdue(self) -> str:
        """Return why it has to be ended, or nothing."""
        at, limits = time.monotonic(), self.spec.limits
        if at - self.began > limits.seconds:
            return f"it took longer than {limits.seconds:g} s"
        if self.stepped is not None and at - self.stepped > limits.stall:
            return f"it did not go on for {limits.stall:g} s"
        return ""

    def failed(self, error: WorkerDiedError | OverdueError) -> Outcome:
        """Return the outcome of a task that says nothing itself."""
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
            raced=spec.raced,
        )


@dataclass(eq=False)
class Worker:
    """A worker, as far as it is known. One with a problem gets no tasks."""

    address: str
    name: Any
    admission: Any = None
    host: str = ""
    problem: str = "it has just joined"
    job: Job | None = None
    since: datetime = field(default_factory=now)
    done: int = 0
    last_error: str = ""
    memory: int = 0
    limit: int = 0

    @property
    def label(self) -> str:
        """Name for people; a worker that is started again keeps it."""
        return f"{self.host}/{self.name}"

    @property
    def idle(self) -> bool:
        """Whether it can have a task."""
        return self.job is None and not self.problem

    def take(self, job: Job | None) -> None:
        """Be on a task, or on none."""
        self.job, self.since = job, now()

    def death(self, told: Mapping[str, Any]) -> WorkerDiedError:
        """Return what is known of its end, by what its nanny told, if anything."""
        peak, limit = told.get("peak", 0) or self.memory, told.get("limit", 0) or self.limit
        known = [told.get("how", f"worker {self.label} is gone")]
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
        """Return what is told of it."""
        return WorkerInfo(
            address=self.address,
            name=self.label,
            memory=self.memory,
            memory_limit=self.limit,
            task=self.job.spec.key if self.job else "",
            since=self.since,
            done=self.done,
            last_error=self.last_error,
            problem=self.problem,
        )
