"""Blocking functions in daemon threads."""

import asyncio
import threading

import pytest

from servicex_server.concurrency import run_in_daemon_thread

pytestmark = pytest.mark.anyio


async def test_results_and_errors_reach_the_caller() -> None:
    assert await run_in_daemon_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await run_in_daemon_thread(divmod, 7, 0)


async def test_cancelled_caller_returns_while_its_thread_keeps_the_semaphore() -> None:
    limit, release, started = asyncio.Semaphore(1), threading.Event(), threading.Event()

    def block() -> None:
        started.set()
        release.wait(10)

    caller = asyncio.create_task(run_in_daemon_thread(block, limit=limit))
    assert await run_in_daemon_thread(started.wait, 10)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert limit.locked()
    waiting = asyncio.create_task(run_in_daemon_thread(threading.get_ident, limit=limit))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    release.set()
    await asyncio.wait_for(waiting, 10)
    assert not limit.locked()
