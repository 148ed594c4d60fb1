"""Opening ROOT files by path, `file://`, `http(s)://` and `root://`, with our own deadlines."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from servicex_server.columnar.reading.access import PLAIN, Access
from servicex_server.columnar.reading.http_source import HttpReader
from servicex_server.columnar.reading.lazy_branches import classes
from servicex_server.columnar.reading.local_files import open_local
from servicex_server.columnar.reading.rntuple_pages import ntuple_class
from servicex_server.columnar.reading.xrootd_source import load_xrootd, open_xrootd
from servicex_server.errors import CorruptError, MissingError, TruncatedError, UnreachableError
from servicex_server.network.urls import HTTP, XROOTD, scheme_of

_KEY_BYTES = 34
"""The size of the numbers in a TKey with 64-bit places (TKey::Streamer)."""

_VECTOR = 1024, 2097136
"""Ranges in one XRootD vector read, and bytes of each, if a server does not state its limits
(XrdClConstants.hh, XProtocol.hh)."""

_HTTP_READERS = 4
"""Concurrent requests for one file."""


def open_source(url: str, access: Access = PLAIN) -> Any:
    """Open a ROOT file with uproot and return its top folder; closing that closes the file.

    Raises
    ------
    ReplicaError
        The URL cannot be read, or the file does not have the size of its catalogue. Exceptions of
        the libraries pass unchanged; `servicex_server.columnar.reading.error_mapping` maps them.
    """
    scheme = scheme_of(url)
    options: dict[str, Any] = {
        "object_cache": None,
        "array_cache": None,
        "num_workers": 1,
        "custom_classes": {**classes(), "ROOT::RNTuple": ntuple_class()},
        "access": access,
    }
    if scheme in XROOTD:
        load_xrootd(url, access)
        options["handler"] = _xrootd_source()
        options["timeout"] = min(access.silence, access.patience)
    elif scheme in HTTP:
        options["handler"] = _http_source()
    elif scheme in ("", "file"):
        options["handler"] = _local_source()
    else:
        raise MissingError(
            f"{url} has a scheme that is not supported",
            hint="use a path, file://, http(s):// or root://",
        )
    # in two steps, because uproot does not close the source if the content is wrong
    kind = _file()
    file = kind.__new__(kind)
    try:
        file.__init__(url, **options)
        check_size(url, _size(file.source), access.size)
        top = _top(file, url)
    except BaseException:
        if (source := vars(file).get("_source")) is not None:
            source.close()
        raise
    return top


def _size(source: Any) -> int:
    """Return the size of a source in bytes, without a request; 0 if it is unknown."""
    if hasattr(source, "_resource"):  # XRootD: the response to the open request has the size
        status, found = source._resource.file.stat(force=False)  # noqa: SLF001  # it asks itself
        return int(found.size) if status.ok else 0
    return int(source.num_bytes or 0)


def check_size(url: str, there: int, size: int) -> None:
    """Refuse a file whose size differs from that of its catalogue, if both are known.

    Raises
    ------
    TruncatedError, CorruptError
        The file is shorter, or longer.
    """
    if there and size and there != size:
        kind = TruncatedError if there < size else CorruptError
        raise kind(f"{url} has {there:,} bytes, but its catalogue lists {size:,}")


def _top(file: Any, url: str) -> Any:
    if not 0 < file.fBEGIN < file.fEND:
        raise CorruptError(f"{url} is not a ROOT file: it ends after its first word")
    return file.root_directory


_STREAMERS_KEPT = 8
"""Parsed sets of TStreamerInfo that are cached; most files of a dataset share one."""


@cache
def _file() -> Any:
    """Return a subclass of uproot's file class that parses each set of TStreamerInfo once.

    The files of a dataset describe the same classes in the same bytes. The bytes are the cache key,
    so an entry cannot be stale. uproot needs 10 to 50 ms for each parse.
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
                # one request, where uproot would read the key first and then the rest
                self._record = self._source.chunk(start, start + self._fNbytesInfo)
                record = bytes(memoryview(self._record.raw_data))
                # without the key, because it has a date in it: TKey::Streamer, fKeylen
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


@cache
def _local_source() -> Any:
    """Return a source class of uproot for local files; each file is opened and checked once.

    Files are not memory-mapped, because mapped pages would count as the worker's memory.
    """
    import uproot
    from uproot.source.file import FileResource
    from uproot.source.futures import ResourceThreadPoolExecutor

    class Resource(FileResource):  # type: ignore[misc]  # uproot has no types
        def __init__(self, url: str, access: Access) -> None:
            self._file_path = url
            self._file = open_local(url, access.folders)

    class LocalSource(uproot.MultithreadedFileSource):  # type: ignore[misc]  # uproot has no types
        def __init__(self, url: str, *, access: Access, **options: Any) -> None:
            self._access = access
            super().__init__(url, **options)

        def _open(self) -> None:
            resource = Resource(self._file_path, self._access)
            self._executor = ResourceThreadPoolExecutor([resource])
            self._num_bytes = os.fstat(resource.file.fileno()).st_size

    return LocalSource


@cache
def _xrootd_source() -> Any:
    """Return a source class of uproot for XRootD that uses the identity in the URL.

    uproot's own class queries the limits of the server over a connection without that identity.
    It also closes the file on the first error, so that a concurrent reader gets the error of a
    closed file instead of the real one.
    """
    import uproot
    from uproot.source.futures import ResourceThreadPoolExecutor
    from uproot.source.xrootd import XRootDResource, trivial_resource
    from XRootD.client.flags import QueryCode

    class Resource(XRootDResource):  # type: ignore[misc]  # uproot has no types
        def __init__(self, url: str, timeout: float, access: Access) -> None:
            self._access = access
            super().__init__(url, timeout)

        def _open(self) -> None:
            self.opened = open_xrootd(self._file_path, self._access)
            self._file = self.opened.file

        def _xrd_error(self, status: Any) -> None:
            raise OSError(status.message)

    class XRootDSource(uproot.XRootDSource):  # type: ignore[misc]  # uproot has no types
        def __init__(self, url: str, *, access: Access, **options: Any) -> None:
            self._access = access
            super().__init__(url, **options)

        def _open(self) -> None:
            self._resource = Resource(self._file_path, self._timeout, self._access)
            self._executor = ResourceThreadPoolExecutor([trivial_resource()])
            names = "readv_iov_max readv_ior_max"
            wait = math.ceil(self._timeout)
            system = self._resource.opened.system()
            status, found = system.query(QueryCode.CONFIG, names, wait)
            limits = found.split() if status.ok else []
            known = len(limits) == len(_VECTOR) and all(map(bytes.isdigit, limits))
            self._max_num_elements, self._max_element_size = map(int, limits if known else _VECTOR)

    return XRootDSource


@cache
def _http_source() -> Any:
    """Return a source class of uproot for HTTP.

    uproot's own class, through fsspec, loses the reason why a range cannot be read. If a server
    does not support ranges, it loads the whole file into memory for each range.
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
            self._reader = HttpReader(url, access)

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
            with self._reader.get(headers) as reply:
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
            return self._reader.is_closed

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *raised: object) -> None:
            self._executor.shutdown(cancel_futures=True)
            self._reader.close()

    return HttpSource
