"""Folders of XRootD servers: ``xrootd://root://host//path/*.root``."""

import asyncio
import math
import posixpath
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

from pydantic import Field

from servicex_server.concurrency import run_in_daemon_thread
from servicex_server.credentials import shown_to
from servicex_server.errors import (
    CatalogueDeniedError,
    CatalogueError,
    DatasetError,
    DeniedError,
    ExpiredError,
    ForbiddenHostError,
    InternalError,
    UnknownDatasetError,
    UnreachableError,
)
from servicex_server.finders.contract import Finder, FinderOptions
from servicex_server.model import Credential, InputFile, Replica
from servicex_server.network.policy import NetworkPolicy
from servicex_server.network.urls import XROOTD, Url, UrlError, parse
from servicex_server.network.xrootd_client import (
    MOST_REDIRECTS,
    Identity,
    configure,
    redirect,
    server_address,
    without_redirects,
)
from servicex_server.text.hints import did_you_mean, install
from servicex_server.text.patterns import PatternError, Patterns, Sources, glob, is_glob

_LOOKS_LIKE = "write xrootd://root://host//path/*.root, with two slashes before the path"

_DENIED, _NOT_FOUND = (3010, 3030), 3011
"""Error codes of a server: kXR_NotAuthorized, kXR_AuthFailed and kXR_NotFound (XProtocol.hh)."""

_EACH_SERVER = 0x0001 | 0x0100 | 0x0400
"""kXR_compress, kXR_prefname and kXR_4dirlist: each server once, by its name, for a listing
(XProtocol.hh)."""


