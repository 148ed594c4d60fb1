"""Speculative reads: where a replica is slow, another one is read too, and the faster one counts.

They are for the end of a request, when workers are idle and wait for a few files. Spark and Hadoop
call it speculative execution. `InFlight` knows which files are read twice; here is decided which
are worth it.
"""

from collections import deque
from dataclasses import dataclass, field

from servicex_server.model import Outcome

SLOW = 0.95
"""The share of files of its request that were faster than one that is slow."""

LEAST = 20
"""Files of a request that have ended before it is known what is slow."""

SHARE = 0.05
"""Speculative reads per file that has ended: they add at most so much load."""

_KEPT = 400
"""Files whose times are kept for each request."""


@dataclass
class _Request:
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    ended: int = 0
    started: int = 0


class SpeculativeReads:
    """Times of the files of each request, and the number of its speculative reads."""

    def __init__(self) -> None:
        self._requests: dict[str, _Request] = {}

    def worth_it(self, request_id: str, seconds: float) -> bool:
        """Whether a file that has been read for so many seconds is worth a speculative read."""
        of = self._requests.get(request_id)
        if of is None or of.ended < LEAST or of.started + 1 > SHARE * of.ended:
            return False
        return seconds > sorted(of.seconds)[int(SLOW * len(of.seconds))]

    def started(self, request_id: str) -> None:
        """Note that a speculative read has started."""
        self._requests[request_id].started += 1

    def ended(self, outcome: Outcome) -> None:
        """Note how long a file took, if it was delivered."""
        if outcome.error is None and not outcome.parts:
            of = self._requests.setdefault(outcome.request_id, _Request())
            of.ended += 1
            of.seconds.append(outcome.seconds)

    def forget(self, request_id: str) -> None:
        """Forget a request that has ended."""
        self._requests.pop(request_id, None)
