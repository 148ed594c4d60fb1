"""Calls of workers, concurrent with their tasks: dry runs and probes.

They are not Dask tasks. A Dask task would wait behind the task that runs, and one that hangs would
block its slot until the worker restarts.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from servicex_server.clusters.calls import call
from servicex_server.clusters.messages import MessageError, read_check, read_probe
from servicex_server.clusters.wire import RemoteError
from servicex_server.engine.contract import CHECK_SECONDS
from servicex_server.engine.worker_main import check_on_worker, probe_on_worker
from servicex_server.errors import ErrorRecord
from servicex_server.model import Attempt, CheckSpec, ProbeSpec

log = logging.getLogger(__name__)

_SLOW = 0.5
"""Seconds without an answer after which a second worker gets the dry run too.

A worker that has just started does not answer while it imports its libraries.
"""


async def call_check(client: Any, addresses: Sequence[str], spec: CheckSpec) -> ErrorRecord | None:
    """Dry-run on the first worker, and also on the next one if the first is slow or ends."""
    left = list(addresses)
    pending: set[asyncio.Task[bytes]] = set()
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
                    return read_check(answer)
    except TimeoutError:
        log.info("dry run: no answer within %g s", CHECK_SECONDS)
    except MessageError as error:
        log.warning("dry run: the answer of a worker is invalid: %s", error)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return None


async def _answer(client: Any, address: str, spec: CheckSpec) -> bytes:
    """Return the answer of a worker; empty if it has none."""
    try:
        return await call(client, address, check_on_worker, spec)
    except (OSError, RemoteError):
        return b""  # the scheduler or the worker ended


async def call_probe(client: Any, address: str, spec: ProbeSpec) -> Attempt | None:
    """Probe a replica from a worker; return None if there is no answer in time."""
    limits = spec.limits
    try:
        # a probe opens the file, asks for its size and reads: each step may take its deadline
        async with asyncio.timeout(limits.opening + 2 * limits.silence):
            return read_probe(await call(client, address, probe_on_worker, spec), spec)
    except MessageError as error:
        log.warning("probe: the answer of a worker is invalid: %s", error)
    except (OSError, RemoteError) as error:  # TimeoutError is an OSError
        log.info("probe: no answer: %s", error)
    return None
