"""Opening ROOT files by path, `file://`, `http(s)://` and `root://`, with our own deadlines."""

import math
import os
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from servicex_server.columnar.clusters import ntuple_class
from servicex_server.columnar.treeindex import classes
from servicex_server.errors import CorruptError, MissingError, TruncatedError, UnreachableError

if TYPE_CHECKING:
    import httpx

_KEY_BYTES = 34
"""The size of the numbers in a TKey with 64-bit places (TKey::Streamer)."""

_VECTOR = 1024, 2097136
"""Ranges that one question to XRootD may have, and bytes that each may, where a server does not
say (XrdClConstants.hh, XProtocol.hh)."""

_HTTP_READERS = 4
"""Requests that are under way at once for one file."""


@dataclass(frozen=True, slots=True)
class Access:
    """How a file is read, and as whom.

    Parameters
    ----------
    opening
        Seconds that a remote server has to take a connection. XrdCl reads them, and those below,
        once in the life of a process.
    silence
        Seconds that it may be without sending a byte.
    patience
        Seconds that either may take for this reader, who is in a hurry.
    size
        Bytes that the file has by its catalogue; 0 while unknown.
    proxy
        The file of a proxy that the server is shown.
    token, token_file
        A token that it is shown, and the file that it is in, if it is in one.
    """

    opening: float = 20.0
    silence: float = 30.0
    patience: float = math.inf
    size: int = 0
    proxy: Path | None = None
    token: str = field(default="", repr=False)
    token_file: Path | None = None


PLAIN = Access()


def open_source(url: str, access: Access = PLAIN) -> Any:
    """Return the top folder of a ROOT file, opened by uproot; it closes the file.

    Raises
    ------
    ReplicaError
        It is known without asking that it cannot be read, or it has another size than it should.
        Whatever the libraries raise is raised as it is: `servicex_server.columnar.faults` tells
        what it means.
    """
    import uproot

    scheme = scheme_of(url)
    place = url
    options: dict[str, Any] = {
        "object_cache": None,
        "array_cache": None,
        "num_workers": 1,
        "custom_classes": {**classes(), "ROOT::RNTuple": ntuple_class()},
    }
    if scheme in ("root", "roots", "xroot"):
        place = prepare_xrootd(url, access)
        options["handler"] = _xrootd_source()
        options["timeout"] = min(access.silence, access.patience)
    elif scheme in ("http", "https"):
        options["handler"] = _http_source()
        options["access"] = access
    elif scheme in ("", "file"):
        # not memory-mapped: mapped pages would count as the worker's memory
        place = unquote(urlsplit(url).path) if scheme else url
        options["handler"] = uproot.MultithreadedFileSource
        _check_local(Path(place), url)
    else:
        raise MissingError(
            f"{url} has a scheme that nothing here reads",
            hint="use a path, file://, http(s):// or root://",
        )
    # in two steps: uproot does not close what it has opened when the content is wrong
    kind = _file()
    file = kind.__new__(kind)
    try:
        file.__init__(place, **options)
        check_size(url, _size(file.source), access.size)
        top = _top(file, url)
    except BaseException:
        if (source := vars(file).get("_source")) is not None:
            source.close()
        raise
    return top


def scheme_of(url: str) -> str:
    """Return the scheme of a URL; nothing of a path.

    Raises
    ------
    MissingError
        It is neither.
    """
    try:
        return urlsplit(url).scheme if "://" in url else ""
    except ValueError as error:
        raise MissingError(f"{url} is no URL: {error}") from None


def _size(source: Any) -> int:
    """Return how many bytes a source has, without asking for it; 0 if that is not known."""
    if hasattr(source, "_resource"):  # of XRootD, whose answer to the opening tells it
        status, found = source._resource.file.stat(force=False)  # noqa: SLF001  # it asks itself
        return int(found.size) if status.ok else 0
    return int(source.num_bytes or 0)


def check_size(url: str, there: int, size: int) -> None:
    """Refuse a file that is not as long as its catalogue has it, where both are known.

    Raises
    ------
    TruncatedError, CorruptError
        It is shorter, or longer.
    """
    if there and size and there != size:
        kind = TruncatedError if there < size else CorruptError
        raise kind(f"{url} has {there:,} bytes, and {size:,} by its catalogue")


def _top(file: Any, url: str) -> Any:
    if not 0 < file.fBEGIN < file.fEND:
        raise CorruptError(f"{url} is not a ROOT file: there is nothing behind its first word")
    return file.root_directory


