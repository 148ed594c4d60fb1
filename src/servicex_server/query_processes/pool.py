"""A pool of helper processes: keeps some ready, and replaces those that exceeded a limit."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

from servicex_server.query_processes.client import (
    ForkServerProcess,
    Helper,
    HelperDiedError,
    NoHelperError,
)
from servicex_server.query_processes.limits import JobLimits

log = logging.getLogger(__name__)

HELPER_SECONDS = 20.0
"""Seconds that a job waits for a helper if none can be started."""

_PAUSE = 0.2
"""Seconds until the first retry to start a helper; doubled after each attempt."""


class HelperPool:
    """Runs jobs in helper processes.

    Parameters
    ----------
    server
        The fork server that starts helpers; several pools may share it.
    limits
        The limits of a job.
    ready
        The number of idle helpers to keep ready; more helpers start if more jobs run at once.
    """

    def __init__(self, server: ForkServerProcess, limits: JobLimits, *, ready: int) -> None:
        self._server = server
        self._limits = limits
        self._ready = ready
        self._idle: list[Helper] = []
        self._count = 0
        self._refilling: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Start to keep helpers ready."""
        if not self._closed and (self._refilling is None or self._refilling.done()):
            self._refilling = asyncio.create_task(self._refill())

    async def close(self) -> None:
        """End the idle helpers; busy ones end with the fork server."""
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.gather(self._refilling, return_exceptions=True)
        while self._idle:
            self._end(self._idle.pop())

    async def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run a job.

        A helper that ends during a job without having exceeded a limit may have been killed from
        outside: the job is tried once more, by another helper.

        Raises
        ------
        LimitExceededError
            The job has exceeded a limit.
        HelperDiedError
            Two helpers have ended during the job.
        NoHelperError
            No helper could be started.
        """
        try:
            return await self._run_once(job)
        except HelperDiedError as error:
            log.warning("a helper process %s; another one retries its query", error.how)
        return await self._run_once(job)

    async def _run_once(self, job: dict[str, Any]) -> dict[str, Any]:
        helper = await self._helper()
        kept = False
        try:
            answer = await helper.ask(job, self._limits)
            last = answer.pop("last", True)
            kept = not (last or self._closed) and self._count <= self._ready
        finally:
            if kept:
                self._idle.append(helper)
            else:
                self._end(helper)
                self.start()
        return answer

    async def _helper(self) -> Helper:
        while self._idle:
            # the helper that was used last is still in the processor's caches
            helper = self._idle.pop()
            if helper.alive:
                return helper
            self._end(helper)
        return await self._forked()

    def _end(self, helper: Helper) -> None:
        self._server.end(helper)
        self._count -= 1

    async def _forked(self) -> Helper:
        self._count += 1
        helper = None
        try:
            async with asyncio.timeout(HELPER_SECONDS):
                helper = await self._try_to_fork()
        except TimeoutError:
            raise NoHelperError("no helper process can be started") from None
        finally:
            self._count -= helper is None
        return helper

    async def _try_to_fork(self) -> Helper:
        pause = _PAUSE
        while True:
            try:
                return await self._server.fork(self._limits.memory)
            except NoHelperError as error:
                if self._closed:
                    raise
                log.warning("%s; retrying in %g s", error, pause)
            await asyncio.sleep(pause)
            pause *= 2

    async def _refill(self) -> None:
        with suppress(NoHelperError):  # the next job tries again
            while self._count < self._ready:
                self._idle.append(await self._forked())
