"""Asking workers, beside their tasks, to hold a query against a file or to look at a replica.

It is no task of Dask's: such a one waits behind those that run, and if it hangs it holds its slot
until the worker is started again.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from servicex_server.engines.contract import CHECK_SECONDS
from servicex_server.engines.on_worker import checked, probed
from servicex_server.errors import ErrorRecord
from servicex_server.model import Attempt, CheckSpec, ProbeSpec

log = logging.getLogger(__name__)

_SLOW = 0.5
"""Seconds without an answer after which a check is given to another worker too.

A worker that has just started answers nobody while it imports its libraries.
"""


async def ask(client: Any, addresses: Sequence[str], spec: CheckSpec) -> ErrorRecord | None:
    """Ask the first of some workers, and the next one if that is slow or ends."""
    left = list(addresses)
    pending: set[asyncio.Task[tuple[ErrorRecord | None] | None]] = set()
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            while pending or left:
                if left:
                    pending.add(asyncio.create_task(_answer(client, left.pop(0), spec)))
                done, pending = await asyncio.wait(
                    pending,
                    timeout=_SLOW if left else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for answer in filter(None, (task.result() for task in done)):
                    return answer[0]
    except TimeoutError:
        log.info("a check knows nothing after %g s", CHECK_SECONDS)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return None


async def _answer(client: Any, address: str, spec: CheckSpec) -> tuple[ErrorRecord | None] | None:
    """Return what a worker found; None if it did not find out."""
    try:
        answers = await client.run(checked, spec, workers=[address], on_error="return")
    except OSError:
        return None  # the scheduler ends
    answer = answers.get(address)
    return answer if isinstance(answer, tuple) else None


async def look(client: Any, address: str, spec: ProbeSpec) -> Attempt | None:
    """Have a worker look at a replica; None if it does not find out in time."""
    limits = spec.limits
    try:
        # it opens, asks for the size and reads, each of which may be waited for
        async with asyncio.timeout(limits.opening + 2 * limits.silence):
            answers = await client.run(probed, spec, workers=[address], on_error="return")
    except OSError:  # time-outs are of this kind
        return None
    answer = answers.get(address)
    return answer if isinstance(answer, Attempt) else None
