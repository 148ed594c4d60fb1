"""Checks whether one replica can be opened and read."""

import time

from servicex_server.columnar.reading.download import look
from servicex_server.errors import ErrorRecord, InternalError, ServiceXError
from servicex_server.model import Attempt, ProbeSpec, Replica
from servicex_server.worker.extraction import access_to


def probe(spec: ProbeSpec) -> Attempt:
    """Open a replica, query its size and read its first block; return errors, never raise."""
    began = time.monotonic()
    error: ErrorRecord | None = None
    try:
        look(spec.url, access_to(Replica(spec.url), spec.limits, spec.credentials))
    except ServiceXError as failure:
        error = failure.record()
    except Exception as failure:  # noqa: BLE001  # whatever it is, the caller asks for it
        error = InternalError(f"{type(failure).__name__}: {failure}").record()
    return Attempt(spec.url, time.monotonic() - began, error)
