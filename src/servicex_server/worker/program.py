"""Runs a program on one file, apart from the worker, within limits, and leaves nothing running.

The program gets a session of its own, a new environment, a scratch folder, and two pipes: one for
its output, of which the first and the last part are kept, and one for its report. A process limits
itself (`servicex_server.worker.program_child`). This module watches time, memory, disk and number
of all its processes together, because the limits of a process hold for that process only and not
for the process tree.

This protects against accidents. In the sandbox (`servicex_server.worker.sandbox`) the program can
also neither read nor change anything else on the machine. Its result and its report are checked
before they are used.
"""

import itertools
import json
import os
import re
import selectors
import shutil
import signal
import site
import stat
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from servicex_server.errors import (
    DiskFullError,
    FormatError,
    FunctionError,
    InternalError,
    OutOfMemoryError,
    OutOfTimeError,
    SandboxError,
    ServiceXError,
)
from servicex_server.languages.contract import Program
from servicex_server.model import Limits, ResultFormat
from servicex_server.worker.process_tree import (
    OF_WORKER,
    ProcessTree,
    adopting,
    first_served,
    memory,
    resident,
)
from servicex_server.worker.sandbox import Sandbox, program_of

LIBRARIES = 256 << 20
"""Bytes beyond ``limits.memory`` that a process may use; uproot, awkward, pyarrow take 140 MB."""

DISK = 32 << 30
"""Bytes that a program may write."""

PROCESSES = 256
"""Most processes that a program may have at once."""

FIRST, LAST = 4 << 10, 16 << 10
"""Bytes kept of the beginning and of the end of what a program prints."""

_LONGEST_PATH = 3 << 10
_FOLDERS = 1 << 20
"""Extra bytes for folders and last blocks, so that a growing file meets its own limit first."""

_LONGEST_REPORT = 256 << 10
_LONGEST_STACK = 64 << 10
_LONGEST_TEXT = 16 << 10
_MOST_EVENTS = 1 << 53
_TELLING = 0.3
"""Seconds that a program has to report the line that it is in."""

_FRAME = re.compile(r'\s*File "([^"]{1,4096})", line (\d{1,9}) in (\S{1,200})$')
_PAUSE = 0.1
_BY_SIGNAL = 128
"""Added to the signal that ended a program, in the exit code of bubblewrap as in that of shells."""

_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """The result of a successful program: entries written, and the end of its log."""

    events: int
    log_tail: str


def run_program(  # noqa: PLR0913  # each is a limit of its own
    program: Program,
    url: str,
    output: Path,
    result_format: ResultFormat,
    limits: Limits,
    scratch: Path,
    *,
    disk: int = DISK,
    sandboxed: bool = False,
    used: float = 0.0,
) -> ProgramResult:
    """Run a program on one file and return when nothing of it is left.

    Only one program runs at a time in a worker process, because every process that appears below
    it meanwhile counts as one of the program. A raised error has the attribute ``log_tail``.

    Parameters
    ----------
    program
        The program to run.
    url
        Path or URL of the input file.
    output
        Path of the result; there is no file after an error.
    result_format
        The format of the result.
    limits
        Seconds of wall time, and bytes of memory beyond what the libraries need.
    scratch
        A folder to work in; nothing is left in it.
    disk
        Bytes that the program may write.
    sandboxed
        Whether to run it in the sandbox, where it can read a local file only.
    used
        Seconds of ``limits`` that were already used, such as for downloading the input.

    Raises
    ------
    FunctionError
        The user's function failed or did not return columns, or its process ended early.
    SandboxError
        The sandbox could not be set up.
    FormatError
        The format cannot hold the returned columns.
    OutOfTimeError, OutOfMemoryError, DiskFullError
        A limit was exceeded.
    """
    output = output.absolute()
    base = Path(tempfile.mkdtemp(prefix="program-", dir=scratch)).absolute()
    # the result is in another folder than the files that the function leaves
    folder, written = base / "home", base / output.name
    log = _Log(folder)
    try:
        folder.mkdir()
        for name, text in program.files:
            (folder / name).write_text(text, encoding="utf-8", newline="")
        source = _local(url)
        command = (*program.command, str(source or url), str(written), result_format.value)
        with _one_at_a_time, adopting(), first_served():
            child = ProgramProcess(program, limits, disk, log, sandboxed=sandboxed, used=used)
            child.run(command, base, folder, source)
        events = child.events()
        _take(written, output, disk)
        return ProgramResult(events, log.text())
    except ServiceXError as error:
        vars(error)["log_tail"] = log.text()
        raise
    finally:
        _remove(base)


def _local(url: str) -> Path | None:
    """Return the path of a local file; None for a remote one."""
    if "://" not in url:
        return Path(os.path.abspath(url))  # noqa: PTH100  # `absolute` leaves .. in it
    parts = urlsplit(url)
    return Path(os.path.abspath(unquote(parts.path))) if parts.scheme == "file" else None  # noqa: PTH100


