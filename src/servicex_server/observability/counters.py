"""Counters of the leader, for the metrics."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Any, get_args

from servicex_server.errors import Blame
from servicex_server.model import Outcome, RequestState

SECONDS = (
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
    3600.0,
)
"""Upper bounds of the histogram of task durations in seconds; a last class has the rest."""


NO_BLAME = "none"
"""The blame of an attempt that worked."""


class Counts:
    """Counters of the process that leads. They contain no names, paths or queries of users."""

    def __init__(self) -> None:
        self._classes = {ending: [0] * (len(SECONDS) + 1) for ending in ("done", "failed")}
        self._seconds = dict.fromkeys(self._classes, 0.0)
        # start at 0: a monitoring system sees the first event only as a change from 0
        self._attempts = Counter(dict.fromkeys((NO_BLAME, *get_args(Blame)), 0))
        self._requests = Counter({state.value: 0 for state in RequestState if state.terminal})
        self._sums = dict.fromkeys(("bytes_read", "bytes_written", "events", "reused"), 0)

    def task(self, outcome: Outcome) -> None:
        """Count a task that has ended, once for each run on a worker."""
        ending = "done" if outcome.error is None else "failed"
        self._classes[ending][bisect_left(SECONDS, outcome.seconds)] += 1
        self._seconds[ending] += outcome.seconds
        tried = [attempt.error for attempt in outcome.attempts] or [outcome.error]
        self._attempts.update(error.blame if error else NO_BLAME for error in tried)
        self._sums["bytes_read"] += outcome.bytes_read
        self._sums["bytes_written"] += outcome.bytes_written
        self._sums["events"] += outcome.events_read

    def reused(self, files: int) -> None:
        """Count files whose results were reused."""
        self._sums["reused"] += files

    def requests(self, ended: Iterable[RequestState]) -> None:
        """Count requests that have ended, by their state."""
        self._requests.update(state.value for state in ended)

    def as_dict(self) -> dict[str, Any]:
        """Return all counters as plain data."""
        return {
            "tasks": {
                ending: {"classes": list(classes), "seconds": self._seconds[ending]}
                for ending, classes in self._classes.items()
            },
            "attempts": dict(self._attempts),
            "requests": dict(self._requests),
            **self._sums,
        }
