"""Decompressing what ROOT compressed: baskets of TTrees and pages of RNTuples.

Each algorithm has the fastest library that is well kept (`docs/explanation/reading.md`).
Compressed bytes come from files that nobody checked. So every size is compared with the size that
the object states before memory is allocated for it.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

Buffer: TypeAlias = Any
"""Bytes, or any other object that `memoryview` accepts."""

_HEADER = 9
"""Two letters, a method byte, and the sizes of the block in 3 bytes each, compressed first.

Source: ROOT's core/zip/src/RZip.cxx. A block holds at most 2**24 - 1 bytes; longer objects have
several blocks.
"""

_CHECKSUM = 8
"""Bytes of the big-endian xxh64 at the beginning of an LZ4 block (ROOT's ZipLZ4.cxx)."""


class DecompressionError(ValueError):
    """Bytes cannot be decompressed, or do not give the expected result."""


def decompress(data: Buffer, size: int) -> Buffer:
    """Return the content of one compressed object.

    Parameters
    ----------
    data
        All blocks of the object, each with its header.
    size
        The number of decompressed bytes.

    Raises
    ------
    DecompressionError
        The bytes are not such blocks, a checksum is wrong, or the number of bytes is another.
    """
    view = memoryview(data).cast("B")
    blocks = _blocks(view, size)
    if len(blocks) == 1:
        algorithm, block, _ = blocks[0]
        return _block(algorithm, block, size)
    import numpy as np

    output = np.empty(size, np.uint8)
    filled = 0
    for algorithm, block, length in blocks:
        part = _block(algorithm, block, length)
        output[filled : filled + length] = np.frombuffer(part, np.uint8)
        filled += length
    return output


def _blocks(view: memoryview, size: int) -> list[tuple[bytes, memoryview, int]]:
    """Return algorithm, content and uncompressed size of each block, which add up to ``size``."""
    blocks = []
    at = total = 0
    end = len(view)
    while at < end:
        header = bytes(view[at : at + _HEADER])
        if len(header) < _HEADER:
            raise DecompressionError("cannot decompress: a block ends within its header")
        compressed = int.from_bytes(header[3:6], "little")
        length = int.from_bytes(header[6:9], "little")
        at += _HEADER
        if compressed > end - at:
            raise DecompressionError("cannot decompress: a block is longer than its object")
        blocks.append((header[:2], view[at : at + compressed], length))
        at += compressed
        total += length
    if total != size:
        raise DecompressionError(
            f"cannot decompress: blocks of {total} bytes where {size} are expected"
        )
    return blocks


def _block(algorithm: bytes, block: memoryview, size: int) -> Buffer:
    decompressor = _ALGORITHMS.get(algorithm)
    if decompressor is None:
        raise DecompressionError(f"cannot decompress: unknown algorithm {algorithm!r}")
    try:
        content = decompressor(block, size)
    except DecompressionError:
        raise
    except Exception as error:
        # each library has its own errors, and those of cramjam have no common base class
        name = algorithm.decode("ascii")
        raise DecompressionError(f"cannot decompress a block of {name}: {error}") from error
    if len(content) != size:
        raise DecompressionError(
            f"cannot decompress: {len(content)} bytes came out where {size} are expected"
        )
    return content


def _zlib(block: memoryview, size: int) -> bytearray:
    import deflate

    content: bytearray = deflate.zlib_decompress(block, size)
    return content


def _old_zlib(block: memoryview, size: int) -> bytearray:
    """Decompress what ROOT wrote before version 5: deflate without zlib's header and checksum."""
    import deflate

    content: bytearray = deflate.deflate_decompress(block, size)
    return content


def _zstd(block: memoryview, size: int) -> Buffer:
    import pyarrow as pa

    return pa.decompress(block, decompressed_size=size, codec="zstd")


def _lz4(block: memoryview, size: int) -> Buffer:
    import cramjam
    import xxhash

    expected = int.from_bytes(block[:_CHECKSUM], "big")
    block = block[_CHECKSUM:]
    if xxhash.xxh64_intdigest(block) != expected:
        raise DecompressionError("cannot decompress: the checksum of a block is wrong")
    # not decompress_block: it fills up missing bytes
    return _into(cramjam.lz4.decompress_block_into, block, size)


def _lzma(block: memoryview, size: int) -> bytes:
    import lzma

    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    # one byte more than expected: enough to reach the checksum at the end, too little for a bomb
    content = decompressor.decompress(block, max_length=size + 1)
    if not decompressor.eof:
        raise DecompressionError("cannot decompress: a block of XZ does not end where it should")
    return content


def _into(decompress_into: Callable[[Buffer, Buffer], int], block: memoryview, size: int) -> Buffer:
    """Decompress with a function that fills a buffer and returns the number of bytes."""
    import numpy as np

    output = np.empty(size, np.uint8)
    return output[: decompress_into(block, output)]


_ALGORITHMS: dict[bytes, Callable[[memoryview, int], Buffer]] = {
    b"ZL": _zlib,
    b"CS": _old_zlib,
    b"XZ": _lzma,
    b"L4": _lz4,
    b"ZS": _zstd,
}
