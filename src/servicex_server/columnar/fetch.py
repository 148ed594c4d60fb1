"""Fetching a file whole, and holding it against what its catalogue has of it."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from servicex_server.columnar.faults import reading
from servicex_server.columnar.source import Access, check_size, http_client, prepare_xrootd
from servicex_server.errors import ChecksumError, TruncatedError, UnreachableError

PIECE = 8 << 20
"""Bytes that are asked for at a time."""


def fetch(
    url: str, path: Path, access: Access, *, adler32: str | None, step: Callable[[], None]
) -> None:
    """Write all bytes of a file to a path.

    Parameters
    ----------
    url
        A path or a URL.
    path
        Where they go; what is there is written over.
    access
        How it is read.
    adler32
        Its checksum by its catalogue, eight hexadecimal digits; None while unknown.
    step
        Called for each piece.

    Raises
    ------
    ReplicaError
        It cannot be read, or is not what its catalogue has.
    OSError
        It cannot be written.
    """
    found, there = 1, 0
    pieces = _pieces(url, access)
    with path.open("wb") as file:
        while True:
            with reading(url):
                piece = next(pieces, b"")
            if not piece:
                break
            step()
            found, there = zlib.adler32(piece, found), there + len(piece)
            file.write(piece)
    if not there:
        raise TruncatedError(f"{url} is empty")
    check_size(url, there, access.size)
    if adler32 is not None and f"{found:08x}" != adler32:
        raise ChecksumError(f"{url} has the checksum {found:08x}, and {adler32} by its catalogue")


def _pieces(url: str, access: Access) -> Iterator[bytes]:
    scheme = urlsplit(url).scheme if "://" in url else ""
    if scheme in ("root", "roots", "xroot"):
        return _of_xrootd(prepare_xrootd(url, access), min(access.silence, access.patience))
    if scheme in ("http", "https"):
        return _of_http(url, access)
    return _of_path(Path(unquote(urlsplit(url).path) if scheme else url))


def _of_xrootd(url: str, seconds: float) -> Iterator[bytes]:
    from XRootD.client.file import File

    wait = max(1, int(seconds))
    file = File()
    status, _ = file.open(url, timeout=wait)
    try:
        place = 0
        while status.ok:
            status, piece = file.read(place, PIECE, timeout=wait)
            if status.ok:
                yield piece
                place += len(piece)
                if not piece:
                    return
    finally:
        if file.is_open():
            file.close(timeout=wait)
    raise OSError(status.message)


def _of_http(url: str, access: Access) -> Iterator[bytes]:
    with http_client(access) as client, client.stream("GET", url) as reply:
        reply.raise_for_status()
        size = reply.headers.get("Content-Length")
        there = 0
        for piece in reply.iter_raw(PIECE):
            there += len(piece)
            yield piece
        if size is not None and there != int(size):
            raise UnreachableError(f"{url} was broken off after {there:,} of {size} bytes")


def _of_path(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
