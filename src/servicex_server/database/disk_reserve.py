"""Space on the disk of SQLite that is kept for writes on a full disk, such as deletions."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RESERVE = 16 << 20
"""Bytes of the reserve. A write needs as much as the pages that it changes, of 4 KiB each."""

LOW = 1 << 20
"""Bytes of free space below which the disk counts as full."""

DISK_FULL = "the disk of the database is full"

MAKE_ROOM = "delete requests that are not needed, or make room on the disk"

_PIECE = 1 << 20


class DiskReserve:
    """A file whose space is lent to one write at a time.

    Parameters
    ----------
    path
        The file. It is made where the disk has four times its size, so that it does not fill a
        small disk itself.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def size(self) -> int:
        """Bytes that are kept at the moment."""
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    @property
    def disk_full(self) -> bool:
        """Whether the disk has no space but the reserve; False if its folder cannot be used."""
        free = self._free()
        return free is not None and free < LOW

    def keep(self) -> None:
        """Take what the reserve lacks, if the disk has plenty."""
        if self.size < RESERVE <= (self._free() or 0) // 4:
            self._grow(RESERVE)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Give the space back within this context, and then take as much of it as there is."""
        size = self.size
        with suppress(OSError):  # there is none, or the folder cannot be used
            self._path.unlink()
        try:
            yield
        finally:
            self._grow(size)

    def _free(self) -> int | None:
        try:
            return shutil.disk_usage(self._path.parent).free
        except OSError:
            return None

    def _grow(self, size: int) -> None:
        # the disk may be full before the last piece; then the reserve is smaller
        with suppress(OSError), self._path.open("ab", buffering=0) as file:
            while (missing := size - file.tell()) > 0:
                file.write(b"\0" * min(missing, _PIECE))


def is_disk_full(error: BaseException | None) -> bool:
    """Whether SQLite has found no space for a write."""
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode in (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR_SHMSIZE,
    )
