"""Full download of a file, and checks of its size and checksum against its catalogue."""

import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from servicex_server.columnar.reading.access import Access
from servicex_server.columnar.reading.error_mapping import reading
from servicex_server.columnar.reading.http_source import HttpReader
from servicex_server.columnar.reading.local_files import open_local
from servicex_server.columnar.reading.sources import check_size
from servicex_server.columnar.reading.xrootd_source import open_xrootd, seconds_of
from servicex_server.errors import ChecksumError, TruncatedError, UnreachableError
from servicex_server.network.urls import HTTP, XROOTD, scheme_of

PIECE = 8 << 20
"""Bytes that are requested at a time."""


def fetch(
    url: str, path: Path, access: Access, *, adler32: str | None, step: Callable[[], None]
) -> None:
    """Download all bytes of a file to a path.

    Parameters
    ----------
    url
        A path or a URL.
    path
        The target; an existing file is overwritten.
    access
        How the file is read.
    adler32
        The checksum of the file according to its catalogue, eight hexadecimal digits; None if
        unknown.
    step
        Called for each block that arrives.

    Raises
    ------
    ReplicaError
        The file cannot be read, or its size or checksum is not that of its catalogue.
    OSError
        The target cannot be written.
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
        raise ChecksumError(
            f"{url} has the checksum {found:08x}, but its catalogue lists {adler32}"
        )


BLOCK = 64 << 10
"""Bytes that are read to test whether a file is readable."""


def look(url: str, access: Access) -> None:
    """Open a file, read its first block, and compare its size with its catalogue.

    Raises
    ------
    ReplicaError
        The file cannot be read, or has another size.
    """
    with reading(url):
        scheme = scheme_of(url)
        if scheme in XROOTD:
            there, block = _block_of_xrootd(url, access)
        elif scheme in HTTP:
            there, block = _block_of_http(url, access)
        else:
            with open_local(url, access.folders) as file:
                there, block = os.fstat(file.fileno()).st_size, file.read(BLOCK)
    if not block:
        raise TruncatedError(f"{url} is empty")
    check_size(url, there, access.size)


def _block_of_xrootd(url: str, access: Access) -> tuple[int, bytes]:
    wait = seconds_of(access)
    file = open_xrootd(url, access).file
    try:
        status, about = file.stat(force=True, timeout=wait)
        if status.ok:
            status, block = file.read(0, BLOCK, timeout=wait)
        if status.ok:
            return int(about.size), block
    finally:
        file.close(timeout=wait)
    raise OSError(status.message)


def _block_of_http(url: str, access: Access) -> tuple[int, bytes]:
    headers = {"Range": f"bytes=0-{BLOCK - 1}"}
    with HttpReader(url, access) as reader, reader.get(headers) as reply:
        whole = reply.headers.get("Content-Range", "").rpartition("/")[2]
        size = whole or reply.headers.get("Content-Length", "")
        return int(size) if size.isdecimal() else 0, next(reply.iter_raw(BLOCK), b"")


def _pieces(url: str, access: Access) -> Iterator[bytes]:
    scheme = scheme_of(url)
    if scheme in XROOTD:
        return _of_xrootd(url, access)
    if scheme in HTTP:
        return _of_http(url, access)
    return _of_path(url, access)


def _of_xrootd(url: str, access: Access) -> Iterator[bytes]:
    wait = seconds_of(access)
    file = open_xrootd(url, access).file
    try:
        place = 0
        status, piece = file.read(place, PIECE, timeout=wait)
        while status.ok and piece:
            yield piece
            place += len(piece)
            status, piece = file.read(place, PIECE, timeout=wait)
    finally:
        file.close(timeout=wait)
    if not status.ok:
        raise OSError(status.message)


def _of_http(url: str, access: Access) -> Iterator[bytes]:
    with HttpReader(url, access) as reader, reader.get() as reply:
        size = reply.headers.get("Content-Length")
        there = 0
        for piece in reply.iter_raw(PIECE):
            there += len(piece)
            yield piece
        if size is not None and there != int(size):
            raise UnreachableError(f"{url}: download broke off after {there:,} of {size} bytes")


def _of_path(url: str, access: Access) -> Iterator[bytes]:
    with open_local(url, access.folders) as file:
        while piece := file.read(PIECE):
            yield piece
