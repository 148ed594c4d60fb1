"""All processes that a program starts: found, counted, weighed, and ended to the last one.

On Linux this process adopts what loses its parents (``PR_SET_CHILD_SUBREAPER``), so everything a
program starts stays below it, daemons and other sessions too. Elsewhere only what keeps its
parents, or stays in the session, is found.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

_PATIENCE = 20.0
"""Seconds until processes that do not die, for they hang in the kernel, are given up."""

OF_WORKER = "SERVICEX_WORKER"
"""The variable that tells a program, and what it starts, the number of the worker's process."""

_log = logging.getLogger(__name__)


class Family:
    """The processes below this one that were not there when this was made."""

    def __init__(self) -> None:
        self._worker = psutil.Process()
        self._others = set(self._worker.children(recursive=True))

    def members(self) -> list[psutil.Process]:
        """Return all of them, the dead that are not buried yet too."""
        others = set(self._others)
        for process in self._others:
            with suppress(psutil.Error):
                others.update(process.children(recursive=True))
        return [p for p in self._worker.children(recursive=True) if p not in others]

    def living(self, head: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Return those that live; bury the adopted dead, but leave the head to `subprocess`."""
        return [p for p in self.members() if p.pid == head.pid or not _buried(p.pid)]

    def end(self, head: subprocess.Popen[bytes]) -> int:
        """Kill the session of the head and everybody who left it; return the head's exit code."""
        give_up = time.monotonic() + _PATIENCE
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(head.pid, signal.SIGKILL)
        own_session = os.getsid(0)
        while True:
            gone = head.poll() is not None
            members = self.members()
            if gone and not members:
                break
            groups = set()
            for process in members:
                with suppress(ProcessLookupError, PermissionError):
                    if os.getsid(process.pid) != own_session:
                        groups.add(os.getpgid(process.pid))
            for group in groups:
                # one call ends a whole group, however fast its members multiply
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)
            for process in members:
                if process.pid != head.pid:
                    _buried(process.pid)
            if time.monotonic() > give_up:
                left = [process.pid for process in members]
                _log.error("processes of a function cannot be ended", extra={"pids": left})
                break
            time.sleep(0.001)
        return head.poll() or 0


def _buried(pid: int) -> bool:
    """Take note of the death of an adopted child, if it is one and is dead."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def resident(processes: list[psutil.Process]) -> int:
    """Return the bytes in use; what several processes share is counted for each."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def memory(processes: list[psutil.Process]) -> int:
    """Return the bytes in use; what several processes share is counted once. Slow."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            used = process.memory_full_info()
            total += getattr(used, "pss", used.uss)
    return total


@contextmanager
def adopting() -> Iterator[None]:
    """Become the parent of orphans below this process, on Linux, for as long as this lasts."""
    if sys.platform != "linux":
        yield
        return
    set_subreaper, get_subreaper = 36, 37  # linux/prctl.h
    libc = ctypes.CDLL(None, use_errno=True)
    was = ctypes.c_int()
    libc.prctl(get_subreaper, ctypes.byref(was), 0, 0, 0)
    libc.prctl(set_subreaper, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(set_subreaper, was.value, 0, 0, 0)


@contextmanager
def first_served() -> Iterator[None]:
    """Let this thread run before any other, if that is allowed, so that a fork bomb can be ended.

    It is allowed to root, and only for root the number of processes has no other bound.
    """
    if sys.platform != "linux":
        yield
        return
    was = os.sched_getscheduler(0)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, was, os.sched_param(0))


def end_left_by(worker: int) -> int:
    """Kill what the programs of a worker, which has been killed, have left; return how many.

    What a program forks does not end with the worker, as the program itself does.

    Parameters
    ----------
    worker
        The number of its process.
    """
    left = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(OF_WORKER) == str(worker):
                process.kill()
                left += 1
    return left