def _take(written: Path, output: Path, disk: int) -> None:
    """Move the result to ``output``, if it is a regular file with a single name.

    The program has ended, so nothing changes between the check and the move. It may have left a
    symlink to a file of the worker, or have removed the permissions of its folder.
    """
    written.parent.chmod(0o700)
    try:
        found = written.lstat()
    except OSError as error:
        raise FunctionError("the function's process left no result") from error
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise FunctionError("the function's process left a result that is not a regular file")
    if found.st_size > disk:
        raise DiskFullError(f"the result is larger than {_bytes(disk)}")
    written.replace(output)
    output.chmod(0o600)


class _Log:
    """Keeps the beginning and the end of the output; counts the bytes between, and drops them."""

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
    """Return output bytes as text."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return _plain(text, most=len(text)).rstrip("\n")


def _plain(text: str, *, most: int = _LONGEST_TEXT) -> str:
    """Return text without terminal control codes and without characters that databases refuse."""
    return re.sub(r"[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", "", text[:most])


def _count(number: Any) -> int:
    """Return a reported number of entries.

    Raises
    ------
    ValueError
        The number is not an integer that the database can hold.
    """
    if type(number) is not int or not 0 <= number < _MOST_EVENTS:
        raise ValueError("not a number of entries")
    return number


class ProgramProcess:
    """The process of a program, and all processes that it starts."""

    def __init__(
        self,
        program: Program,
        limits: Limits,
        disk: int,
        log: _Log,
        *,
        sandboxed: bool,
        used: float,
    ) -> None:
        self._program = program
        self._sandboxed = sandboxed
        self._has_run = True
        self._limits = limits
        self._end = time.monotonic() + limits.seconds - used
        self._memory = limits.memory + LIBRARIES
        self._disk = disk
        self._log = log
        self._report = bytearray()
        self._code = 0
        self._process_tree = ProcessTree()
        self._kernel_kills = _kernel_kills()

    def run(
        self, command: tuple[str, ...], writable: Path, start: Path, source: Path | None
    ) -> None:
        """Run to the end or to a limit, and kill everything that is left.

        Parameters
        ----------
        command
            The command to run.
        writable
            The folder that the program may write to.
        start
            The working folder, within ``writable``.
        source
            The input file, if it is local.
        """
        self._place, self._start = writable, start
        environment = _environment(start)
        if not self._sandboxed:
            self._run(command, environment, ())
            return
        with closing(Sandbox(writable, start, source, environment)) as sandbox:
            self._run(sandbox.command(command), environment, sandbox.descriptors)
            self._has_run = sandbox.has_run()

    def _run(
        self, command: Sequence[str], environment: dict[str, str], descriptors: Sequence[int]
    ) -> None:
        printed, prints = os.pipe()
        reported, reports = os.pipe()
        environment |= {
            "SERVICEX_REPORT": str(reports),
            OF_WORKER: str(os.getpid()),
            "SERVICEX_MEMORY": str(self._memory),
            "SERVICEX_DISK": str(self._disk),
        }
        with FileIO(printed), FileIO(reported):
            try:
                self._process = subprocess.Popen(  # noqa: S603  # running it is the point
                    command,
                    cwd=self._start,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=prints,
                    stderr=prints,
                    pass_fds=[reports, *descriptors],
                    start_new_session=True,
                )
            except OSError as error:
                raise InternalError(f"the function's process cannot start: {error}") from error
            finally:
                os.close(prints)
                os.close(reports)
            self._sinks = {printed: self._log.add, reported: self._add_report}
            try:
                self._watch()
            finally:
                self._code = self._process_tree.end(self._process)
                self._drain()

    def _watch(self) -> None:
        pause, look_at, usage_at = _PAUSE, 0.0, 0.0
        with selectors.DefaultSelector() as selector:
            for pipe in self._sinks:
                os.set_blocking(pipe, False)
                selector.register(pipe, selectors.EVENT_READ)
            while self._process.poll() is None:
                now = time.monotonic()
                if now >= self._end:
                    raise self._too_slow()
                if now >= look_at:
                    self._check_processes()
                    # slow on a machine with many processes: use at most a tenth of the time
                    look_at = time.monotonic() + max(_PAUSE, 10 * (time.monotonic() - now))
                if now >= usage_at:
                    began = time.monotonic()
                    self._check_disk()
                    usage_at = time.monotonic() + max(0.5, 20 * (time.monotonic() - began))
                pause = min(_PAUSE, 2 * pause)
                for key, _ in selector.select(min(pause, max(0, self._end - now))):
                    if not self._read(key.fd):
                        selector.unregister(key.fd)
                        pause = 0.0005  # mostly the process ends after it closes a pipe

    def _read(self, pipe: int) -> bool:
        """Read what a pipe holds; return whether more may follow."""
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
        """Read what is left in the pipes after the last writer was killed; do not wait for more."""
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

    def _check_processes(self) -> None:
        living = self._process_tree.living(self._process)
        if len(living) > PROCESSES:
            raise FunctionError(
                f"the function started more than {PROCESSES} processes, and was stopped",
                hint="a worker is one of many: do the work in one process",
            )
        if resident(living) > self._memory and memory(living) > self._memory:
            raise self._too_large("")

    def _check_disk(self) -> None:
        used = _disk_usage(self._place)
        if used > self._disk + _FOLDERS:
            raise DiskFullError(
                f"the function wrote more than {_bytes(self._disk)} and was stopped",
                hint="write less; only what the function returns is delivered",
            )

    def _too_slow(self) -> OutOfTimeError:
        """Return the error for a function that takes too long, with the line it is in."""
        self._report.clear()
        reported = list(self._sinks)[1]
        process = program_of(self._process.pid) if self._sandboxed else self._process.pid
        with suppress(ProcessLookupError), selectors.DefaultSelector() as selector:
            os.set_blocking(reported, False)
            selector.register(reported, selectors.EVENT_READ)
            if process is not None:
                os.kill(process, signal.SIGUSR1)
            end, patience = time.monotonic() + _TELLING, _TELLING
            while time.monotonic() < end and selector.select(patience) and self._read(reported):
                patience = 0.05
        where = ""
        texts = dict(self._program.files)
        for line in self._report[:_LONGEST_STACK].decode("utf-8", "replace").splitlines():
            frame = _FRAME.match(line)
            if frame and (text := texts.get(Path(frame[1]).name)):
                lines = dict(enumerate(text.splitlines(), 1))
                shown = lines.get(int(frame[2]), "").strip()[:120]
                where = f"; it was in line {frame[2]} of {_plain(frame[3])} ({shown})"
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
        """Return the reported number of entries written.

        Raises
        ------
        ServiceXError
            The error that was reported instead, or the reason why the process ended.
        """
        try:
            said = json.loads(self._report)
            if "events" in said:
                return _count(said["events"])
            error = {str(name): _plain(str(text)) for name, text in said["error"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise self._death() from None
        self._log.appendix = error.get("traceback", "")
        message, hint = error.get("message", ""), error.get("hint", "")
        match error.get("kind"):
            case "OutOfMemory":
                raise self._too_large(f"; it failed{message}" if message else "")
            case "DiskFull" | "ScratchFull":
                raise DiskFullError(message, hint=f"a function may write {_bytes(self._disk)}")
            case "Format":
                raise FormatError(message, hint=hint)
            case "Internal":
                raise InternalError(message, hint=hint)
            case _:
                raise FunctionError(message, hint=hint)

    def _death(self) -> ServiceXError:
        """Return the error for a process that ended without a report."""
        if self._code > 0 and not self._has_run:
            return SandboxError(
                f"the sandbox of the function cannot be set up: {self._log.text()[:300]}"
            )
        number = -self._code
        if self._sandboxed and self._code - _BY_SIGNAL in signal.valid_signals():
            number = self._code - _BY_SIGNAL
        if number <= 0:
            return FunctionError(
                f"the function's process ended with exit code {self._code} before the function "
                "returned",
                hint="does the function call os._exit?",
            )
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
"""Environment variables with paths of libraries and certificates; they hold no secrets."""


def _environment(folder: Path) -> dict[str, str]:
    path = [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]
    environment = {
        "PATH": os.pathsep.join(path),
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        # one core for each task; every thread would also cost memory
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # the allocators that Arrow bundles reserve gigabytes of address space
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


def _disk_usage(place: Path) -> int:
    """Return the bytes that files take on disk, at least one block for each.

    Raises
    ------
    DiskFullError
        Folders are nested so deeply that a path exceeds the system's limit.
    """
    total, folders = 0, [str(place)]
    while folders:
        here = folders.pop()
        if len(here) > _LONGEST_PATH:
            raise DiskFullError(
                "the function nested folders too deeply, and was stopped",
                hint=f"a path may have {_LONGEST_PATH} characters",
            )
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
    """Return how often the kernel's out-of-memory killer has killed a process."""
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
    """Remove a folder of any depth and with any permissions."""
    with suppress(OSError, RecursionError):
        shutil.rmtree(folder)
        return
    folders, moved = [folder], itertools.count()
    while folders:
        here = folders.pop()
        with suppress(OSError):
            here.chmod(0o700)
            for entry in list(here.iterdir()):
                if entry.is_symlink() or not entry.is_dir():
                    entry.unlink()
                    continue
                # move it to the top, where its path is short
                entry.chmod(0o700)
                folders.append(entry.rename(f"{folder}-{next(moved)}"))
            here.rmdir()
