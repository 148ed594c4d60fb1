"""Runs a program on one file, apart from the worker, within limits, and leaves nothing running.

The program gets a session of its own, an environment built from nothing, a scratch folder, and two
pipes: what it prints, of which the first and last part are kept, and what it reports. A process
limits itself (`servicex_server.languages.child`); here all that it started is watched together,
for time, memory, disk and number, because limits of a process do not add up over a family.

This holds off accidents; it is no wall against malice, for the program runs as the same user as
the worker.
"""

import json
import os
import re
import selectors
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from servicex_server.errors import (
    DiskFullError,
    FormatError,
    FunctionError,
    InternalError,
    OutOfMemoryError,
    OutOfTimeError,
    ServiceXError,
)
from servicex_server.languages.contract import Program
from servicex_server.languages.family import (
    OF_WORKER,
    Family,
    adopting,
    first_served,
    memory,
    resident,
)
from servicex_server.model import Limits, ResultFormat

LIBRARIES = 256 << 20
"""Bytes that a process may use beyond ``limits.memory``; uproot, awkward, pyarrow take 140 MB."""

DISK = 32 << 30
"""Bytes that a program may write."""

PROCESSES = 256
"""Processes that a program may have at once."""

FIRST, LAST = 4 << 10, 16 << 10
"""Bytes kept of the beginning and of the end of what a program prints."""

_FOLDERS = 1 << 20
"""Bytes for folders and last blocks: a file that grows too large meets its own limit first."""

_LONGEST_REPORT = 256 << 10
_PAUSE = 0.1
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """What a program that worked did: entries written, and what it printed."""

    events: int
    log_tail: str


def run_program(
    program: Program,
    url: str,
    output: Path,
    result_format: ResultFormat,
    limits: Limits,
    scratch: Path,
    *,
    disk: int = DISK,
) -> ProgramResult:
    """Run a program on one file and return when nothing of it is left.

    Programs run one at a time in a process, because all processes that appear below this one
    meanwhile are taken for the program's. What is raised has the attribute ``log_tail``.

    Parameters
    ----------
    program
        What is run.
    url
        Path or URL of the input file.
    output
        Where the result goes; there is nothing after an error.
    result_format
        What the result becomes.
    limits
        Seconds of wall time, and bytes of memory beyond what the libraries need.
    scratch
        A folder to work in; nothing is left in it.
    disk
        Bytes that may be written.

    Raises
    ------
    FunctionError
        The user's function failed, returned what is not columns, or its process ended early.
    FormatError
        The format cannot hold what it returned.
    OutOfTimeError, OutOfMemoryError, DiskFullError
        A limit was met.
    """
    output = output.absolute()
    folder = Path(tempfile.mkdtemp(prefix="program-", dir=scratch)).absolute()
    log = _Log(folder)
    try:
        for name, text in program.files:
            (folder / name).write_text(text, encoding="utf-8", newline="")
        place = url if "://" in url else str(Path(url).absolute())
        command = [*program.command, place, str(output), result_format.value]
        with _one_at_a_time, adopting(), first_served():
            child = _Child(program, limits, disk, log)
            child.run(command, folder, output)
        return ProgramResult(child.events(), log.text())
    except ServiceXError as error:
        output.unlink(missing_ok=True)
        vars(error)["log_tail"] = log.text()
        raise
    finally:
        _remove(folder)


class _Log:
    """The beginning and the end of what is printed; what is between is counted and forgotten."""

    def __init__(self, folder: Path) -> None:
        self._folder = f"{folder}/"
        self._first = bytearray()
        self._last = bytearray()
        self._size = 0
        self.appendix = ""

    def add(self, data: bytes) -> None:
        self._size += len(data)
        room = max(0, FIRST - len(self._first))
        self._first += data[:room]
        self._last += data[room:]
        if len(self._last) > 4 * LAST:
            del self._last[:-LAST]

    def text(self) -> str:
        last = self._last[-LAST:]
        gap = self._size - len(self._first) - len(last)
        parts = [_readable(self._first + last)]
        if gap:
            parts = [_readable(self._first), f"… {gap:,} bytes left out …", _readable(last)]
        text = "\n".join(part for part in (*parts, self.appendix.rstrip()) if part)
        return text.replace(self._folder, "")


