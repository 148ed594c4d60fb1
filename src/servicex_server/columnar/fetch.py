"""Fetching a file whole, and holding it against what its catalogue has of it."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from servicex_server.columnar.faults import reading
from servicex_server.columnar.source import (
    Access,
    check_size,
    http_client,
    prepare_xrootd,
    scheme_of,
)
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


BLOCK = 64 << 10
"""Bytes that are read to see whether a file can be."""


def look(url: str, access: Access) -> None:
    """Open a file, hold its size against its catalogue, and read its first block.

    Raises
    ------
    ReplicaError
        It cannot be read.
    """
    with reading(url):
        scheme = scheme_of(url)
        if scheme in ("root", "roots", "xroot"):
            there, block = _block_of_xrootd(url, access)
        elif scheme in ("http", "https"):
            there, block = _block_of_http(url, access)
        else:
            path = Path(unquote(urlsplit(url).path) if scheme else url)
            with path.open("rb") as file:
                there, block = path.stat().st_size, file.read(BLOCK)
    if not block:
        raise TruncatedError(f"{url} is empty")
    check_size(url, there, access.size)


def _block_of_xrootd(url: str, access: Access) -> tuple[int, bytes]:
    place = prepare_xrootd(url, access)
    from XRootD.client.file import File

    wait = max(1, int(min(access.silence, access.patience)))
    file = File()
    status, _ = file.open(place, timeout=wait)
    try:
        if status.ok:
            status, about = file.stat(force=True, timeout=wait)
        if status.ok:
            status, block = file.read(0, BLOCK, timeout=wait)
        if status.ok:
            return int(about.size), block
    finally:
        if file.is_open():
            file.close(timeout=wait)
    raise OSError(status.message)


def _block_of_http(url: str, access: Access) -> tuple[int, bytes]:
    headers = {"Range": f"bytes=0-{BLOCK - 1}"}
    with http_client(access) as client, client.stream("GET", url, headers=headers) as reply:
        reply.raise_for_status()
        whole = reply.headers.get("Content-Range", "").rpartition("/")[2]
        size = whole or reply.headers.get("Content-Length", "")
        return int(size) if size.isdecimal() else 0, next(reply.iter_raw(BLOCK), b"")


def _pieces(url: str, access: Access) -> Iterator[bytes]:
    scheme = scheme_of(url)
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
