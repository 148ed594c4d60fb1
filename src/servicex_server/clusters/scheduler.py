"""A Dask scheduler that restricts the calls of workers.

Dask's own scheduler lets every peer run code in the scheduler and on all workers, read all tasks
and end the cluster. Here, only a peer with the certificate of the service may do so. Another peer
can register as a worker or a nanny, and report on the tasks of that worker.
"""

import logging
from collections.abc import Mapping
from itertools import islice
from typing import Any

from distributed import Scheduler
from distributed.comm.core import Comm, CommClosedError

from servicex_server.clusters.messages import is_packed, read_memory
from servicex_server.clusters.tls import own_certificate
from servicex_server.clusters.wire import opened, protect

log = logging.getLogger(__name__)

METRIC = "servicex"
"""The metric in a worker's heartbeat with the steps of its task."""

OUTCOMES = "servicex-outcomes"
"""The topic of the outcomes of tasks, which workers publish."""

EXITS = "servicex-exits"
"""The topic of the ends of worker processes, which nannies publish."""

_CALLS = {
    "register-worker": frozenset(
        "address status nthreads name now memory_limit local_directory nanny pid versions metrics"
        " server_id stimulus_id".split()
    ),
    "heartbeat_worker": frozenset({"address", "now", "metrics"}),
    "unregister": frozenset({"address", "stimulus_id"}),
    "retire_workers": frozenset({"workers", "remove", "close_workers", "stimulus_id"}),
    "register_nanny": frozenset({"address"}),
    "log_event": frozenset({"topic", "msg"}),
    "close": frozenset[str](),
}
"""The calls that workers and nannies may make, each with the fields that are passed on."""

_REPORTS = frozenset(
    {
        "task-finished",
        "task-erred",
        "release-worker-data",
        "long-running",
        "reschedule",
        "keep-alive",
        "worker-status-change",
        "close-stream",
    }
)
"""The messages that a registered worker may send, besides its outcomes."""

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "register-worker": {"resources": {}, "services": {}, "extra": {}},
    "heartbeat_worker": {"executing": {}, "extensions": {}},
}
"""Defaults of the fields that Dask's scheduler needs and that are not passed on."""


_MEMORY_EVENT = "worker-restart-memory"
"""The topic under which a Dask nanny publishes that it ends a worker for its memory; not used."""

_SHOWN = 80
"""Characters of a call that are logged."""

_STEPS = 4
"""Tasks in one heartbeat at most; a worker runs one."""


_BANDWIDTH = 1e8
"""Bytes per second between workers: Dask's default, as workers do not send each other data."""


class _NotAllowedError(Exception):
    """A peer sent a message that only the service may send."""


class GuardedScheduler(Scheduler):
    """A scheduler that distinguishes the service from workers by their certificates.

    The service and the scheduler use the same certificate.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        protect()
        super().__init__(*arguments, **options)
        self._service = own_certificate(self.security)

    def handle_comm(self, comm: Comm) -> Any:
        """Serve a new connection with the permissions of its peer."""
        certificate = _certificate_of(comm)
        own = bool(certificate) and certificate == self._service
        comm.read = (_Service(comm) if own else _Worker(comm)).read  # type: ignore[method-assign]
        dask: Any = super()
        return dask.handle_comm(comm)


def _certificate_of(comm: Any) -> bytes:
    """Return the certificate of a peer in DER; empty without one."""
    if comm.stream is None or comm.stream.closed():
        return b""
    return comm.stream.socket.getpeercert(binary_form=True) or b""


class _Service:
    """Reads the messages of the service, which may have pickled values."""

    def __init__(self, comm: Any) -> None:
        self._read = comm.read

    async def read(self, deserializers: Any = None) -> Any:
        """Read a message, and unpickle its values."""
        return opened(await self._read(deserializers=deserializers))


class _Worker:
    """Reads the messages of a peer that is not the service."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self._read = comm.read
        self._called = ""
        self._dropped = False

    async def read(self, deserializers: Any = None) -> Any:
        """Read a message that a worker or a nanny may send.

        Raises
        ------
        CommClosedError
            The message is not allowed; the connection is closed.
        """
        message = await self._read(deserializers=deserializers)
        try:
            if self._called == "register-worker":
                several = message if isinstance(message, tuple) else (message,)
                return tuple(one for one in several if self._reports(one))
            if self._called == "register_nanny":
                return {}  # whether its worker started, which is not used
            return self._call(message)
        except _NotAllowedError as error:
            log.warning("a worker at %s is disconnected: %s", self._comm.peer_address, error)
            self._comm.abort()
            raise CommClosedError(str(error)) from None

    def _call(self, message: Any) -> dict[str, Any]:
        op = message.get("op") if isinstance(message, dict) else None
        if not isinstance(op, str) or op not in _CALLS:
            raise _NotAllowedError(f"{str(op)[:_SHOWN]!r} is not a call of workers")
        self._called = op
        call = {name: value for name, value in message.items() if name in _CALLS[op]}
        for name in ("address", "nanny"):
            if not str(call.get(name) or "tls://").startswith("tls://"):
                raise _NotAllowedError(f"{name}: a tls:// address is needed")
        if "metrics" in _CALLS[op]:
            call["metrics"] = _metrics(call.get("metrics"))
        if op == "log_event" and call.get("topic") == _MEMORY_EVENT:
            call["msg"] = {}
        elif op == "log_event" and not (call.get("topic") == EXITS and is_packed(call.get("msg"))):
            raise _NotAllowedError(f"nannies publish messages under {EXITS} only")
        if op == "retire_workers" and not _is_one(call.get("workers")):
            raise _NotAllowedError("a worker retires itself only")
        reply = message.get("reply", True) is not False
        close = message.get("close", False) is True
        return {"op": op, "reply": reply, "close": close} | call | dict(_DEFAULTS.get(op, {}))

    def _reports(self, message: Any) -> bool:
        """Whether a message of a registered worker is passed on."""
        if not isinstance(message, dict):
            raise _NotAllowedError("a report of a worker is an object")
        op = message.get("op")
        if not isinstance(op, str):
            raise _NotAllowedError("a report of a worker has a name")
        known = op in _REPORTS or (op == "log-event" and message.get("topic") == OUTCOMES)
        if op == "log-event" and known:
            event = message.get("msg")
            if not (isinstance(event, dict) and is_packed(event.get("outcome"))):
                raise _NotAllowedError(f"workers publish outcomes under {OUTCOMES} only")
            message["msg"] = {name: event.get(name) for name in ("key", "outcome")}
        if not known and not self._dropped:
            self._dropped = True
            log.debug("%r of a worker at %s is dropped", op, self._comm.peer_address)
        # with these fields, a worker would speak for another worker, or for a client
        if known and not message.keys().isdisjoint({"worker", "client"}):
            raise _NotAllowedError("a worker speaks for itself only")
        return known


def _is_one(workers: object) -> bool:
    return isinstance(workers, tuple) and len(workers) == 1 and isinstance(workers[0], str)


def _metrics(given: object) -> dict[str, Any]:
    """Return the used metrics of a worker. Dask would sum up others, under any name."""
    metrics = given if isinstance(given, dict) else {}
    steps = metrics.get(METRIC)
    return {
        "memory": read_memory(metrics),
        "managed_bytes": 0,
        "spilled_bytes": {"memory": 0, "disk": 0},
        "bandwidth": {"total": _BANDWIDTH, "workers": {}, "types": {}},
        "digests_total_since_heartbeat": {},
        METRIC: dict(islice(steps.items(), _STEPS)) if isinstance(steps, dict) else {},
    }