_MOST_MANAGERS = 64
"""Redirectors behind one redirector that are asked for their servers."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern for files on one server: ``root://host:port``, and the parts of the path."""

    server: str
    parts: tuple[str, ...]

    def url(self, path: str) -> str:
        """Return the URL of a path, which begins with a slash."""
        return f"{self.server}/{path}"


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a folder: its bytes, and whether it is a folder or a file, or neither."""

    size: int
    folder: bool
    file: bool


_Folder: TypeAlias = dict[str, _Entry]


@dataclass(frozen=True, slots=True)
class _Miss:
    """The folder in which no name matches a part of a pattern, and its depth."""

    depth: int
    folder: str
    part: str


class XRootDOptions(FinderOptions):
    """What an operator chooses, as ``finders: {xrootd: {seconds: ...}}`` in the settings."""

    seconds: float = Field(default=20.0, gt=0, le=3600)
    """Seconds within which a server must answer one call, usually the listing of one folder."""


class XRootD(Finder):
    """Yields files whose paths match a pattern, folder by folder, sorted by name.

    ``*``, ``?`` and ``[...]`` match within one part of the path, as in a shell; a name that begins
    with a dot needs a pattern that begins with a dot. A path without wildcards is one file. A
    reference may have several patterns, on one or more servers, separated by commas.
    """

    scheme: ClassVar[str] = "xrootd"
    Options = XRootDOptions

    def check(self, reference: str) -> None:
        """Reject invalid URLs and patterns, and servers that may not be connected to."""
        for pattern in patterns(reference):
            try:
                self.network.check_literal(parse(pattern.server).host)
            except ForbiddenHostError as error:
                raise DatasetError(f"did: {error.message}", hint=error.hint) from None

    async def find(self, reference: str) -> AsyncGenerator[InputFile, None]:
        """Yield the files of all patterns, each file once."""
        known: set[str] = set()
        for pattern in patterns(reference):
            await asyncio.to_thread(_configure, pattern, self.options.seconds)
            clients = _Clients(self.credentials, self.network)
            async with aclosing(_Server(pattern, clients, self.options.seconds).find()) as found:
                async for path, size in found:
                    if (url := pattern.url(path)) not in known:
                        known.add(url)
                        yield InputFile((Replica(url),), size=size)


def patterns(reference: str) -> list[Pattern]:
    """Parse a reference.

    Raises
    ------
    DatasetError
        The reference is invalid; the hint shows a valid one.

    Examples
    --------
    >>> patterns("root://host//a/run[12]/*.root")
    [Pattern(server='root://host', parts=('a', 'run[12]', '*.root'))]
    """
    found = [_pattern(one) for one in re.split(r",(?=x?roots?://)", reference)]
    sources = Sources()
    try:
        for part in (part for one in found for part in one.parts if is_glob(part)):
            sources.add(glob(part))
        Patterns(sources)
    except PatternError as error:
        raise DatasetError(f"did: the patterns are too large: {error}") from None
    return found


def _pattern(url: str) -> Pattern:
    shown = repr(url[:200])
    if re.search(r"[\0-\x1f\x7f-\x9f]", url):
        raise DatasetError(f"did: {shown} has a control character", hint=_LOOKS_LIKE)
    if not (found := re.fullmatch(r"(x?roots?://([^/\s]+))/(/.*)", url)):
        raise DatasetError(f"did: {shown} is not an XRootD URL", hint=_LOOKS_LIKE)
    try:
        server = parse(found[1], schemes=XROOTD).server
    except UrlError as error:
        raise DatasetError(f"did: {shown} {error}", hint=_LOOKS_LIKE) from None
    parts = tuple(filter(None, found[3].split("/")))
    if not parts or url.endswith("/"):
        raise DatasetError(f"did: {shown} is a folder", hint=f"name files: {url[:200]}*.root")
    for part in parts:
        if "**" in part:
            raise DatasetError(
                f"did: {shown}: ** is not supported", hint="write one * for each folder"
            )
        if part in (".", ".."):
            raise DatasetError(
                f"did: {shown}: {part} is not supported", hint="write the whole path"
            )
    return Pattern(server, parts)


def _matching(names: Iterable[str], part: str) -> list[str]:
    """Return the names that match a part of a pattern, sorted."""
    sources = Sources()
    sources.add(glob(part))
    wanted = Patterns(sources)
    return sorted(
        name
        for name in names
        if (part.startswith(".") or not name.startswith(".")) and wanted.match(name)
    )


def _configure(pattern: Pattern, seconds: float) -> None:
    """Configure XrdCl with short time-outs."""
    try:
        configure({})
        from XRootD.client.env import EnvPutInt
    except ImportError:
        raise InternalError(
            f"{pattern.server} needs the XRootD client, which is not installed",
            hint=install("xrootd"),
        ) from None
    patience = math.ceil(seconds)
    # by default, time-outs are minutes, and after a refused connection XrdCl fails for 30 minutes
    # without connecting (XrdClConstants.hh); variables that an administrator has set win
    for name, value in {
        "ConnectionWindow": patience,
        "ConnectionRetry": 1,
        "RequestTimeout": patience,
        "StreamTimeout": patience,
        "StreamErrorWindow": 0,
        "TimeoutResolution": 1,
    }.items():
        EnvPutInt(name, value)


class _Clients:
    """Creates clients for allowed servers, with the credential of each."""

    def __init__(self, credentials: Sequence[Credential], network: NetworkPolicy) -> None:
        self._credentials = credentials
        self._network = network

    def of(self, server: Url) -> Any:
        """Return the client of a server, without connecting.

        Raises
        ------
        DatasetError, CatalogueError
            The server may not be connected to, its name is not known, or its credential expired.
        """
        from XRootD.client.filesystem import FileSystem

        try:
            if self._network.restricts:
                self._network.addresses(server.host, server.port)
            shown = shown_to(str(server), self._credentials)
            identity = Identity(shown.proxy, shown.token_file, shown.token)
            return without_redirects(FileSystem(server_address(server, identity)))
        except ForbiddenHostError as error:
            raise DatasetError(f"did: {error.message}", hint=error.hint) from None
        except UnreachableError as error:
            raise CatalogueError(error.message) from None
        except (ExpiredError, DeniedError) as error:
            raise CatalogueDeniedError(error.message, hint=error.hint) from None


class _Server:
    """Finds the files of a pattern on one server."""

    def __init__(self, pattern: Pattern, clients: _Clients, seconds: float) -> None:
        self._pattern = pattern
        self._server = parse(pattern.server)
        self._clients = clients
        self._seconds = seconds
        self._is_redirector: bool | None = None

    async def find(self) -> AsyncGenerator[tuple[str, int], None]:
        """Yield the paths and sizes of matching files, one folder at a time.

        Raises
        ------
        UnknownDatasetError
            No file matches; the message names the deepest folder, and the hint its contents.
        """
        parts = self._pattern.parts
        fixed = next((n for n, part in enumerate(parts) if is_glob(part)), len(parts))
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
            raise UnknownDatasetError(f"{self._pattern.url(base)} is a file, and not a folder")
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
        """Return the names in a folder that match a part: files if it is the last, or folders."""
        if is_glob(part):
            names = await self._list(folder) or {}
            found = [(name, names[name]) for name in _matching(names, part)]
        else:
            entry = await self._stat(posixpath.join(folder, part))
            found = [(part, entry)] if entry else []
        return [(name, entry) for name, entry in found if (entry.file if last else entry.folder)]

    async def _nothing(self, miss: _Miss) -> UnknownDatasetError:
        """Return the error for no match: the folder that exists, and names similar to the next."""
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
            f"there is no {asked}: the folder {folder} exists, but nothing in it matches {part}",
            hint=did_you_mean(part, sorted(names), otherwise="in it there is"),
        )

    async def _stat(self, path: str) -> _Entry | None:
        """Return the entry of a path; None if it does not exist."""
        found = await self._ask(self._server, "stat", path)
        return None if found is None else _entry(found)

    async def _list(self, folder: str) -> _Folder | None:
        """Return the entries of a folder on all servers that have it; None if no server does."""
        from XRootD.client.flags import DirListFlags

        names: _Folder | None = None
        for server in await self._servers(folder):
            found = await self._ask(server, "dirlist", folder, DirListFlags.STAT, partly=True)
            if found is None:
                continue
            names = {} if names is None else names
            for one in found:
                if one.statinfo is not None:
                    names.setdefault(one.name, _entry(one.statinfo))
                elif one.name not in names and (entry := await self._stat(f"{folder}/{one.name}")):
                    names[one.name] = entry
        return names

    async def _servers(self, folder: str) -> list[Url]:
        """Return all servers that may have a folder.

        XrdCl could ask them by itself, but it does not distinguish a server that does not have the
        folder from one that does not answer.
        """
        from XRootD.client.flags import HostTypes

        if self._is_redirector is None:
            about = await self._ask(self._server, "protocol")
            self._is_redirector = bool(about and about.hostinfo & HostTypes.IS_MANAGER)
        if not self._is_redirector:
            return [self._server]
        servers: dict[str, Url] = {}
        managers, asked = [self._server], set[str]()
        while managers:
            manager = managers.pop()
            asked.add(manager.authority)
            found = await self._ask(manager, "locate", f"*{folder}", _EACH_SERVER)
            for one in found or ():
                server = self._behind(one.address)
                if not one.is_manager:
                    servers[server.authority] = server
                elif server.authority not in asked:
                    managers.append(server)
            if len(asked) > _MOST_MANAGERS:
                raise CatalogueError(f"{self._pattern.server} has too many redirectors behind it")
        return [servers[name] for name in sorted(servers)]

    def _behind(self, address: str) -> Url:
        """Return the server that a redirector names.

        Raises
        ------
        CatalogueError
            The name is not a host and a port.
        """
        try:
            return parse(f"{self._server.scheme}://{address}", schemes=XROOTD)
        except UrlError as error:
            name = self._pattern.server
            raise CatalogueError(f"{name} names {address[:100]!r}, which {error}") from None

    async def _ask(self, server: Url, question: str, *arguments: Any, partly: bool = False) -> Any:
        """Call a server, follow its redirects, and return the answer.

        The first argument, if any, is a path. The answer is None if the server does not have the
        path. ``partly`` accepts an incomplete answer: a list of names in which the information on
        some is missing.

        Raises
        ------
        CatalogueError
            The server does not answer, or refuses the call.
        """
        for _ in range(MOST_REDIRECTS):
            status, found = await self._once(server, question, *arguments)
            try:
                target = redirect(server, status)
            except UnreachableError as error:
                raise CatalogueError(error.message, hint=error.hint) from None
            if target is None:
                break
            server = replace(target, path="", query="", through=None)
        if status.ok and found is not None and (partly or status.code != status.suPartial):
            return found
        name = self._pattern.server
        path = arguments[0].lstrip("*") if arguments else "/"
        if status.ok:
            raise CatalogueError(f"not all servers behind {name} answered for {path}")
        said = re.sub(r"^\[\w+\] ", "", str(status.message).strip())
        answered = status.errno if status.code == status.errErrorResponse else None
        if answered == _NOT_FOUND or status.code == status.errNotFound:
            return None
        if answered in _DENIED or status.code in (status.errAuthFailed, status.errLoginFailed):
            raise CatalogueDeniedError(
                f"this service may not list {self._pattern.url(path)}: {said}"
            )
        if status.code in (status.errOperationExpired, status.errSocketTimeout):
            raise self._silent()
        raise CatalogueError(f"{name} failed for {path}: {said}")

    async def _once(self, server: Url, question: str, *arguments: Any) -> tuple[Any, Any]:
        try:
            # XrdCl may exceed its own time-outs, for instance while it resolves a host name
            async with asyncio.timeout(self._seconds):
                client = await run_in_daemon_thread(self._clients.of, server)
                function = getattr(client, question)
                answer: tuple[Any, Any] = await run_in_daemon_thread(
                    function, *arguments, math.ceil(self._seconds)
                )
                return answer
        except TimeoutError:
            raise self._silent() from None

    def _silent(self) -> CatalogueError:
        return CatalogueError(f"{self._pattern.server} did not answer within {self._seconds:g} s")


def _entry(info: Any) -> _Entry:
    from XRootD.client.flags import StatInfoFlags

    folder = bool(info.flags & StatInfoFlags.IS_DIR)
    return _Entry(info.size, folder, not (folder or info.flags & StatInfoFlags.OTHER))
