"""Lists of files in a request: absolute paths, ``file://``, ``http(s)://`` and ``root://``."""

import re
import string
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar

from servicex_server.errors import DatasetError, ForbiddenHostError
from servicex_server.finders.contract import Finder
from servicex_server.model import InputFile, Replica
from servicex_server.network.policy import ANYWHERE, NetworkPolicy
from servicex_server.network.urls import XROOTD, Url, UrlError, local_path, parse, scheme_of
from servicex_server.text.escaping import redacted

SCHEMES = ("file", "http", "https", "root")


class FileList(Finder):
    """A list of paths and URLs; each file has one replica."""

    scheme: ClassVar[str] = "file-list"

    def check_entries(
        self,
        entries: Sequence[str],
        *,
        folders: Sequence[Path],
        network: NetworkPolicy = ANYWHERE,
    ) -> None:
        """Reject entries that the service cannot read, or that it may not read.

        Parameters
        ----------
        entries
            Paths and URLs.
        folders
            The folders below which local files may be read.
        network
            The servers that URLs may name. Names are not resolved here: the worker that connects
            resolves them and checks the addresses.

        Raises
        ------
        DatasetError
            An entry is invalid; the message names the first one, and the hint shows a valid form.
        """
        allowed: set[str] = set()
        for number, entry in enumerate(entries, 1):
            where = f"file-list: entry {number}, {_shown(entry)!r},"
            if not entry.strip():
                raise DatasetError(f"file-list: entry {number} is empty")
            if re.search(r"[\r\n]", entry):
                raise DatasetError(f"{where} has a line break", hint="give each file its own entry")
            if re.search(r"[\0-\x1f\x7f-\x9f]", entry):
                raise DatasetError(f"{where} has a control character")
            scheme = scheme_of(entry)
            if not scheme and not entry.startswith("/"):
                raise DatasetError(
                    f"{where} is neither an absolute path nor a URL",
                    hint="the service does not run in your folder; write the path from /",
                )
            if scheme and scheme not in SCHEMES:
                raise DatasetError(
                    f"{where} has a scheme that is not supported here",
                    hint=f"use an absolute path or one of {', '.join(f'{s}://' for s in SCHEMES)}",
                )
            try:
                if scheme in ("", "file"):
                    _check_place(where, local_path(entry), folders)
                    continue
                url = parse(entry)
            except UrlError as error:
                raise DatasetError(f"{where} {error}", hint=error.hint) from None
            if url.is_relative:
                raise DatasetError(
                    f"{where} has one slash after the host, so its path is relative",
                    hint=f"write two slashes: {redacted(_absolute(url))}",
                )
            for host in url.hosts if network.restricts else ():
                if host not in allowed:
                    _check_host(where, host, network)
                    allowed.add(host)

    async def find(self, reference: Sequence[str]) -> AsyncGenerator[InputFile, None]:
        """Yield one file for each entry, in the order of the list."""
        for entry in reference:
            yield self.file(entry)

    @staticmethod
    def cleaned(entries: Sequence[str]) -> list[str]:
        r"""Strip line breaks from entries, and reduce leading slashes of paths to one.

        Examples
        --------
        >>> FileList.cleaned(["root://host//x.root\n", "//data/x.root"])
        ['root://host//x.root', '/data/x.root']
        """
        lines = (entry.strip("\r\n") for entry in entries)
        return [re.sub(r"^//+", "/", line) for line in lines]

    @staticmethod
    def distinct(entries: Sequence[str]) -> list[str]:
        """Return checked entries without those that name a file of an earlier entry.

        Examples
        --------
        >>> FileList.distinct(["root://host//x", "root://HOST:1094//x", "/x", "file:///x"])
        ['root://host//x', '/x']
        """
        first: dict[object, str] = {}
        for entry in entries:
            first.setdefault(_file_of(entry), entry)
        return list(first.values())

    @staticmethod
    def file(entry: str) -> InputFile:
        """Return the file that an entry names."""
        return InputFile((Replica(entry),))


def _shown(entry: str) -> str:
    """Return the beginning of an entry without its secrets; a URL may contain blanks by mistake."""
    if scheme_of(entry):
        entry = redacted(entry.translate(_BLANKS))
    return entry[:200]


_BLANKS = {ord(one): f"%{ord(one):02X}" for one in string.whitespace + '"<>'}


def _absolute(url: Url) -> str:
    """Return a URL with two slashes after its host."""
    if url.through is not None:
        return f"{url.server}//{_absolute(url.through)}"
    path = f"/{url.path}" if url.path else "//path"
    return f"{url.server}{path}" + (f"?{url.query}" if url.query else "")


def _file_of(entry: str) -> object:
    """Return a key that is equal for entries that name the same file."""
    scheme = scheme_of(entry)
    if scheme in ("", "file"):
        return re.sub(r"/(?:\.?/)+", "/", local_path(entry))
    url = parse(entry)
    if scheme in XROOTD:  # the fields of these URLs do not identify a file
        return url.origin, re.sub("//+", "/", url.path)
    return url.origin, url.path, url.query


def _check_host(where: str, host: str, network: NetworkPolicy) -> None:
    try:
        network.check_literal(host)
    except ForbiddenHostError as error:
        raise DatasetError(f"{where} cannot be read: {error.message}", hint=error.hint) from None


def _check_place(where: str, path: str, folders: Sequence[Path]) -> None:
    if not folders:
        raise DatasetError(
            f"{where} is a path, but this service does not read local files", hint="use a URL"
        )
    place = PurePosixPath(path)
    below = ", ".join(map(str, folders))
    if ".." in place.parts:
        raise DatasetError(
            f"{where} contains '..', which is not followed; write the path without it",
            hint=f"local files may be below {below}",
        )
    if not any(place.is_relative_to(folder) for folder in folders):
        raise DatasetError(
            f"{where} is not in a folder that may be read",
            hint=f"local files may be below {below}",
        )
