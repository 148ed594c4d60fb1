"""Contenders that do the same work by turns, each in a process of its own on one core."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

from benchmarks import peers
from benchmarks.environments import python_of
from benchmarks.samples import folder

HEADINGS = ("what", "ours", "peer", "ratio", "asked for", "ratio of CPU", "memory", "how")
"""Of a table of races; what `Race.row` gives."""

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "ARROW_NUM_THREADS": "1",
    "ARROW_IO_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True)
class Run:
    """What one job cost: seconds, seconds of CPU, peak bytes of the process so far.

    ``events`` is how many are in the result, as far as that is known.
    """

    seconds: float
    cpu: float
    peak: int
    events: int | None = None


class Contender:
    """A process that does jobs of one kind. Use as a context manager."""

    def __init__(self, name: str, *, core: int | None = 0) -> None:
        """Take the name of one of `peers.CONTENDERS`, and the core it may use; None for any."""
        self.name = name
        self._core = core
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start the process."""
        command = [str(python_of(self.name)), "-P", peers.__file__, self.name]
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if cores and self._core is not None:
            command.append(str(cores[self._core % len(cores)]))
        self._errors = self._stack.enter_context(
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        )
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | ONE_THREAD,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End the process."""
        self._process.communicate()
        self._stack.close()

    def run(self, job: peers.Job) -> Run:
        """Do one job.

        Raises
        ------
        LookupError
            It failed; says how.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job | {"scratch": str(folder())}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise LookupError(f"{self.name} ended: {self._errors.read()[-300:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise LookupError(f"{self.name} failed: {answer['error'][:200]}")
        return Run(**answer)


@dataclass(frozen=True)
class Race:
    """The runs of us and of a peer."""

    ours: list[Run]
    peer: list[Run]

    @property
    def ratio(self) -> float:
        """How many times as long the peer takes."""
        return median(run.seconds for run in self.peer) / median(run.seconds for run in self.ours)

    @property
    def cpu_ratio(self) -> float:
        """How many times as much CPU time the peer takes."""
        return median(run.cpu for run in self.peer) / median(run.cpu for run in self.ours)

    def row(self, what: str, asked: str, how: str) -> tuple[str, ...]:
        """Return the race as a row of a table of `HEADINGS`."""
        ours, peer = (median(run.seconds for run in runs) for runs in (self.ours, self.peer))
        memory = " / ".join(f"{runs[-1].peak / 1e6:.0f}" for runs in (self.ours, self.peer))
        return (
            what,
            f"{ours:.3f} s",
            f"{peer:.3f} s",
            f"{self.ratio:.2f}",
            asked,
            f"{self.cpu_ratio:.2f}",
            f"{memory} MB",
            how,
        )


def skipped(what: str, asked: str, reason: object) -> tuple[str, ...]:
    """Return a row of a table of `HEADINGS` for what could not be measured."""
    text = str(reason).replace("\n", " ").replace("|", "/")
    return (what, "", "", "", asked, "", "", f"skipped: {text}")


def race(
    peer: str, job: peers.Job, repeats: int, *, changes: Mapping[str, peers.Job] | None = None
) -> Race:
    """Let us and a peer do a job by turns, once to warm up and then so many times.

    Each run reads the file under a new name, so that nobody can remember what was in it.

    Parameters
    ----------
    peer
        One of `peers.CONTENDERS`.
    job
        What to do.
    repeats
        How often.
    changes
        By contender, what is other for it.

    Raises
    ------
    LookupError
        One of them cannot do it; says why.
    """
    runs: dict[str, list[Run]] = {"ours": [], peer: []}
    with ExitStack() as stack:
        links = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder())))
        contenders = [stack.enter_context(Contender(name)) for name in runs]
        for turn in range(repeats + 1):
            for contender in contenders:
                path = links / f"{contender.name}-{turn}.root"
                _link(job["path"], path)
                changed = (changes or {}).get(contender.name, {})
                run = contender.run(job | {"path": str(path)} | changed)
                if turn:
                    runs[contender.name].append(run)
    first = [runs[name][0].events for name in runs]
    if None not in first and len(set(first)) > 1:
        raise LookupError(f"ours has {first[0]} events, {peer} has {first[1]}")
    return Race(runs["ours"], runs[peer])


def _link(path: str, name: Path) -> None:
    try:
        name.hardlink_to(path)
    except OSError:  # on another file system
        name.write_bytes(Path(path).read_bytes())
