"""Autoscaling: as many workers as there are files, between a floor and a cap.

Processor load is not used: it shows what workers do, and not how much work is left.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers there should be, and why."""

    workers: int
    reason: str


class Scaling:
    """Decides how many workers there should be.

    Parameters
    ----------
    least, most
        The floor and the cap.
    patience
        Seconds for which idle workers are kept, because the next request may come soon.
    """

    def __init__(self, *, least: int, most: int, patience: float) -> None:
        self._least = min(least, most)
        self._most = most
        self.patience = patience
        self._idle_since: float | None = None
        self.last = Decision(self._least, f"the floor is {self._least}")

    @property
    def shrinks(self) -> bool:
        """Whether there are more workers than the floor."""
        return self.last.workers > self._least

    def decide(self, files: int, at: float) -> Decision:
        """Return how many workers there should be.

        Parameters
        ----------
        files
            Files that wait or run. There are never more workers than files, except for the floor.
        at
            The time, in seconds of a clock that never goes back.

        Examples
        --------
        >>> scaling = Scaling(least=0, most=8, patience=60)
        >>> scaling.decide(3, at=0.0)
        Decision(workers=3, reason='3 files')
        >>> scaling.decide(0, at=1.0).workers, scaling.decide(0, at=61.0).workers
        (3, 0)
        """
        wanted, reason = self._justified(files)
        if wanted >= self.last.workers:
            self._idle_since = None
        else:
            if self._idle_since is None:
                self._idle_since = at
            if at - self._idle_since < self.patience:
                return self.last
            self._idle_since = None
            reason = f"{reason}; fewer than before for {self.patience:g} s"
        if wanted != self.last.workers:
            self.last = Decision(wanted, reason)
        return self.last

    def _justified(self, files: int) -> tuple[int, str]:
        what = f"{files} file{'' if files == 1 else 's'}"
        if files > self._most:
            return self._most, f"{what}, and the cap is {self._most}"
        if files < self._least:
            return self._least, f"{what}, and the floor is {self._least}"
        return files, what
