"""The circuit breaker of the object store closes again after any error of a probe."""

import asyncio
from typing import cast

import pytest

from servicex_server.errors import StoreUnavailableError
from servicex_server.scheduling import store_health
from servicex_server.scheduling.store_health import StoreHealth
from servicex_server.storage.contract import ObjectStore

pytestmark = pytest.mark.anyio


class Probed:
    """A store of which each probe raises the next error, until none is left."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    async def probe(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


async def test_breaker_closes_after_any_error_of_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that no store should raise does not stop the service for ever."""
    monkeypatch.setattr(store_health, "FIRST_PAUSE", 0.0)
    closed = asyncio.Event()
    store = Probed(StoreUnavailableError("it is full"), RuntimeError("a defect"))
    health = StoreHealth(cast("ObjectStore", store), closed.set)
    health.failed(StoreUnavailableError("it is away").record())
    assert health.open
    assert health.problem.endswith("UTC: it is away")
    await asyncio.wait_for(closed.wait(), 30)
    assert (health.open, health.problem, store.errors) == (False, "", [])


async def test_failed_first_probe_opens_the_breaker() -> None:
    health = StoreHealth(cast("ObjectStore", Probed(StoreUnavailableError("no"))), lambda: None)
    health.begin()
    async with asyncio.timeout(30):
        while not health.open:
            await asyncio.sleep(0)
    await health.close()
    assert health.problem.endswith("UTC: no")
