"""Shares a few helpers among users: they take turns, and no user can occupy all of them."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from servicex_server.errors import TooManyError


class Turns:
    """Limits concurrent jobs, in all and per user; waiting users are served in turn.

    Parameters
    ----------
    most
        Most concurrent jobs.
    most_of_user
        Most concurrent jobs of one user.
    waiting_bytes
        Most bytes of waiting jobs of one user.
    """

    def __init__(self, most: int, *, most_of_user: int, waiting_bytes: int) -> None:
        self._free = most
        self._most_of_user = most_of_user
        self._waiting_bytes = waiting_bytes
        self._running: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, user: str, size: int) -> AsyncIterator[None]:
        """Wait until a job of a user, with ``size`` bytes, may run; it runs within this context.

        Raises
        ------
        TooManyError
            Too many bytes of this user's jobs are waiting already.
        """
        await self._acquire(user, size)
        try:
            yield
        finally:
            self._release(user)

    async def _acquire(self, user: str, size: int) -> None:
        if self._bytes[user] and self._bytes[user] + size > self._waiting_bytes:
            raise TooManyError(
                "selection: too many of your queries are waiting to be compiled",
                hint="submit the next one when one of them is accepted",
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, deque()).append(turn)
        self._bytes[user] += size
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(user)
            else:
                self._forget(user, turn)
            raise
        finally:
            self._bytes[user] -= size
            if not self._bytes[user]:
                del self._bytes[user]

    def _release(self, user: str) -> None:
        self._free += 1
        self._running[user] -= 1
        if not self._running[user]:
            del self._running[user]
        self._serve()

    def _serve(self) -> None:
        """Give free places to waiting jobs: one for each user, then again from the first user."""
        while self._free:
            may = (user for user in self._waiting if self._running[user] < self._most_of_user)
            if (user := next(may, None)) is None:
                return
            turn = self._waiting[user].popleft()
            if self._waiting[user]:
                self._waiting.move_to_end(user)
            else:
                del self._waiting[user]
            self._free -= 1
            self._running[user] += 1
            turn.set_result(None)

    def _forget(self, user: str, turn: asyncio.Future[None]) -> None:
        self._waiting[user].remove(turn)
        if not self._waiting[user]:
            del self._waiting[user]
