"""The limits of a job in a helper process. No other module sets any.

The kernel enforces them at any moment: signals of timers end the process, and its data segment has
a limit. (On macOS the data segment does not include mapped memory, so only time is limited.)
"""

import resource
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

RESERVE = 32 << 20
"""Bytes of memory above the limit that are reserved for reporting that it was exceeded."""

FILE_BYTES = 64 << 20
"""Largest file that a job may write, in bytes; a dry run writes a result without entries."""

TIME_SIGNALS = {signal.SIGPROF: "processor", signal.SIGALRM: "wall"}
"""The signals that end a helper whose job takes too long, by the timer that expired."""


@dataclass(frozen=True, slots=True)
class JobLimits:
    """Limits of a job: seconds of processor time, seconds of wall time, and bytes of memory."""

    processor: float
    wall: float
    memory: int


def confine(memory: int) -> int:
    """Set the limits of this process until it ends; return the bytes of data that it has now."""
    used = data_bytes()
    wanted = [
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, FILE_BYTES, FILE_BYTES),
    ]
    if used:
        wanted.append((resource.RLIMIT_DATA, used + memory, used + memory + RESERVE))
    for kind, soft, hard in wanted:
        most = resource.getrlimit(kind)[1]
        most = sys.maxsize if most == resource.RLIM_INFINITY else most
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (min(soft, most), min(hard, most)))
    if sys.platform == "linux":
        # if the machine runs out of memory, the kernel should kill this process, not its parent
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("800")
    return used


def use_reserve() -> None:
    """Release the reserved memory, so that the process can report that it exceeded its limit."""
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def start_timers(limits: JobLimits) -> None:
    """Start timers that end this process when a job takes too long."""
    signal.setitimer(signal.ITIMER_PROF, limits.processor)
    signal.setitimer(signal.ITIMER_REAL, limits.wall)


def stop_timers() -> None:
    """Stop the timers of a job."""
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)


def data_bytes() -> int:
    """Return the bytes that count towards `RLIMIT_DATA`; 0 if the kernel does not tell."""
    with suppress(OSError, ValueError), Path("/proc/self/status").open(encoding="ascii") as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 0
