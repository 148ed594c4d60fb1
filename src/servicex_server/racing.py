"""Racing: where a replica is slow, another one is read too, and the faster one counts.

It is for the end of a request, when workers have nothing else to do and wait for a few files.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from servicex_server.model import Attempt, Outcome

SLOW = 0.95
"""The share of files of its request that were faster than one that is slow."""

LEAST = 20
"""Files of a request that have ended before it is known what is slow."""

SHARE = 0.05
"""Races that there may be, as a share of the files that have ended: the load is more by that."""

_KEPT = 400
"""Files whose times are kept for each request."""


@dataclass
class _Request:
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    ended: int = 0
    raced: int = 0


class Races:
    """Which files are read twice at this moment, and which are worth it."""

    def __init__(self) -> None:
        self._requests: dict[str, _Request] = {}
        self._rivals: dict[str, str] = {}
        self._failed: dict[str, tuple[Attempt, ...]] = {}

    def worth_it(self, request_id: str, seconds: float) -> bool:
        """Whether a file that is at work for so long is to be raced."""
        of = self._requests.get(request_id)
        if of is None or of.ended < LEAST or of.raced + 1 > SHARE * of.ended:
            return False
        return seconds > sorted(of.seconds)[int(SLOW * len(of.seconds))]

    def begin(self, request_id: str, key: str, rival: str) -> None:
        """Note that a task has a rival, by the keys of both."""
        self._requests[request_id].raced += 1
        self._rivals |= {key: rival, rival: key}

    def is_raced(self, key: str) -> bool:
        """Whether a task has a rival."""
        return key in self._rivals

    def ended(self, outcome: Outcome) -> tuple[Outcome | None, str]:
        """Hear how a task has ended.

        Returns
        -------
        outcome
            How the work on the file has ended, with what its rival tried in vain; None while the
            rival of one that failed is still at it.
        loser
            The key of the rival that has to be stopped, if any.
        """
        rival = self._rivals.pop(outcome.key, "")
        running = self._rivals.pop(rival, "") != ""
        if running and outcome.error is not None:
            self._failed[rival] = outcome.attempts
            return None, ""
        tried = self._failed.pop(outcome.key, ())
        if outcome.error is None and not outcome.parts:
            of = self._requests.setdefault(outcome.request_id, _Request())
            of.ended += 1
            of.seconds.append(outcome.seconds)
        return replace(outcome, attempts=tried + outcome.attempts), rival if running else ""

    def forget(self, request_id: str) -> None:
        """Hear that a request is over."""
        self._requests.pop(request_id, None)

    def dropped(self, key: str) -> Iterator[str]:
        """Forget a task that is stopped; give the keys by which it is known to an engine."""
        yield key
        if rival := self._rivals.pop(key, ""):
            self._rivals.pop(rival, None)
            yield rival
        self._failed.pop(key, None)
        self._failed.pop(rival, None)
