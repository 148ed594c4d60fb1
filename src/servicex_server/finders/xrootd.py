"""Folders of XRootD servers: ``xrootd://root://host//path/*.root``."""

import asyncio
import math
import posixpath
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeAlias
from urllib.parse import urlsplit

from pydantic import Field

from servicex_server.blocking import apart
from servicex_server.errors import (
    CatalogueDeniedError,
    CatalogueError,
    DatasetError,
    InternalError,
    UnknownDatasetError,
    did_you_mean,
)
from servicex_server.finders.contract import Finder, FinderOptions
from servicex_server.model import InputFile, Replica

_LOOKS_LIKE = "write xrootd://root://host//path/*.root, with two slashes before the path"

_DENIED, _NOT_FOUND = (3010, 3030), 3011
"""What a server answers: kXR_NotAuthorized, kXR_AuthFailed and kXR_NotFound (XProtocol.hh)."""

_EACH_SERVER = 0x0001 | 0x0100 | 0x0400
"""kXR_compress, kXR_prefname and kXR_4dirlist: once, by its name, for a folder (XProtocol.hh)."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Files on one server: ``root://host:port``, and the parts of their path."""

    server: str
    parts: tuple[str, ...]

    def url(self, path: str) -> str:
        """Return the URL of a path, which begins with a slash."""
        return f"{self.server}/{path}"


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is known of a name: bytes, and whether it is a folder, or something that has none."""

    size: int
    folder: bool
    file: bool


_Folder: TypeAlias = dict[str, _Entry]


@dataclass(frozen=True, slots=True)
class _Miss:
    """Where no name fits a part of a pattern: in this folder, of so many parts."""

    depth: int
    folder: str
    part: str


class XRootDOptions(FinderOptions):
    """What an operator chooses, as ``finders: {xrootd: {seconds: ...}}`` in the settings."""

    seconds: float = Field(default=20.0, gt=0, le=3600)
    """Seconds that one answer of a server may take: the listing of one folder, mostly."""


class XRootD(Finder):
    """Files whose paths match a pattern, folder by folder, in the order of their names.

    ``*``, ``?`` and ``[...]`` stand for letters of one part of the path, as in a shell; what begins
    with a dot is matched by what begins with a dot. A path without them is one file. Several
    patterns, on one or more servers, stand in one reference with commas between.
    """

    scheme: ClassVar[str] = "xrootd"
    Options = XRootDOptions

    def check(self, reference: str) -> None:
        """Refuse what is no URL of XRootD, or no pattern."""
        patterns(reference)

    async def find(self, reference: str) -> AsyncGenerator[InputFile, None]:
        """Yield the files of each pattern, and each of them once."""
        known: set[str] = set()
        for pattern in patterns(reference):
            system = await asyncio.to_thread(_system, pattern, self.options.seconds)
            async with aclosing(_Server(pattern, system, self.options.seconds).find()) as found:
                async for path, size in found:
                    if (url := pattern.url(path)) not in known:
                        known.add(url)
                        yield InputFile((Replica(url),), size=size)


def patterns(reference: str) -> list[Pattern]:
    """Read a reference.

    Raises
    ------
    DatasetError
        Says what is wrong with it, and what one looks like.

    Examples
    --------
    >>> patterns("root://host//a/run[12]/*.root")
    [Pattern(server='root://host', parts=('a', 'run[12]', '*.root'))]
    """
    return [_pattern(one) for one in re.split(r",(?=x?roots?://)", reference)]


def _pattern(url: str) -> Pattern:
    shown = repr(url[:200])
    if re.search(r"[\0\r\n]", url):
        raise DatasetError(f"did: {shown} holds a character that no path has", hint=_LOOKS_LIKE)
    if not (found := re.fullmatch(r"(x?roots?://([^/\s]+))/(/.*)", url)):
        raise DatasetError(f"did: {shown} is no URL of XRootD", hint=_LOOKS_LIKE)
    try:
        place = urlsplit(found[1])
        host, _ = place.hostname, place.port
    except ValueError as error:
        raise DatasetError(f"did: {shown}: {error}", hint=_LOOKS_LIKE) from None
    if not host or not re.fullmatch(r"[\w.:%-]+", host):
        raise DatasetError(f"did: {shown} names no host", hint=_LOOKS_LIKE)
    parts = tuple(filter(None, found[3].split("/")))
    if not parts or url.endswith("/"):
        raise DatasetError(f"did: {shown} is a folder", hint=f"name files: {url[:200]}*.root")
    for part in parts:
        if "**" in part:
            raise DatasetError(
                f"did: {shown}: ** is not understood here", hint="write one * for each folder"
            )
        if part in (".", ".."):
            raise DatasetError(f"did: {shown}: {part} is no folder", hint="give the whole path")
    return Pattern(found[1], parts)


def _is_wild(part: str) -> bool:
    return re.search(r"[*?[]", part) is not None


def _fits(name: str, part: str) -> bool:
    return fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))


def _system(pattern: Pattern, seconds: float) -> Any:
    """Return the client of a server, which is not reached by that."""
    try:
        from XRootD.client.env import EnvPutInt
        from XRootD.client.filesystem import FileSystem
    except ImportError:
        raise InternalError(
            f"{pattern.server} needs the XRootD client, which this service does not have",
            hint="pip install 'servicex-server[xrootd]'",
        ) from None
    patience = math.ceil(seconds)
    # its own bounds are minutes, and after one refusal it fails for thirty of them without asking
    # (XrdClConstants.hh); what an administrator has set in the environment stays
    for name, value in {
        "ConnectionWindow": patience,
        "ConnectionRetry": 1,
        "RequestTimeout": patience,
        "StreamTimeout": patience,
        "StreamErrorWindow": 0,
        "TimeoutResolution": 1,
    }.items():
        EnvPutInt(name, value)
    return FileSystem(pattern.server)


class _Server:
    """A server that is asked for the files of a pattern."""

    def __init__(self, pattern: Pattern, system: Any, seconds: float) -> None:
        self._pattern = pattern
        self._system = system
        self._seconds = seconds
        self._is_redirector: bool | None = None

    async def find(self) -> AsyncGenerator[tuple[str, int], None]:
        """Yield the paths and sizes of what matches, a folder at a time.

        Raises
        ------
        UnknownDatasetError
            Nothing does; says how far the pattern leads, and what there is instead.
        """
        parts = self._pattern.parts
        fixed = next((n for n, part in enumerate(parts) if _is_wild(part)), len(parts))
        base = "/" + "/".join(parts[:fixed])
        entry = await self._stat(base)
        if entry is None:
            raise await self._nothing(_Miss(-1, posixpath.dirname(base), parts[fixed - 1]))
        if fixed == len(parts):
            if entry.folder:
                raise DatasetError(
                    f"{self._pattern.url(base)} is a folder",
                    hint=f"name files: {self._pattern.url(base)}/*.root",
                )
            yield base, entry.size
            return
        if not entry.folder:
            raise UnknownDatasetError(f"{self._pattern.url(base)} is a file, and no folder")
        todo = [(base, parts[fixed:])]
        some, miss = False, _Miss(-1, base, parts[fixed])
        while todo:
            folder, (part, *rest) = todo.pop()
            names = await self._matches(folder, part, last=not rest)
            if not rest:
                for name, found in names:
                    some = True
                    yield posixpath.join(folder, name), found.size
            else:
                below = [(posixpath.join(folder, name), tuple(rest)) for name, _ in names]
                todo += reversed(below)
            if not names and (depth := len(parts) - len(rest)) > miss.depth:
                miss = _Miss(depth, folder, part)
        if not some:
            raise await self._nothing(miss)

    async def _matches(self, folder: str, part: str, *, last: bool) -> list[tuple[str, _Entry]]:
        """Return the names in a folder that a part stands for: of files, or of folders."""
        if _is_wild(part):
            names = await self._list(folder) or {}
            found = [(name, names[name]) for name in sorted(names) if _fits(name, part)]
        else:
            entry = await self._stat(posixpath.join(folder, part))
            found = [(part, entry)] if entry else []
        return [(name, entry) for name, entry in found if (entry.file if last else entry.folder)]

    async def _nothing(self, miss: _Miss) -> UnknownDatasetError:
        """Say which part of a path there is, and what is near the next one."""
        folder, part = miss.folder, miss.part
        names: _Folder | None = None
        while names is None:
            try:
                names = await self._list(folder)
            except CatalogueDeniedError:
                break
            if names is None:
                if folder == "/":
                    break
                folder, part = posixpath.split(folder)
        asked = self._pattern.url("/" + "/".join(self._pattern.parts))
        if names is None:
            return UnknownDatasetError(f"there is no {asked}")
        return UnknownDatasetError(
            f"there is no {asked}: the folder {folder} exists, and in it nothing for {part}",
            hint=did_you_mean(part, sorted(names), otherwise="in it there is"),
        )

    async def _stat(self, path: str) -> _Entry | None:
        """Return what is known of a path; None if there is no such thing."""
        found = await self._ask(self._system.stat, path)
        return None if found is None else _entry(found)

    async def _list(self, folder: str) -> _Folder | None:
        """Return what is in a folder, on all servers that have it; None if there is none."""
        from XRootD.client.flags import DirListFlags

        names: _Folder | None = None
        for system in await self._servers(folder):
            found = await self._ask(system.dirlist, folder, DirListFlags.STAT, partly=True)
            if found is None:
                continue
            names = {} if names is None else names
            for one in found:
                if one.statinfo is not None:
                    names.setdefault(one.name, _entry(one.statinfo))
                elif one.name not in names and (entry := await self._stat(f"{folder}/{one.name}")):
                    names[one.name] = entry
        return names

    async def _servers(self, folder: str) -> list[Any]:
        """Return the clients of all servers that may have a folder.

        XrdCl would ask them by itself, and not tell a server that does not have the folder from one
        that does not answer.
        """
        from XRootD.client.filesystem import FileSystem
        from XRootD.client.flags import HostTypes

        if self._is_redirector is None:
            about = await self._ask(self._system.protocol)
            self._is_redirector = bool(about and about.hostinfo & HostTypes.IS_MANAGER)
        if not self._is_redirector:
            return [self._system]
        found = await self._ask(self._system.deeplocate, f"*{folder}", _EACH_SERVER)
        scheme = self._pattern.server.partition("://")[0]
        places = sorted({place.address for place in found or ()})
        return [FileSystem(f"{scheme}://{place}") for place in places]

    async def _ask(
        self, function: Callable[..., Any], *arguments: Any, partly: bool = False
    ) -> Any:
        """Return what a server answers, about the path that is the first argument if there is one.

        It is None if the server does not have that path. ``partly`` takes an answer that lacks
        something: a list of names, what is known of each.

        Raises
        ------
        CatalogueError
            It does not answer, or refuses.
        """
        try:
            # by its own clock XrdCl may take longer, to find the address of a host for instance
            async with asyncio.timeout(self._seconds):
                status, found = await apart(function, *arguments, math.ceil(self._seconds))
        except TimeoutError:
            raise self._silent() from None
        if status.ok and found is not None and (partly or status.code != status.suPartial):
            return found
        server = self._pattern.server
        path = arguments[0].lstrip("*") if arguments else "/"
        if status.ok:
            raise CatalogueError(f"not all servers behind {server} can be asked for {path}")
        said = re.sub(r"^\[\w+\] ", "", str(status.message).strip())
        answered = status.errno if status.code == status.errErrorResponse else None
        if answered == _NOT_FOUND or status.code == status.errNotFound:
            return None
        if answered in _DENIED or status.code in (status.errAuthFailed, status.errLoginFailed):
            raise CatalogueDeniedError(
                f"{self._pattern.url(path)} may not be looked at by this service: {said}"
            )
        if status.code in (status.errOperationExpired, status.errSocketTimeout):
            raise self._silent()
        raise CatalogueError(f"{server} cannot be asked for {path}: {said}")

    def _silent(self) -> CatalogueError:
        return CatalogueError(f"{self._pattern.server} did not answer within {self._seconds:g} s")


def _entry(info: Any) -> _Entry:
    from XRootD.client.flags import StatInfoFlags

    folder = bool(info.flags & StatInfoFlags.IS_DIR)
    return _Entry(info.size, folder, not (folder or info.flags & StatInfoFlags.OTHER))
