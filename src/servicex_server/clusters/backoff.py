"""Exponential backoff."""

import time


class Backoff:
    """Decides when a failed operation may be tried again.

    Parameters
    ----------
    first, longest
        Seconds to wait after the first failure, and the maximum. The wait doubles with each
        consecutive failure.
    """

    def __init__(self, *, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._failures = 0
        self._not_before = 0.0

    @property
    def over(self) -> bool:
        """Whether the operation may be tried now."""
        return time.monotonic() >= self._not_before

    def failed(self) -> float:
        """Count a failure; return the seconds to wait.

        Examples
        --------
        >>> backoff = Backoff(first=15, longest=40)
        >>> [backoff.failed() for _ in range(3)], backoff.over
        ([15.0, 30.0, 40], False)
        """
        wait = min(self._first * 2.0 ** min(self._failures, 30), self._longest)
        self._failures += 1
        self._not_before = time.monotonic() + wait
        return wait

    def succeeded(self) -> None:
        """Reset the count of failures; a wait that has begun is not shortened."""
        self._failures = 0
