"""Running blocking code, such as clients of catalogues, in daemon threads.

Python waits for the threads of a pool, so for those of `asyncio.to_thread`, when a process ends. It
does not wait for daemon threads: a server that does not answer cannot delay the end of the service.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing, suppress
from typing import Any, TypeVar

T = TypeVar("T")

AHEAD = 2000
"""Items that are buffered for a consumer that is slower than the catalogue."""

END_SECONDS = 2.0
"""Seconds to wait for the thread of an iteration to end after the consumer has stopped."""


async def run_in_daemon_thread(
    function: Callable[..., Any], *arguments: Any, limit: asyncio.Semaphore | None = None
) -> Any:
    """Run a blocking function in a new daemon thread; return its result or raise its error.

    A caller that is cancelled returns at once. The thread runs on until the function returns, and
    its result is discarded.

    Parameters
    ----------
    function, arguments
        The call to make.
    limit
        Bounds the number of threads that run at the same time. A thread holds its place until it
        has ended, even if its caller was cancelled.
    """
    if limit is not None:
        await limit.acquire()
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[Any] = loop.create_future()

    def finish(result: Any, error: BaseException | None) -> None:
        if limit is not None:
            limit.release()
        if finished.done():
            return
        if error is None:
            finished.set_result(result)
        else:
            finished.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except BaseException as raised:  # noqa: BLE001  # the caller raises it again
            error = raised
        with suppress(RuntimeError):  # the loop is closed, so nobody waits for the result
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=run, name="blocking", daemon=True).start()
    return await finished


async def iterate_in_thread(
    source: Generator[T, None, None], *, stop: Callable[[], None], ahead: int | None = None
) -> AsyncGenerator[T, None]:
    """Yield the items of a generator that runs in a daemon thread.

    Parameters
    ----------
    source
        The blocking generator.
    stop
        Interrupts what the generator waits for. It is called when the consumer stops early.
    ahead
        Items that are buffered for a slow consumer. The default is `AHEAD`.
    """
    loop = asyncio.get_running_loop()
    arrived, ended = asyncio.Event(), loop.create_future()
    room, halted = threading.Semaphore(ahead or AHEAD), threading.Event()
    items: deque[T] = deque()

    def end(error: Exception | None) -> None:
        ended.set_result(error)
        arrived.set()

    def run() -> None:
        failure = None
        try:
            with closing(source):
                for item in source:
                    room.acquire()
                    if halted.is_set():
                        break
                    items.append(item)
                    if not arrived.is_set():
                        loop.call_soon_threadsafe(arrived.set)
        except Exception as error:  # noqa: BLE001  # the consumer raises it again
            failure = error
        with suppress(RuntimeError):  # the loop is closed, so there is no consumer
            loop.call_soon_threadsafe(end, failure)

    thread = threading.Thread(target=run, name="blocking", daemon=True)
    thread.start()
    try:
        while True:
            await arrived.wait()
            arrived.clear()
            last = ended.done()
            while items:
                item = items.popleft()
                room.release()
                yield item
            if last:
                if failure := ended.result():
                    raise failure
                return
    finally:
        halted.set()
        room.release()
        if not ended.done():
            stop()
        await asyncio.wait([ended], timeout=END_SECONDS)
        if ended.done():
            thread.join()
