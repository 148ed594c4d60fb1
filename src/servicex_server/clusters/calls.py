"""Calls of functions on workers, nannies and the scheduler, which return bytes and not objects."""

from collections.abc import Callable, Mapping
from typing import Any

from distributed.protocol.pickle import dumps

from servicex_server.clusters.wire import RemoteError, clean_exception, plain_bytes


async def call(
    client: Any, address: str, function: Callable[..., Any], *arguments: Any, nanny: bool = False
) -> bytes:
    """Run a function on a worker or its nanny, concurrently with tasks; return its bytes.

    Raises
    ------
    OSError
        The scheduler does not answer.
    RemoteError
        The worker is gone, or the function failed or did not return bytes.
    """
    answers = await client.scheduler.broadcast(
        msg={"op": "run", "wait": True} | _call(function, *arguments),
        workers=[address],
        nanny=nanny,
        on_error="ignore",
    )
    answer = answers.get(address) if isinstance(answers, dict) else None
    if not isinstance(answer, dict):
        raise RemoteError("the worker is gone")
    return _bytes_of(answer)


async def call_scheduler(client: Any, function: Callable[..., Any]) -> bytes:
    """Run a function on the scheduler; return the bytes it returns.

    Raises
    ------
    OSError
        The scheduler does not answer.
    RemoteError
        The function failed or did not return bytes.
    """
    return _bytes_of(await client.scheduler.run_function(wait=True, **_call(function)))


def _call(function: Callable[..., Any], *arguments: Any) -> dict[str, bytes]:
    return {"function": dumps(function), "args": dumps(arguments), "kwargs": dumps({})}


def _bytes_of(answer: Mapping[str, Any]) -> bytes:
    if answer.get("status") != "OK":
        raise clean_exception(**answer)[1]
    found = plain_bytes(answer.get("result"))
    if found is None:
        raise RemoteError("the answer is not bytes")
    return found
