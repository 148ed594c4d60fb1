"""Short work on a worker beside its task: in threads, so that it neither has nor needs a slot.

A thread cannot be ended from outside. So there are few, the work they do ends by time-outs of its
own, and a process that ends waits for none of them.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

MOST = 4
"""Threads at a time in one process: opening a file is mostly waiting, and they share one core."""

_places = asyncio.Semaphore(MOST)


async def beside(work: Callable[[], T]) -> T:
    """Do something in a thread of its own as soon as one of the few may run.

    Who is cancelled while waiting leaves at once; the thread keeps its place until it has ended.
    """
    await _places.acquire()
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(act: Callable[[], None]) -> None:
        _places.release()
        if not done.done():
            act()

    def run() -> None:
        act: Callable[[], None]
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  # it is raised where the work is waited for
            failure = error
            act = lambda: done.set_exception(failure)  # noqa: E731  # the other one of two
        else:
            act = lambda: done.set_result(result)  # noqa: E731  # one of two
        with suppress(RuntimeError):  # the loop is closed: the process ends, and nobody waits
            loop.call_soon_threadsafe(tell, act)

    # not of a pool: Python waits at the end for the threads of pools
    threading.Thread(target=run, name="beside", daemon=True).start()
    return await done
