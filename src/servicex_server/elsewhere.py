"""Asking catalogues once more where files are, which were at none of the places they had named.

How such a file ended is held back until its catalogue has answered; who dies meanwhile has not
written it down, so the file is done again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

from servicex_server.database.outcomes import of_place
from servicex_server.database.tasks import Work
from servicex_server.model import Outcome, Replica

log = logging.getLogger(__name__)

MOST = 200
"""Files that a catalogue is asked for at a time."""

Ask: TypeAlias = Callable[[Mapping[int, str]], Awaitable[Mapping[int, tuple[Replica, ...]]]]
"""Asks catalogues where files are, by their ids and names; it returns what they say, by the ids."""


class Elsewhere:
    """Files that were at none of their places, and what their catalogues have said of them since.

    Parameters
    ----------
    ask
        Asks catalogues.
    answered
        Called with how files ended that are waited for no more.
    """

    def __init__(self, ask: Ask, answered: Callable[[Sequence[Outcome]], None]) -> None:
        self._ask = ask
        self._answered = answered
        self._lost: dict[str, tuple[str, Outcome]] = {}
        self._named: dict[str, tuple[Replica, ...]] = {}
        self._asking: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Return how many files are waited for."""
        return len(self._lost)

    def takes(self, work: Work, outcome: Outcome) -> bool:
        """Whether an outcome is held back; only that of a file that may be somewhere else."""
        if work.asked_again or not work.file.name or not of_place(outcome.error):
            return False
        self._lost[outcome.of] = work.file.name, outcome
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._run(), name="elsewhere")
        return True

    def named(self, outcome: Outcome) -> tuple[Replica, ...] | None:
        """Return, once, what was named for a file; None if its catalogue was not asked."""
        return self._named.pop(outcome.of, None)

    async def _run(self) -> None:
        while self._lost:
            lost = dict(list(self._lost.items())[:MOST])
            names = {outcome.file_id: name for name, outcome in lost.values()}
            found: Mapping[int, tuple[Replica, ...]] = {}
            try:
                found = await self._ask(names)
            except Exception:
                log.exception("%d files are not looked for at other places", len(names))
            for key, (_, outcome) in lost.items():
                del self._lost[key]
                self._named[key] = found.get(outcome.file_id, ())
            self._answered([outcome for _, outcome in lost.values()])

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
