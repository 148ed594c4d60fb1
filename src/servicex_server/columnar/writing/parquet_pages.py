"""Cuts a leaf into Parquet pages, and encodes them.

Sources: Encodings.md of the Parquet format (github.com/apache/parquet-format), and its README.md
for the parts of a version 1 data page.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servicex_server.columnar.writing.parquet_levels import Leaf, Slots, Texts
from servicex_server.errors import FormatError

PAGE = 1 << 20
"""Approximate bytes of values in a page."""

LARGEST = (1 << 31) - 1
"""Largest size of a page that its header can state, in bytes."""

SPLIT = frozenset(("float32", "float64"))
"""Types whose bytes are split into streams.

Splitting integers of 32 and 64 bits too would save 3 % in all, but only readers since 2024 know it.
"""


def is_split(leaf: Leaf) -> bool:
    """Whether the bytes of a leaf are split into streams, which is BYTE_STREAM_SPLIT.

    A value that is missing only together with its record is not split: polars 2.1 crashes on
    several such pages if one of them has no missing value, whichever program wrote them.
    """
    missing_above = leaf.max_definition > leaf.max_repetition and not leaf.node.optional
    return leaf.node.dtype in SPLIT and not missing_above


def pages(leaf: Leaf) -> Iterator[tuple[Slots, Any]]:
    """Cut a column into pages, each of whole rows."""
    slots, values = leaf.slots, leaf.values
    size = (
        values.data.nbytes + values.offsets.nbytes if isinstance(values, Texts) else values.nbytes
    )
    pages = max(1, size // PAGE)
    first = value = 0
    for page in range(1, pages + 1):
        last = _row(slots, slots.count * page // pages)
        if last == first:
            continue
        levels = slots.definition
        if isinstance(levels, int):
            there = (last - first) * (levels == leaf.max_definition)
        else:
            levels = levels[first:last]
            there = int(np.count_nonzero(levels == leaf.max_definition))
        repeated = None if slots.repetition is None else slots.repetition[first:last]
        if isinstance(values, Texts):
            part: Any = Texts(values.offsets[value : value + there + 1], values.data)
        else:
            part = values[value : value + there]
        yield Slots(last - first, repeated, levels), part
        first, value = last, value + there


def _row(slots: Slots, place: int) -> int:
    """Return the first place at or after ``place`` at which a row begins."""
    if slots.repetition is None:
        return place
    for start in range(place, slots.count, 4096):
        begins = np.flatnonzero(slots.repetition[start : start + 4096] == 0)
        if len(begins):
            return start + int(begins[0])
    return slots.count


def body(leaf: Leaf, slots: Slots, values: Any) -> NDArray[np.uint8]:
    """Return the levels and the values of a page, as a version 1 data page stores them."""
    parts: list[bytes | NDArray[np.uint8]] = []
    for levels, most in (
        (0 if slots.repetition is None else slots.repetition, leaf.max_repetition),
        (slots.definition, leaf.max_definition),
    ):
        if most:
            packed = _hybrid(levels, slots.count, most.bit_length())
            size = sum(map(len, packed))
            parts += [size.to_bytes(4, "little"), *packed]
    if isinstance(values, Texts):
        parts.append(_texts(values))
    elif values.dtype == np.bool_:
        parts.append(np.packbits(values, bitorder="little"))
    elif is_split(leaf):
        parts.append(_split(values))
    else:
        parts.append(plain(leaf, values).view(np.uint8))
    if len(parts) == 1 and not isinstance(parts[0], bytes):
        body = parts[0]
    else:
        body = np.concatenate([np.frombuffer(part, np.uint8) for part in parts])
    if len(body) > LARGEST:
        raise FormatError(f"Parquet cannot hold column {leaf.path[0]}: an entry is over 2 GB")
    return body


def _hybrid(
    levels: NDArray[np.uint8] | int, count: int, width: int
) -> list[bytes | NDArray[np.uint8]]:
    """Return levels in the RLE/bit-packing hybrid encoding, as a single run of one kind."""
    if not isinstance(levels, int):
        first = int(levels[0])
        if (levels == first).all():
            levels = first
    if isinstance(levels, int):
        return [varint(count << 1) + bytes([levels])]
    bits = levels.view(np.bool_)
    if width > 1:
        bits = np.unpackbits(levels[:, None], axis=1, count=width, bitorder="little").view(np.bool_)
    groups = -(-count // 8)
    packed = np.packbits(bits, bitorder="little")
    padding = bytes(groups * width - len(packed))
    return [varint(groups << 1 | 1), packed, padding]


def _split(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the first bytes of all values, their second bytes, and so on."""
    whole = values.view(f"<u{values.itemsize}")
    made = np.empty((values.itemsize, len(values)), np.uint8)
    for place in range(values.itemsize):
        np.right_shift(whole, 8 * place, out=made[place], casting="unsafe")
    return made.reshape(-1)


def _texts(values: Texts) -> NDArray[np.uint8]:
    """Return the texts, each preceded by its length in four bytes."""
    offsets, data = values
    lengths = np.diff(offsets)
    made = np.empty(4 * len(lengths) + int(offsets[-1] - offsets[0]), np.uint8)
    begin = offsets[:-1] - offsets[0] + 4 * np.arange(len(lengths))
    is_length = np.zeros(len(made), np.bool_)
    for place in range(4):
        is_length[begin + place] = True
        made[begin + place] = lengths >> (8 * place)
    made[~is_length] = data[offsets[0] : offsets[-1]]
    return made


def plain(leaf: Leaf, values: NDArray[Any]) -> NDArray[Any]:
    """Return values in PLAIN encoding: little-endian, with the width of their physical type."""
    if leaf.node.dtype == "datetime64[D]":
        days = values.view("i8")
        if len(days) and not -(1 << 31) <= days.min() <= days.max() < 1 << 31:
            raise FormatError(f"Parquet cannot hold column {leaf.path[0]}: a day is out of range")
        return days.astype("<i4")
    if leaf.node.dtype == "datetime64[s]":
        return values.astype("<M8[ms]")
    if values.dtype.kind in "iu" and values.itemsize < 4:  # noqa: PLR2004 - INT32 is the narrowest
        return values.astype("<i4")
    return values.astype(values.dtype.newbyteorder("<"), copy=False)


def varint(value: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first (ULEB128)."""
    made = bytearray()
    while value >= 0x80:  # noqa: PLR2004
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
