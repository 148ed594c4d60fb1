"""The local cluster starts and ends worker processes of this machine."""

import asyncio
import gc
import os
import time
from typing import Any

import dask
import psutil
import pytest
from distributed import Status

from servicex_server.clusters.dask_config import CONFIG
from servicex_server.clusters.local import LocalProcesses
from tests.support import on_workers, workers_of


@pytest.mark.anyio
async def test_scaling_down_ends_idle_workers_first() -> None:
    """The order in which workers came does not matter. Scaling to 0 ends busy workers too."""
    cluster = LocalProcesses(memory=1 << 30)
    client: Any = await cluster.open()
    try:
        assert CONFIG["distributed.scheduler.http.routes"] == []
        await cluster.scale(3)
        before = await workers_of(client, 3)
        # what the fork server has imported is no garbage to any of its copies
        frozen = await on_workers(client, gc.get_freeze_count)
        assert min(frozen.values()) > 100_000
        for name, value in CONFIG.items():
            assert list((await on_workers(client, dask.config.get, name)).values()) == [value] * 3
        described = (await client.scheduler.identity())["workers"]
        busy = max(described, key=lambda address: int(described[address]["name"]))
        task = client.submit(time.sleep, 600, workers=[busy], pure=False, key="long")
        async with asyncio.timeout(10):
            while "long" not in (await client.processing())[busy]:
                await asyncio.sleep(0.01)
        for count in (2, 1):
            await cluster.scale(count)
            assert described[busy]["name"] in {
                one["name"] for one in await workers_of(client, count)
            }
        assert (await client.processing()) == {busy: (task.key,)}
        await cluster.scale(0)
        assert await workers_of(client, 0) == []
        assert len(before) == 3
    finally:
        await client.close()
        await cluster.close()


@pytest.mark.anyio
async def test_close_kills_workers_that_do_not_end() -> None:
    """It kills workers in the middle of a task, and closes the scheduler too."""
    cluster = LocalProcesses(memory=1 << 30)
    client: Any = await cluster.open()
    await cluster.scale(2)
    await workers_of(client, 2)
    pids = list((await on_workers(client, os.getpid)).values())
    tasks = [client.submit(time.sleep, 600, pure=False, key=f"long-{n}") for n in range(2)]
    async with asyncio.timeout(30):
        while sum(map(len, (await client.processing()).values())) < len(tasks):
            await asyncio.sleep(0.01)
    scheduler = cluster._scheduler
    await client.close(timeout=1)
    await cluster.close()
    assert scheduler.status is Status.closed
    async with asyncio.timeout(10):
        while any(map(psutil.pid_exists, pids)):
            await asyncio.sleep(0.05)