def _readable(data: bytearray) -> str:
    """Return text without what a terminal would obey and a database would refuse."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]", "", text).rstrip("\n")


class _Child:
    """The process of a program, and all that it starts."""

    def __init__(self, program: Program, limits: Limits, disk: int, log: _Log) -> None:
        self._program = program
        self._limits = limits
        self._memory = limits.memory + LIBRARIES
        self._disk = disk
        self._log = log
        self._report = bytearray()
        self._code = 0
        self._family = Family()
        self._kernel_kills = _kernel_kills()

    def run(self, command: list[str], folder: Path, output: Path) -> None:
        """Run to the end, or to a limit; nothing is left running."""
        self._places = (folder, output)
        end = time.monotonic() + self._limits.seconds
        printed, prints = os.pipe()
        reported, reports = os.pipe()
        environment = _environment(folder) | {
            "SERVICEX_REPORT": str(reports),
            OF_WORKER: str(os.getpid()),
            "SERVICEX_MEMORY": str(self._memory),
            "SERVICEX_DISK": str(self._disk),
        }
        with FileIO(printed), FileIO(reported):
            try:
                self._process = subprocess.Popen(  # noqa: S603  # running it is the point
                    command,
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=prints,
                    stderr=prints,
                    pass_fds=[reports],
                    start_new_session=True,
                )
            except OSError as error:
                raise InternalError(f"the function's process cannot start: {error}") from error
            finally:
                os.close(prints)
                os.close(reports)
            self._sinks = {printed: self._log.add, reported: self._add_report}
            try:
                self._watch(end)
            finally:
                self._code = self._family.end(self._process)
                self._drain()

    def _watch(self, end: float) -> None:
        pause, look_at, usage_at = _PAUSE, 0.0, 0.0
        with selectors.DefaultSelector() as selector:
            for pipe in self._sinks:
                os.set_blocking(pipe, False)
                selector.register(pipe, selectors.EVENT_READ)
            while self._process.poll() is None:
                now = time.monotonic()
                if now >= end:
                    raise self._too_slow()
                if now >= look_at:
                    self._check_family()
                    # on a machine with many processes looking is slow: at most a tenth of the time
                    look_at = time.monotonic() + max(_PAUSE, 10 * (time.monotonic() - now))
                if now >= usage_at:
                    began = time.monotonic()
                    self._check_disk()
                    usage_at = time.monotonic() + max(0.5, 20 * (time.monotonic() - began))
                pause = min(_PAUSE, 2 * pause)
                for key, _ in selector.select(min(pause, max(0, end - now))):
                    if not self._read(key.fd):
                        selector.unregister(key.fd)
                        pause = 0.0005  # a closed pipe mostly means that the process ends

    def _read(self, pipe: int) -> bool:
        """Take what a pipe holds; return whether there may be more."""
        try:
            data = os.read(pipe, 1 << 16)
        except BlockingIOError:
            return True
        self._sinks[pipe](data)
        return bool(data)

    def _add_report(self, data: bytes) -> None:
        if len(self._report) < _LONGEST_REPORT:
            self._report += data

    def _drain(self) -> None:
        """Read what was in the pipes when the last writer was stopped, and no more than that."""
        for pipe in self._sinks:
            os.set_blocking(pipe, False)
            for _ in range(64):
                try:
                    data = os.read(pipe, 1 << 16)
                except BlockingIOError:
                    break
                if not data:
                    break
                self._sinks[pipe](data)

    def _check_family(self) -> None:
        living = self._family.living(self._process)
        if len(living) > PROCESSES:
            raise FunctionError(
                f"the function started more than {PROCESSES} processes, and was stopped",
                hint="a worker is one of many: do the work in one process",
            )
        if resident(living) > self._memory and memory(living) > self._memory:
            raise self._too_large("")

    def _check_disk(self) -> None:
        used = _disk_usage(self._places)
        if used > self._disk + _FOLDERS:
            raise DiskFullError(
                f"the function wrote more than {_bytes(self._disk)} and was stopped",
                hint="write less; only what the function returns is delivered",
            )

    def _too_slow(self) -> OutOfTimeError:
        """Return the error for a function that takes too long, with the line it is in."""
        self._report.clear()
        reported = list(self._sinks)[1]
        with suppress(ProcessLookupError), selectors.DefaultSelector() as selector:
            os.set_blocking(reported, False)
            selector.register(reported, selectors.EVENT_READ)
            self._process.send_signal(signal.SIGUSR1)
            patience = 0.3
            while selector.select(patience) and self._read(reported):
                patience = 0.05
        where = ""
        texts = dict(self._program.files)
        stack = self._report.decode("utf-8", "replace")
        for path, number, function in re.findall(r'File "(.*)", line (\d+) in (\S+)', stack):
            if text := texts.get(Path(path).name):
                line = dict(enumerate(text.splitlines(), 1)).get(int(number), "").strip()
                where = f"; it was in line {number} of {function} ({line[:120]})"
                break
        return OutOfTimeError(
            f"the function took longer than {self._limits.seconds:g} s and was stopped{where}"
        )

    def _too_large(self, where: str) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"the function needs more than {_bytes(self._limits.memory)} of memory{where}",
            hint="read fewer branches, or in steps with uproot.iterate",
        )

    def events(self) -> int:
        """Return the number of entries written, as reported.

        Raises
        ------
        ServiceXError
            What was reported instead, or what the process died of.
        """
        try:
            said = json.loads(self._report)
            if "events" in said:
                return int(said["events"])
            error = {name: str(text) for name, text in said["error"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise self._death() from None
        self._log.appendix = error.get("traceback", "")
        message, hint = error.get("message", ""), error.get("hint", "")
        match error.get("kind"):
            case "OutOfMemory":
                raise self._too_large(f"; it failed{message}" if message else "")
            case "DiskFull":
                raise DiskFullError(message, hint=f"a function may write {_bytes(self._disk)}")
            case "Format":
                raise FormatError(message, hint=hint)
            case "Internal":
                raise InternalError(message, hint=hint)
            case _:
                raise FunctionError(message, hint=hint)

    def _death(self) -> ServiceXError:
        """Return what it means that a process ended without a word."""
        if self._code >= 0:
            return FunctionError(
                f"the function's process ended with exit code {self._code} before the function "
                "returned",
                hint="does the function call os._exit?",
            )
        number = -self._code
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "?"
        if number == signal.SIGKILL and _kernel_kills() > self._kernel_kills:
            return self._too_large(", and the machine has no more")
        if number == signal.SIGABRT and "bad_alloc" in self._log.text():
            return self._too_large("")
        if number == signal.SIGXFSZ:
            return DiskFullError(f"the function may write {_bytes(self._disk)}")
        crash = number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE)
        return FunctionError(
            f"the function's process was ended by signal {number} ({name})",
            hint="a compiled library crashed; the log shows where" if crash else "",
        )


_INHERITED = re.compile(
    r"(DY)?LD_LIBRARY_PATH|PYTHONHOME|SSL_CERT_(FILE|DIR)|X509_CERT_DIR|XRD_\w+|TZ"
)
"""Variables that say where libraries and authorities are; none of them is a secret."""


def _environment(folder: Path) -> dict[str, str]:
    path = [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]
    environment = {
        "PATH": os.pathsep.join(path),
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        # one core for one task; each thread would also cost memory
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # the allocators that Arrow brings take address space by the gigabyte
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
    environment |= {n: value for n, value in os.environ.items() if _INHERITED.fullmatch(n)}
    imports = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    package = str(Path(__file__).parents[2])
    if package not in sysconfig.get_paths().values():
        imports.append(package)
    imports = [str(Path(entry).absolute()) for entry in imports if entry]
    if imports:
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(imports))
    if site.ENABLE_USER_SITE:
        environment["PYTHONUSERBASE"] = site.getuserbase()
    return environment


def _disk_usage(places: tuple[Path, ...]) -> int:
    """Return the bytes that files take, at least a block for each."""
    total, folders = 0, [str(place) for place in places]
    while folders:
        here = folders.pop()
        with suppress(OSError):
            found = os.lstat(here)
            total += max(4096, 512 * found.st_blocks)
        with suppress(OSError), os.scandir(here) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    with suppress(OSError):
                        total += max(4096, 512 * entry.stat(follow_symlinks=False).st_blocks)
    return total


def _kernel_kills() -> int:
    """Return how often the kernel has ended a process for want of memory."""
    with suppress(OSError, ValueError), Path("/proc/vmstat").open() as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _bytes(size: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        # a function may have taken away its own right to look into a folder
        for here, folders, _ in os.walk(folder):
            for inner in (Path(here, name) for name in folders):
                with suppress(OSError):
                    if not inner.is_symlink():
                        inner.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)
