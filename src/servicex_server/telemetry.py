"""Logs: one line per event, with the request, file and worker it belongs to. And counts."""

import logging
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Any, get_args

from servicex_server.errors import Blame
from servicex_server.model import Outcome, RequestState

_EXTRAS = ("request_id", "file_id", "dataset_id", "worker", "error_id")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        extra = [
            f"{key}={value}" for key in _EXTRAS if (value := getattr(record, key, None)) is not None
        ]
        return f"{text} [{' '.join(extra)}]" if extra else text


def configure(level: str) -> None:
    """Send the logs of this package to standard error; others' only from warnings up."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("servicex_server").setLevel(level)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # at DEBUG it tells the code_verifier of each sign-in, by which a code is worth a token
    logging.getLogger("authlib").setLevel(logging.WARNING)
    # distributed sets its own levels when it is imported, here and in the workers
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "info" if level == "DEBUG" else "error")


def uvicorn_log_config() -> dict[str, Any]:
    """Return a logging set-up for uvicorn that leaves ours as it is."""
    return {"version": 1, "disable_existing_loggers": False}


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
"""Upper bounds of the classes that the seconds of tasks are counted in; one more has the rest."""

NO_BLAME = "none"
"""Blame of an attempt that worked."""


class Counts:
    """What the process has counted that leads. No name, path or query of a user is in it."""

    def __init__(self) -> None:
        self._classes = {ending: [0] * (len(SECONDS) + 1) for ending in ("done", "failed")}
        self._seconds = dict.fromkeys(self._classes, 0.0)
        # from 0 on: the first of a kind is seen only by who knows that there was none before
        self._attempts = Counter(dict.fromkeys((NO_BLAME, *get_args(Blame)), 0))
        self._requests = Counter({state.value: 0 for state in RequestState if state.terminal})
        self._sums = dict.fromkeys(("bytes_read", "bytes_written", "events", "reused"), 0)

    def task(self, outcome: Outcome) -> None:
        """Count a task that has ended, once for each time that it ran on a worker."""
        ending = "done" if outcome.error is None else "failed"
        self._classes[ending][bisect_left(SECONDS, outcome.seconds)] += 1
        self._seconds[ending] += outcome.seconds
        tried = [attempt.error for attempt in outcome.attempts] or [outcome.error]
        self._attempts.update(error.blame if error else NO_BLAME for error in tried)
        self._sums["bytes_read"] += outcome.bytes_read
        self._sums["bytes_written"] += outcome.bytes_written
        self._sums["events"] += outcome.events_read

    def reused(self, files: int) -> None:
        """Count files whose object was there already."""
        self._sums["reused"] += files

    def requests(self, ended: Iterable[RequestState]) -> None:
        """Count requests that have ended, by how they did."""
        self._requests.update(state.value for state in ended)

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as plain data."""
        return {
            "tasks": {
                ending: {"classes": list(classes), "seconds": self._seconds[ending]}
                for ending, classes in self._classes.items()
            },
            "attempts": dict(self._attempts),
            "requests": dict(self._requests),
            **self._sums,
        }