def prepare_xrootd(url: str, access: Access) -> str:
    """Make XrdCl ready; return the URL with what it is to show.

    Raises
    ------
    UnreachableError
        It is not installed.
    """
    for name, value in xrootd_settings(access.opening, access.silence).items():
        os.environ.setdefault(name, value)
    try:
        import XRootD  # noqa: F401
    except ImportError:
        raise UnreachableError(
            f"{url} needs the XRootD client, which this worker does not have",
            hint="pip install 'servicex-server[xrootd]'",
        ) from None
    shown = {"xrd.gsiusrpxy": access.proxy, "xrd.ztn": access.token_file}
    chosen = [f"{name}={path}" for name, path in shown.items() if path is not None]
    behind = urlsplit(urlsplit(url).path.lstrip("/")).netloc
    if not chosen and not behind:
        return url
    # a connection belongs to an intent: nobody reads over one that was opened as somebody else, or
    # on which a cache still waits for another server
    intent = sha256(" ".join([behind, *chosen]).encode()).hexdigest()[:16]
    mark = "&" if "?" in url else "?"
    return f"{url}{mark}{'&'.join([f'xrdcl.intent={intent}', *chosen])}"


def xrootd_settings(opening: float, silence: float) -> dict[str, str]:
    """Return what XrdCl is told by its environment, unless an administrator has told it already.

    Its own defaults let one dead server hold a worker for ten minutes (XrdClConstants.hh); and
    after one refusal they fail everything on that server for thirty, while the files of a request
    pass by: the window for that is shorter than the time between the attempts on a file.
    """
    return {
        "XRD_CONNECTIONWINDOW": str(math.ceil(opening)),
        "XRD_CONNECTIONRETRY": "1",
        "XRD_REQUESTTIMEOUT": str(math.ceil(silence)),
        "XRD_STREAMTIMEOUT": str(math.ceil(silence)),
        "XRD_STREAMERRORWINDOW": "2",
        "XRD_TIMEOUTRESOLUTION": "1",
    }


def _check_local(path: Path, url: str) -> None:
    """Refuse what is no file, for a pipe that nobody writes to would be waited for for ever."""
    if not path.exists() or path.is_dir():
        return
    if not path.is_file():
        raise MissingError(f"{url} is no file but a pipe, a socket or a device")
    if not path.stat().st_size:
        raise TruncatedError(f"{url} is empty")


_STREAMERS_KEPT = 8
"""Sets of descriptions of classes that are kept; the files of a dataset mostly have one."""


@cache
def _file() -> Any:
    """Return the class of uproot's files, made to parse one set of TStreamerInfo once a process.

    The files of a dataset describe the same classes in the same bytes; a key by these bytes
    cannot be out of date. uproot needs 10 to 50 ms for each parse.
    """
    import uproot

    parsed: dict[bytes, tuple[Any, Any]] = {}

    class File(uproot.ReadOnlyFile):  # type: ignore[misc]  # uproot has no types
        _record: Any = None
        _streamers: Any
        _streamer_rules: Any

        @property
        def streamers(self) -> Any:
            if self._streamers is None and self._fSeekInfo and self._fNbytesInfo > _KEY_BYTES:
                start = self._fSeekInfo
                # of one piece, where uproot would ask for its key and then for the rest
                self._record = self._source.chunk(start, start + self._fNbytesInfo)
                record = bytes(memoryview(self._record.raw_data))
                # behind the key, which has a date in it: TKey::Streamer, fKeylen
                bare = record[int.from_bytes(record[14:16], "big") :]
                if (known := parsed.get(bare)) is None:
                    known = parsed[bare] = super().streamers, self._streamer_rules
                    for oldest in list(parsed)[:-_STREAMERS_KEPT]:
                        parsed.pop(oldest, None)
                self._streamers, self._streamer_rules = known
                self._record = None
            return super().streamers

        def chunk(self, start: int, stop: int) -> Any:
            if self._record is not None and (start, stop) in self._record:
                return self._record
            return super().chunk(start, stop)

    return File


def http_client(access: Access) -> "httpx.Client":
    """Return a client that shows what is to be shown; of redirects only to the same server."""
    import httpx

    headers = {"Accept-Encoding": "identity"}
    if access.token:
        headers["Authorization"] = f"Bearer {access.token}"
    changed = access.proxy.stat().st_mtime_ns if access.proxy else 0
    return httpx.Client(
        headers=headers,
        timeout=httpx.Timeout(
            min(access.silence, access.patience), connect=min(access.opening, access.patience)
        ),
        follow_redirects=True,
        verify=_trust(access.proxy, changed),
    )


