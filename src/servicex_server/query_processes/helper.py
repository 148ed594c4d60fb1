"""A helper process: runs jobs one after the other, each within limits, until its parent closes.

It is forked from `servicex_server.query_processes.fork_server`. Its parent does not trust it, and
accepts only JSON of bounded size from it.
"""

import ctypes
import os
import signal
import sys
from socket import socket
from typing import Any, NoReturn

from servicex_server.query_processes import jobs
from servicex_server.query_processes.frames import encode, receive
from servicex_server.query_processes.limits import (
    JobLimits,
    confine,
    data_bytes,
    start_timers,
    stop_timers,
    use_reserve,
)

MOST_JOBS = 1000
"""Jobs after which a helper is replaced, because memory that libraries keep adds up."""


def serve(connection: socket, memory: int) -> NoReturn:
    """Run jobs until the parent closes the connection; then end the process.

    Parameters
    ----------
    connection
        The connection that jobs come from.
    memory
        Bytes that this process may use beyond those that it uses now.
    """
    _end_with_the_parent()
    before = confine(memory)
    for number in range(1, MOST_JOBS + 1):
        if (job := receive(connection)) is None:
            break
        answer = _within_limits(job)
        # replace a helper that kept much memory, so that the next query has it
        last = number == MOST_JOBS or "limit" in answer or data_bytes() > before + memory // 4
        connection.sendall(encode(answer | {"last": last}))
        if last:
            break
    # not sys.exit: it would wait for threads of libraries, which may hang
    os._exit(0)


def _within_limits(job: dict[str, Any]) -> dict[str, Any]:
    start_timers(JobLimits(**job.pop("job_limits")))
    try:
        return jobs.run(job)
    except MemoryError:
        use_reserve()
        return {"limit": "memory"}
    finally:
        stop_timers()


def _end_with_the_parent() -> None:
    """End this process when the fork server ends, even if a job keeps it from noticing."""
    if sys.platform == "linux":
        parent, pr_set_pdeathsig = os.getppid(), 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)
