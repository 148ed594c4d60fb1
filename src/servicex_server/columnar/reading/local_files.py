"""Opens local files once, and checks the open file instead of its name, which may change."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from servicex_server.errors import DeniedError, MissingError, TruncatedError
from servicex_server.network.urls import UrlError, local_path


def open_local(url: str, folders: Sequence[Path]) -> BinaryIO:
    """Open a file by a path or a ``file://`` URL.

    Parameters
    ----------
    folders
        Folders that the file itself must be in; a link in them is not enough.

    Raises
    ------
    MissingError
        The path is not that of a file, or the URL is wrong.
    DeniedError
        The file is not in any of the folders.
    TruncatedError
        The file is empty.
    OSError
        The file cannot be opened.
    """
    try:
        path = local_path(url)
    except UrlError as error:
        raise MissingError(f"{url} {error}", hint=error.hint) from None
    # do not wait for a pipe, and do not make a terminal the controlling one
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    file: BinaryIO = os.fdopen(number, "rb")
    try:
        _check(url, file, folders)
    except BaseException:
        file.close()
        raise
    return file


def _check(url: str, file: BinaryIO, folders: Sequence[Path]) -> None:
    about = os.fstat(file.fileno())
    if not _is_inside(real_path(file), folders):
        raise DeniedError(
            f"{url} is not in a folder that this service may read from",
            hint="a link may not lead out of the folders in the setting reading.local_folders",
        )
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(url)
    if not stat.S_ISREG(about.st_mode):
        raise MissingError(f"{url} is not a file but a pipe, a socket or a device")
    if not about.st_size:
        raise TruncatedError(f"{url} is empty")


def _is_inside(place: Path, folders: Sequence[Path]) -> bool:
    return any(place.is_relative_to(folder.resolve()) for folder in folders)


def real_path(file: BinaryIO) -> Path:
    """Return the path of an open file, with all links resolved."""
    linux = Path(f"/proc/self/fd/{file.fileno()}")
    if linux.exists():
        return linux.readlink()
    import fcntl

    found = fcntl.fcntl(file, fcntl.F_GETPATH, bytes(1024))  # type: ignore[attr-defined,unused-ignore]  # of macOS
    return Path(os.fsdecode(found.rstrip(b"\0")))


def checked_path(url: str, folders: Sequence[Path]) -> Path:
    """Return the real path of a local file, for a reader that opens the file itself.

    Raises
    ------
    ReplicaError, OSError
        As `open_local`.
    """
    with open_local(url, folders) as file:
        return real_path(file)
