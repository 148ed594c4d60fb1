"""A cluster whose size another server keeps is told until that has heard."""

import asyncio
from collections.abc import Sequence
from typing import Any, Self

import pytest
from distributed import Client

from servicex_server.clusters import contract
from servicex_server.clusters.contract import Managed, first_cause


class Server:
    """Hears what it is told when it has failed often enough, and slowly; or never."""

    def __init__(self, failures: Sequence[Exception], *, answers: bool = True) -> None:
        self.failures = list(failures)
        self.answers = answers
        self.heard: list[int] = []
        self.scheduler_address = "tcp://far:8786"

    async def scale(self, count: int) -> None:
        """Hear, or fail."""
        await (asyncio.sleep(0) if self.answers else asyncio.Event().wait())
        if self.failures:
            raise self.failures.pop()
        self.heard.append(count)


class OfServer(Managed):
    """A cluster of such a server, which may fail to end it."""

    def __init__(self, server: Server, *, ends: bool = True) -> None:
        super().__init__()
        self._cluster = server
        self._ends = ends

    @classmethod
    def from_settings(cls, options: Server, **limits: Any) -> Self:
        del limits
        return cls(options)

    async def open(self) -> Client:
        raise NotImplementedError

    async def _end(self) -> None:
        if not self._ends:
            raise OSError("no route")


async def all_told(cluster: Managed) -> None:
    """Wait until there is nothing to tell."""
    assert cluster._telling is not None
    await asyncio.wait_for(cluster._telling, 10)


@pytest.mark.anyio
async def test_what_fails_is_told_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(contract, "AGAIN_SECONDS", 0.01)
    server = Server([OSError("no route"), RuntimeError("busy")])
    cluster = OfServer(server)
    await cluster.scale(7)
    await all_told(cluster)
    assert server.heard == [7]
    assert [record.getMessage() for record in caplog.records] == [
        "cannot scale the cluster to 7 workers: busy",
        "cannot scale the cluster to 7 workers: no route",
    ]


@pytest.mark.anyio
async def test_only_what_is_wanted_last_counts() -> None:
    server = Server([])
    cluster = OfServer(server)
    for count in (1, 2, 3):
        await cluster.scale(count)
    await all_told(cluster)
    assert server.heard[-1] == 3
    assert len(server.heard) <= 2
    await cluster.scale(0)
    await all_told(cluster)
    assert server.heard[-1] == 0


@pytest.mark.anyio
async def test_a_server_that_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(contract, "TELL_SECONDS", 0.05)
    server = Server([], answers=False)
    cluster = OfServer(server, ends=False)
    await cluster.scale(1)
    async with asyncio.timeout(10):
        while "no answer in 0.05 s" not in caplog.text:
            await asyncio.sleep(0.01)
        await cluster.close()
    assert server.heard == []
    assert "the cluster at tcp://far:8786 could not be ended: no route" in caplog.text


def test_the_first_cause_is_the_one_that_says_something() -> None:
    outer, middle = TimeoutError("too late"), TimeoutError()
    outer.__cause__ = middle
    assert first_cause(outer) == "too late"
    middle.__context__ = OSError("the door\nis shut")
    assert first_cause(outer) == "the door is shut"
    middle.__context__.__context__ = asyncio.CancelledError("not an error")
    assert first_cause(outer) == "the door is shut"
