"""Files that the user lists: absolute paths, ``file://``, ``http(s)://`` and ``root://``."""

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from servicex_server.errors import DatasetError
from servicex_server.finders.contract import Finder
from servicex_server.model import InputFile, Replica

SCHEMES = ("file", "http", "https", "root")


class FileList(Finder):
    """A list of paths and URLs, each file in one place."""

    scheme: ClassVar[str] = "file-list"

    def check_entries(self, entries: Sequence[str], *, folders: Sequence[Path]) -> None:
        """Refuse entries that nothing here can read, or that are not below one of the folders.

        Raises
        ------
        DatasetError
            Names the first entry that is wrong, and what it should look like.
        """
        for number, entry in enumerate(entries, 1):
            where = f"file-list: entry {number}, {entry[:200]!r},"
            if not entry.strip():
                raise DatasetError(f"file-list: entry {number} is empty")
            if "\0" in entry or "\n" in entry:
                raise DatasetError(f"{where} holds a character that no path has")
            scheme = urlsplit(entry).scheme if "://" in entry else ""
            if not scheme and not entry.startswith("/"):
                raise DatasetError(
                    f"{where} is neither an absolute path nor a URL",
                    hint="the service does not run in your folder; give the path from /",
                )
            if scheme and scheme not in SCHEMES:
                raise DatasetError(
                    f"{where} has a scheme that is not read here",
                    hint=f"use an absolute path or one of {', '.join(f'{s}://' for s in SCHEMES)}",
                )
            if scheme in ("", "file"):
                _check_place(where, unquote(urlsplit(entry).path) if scheme else entry, folders)
            if scheme not in ("", "file") and not urlsplit(entry).hostname:
                raise DatasetError(f"{where} names no host")

    async def find(self, reference: Sequence[str]) -> AsyncGenerator[InputFile, None]:
        """Yield one file for each entry, in the order of the list."""
        for entry in reference:
            yield self.file(entry)

    @staticmethod
    def file(entry: str) -> InputFile:
        """Return the file that an entry names."""
        return InputFile((Replica(entry),))


def _check_place(where: str, path: str, folders: Sequence[Path]) -> None:
    if not folders:
        raise DatasetError(
            f"{where} is a path, and this service reads no local files", hint="give a URL"
        )
    place = PurePosixPath(path)
    inside = any(place.is_relative_to(folder) for folder in folders)
    if ".." in place.parts or not inside:
        below = ", ".join(map(str, folders))
        raise DatasetError(f"{where} is not in a folder that may be read", hint=f"below {below}")