@lru_cache(maxsize=8)
def _trust(proxy: Path | None, changed: int) -> ssl.SSLContext:
    """Return whom we trust: those that Python does, and those of the grid; and what we show."""
    del changed  # so that one that is renewed is read
    context = ssl.create_default_context()
    folder = Path(os.environ.get("X509_CERT_DIR", "/etc/grid-security/certificates"))
    if folder.is_dir():
        context.load_verify_locations(capath=folder)
    if proxy is not None:
        context.load_cert_chain(proxy)
    return context


@cache
def _xrootd_source() -> Any:
    """Return the class of uproot's sources that read by XRootD, as whom the URL says.

    uproot's own asks the server for its limits over a connection that knows nothing of that; and
    on the first error it closes the file, so that a reader beside the one that it befell hears of
    a closed file and not of what is wrong.
    """
    import uproot
    from uproot.source.futures import ResourceThreadPoolExecutor
    from uproot.source.xrootd import XRootDResource, trivial_resource
    from XRootD.client.filesystem import FileSystem
    from XRootD.client.flags import QueryCode
    from XRootD.client.url import URL

    class Resource(XRootDResource):  # type: ignore[misc]  # uproot has no types
        def _xrd_error(self, status: Any) -> None:
            raise OSError(status.message)

    class XRootDSource(uproot.XRootDSource):  # type: ignore[misc]  # uproot has no types
        def _open(self) -> None:
            self._resource = Resource(self._file_path, self._timeout)
            self._executor = ResourceThreadPoolExecutor([trivial_resource()])
            server = URL(self._resource.file.get_property("DataServer"))
            _, mark, shown = self._file_path.partition("xrdcl.intent=")
            place = f"{server.protocol}://{server.hostid}/" + (f"?{mark}{shown}" if mark else "")
            names = "readv_iov_max readv_ior_max"
            wait = math.ceil(self._timeout)
            status, found = FileSystem(place).query(QueryCode.CONFIG, names, wait)
            limits = found.split() if status.ok else []
            known = len(limits) == len(_VECTOR) and all(map(bytes.isdigit, limits))
            self._max_num_elements, self._max_element_size = map(int, limits if known else _VECTOR)

    return XRootDSource


@cache
def _http_source() -> Any:
    """Return the class of uproot's sources that read by HTTP.

    uproot's own way, through fsspec, loses why a range could not be had, and takes the whole
    file into memory for each range of it from a server that does not serve ranges.
    """
    import httpx
    from uproot.source.chunk import Chunk, Source
    from uproot.source.coalesce import CoalesceConfig, coalesce_requests
    from uproot.source.futures import TrivialFuture

    apart = CoalesceConfig(max_request_ranges=1)

    class HttpSource(Source):  # type: ignore[misc]  # uproot has no types
        def __init__(self, url: str, *, access: Access, **options: Any) -> None:
            del options
            super().__init__()
            self._file_path = url
            self._executor = ThreadPoolExecutor(_HTTP_READERS, "http")
            self._client = http_client(access)

        def chunk(self, start: int, stop: int) -> Any:
            self._count([(start, stop)])
            return Chunk(self, start, stop, TrivialFuture(self._range(start, stop)))

        def chunks(self, ranges: list[tuple[int, int]], notifications: Any) -> Any:
            self._count(ranges)
            return coalesce_requests(ranges, self._submit, self, notifications, apart)

        def _submit(self, merged: list[tuple[int, int]]) -> Any:
            return self._executor.submit(lambda: [self._range(*piece) for piece in merged])

        def _count(self, ranges: list[tuple[int, int]]) -> None:
            self._num_requests += 1
            self._num_requested_chunks += len(ranges)
            self._num_requested_bytes += sum(stop - start for start, stop in ranges)

        def _range(self, start: int, stop: int) -> bytes:
            headers = {"Range": f"bytes={start}-{stop - 1}"}
            with self._client.stream("GET", self._file_path, headers=headers) as reply:
                reply.raise_for_status()
                if reply.status_code != httpx.codes.PARTIAL_CONTENT:
                    raise UnreachableError(
                        f"{self._file_path} is on a server that does not send parts of files",
                        hint="serve it by one that knows HTTP ranges, or by root://",
                    )
                whole = reply.headers.get("Content-Range", "").rpartition("/")[2]
                self._num_bytes = int(whole) if whole.isdecimal() else 0
                return reply.read()

        @property
        def num_bytes(self) -> int:
            return self._num_bytes or 0

        @property
        def closed(self) -> bool:
            return bool(self._client.is_closed)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *raised: object) -> None:
            self._executor.shutdown(cancel_futures=True)
            self._client.close()

    return HttpSource
