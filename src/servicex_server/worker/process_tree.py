"""Finds all processes that a program starts, measures their memory, and kills every one.

On Linux this process adopts orphans (``PR_SET_CHILD_SUBREAPER``), so all processes that a program
starts stay below it, including daemons and other sessions. On other systems, only processes are
found that keep their parents or stay in the session.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

_PATIENCE = 20.0
"""Seconds to wait for killed processes that hang in the kernel, before giving up."""

OF_WORKER = "SERVICEX_WORKER"
"""Environment variable with the worker's process id, which all processes of a program inherit."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """A process of the machine. ``started`` tells it from another one with the same id."""

    pid: int
    parent: int
    group: int
    session: int
    started: float


class ProcessTree:
    """The processes below this one that started after this object was made."""

    def __init__(self) -> None:
        self._others: frozenset[tuple[int, float]] = frozenset()
        self._others = frozenset((one.pid, one.started) for one in self.members())

    def members(self) -> list[Member]:
        """Return all of them, including zombies."""
        children = defaultdict(list)
        for process in _processes():
            if (process.pid, process.started) not in self._others:
                children[process.parent].append(process)
        found: list[Member] = []
        below = children[os.getpid()]
        while below:
            found += below
            below = [one for parent in below for one in children[parent.pid]]
        return found

    def living(self, head: subprocess.Popen[bytes]) -> list[Member]:
        """Return the living ones; reap adopted zombies, but leave the head to `subprocess`."""
        return [p for p in self.members() if p.pid == head.pid or not _reaped(p.pid)]

    def end(self, head: subprocess.Popen[bytes]) -> int:
        """Kill the session of the head and all processes that left it; return its exit code."""
        give_up = time.monotonic() + _PATIENCE
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(head.pid, signal.SIGKILL)
        own_session = os.getsid(0)
        while True:
            gone = head.poll() is not None
            members = self.members()
            if gone and not members:
                break
            for group in {one.group for one in members if one.session != own_session}:
                # one call kills a whole process group, however fast it forks
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)
            for one in members:
                if one.pid != head.pid:
                    _reaped(one.pid)
            if time.monotonic() > give_up:
                left = [one.pid for one in members]
                _log.error("processes of a function cannot be killed", extra={"pids": left})
                break
            time.sleep(0.001)
        code = head.poll()
        # one that cannot be killed did not end well
        return -signal.SIGKILL if code is None else code


def _processes() -> Iterator[Member]:
    """Yield the processes of the machine. A fork bomb makes thousands, so this must be fast."""
    if sys.platform != "linux":
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                pid, parent, started = process.pid, process.ppid(), process.create_time()
                yield Member(pid, parent, os.getpgid(pid), os.getsid(pid), started)
        return
    # not pathlib, which takes a third of the time
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb", buffering=0) as stat:  # noqa: PTH123
                # state, parent, group, session and, as the 20th, start: proc_pid_stat(5)
                words = stat.read(4096).rpartition(b")")[2].split()
                parent, group, session = map(int, words[1:4])
                yield Member(int(name), parent, group, session, started=int(words[19]))


def _reaped(pid: int) -> bool:
    """Reap a process, if it is an adopted child and has ended; return whether it was."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def resident(members: Iterable[Member]) -> int:
    """Return the bytes in use; shared memory counts once for each process."""
    total = 0
    for one in members:
        with suppress(psutil.Error):
            total += psutil.Process(one.pid).memory_info().rss
    return total


def memory(members: Iterable[Member]) -> int:
    """Return the bytes in use; shared memory counts once in all. Slow."""
    total = 0
    for one in members:
        with suppress(psutil.Error):
            used = psutil.Process(one.pid).memory_full_info()
            total += getattr(used, "pss", used.uss)
    return total


@contextmanager
def adopting() -> Iterator[None]:
    """On Linux, adopt orphans below this process within this context."""
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
    """Give this thread real-time priority, if allowed, so that it can kill a fork bomb.

    Only root may do this, and only for root the number of processes has no other limit.
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
    """Kill the processes that programs of a killed worker have left; return their number.

    A program ends with its worker, but the processes that it forked do not.

    Parameters
    ----------
    worker
        The process id of the worker.
    """
    left = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(OF_WORKER) == str(worker):
                process.kill()
                left += 1
    return left
