"""A cluster whose size another server keeps is told until that has heard."""

import asyncio
from collections.abc import Sequence

import pytest
from distributed import Client

from servicex_server.engines import clusters
from servicex_server.engines.clusters import Managed, first_cause


class Deaf(Managed):
    """Hears the second time, and slowly."""

    def __init__(self, failures: Sequence[Exception]) -> None:
        super().__init__()
        self.failures = list(failures)
        self.heard: list[int] = []

    async def open(self) -> Client:
        raise NotImplementedError

    async def tell(self, count: int) -> None:
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop()
        self.heard.append(count)

    async def close(self) -> None:
        await self.silence()


async def all_told(cluster: Managed) -> None:
    """Wait until there is nothing to tell."""
    assert cluster._telling is not None
    await asyncio.wait_for(cluster._telling, 10)


@pytest.mark.anyio
async def test_what_fails_is_told_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clusters, "AGAIN_SECONDS", 0.01)
    cluster = Deaf([OSError("no route"), RuntimeError("busy")])
    await cluster.scale(7)
    await all_told(cluster)
    assert cluster.heard == [7]
    assert [record.getMessage() for record in caplog.records] == [
        "7 workers are wanted, which cannot be told: busy",
        "7 workers are wanted, which cannot be told: no route",
    ]


@pytest.mark.anyio
async def test_only_what_is_wanted_last_counts() -> None:
    cluster = Deaf([])
    for count in (1, 2, 3):
        await cluster.scale(count)
    await all_told(cluster)
    assert cluster.heard[-1] == 3
    assert len(cluster.heard) <= 2
    await cluster.scale(0)
    await all_told(cluster)
    assert cluster.heard[-1] == 0


@pytest.mark.anyio
async def test_a_server_that_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clusters, "TELL_SECONDS", 0.05)
    cluster = Deaf([])
    monkeypatch.setattr(cluster, "tell", lambda count: asyncio.Event().wait())
    await cluster.scale(1)
    async with asyncio.timeout(10):
        while "no answer in 0.05 s" not in caplog.text:
            await asyncio.sleep(0.01)
        await cluster.close()
    assert cluster.heard == []


def test_the_first_cause_is_the_one_that_says_something() -> None:
    outer, middle = TimeoutError("too late"), TimeoutError()
    outer.__cause__ = middle
    assert first_cause(outer) == "too late"
    middle.__context__ = OSError("the door\nis shut")
    assert first_cause(outer) == "the door is shut"
    middle.__context__.__context__ = asyncio.CancelledError("not an error")
    assert first_cause(outer) == "the door is shut"
