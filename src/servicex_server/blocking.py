"""Calling what blocks, such as clients of catalogues: in threads nobody waits for the end of."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing, suppress
from typing import Any, TypeVar

T = TypeVar("T")

AHEAD = 2000
"""Items that are held for one who is slower than the catalogue."""

END_SECONDS = 2.0
"""For how long the end of a stream's thread is waited for, when nobody wants more of it."""


async def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns that blocks, and for which nobody waits who needs it no more.

    A service that ends would wait for a thread of `asyncio.to_thread`, and so for the server.
    """
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Any] = loop.create_future()

    def tell(answer: Any, error: BaseException | None) -> None:
        if answered.done():
            return
        if error is None:
            answered.set_result(answer)
        else:
            answered.set_exception(error)

    def run() -> None:
        answer, error = None, None
        try:
            answer = function(*arguments)
        except BaseException as raised:  # noqa: BLE001  # it is raised again where it is waited for
            error = raised
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, answer, error)

    threading.Thread(target=run, name="blocking", daemon=True).start()
    return await answered


async def streamed(
    source: Generator[T, None, None], *, stop: Callable[[], None], ahead: int | None = None
) -> AsyncGenerator[T, None]:
    """Yield what a generator yields that runs in a thread of its own, a bounded number ahead.

    Parameters
    ----------
    stop
        Ends what the generator waits for; called when nobody wants more.
    ahead
        Items that are held for one who is slower; else `AHEAD`.
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
        except Exception as error:  # noqa: BLE001  # it is raised where the files are taken
            failure = error
        with suppress(RuntimeError):  # a loop that has been closed wants to know nothing
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
