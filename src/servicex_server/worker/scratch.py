"""Private scratch folders of worker processes, and the removal of those of dead processes.

Dask gives each worker process a folder of its own inside ``local_directory``, and the process holds
a lock (``flock``) beside it for as long as it lives. `private_folder` makes a ``local_directory``
that no other account can prepare, `confine` sends all temporary files of a worker into its folder,
and `clear_left` removes the folders whose lock is free. Process ids are not used: they are reused.
"""

import fcntl
import logging
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_WORKERS = "dask-scratch-space"
"""Dask's name for the folder of all workers in a ``local_directory``."""

_LOCK = ".dirlock"
"""Dask's suffix for the lock file of a worker's folder."""

_UNLOCKED_SECONDS = 86400.0
"""Age from which a folder without a lock file is left over; a new folder lacks it briefly."""

_log = logging.getLogger(__name__)


def private_folder(parent: Path, name: str) -> Path:
    """Return a folder that only this account can read or change; create it if necessary.

    Parameters
    ----------
    parent
        Where the folder is made. Other accounts may write there, as in ``/tmp``.
    name
        Preferred name. If another account has taken it, a random suffix is added.

    Raises
    ------
    OSError
        The folder cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for found in (parent / name, *sorted(parent.glob(f"{name}-*"))):
        with suppress(FileExistsError):
            found.mkdir(mode=0o700)
        about = found.lstat()
        if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid():
            found.chmod(0o700)
            return found
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))


def name_of_account() -> str:
    """Return a name for the private folder of this account in a shared folder."""
    return f"servicex-{os.geteuid()}"


def confine(folder: Path) -> None:
    """Direct all temporary files of this process and of its children into a folder."""
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)


def clear_left(home: Path) -> int:
    """Remove the folders of dead workers from a ``local_directory``; return their number.

    Folders of running workers stay, also those of another service of the same account.
    """
    workers = home / _WORKERS
    try:
        # Dask holds this lock while it makes a lock file and locks it
        with _locked(workers / "global.lock", os.O_CREAT):
            left = [Path(entry) for entry in os.scandir(workers) if _is_ours(entry)]
    except OSError:  # there are no workers yet, or one is just starting, which also cleans
        return 0
    removed = sum(map(_removed_if_dead, left))
    if removed:
        _log.info("removed %d scratch folders of dead workers from %s", removed, workers)
    return removed


def _is_ours(entry: os.DirEntry[str]) -> bool:
    return (
        entry.is_dir(follow_symlinks=False)
        and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    )


def _removed_if_dead(folder: Path) -> bool:
    lock = folder.with_name(folder.name + _LOCK)
    try:
        with _locked(lock):
            remove(folder)
            lock.unlink(missing_ok=True)
    except FileNotFoundError:
        if not folder.exists() or time.time() - folder.lstat().st_mtime < _UNLOCKED_SECONDS:
            return False
        remove(folder)
    except OSError:
        return False  # its process is running
    return True


@contextmanager
def _locked(path: Path, flags: int = 0) -> Iterator[None]:
    """Hold the lock of a file.

    Raises
    ------
    OSError
        Another process holds it, or there is no such file.
    """
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | flags, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)


def remove(folder: Path) -> None:
    """Remove a folder, even if code of a user has removed its permissions."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        return
    for here, names, _ in os.walk(folder):
        for inner in (Path(here, name) for name in names):
            with suppress(OSError):
                if not inner.is_symlink():
                    inner.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        _log.warning("the scratch folder %s cannot be removed", folder)


def main() -> None:
    """For job scripts: create and clean a private folder below the first argument, and print it."""
    home = private_folder(Path(sys.argv[1]), name_of_account())
    clear_left(home)
    sys.stdout.write(f"{home}\n")


if __name__ == "__main__":
    main()
