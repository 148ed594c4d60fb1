"""The files that are inside the engine: the one owner of what is known of them before it is stored.

A file runs, then it has ended, and then its outcome is stored and it leaves. Two detours are
possible. A speculative read is a second copy of a file that runs; the first copy that works decides
how the file ends. A file that no replica delivered is held until its catalogue has named the
replicas that it has now. Nothing is removed before the transaction that needs it has committed.

Nothing here waits: every method is one transition, and can be tested without an event loop.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from servicex_server.database.tasks import Work
from servicex_server.model import Attempt, Outcome, Replica


@dataclass(slots=True)
class _File:
    """One file. It runs while ``outcome`` is None, and is held while ``held`` is true."""

    work: Work
    running: set[str]
    failed: tuple[Attempt, ...] = ()
    outcome: Outcome | None = None
    held: bool = False
    named: tuple[Replica, ...] | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A file whose outcome is not stored yet.

    ``named`` are the replicas that its catalogue named in a replica refresh; None without one.
    """

    key: str
    work: Work
    outcome: Outcome
    named: tuple[Replica, ...] | None


@dataclass(frozen=True, slots=True)
class Dropped:
    """The files of a request that is stopped: the tasks to stop, and their works."""

    tasks: list[str] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)


class InFlight:
    """The files inside the engine, by the key of their task (`TaskSpec.key`)."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._held = 0

    def __len__(self) -> int:
        """Return how many files there are, whatever their state."""
        return len(self._files)

    @property
    def held(self) -> int:
        """How many files wait for their catalogue; they take no place in the engine."""
        return self._held

    def work_of(self, key: str) -> Work | None:
        """Return the work of a file; None if it is not here."""
        found = self._files.get(key)
        return None if found is None else found.work

    def works(self) -> list[Work]:
        """Return the work of every file."""
        return [one.work for one in self._files.values()]

    def by_request(self) -> Counter[str]:
        """Return how many files each request has here."""
        return Counter(one.work.request_id for one in self._files.values())

    def add(self, key: str, work: Work) -> None:
        """Note a file that the engine is given."""
        self._files[key] = _File(work, {key})

    def add_copy(self, key: str, copy: str) -> None:
        """Note a speculative read of a file that runs, by the key of its task."""
        self._files[key].running.add(copy)

    def has_copy(self, key: str) -> bool:
        """Whether a speculative read of a file runs."""
        return key in self._files and len(self._files[key].running) > 1

    def end(self, outcome: Outcome) -> tuple[Outcome | None, list[str]]:
        """Note that a task has ended.

        Returns
        -------
        outcome
            How the file has ended, with the attempts of a copy that failed before. None if it
            has not, because its other copy still runs; and if the file is not here, or has ended
            before.
        losers
            Keys of the tasks that are to be stopped: of the copy that was slower.
        """
        one = self._files.get(outcome.of)
        if one is None or one.outcome is not None:
            return None, []
        one.running.discard(outcome.key)
        if outcome.error is not None and one.running:
            one.failed = outcome.attempts
            return None, []
        losers, one.running = sorted(one.running), set()
        if one.failed:
            outcome = replace(outcome, attempts=one.failed + outcome.attempts)
        one.outcome = outcome
        return one.outcome, losers

    def ended(self) -> list[Ended]:
        """Return the files that have ended and are not held, for their outcomes to be stored."""
        return [
            Ended(key, one.work, one.outcome, one.named)
            for key, one in self._files.items()
            if one.outcome is not None and not one.held
        ]

    def hold(self, key: str) -> None:
        """Hold a file that has ended, until `release`."""
        if not self._files[key].held:
            self._files[key].held = True
            self._held += 1

    def held_files(self, most: int) -> list[Work]:
        """Return the work of so many of the files that are held."""
        chosen = (one.work for one in self._files.values() if one.held)
        return [work for work, _ in zip(chosen, range(most), strict=False)]

    def release(self, file_ids: Iterable[int], named: Mapping[int, tuple[Replica, ...]]) -> None:
        """Hold files no longer, and keep the replicas that catalogues named, by file id.

        A file that is not among those named has none. The answer stays until `stored`: the
        transaction that needs it may have to be repeated, and a catalogue is asked only once.
        """
        wanted = set(file_ids)
        for one in self._files.values():
            if one.held and one.work.file_id in wanted:
                one.held = False
                one.named = named.get(one.work.file_id, ())
                self._held -= 1

    def stored(self, key: str) -> bool:
        """Remove a file whose outcome is stored; return whether it was still here."""
        one = self._files.pop(key, None)
        if one is not None and one.held:
            self._held -= 1
        return one is not None

    def drop(self, request_id: str) -> Dropped:
        """Remove all files of a request."""
        dropped = Dropped()
        for key in [k for k, one in self._files.items() if one.work.request_id == request_id]:
            one = self._files[key]
            dropped.tasks.extend(sorted({key} | one.running))
            dropped.works.append(one.work)
            self.stored(key)
        return dropped
