"""A managed cluster sends its size to the server again until the server accepts it."""

import asyncio
from collections.abc import Sequence
from typing import Any, Self

import pytest
from distributed import Client

from servicex_server.clusters import contract
from servicex_server.clusters.contract import Managed, first_cause


class Server:
    """A server that accepts a size slowly and after some failures, or never answers."""

    def __init__(self, failures: Sequence[Exception], *, answers: bool = True) -> None:
        self.failures = list(failures)
        self.answers = answers
        self.heard: list[int] = []
        self.scheduler_address = "tcp://far:8786"

    async def scale(self, count: int) -> None:
        """Accept a size, or fail."""
        await (asyncio.sleep(0) if self.answers else asyncio.Event().wait())
        if self.failures:
            raise self.failures.pop()
        self.heard.append(count)


class ServerCluster(Managed):
    """A cluster of such a server; the server may fail to end it."""

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


async def all_sent(cluster: Managed) -> None:
    """Wait until the cluster has no size to send."""
    assert cluster._telling is not None
    await asyncio.wait_for(cluster._telling, 10)


@pytest.mark.anyio
async def test_failed_scaling_is_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(contract, "AGAIN_SECONDS", 0.01)
    server = Server([OSError("no route"), RuntimeError("busy")])
    cluster = ServerCluster(server)
    await cluster.scale(7)
    await all_sent(cluster)
    assert server.heard == [7]
    assert [record.getMessage() for record in caplog.records] == [
        "cannot scale the cluster to 7 workers: busy",
        "cannot scale the cluster to 7 workers: no route",
    ]


@pytest.mark.anyio
async def test_server_gets_the_last_wanted_size() -> None:
    server = Server([])
    cluster = ServerCluster(server)
    for count in (1, 2, 3):
        await cluster.scale(count)
    await all_sent(cluster)
    assert server.heard[-1] == 3
    assert len(server.heard) <= 2
    await cluster.scale(0)
    await all_sent(cluster)
    assert server.heard[-1] == 0


@pytest.mark.anyio
async def test_close_does_not_wait_for_a_server_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(contract, "TELL_SECONDS", 0.05)
    server = Server([], answers=False)
    cluster = ServerCluster(server, ends=False)
    await cluster.scale(1)
    async with asyncio.timeout(10):
        while "no answer in 0.05 s" not in caplog.text:
            await asyncio.sleep(0.01)
        await cluster.close()
    assert server.heard == []
    assert "the cluster at tcp://far:8786 could not be ended: no route" in caplog.text


def test_first_cause_is_the_deepest_error_with_a_message() -> None:
    outer, middle = TimeoutError("too late"), TimeoutError()
    outer.__cause__ = middle
    assert first_cause(outer) == "too late"
    middle.__context__ = OSError("the door\nis shut")
    assert first_cause(outer) == "the door is shut"
    middle.__context__.__context__ = asyncio.CancelledError("not an error")
    assert first_cause(outer) == "the door is shut"
