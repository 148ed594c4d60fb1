"""Dask: tasks on worker processes of one thread each, watched by nannies."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from distributed import Future, WorkerPlugin
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from servicex_server.engines.beside import beside
from servicex_server.engines.clusters import Cluster
from servicex_server.engines.contract import CHECK_SECONDS, Engine
from servicex_server.errors import ErrorRecord, WorkerDiedError
from servicex_server.model import Attempt, CheckSpec, Outcome, TaskSpec, WorkerInfo
from servicex_server.transform import check, transform

log = logging.getLogger(__name__)

_SLOW = 0.5
"""Seconds without an answer after which a check is given to another worker too.

A worker that has just started answers nobody while it imports its libraries.
"""


class _Warm(WorkerPlugin):
    """Imports the heavy libraries before the first file comes."""

    name = "servicex-warm"

    def setup(self, worker: Any) -> None:
        del worker
        import awkward  # noqa: F401
        import pyarrow.parquet  # noqa: F401
        import uproot  # noqa: F401


class DaskEngine(Engine):
    """Runs tasks on the workers of a cluster.

    Parameters
    ----------
    cluster
        Where the workers come from.
    workers
        How many.
    """

    def __init__(self, cluster: Cluster, *, workers: int) -> None:
        self._count = workers
        self._cluster = cluster
        self._client: Any = None
        self._futures: dict[str, tuple[TaskSpec, Any]] = {}
        self._beside: set[asyncio.Task[Any]] = set()
        self._turn = 0
        self._ended: Callable[[Outcome], None] = _nobody

    async def start(self, ended: Callable[[Outcome], None]) -> None:
        """Reach the scheduler and bring the workers up."""
        self._ended = ended
        self._client = await self._cluster.open()
        await self._cluster.scale(self._count)
        # not waited for: a request may come while the workers import their libraries
        self._keep(self._warm())

    async def _warm(self) -> None:
        try:
            await self._client.register_plugin(_Warm())
        except OSError as error:
            # a worker that ends meanwhile imports when its successor needs it
            log.info("not all workers are warm: %s", error)

    def _keep(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something beside, and hold on to it until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def close(self) -> None:
        """End the workers."""
        beside = list(self._beside)
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        if self._client is not None:
            await self._client.close(timeout=1)
        await self._cluster.close()

    @property
    def slots(self) -> int:
        """How many worker processes there are."""
        return self._count

    def submit(self, spec: TaskSpec) -> None:
        """Hand a task to Dask."""
        future = self._client.submit(transform, spec, key=spec.key, pure=False, retries=0)
        self._futures[spec.key] = (spec, future)
        self._keep(self._wait(spec, future))

    async def _wait(self, spec: TaskSpec, future: Any) -> None:
        try:
            outcome = await future
        except asyncio.CancelledError:
            return  # the service stops
        except FutureCancelledError:
            outcome = _died(spec, "the engine lost it")
        except KilledWorker as error:
            outcome = _died(spec, f"worker {error.last_worker.address} ended while it ran")
        except Exception as error:
            log.exception("a task ended in a way it should not", extra={"file_id": spec.file_id})
            outcome = _died(spec, f"{type(error).__name__}: {error}")
        if self._futures.pop(spec.key, None) is not None:
            self._ended(outcome)

    async def check(self, spec: CheckSpec) -> ErrorRecord | None:
        """Ask the worker with the least to do, and another one if that is slow or ends.

        It is no task of Dask's: such a one waits behind those that run, and if it hangs it holds
        its slot until the worker is restarted.
        """
        addresses = self._least_busy(2)
        pending: set[asyncio.Task[tuple[ErrorRecord | None] | None]] = set()
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                while pending or addresses:
                    if addresses:
                        pending.add(asyncio.create_task(self._ask(addresses.pop(0), spec)))
                    done, pending = await asyncio.wait(
                        pending,
                        timeout=_SLOW if addresses else None,
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

    def _least_busy(self, count: int) -> list[str]:
        """Return so many addresses of workers, in turn where they have as much to do."""
        self._turn += 1
        workers = list(self._client.cluster.scheduler.workers.values())
        turn = self._turn % max(1, len(workers))
        in_turn = workers[turn:] + workers[:turn]
        chosen = sorted(in_turn, key=lambda worker: len(worker.processing))[:count]
        return [str(worker.address) for worker in chosen]

    async def _ask(self, address: str, spec: CheckSpec) -> tuple[ErrorRecord | None] | None:
        """Return what a worker found; None if it did not find out."""
        try:
            answers = await self._client.run(_checked, spec, workers=[address], on_error="return")
        except OSError:
            return None  # the scheduler ends
        answer = answers.get(address)
        return answer if isinstance(answer, tuple) else None

    async def stop(self, keys: Iterable[str]) -> None:
        """Cancel tasks; a worker that is in the middle of one is restarted."""
        chosen = [self._futures.pop(key) for key in list(keys) if key in self._futures]
        if not chosen:
            return
        running = await self._running()
        futures: list[Future[Any]] = [future for _, future in chosen]
        await self._client.cancel(futures, force=True)
        wanted = {spec.key for spec, _ in chosen}
        addresses = [address for address, task in running.items() if task in wanted]
        if addresses:
            await self._client.restart_workers(addresses, timeout=30, raise_for_error=False)

    async def _running(self) -> dict[str, str]:
        """Return the task each worker executes, by the worker's address."""
        stacks = await self._client.call_stack(keys=list(self._futures) or None)
        return {address: next(iter(calls), "") for address, calls in stacks.items()}

    async def workers(self) -> list[WorkerInfo]:
        """Return the workers, idle or busy."""
        if self._client is None:
            return []
        info = (await self._client.scheduler.identity(n_workers=-1))["workers"]
        running = await self._client.processing()
        return [
            WorkerInfo(
                address=address,
                memory=int(about.get("metrics", {}).get("memory", 0)),
                task=next(iter(running.get(address, ())), ""),
            )
            for address, about in info.items()
        ]


async def _checked(spec: CheckSpec) -> tuple[ErrorRecord | None] | None:
    """Check on a worker. The deadline holds here too, so that the scheduler does not wait on."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CHECK_SECONDS):
            return (await beside(partial(check, spec, patience=CHECK_SECONDS)),)
    return None


def _nobody(outcome: Outcome) -> None:
    """Hear of an outcome before anybody wants to."""
    del outcome


def _died(spec: TaskSpec, why: str) -> Outcome:
    error = WorkerDiedError(
        f"the worker ended while it worked on this file ({why})",
        hint="it may have run out of memory; the file is tried again on another worker",
    ).record()
    url = spec.replicas[0].url if spec.replicas else ""
    return Outcome(
        request_id=spec.request_id,
        file_id=spec.file_id,
        attempt=spec.attempt,
        entries=spec.entries,
        error=error,
        attempts=(Attempt(url=url, seconds=0.0, error=error),),
        url=url,
    )
