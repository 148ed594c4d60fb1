"""Users share a few places: nobody has all of them, and waiting users are served in turn."""

import asyncio

import pytest

from servicex_server.errors import TooManyError
from servicex_server.query_processes.turns import Turns

pytestmark = pytest.mark.anyio


class Jobs:
    """Jobs of users, which run until the test ends them, and the order in which they began."""

    def __init__(self, most: int = 2, most_of_user: int = 1, waiting_bytes: int = 100) -> None:
        self.turns = Turns(most, most_of_user=most_of_user, waiting_bytes=waiting_bytes)
        self.begun: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, *names: str, size: int = 1) -> None:
        """Begin jobs; the first letter of a name is the user."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._do(name, size))
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def _do(self, name: str, size: int) -> None:
        async with self.turns.turn(name[0], size):
            self.begun.append(name)
            await self._ends[name].wait()

    async def end(self, *names: str) -> None:
        """End jobs."""
        for name in names:
            self._ends[name].set()
            await self._tasks[name]
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def cancel(self, name: str) -> None:
        """Cancel a job, waiting or not."""
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        await asyncio.sleep(0)


async def test_one_user_cannot_take_all_places() -> None:
    """One place stays for another user, however many jobs the first one has."""
    jobs = Jobs()
    await jobs.begin("a1", "a2", "a3", "b1")
    assert jobs.begun == ["a1", "b1"]
    await jobs.end("a1")
    assert jobs.begun == ["a1", "b1", "a2"]
    await jobs.end("a2", "a3", "b1")


async def test_waiting_users_are_served_in_turn() -> None:
    """Ten jobs of one user do not come before the first job of another."""
    jobs = Jobs(most=1)
    await jobs.begin("a1", "a2", "a3", "b1", "c1", "b2")
    await jobs.end("a1", "a2", "b1", "c1", "a3", "b2")
    assert jobs.begun == ["a1", "a2", "b1", "c1", "a3", "b2"]


async def test_too_many_waiting_bytes_of_a_user_are_refused() -> None:
    """A single job may have any size, and jobs of other users may wait."""
    jobs = Jobs(most=1)
    await jobs.begin("a1", "a2", size=90)
    with pytest.raises(TooManyError, match="queries are waiting"):
        async with jobs.turns.turn("a", 20):
            pass
    await jobs.begin("b1", size=1000)
    await jobs.end("a1", "a2", "b1")
    assert len(jobs.begun) == 3


@pytest.mark.parametrize("name", ["a1", "a2", "b1"])
async def test_cancelled_job_frees_its_place(name: str) -> None:
    """All other jobs run to their end, whether this one was waiting or running."""
    jobs = Jobs(most=1)
    names = ["a1", "a2", "b1"]
    await jobs.begin(*names)
    await jobs.cancel(name)
    left = [one for one in names if one != name]
    await jobs.end(*left)
    await jobs.begin("c1")
    assert [one for one in jobs.begun if one != name] == [*left, "c1"]
    await jobs.end("c1")
