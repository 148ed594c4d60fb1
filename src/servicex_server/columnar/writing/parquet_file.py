"""Writes Parquet files from awkward arrays, one row group at a time.

Each column is shredded into leaves with levels (`parquet_levels`). Each leaf is cut into pages of
about a megabyte, and each page is encoded, compressed and written at once, so that only one page is
in memory beside the arrays. Arrow's writer takes three times as long, most of it for the levels of
lists.

Choices, from measurements on columns like those of NanoAOD: zstd at level 1; floats of 32 and
64 bits with their bytes split into streams (BYTE_STREAM_SPLIT), which makes them a third smaller
and faster to compress; PLAIN for all other types; no dictionaries. Statistics are the number of
missing values and the minimum and maximum, for columns outside of lists.

Sources: README.md, Encodings.md, LogicalTypes.md and parquet.thrift of the Parquet format
(github.com/apache/parquet-format), and the compact protocol of Thrift
(github.com/apache/thrift, doc/specs/thrift-compact-protocol.md).

The module loads numpy and pyarrow: import it where it is used.
"""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from awkward.contents import EmptyArray

from servicex_server.columnar.writing.parquet_levels import (
    Leaf,
    Node,
    Shredder,
    Texts,
    UnheldError,
    node_of,
)
from servicex_server.columnar.writing.parquet_pages import body, is_split, pages, plain, varint

MAGIC = b"PAR1"
ZSTD = 6
PLAIN, RLE, BYTE_STREAM_SPLIT = 0, 3, 9
REQUIRED, OPTIONAL, REPEATED = 0, 1, 2
BOOLEAN, INT32, INT64, FLOAT, DOUBLE, BYTE_ARRAY, FIXED = 0, 1, 2, 4, 5, 6, 7


class I64(int):
    """A number that Thrift encodes as i64; plain integers become i32."""


class I8(int):
    """A number that Thrift encodes as i8."""


class Stored(NamedTuple):
    """How Parquet stores a type of values."""

    physical: int
    arrow: Any
    logical: dict[int, Any] | None = None
    """The union LogicalType."""
    converted: int | None = None
    """The older ConvertedType, for readers that do not know LogicalType."""


def _whole(bits: int, *, signed: bool, converted: int) -> Stored:
    name = f"{'' if signed else 'u'}int{bits}"
    wide = INT64 if bits == 64 else INT32  # noqa: PLR2004
    logical = {10: {1: I8(bits), 2: signed}}
    return Stored(wide, getattr(pa, name)(), logical, converted)


def _time(unit: str, member: int, converted: int | None) -> Stored:
    logical = {8: {1: False, 2: {member: {}}}}
    return Stored(INT64, pa.timestamp(unit), logical, converted)


STORED = {
    "bool": Stored(BOOLEAN, pa.bool_()),
    "int8": _whole(8, signed=True, converted=15),
    "int16": _whole(16, signed=True, converted=16),
    "int32": Stored(INT32, pa.int32()),
    "int64": Stored(INT64, pa.int64()),
    "uint8": _whole(8, signed=False, converted=11),
    "uint16": _whole(16, signed=False, converted=12),
    "uint32": _whole(32, signed=False, converted=13),
    "uint64": _whole(64, signed=False, converted=14),
    "float16": Stored(FIXED, pa.float16(), {15: {}}),
    "float32": Stored(FLOAT, pa.float32()),
    "float64": Stored(DOUBLE, pa.float64()),
    "string": Stored(BYTE_ARRAY, pa.string(), {1: {}}, 0),
    "bytes": Stored(BYTE_ARRAY, pa.binary()),
    "unknown": Stored(INT32, pa.null(), {11: {}}),
    "datetime64[D]": Stored(INT32, pa.date32(), {6: {}}, 6),
    "datetime64[s]": _time("ms", 1, 9),
    "datetime64[ms]": _time("ms", 1, 9),
    "datetime64[us]": _time("us", 2, 10),
    "datetime64[ns]": _time("ns", 3, None),
    **{
        f"timedelta64[{unit}]": Stored(INT64, pa.duration(unit)) for unit in ("s", "ms", "us", "ns")
    },
}


class ParquetFile:
    """A Parquet file that is being written.

    Parameters
    ----------
    path
        The target; an existing file is overwritten.
    layouts
        Layouts of the first awkward arrays, which decide the types.

    Raises
    ------
    UnheldError
        Parquet cannot hold the type of a column.
    """

    def __init__(self, path: Path, layouts: Mapping[str, Any]) -> None:
        self.nodes = [held(name, layout) for name, layout in layouts.items()]
        self._codec = pa.Codec("zstd", compression_level=1)
        self._groups: list[dict[int, Any]] = []
        self._rows = 0
        self._file = path.open("wb")
        self._file.write(MAGIC)

    def write(self, layouts: Mapping[str, Any]) -> None:
        """Append a row group.

        Parameters
        ----------
        layouts
            Layouts of equal length, with the names of the first ones.

        Raises
        ------
        MismatchError
            An array does not fit the types of the first ones.
        FormatError
            A value is out of the range of Parquet.
        """
        if rows := len(next(iter(layouts.values()), ())):
            self._group(layouts, rows)

    def _group(self, layouts: Mapping[str, Any], rows: int) -> None:
        shredder = Shredder()
        leaves = [leaf for node in self.nodes for leaf in shredder.shred(node, layouts[node.name])]
        start = self._file.tell()
        chunks = [self._column(leaf) for leaf in leaves]
        self._groups.append(
            {
                1: chunks,
                2: I64(sum(chunk[3][6] for chunk in chunks)),
                3: I64(rows),
                5: I64(start),
                6: I64(self._file.tell() - start),
            }
        )
        self._rows += rows

    def close(self, *, complete: bool) -> None:
        """Close the file; an incomplete file gets no footer, so that nobody can read it."""
        with self._file:
            if not complete:
                return
            if not self._groups:
                # awkward cannot read a file without a row group
                self._group({node.name: EmptyArray() for node in self.nodes}, 0)
            arrow = pa.schema([_arrow(node) for node in self.nodes]).serialize().to_pybytes()
            elements = [one for node in self.nodes for one in _elements(node)]
            leaves = sum(1 in one for one in elements)
            footer = thrift(
                {
                    1: 2,
                    2: [{4: "schema", 5: len(self.nodes)}, *elements],
                    3: I64(self._rows),
                    4: self._groups,
                    5: [{1: "ARROW:schema", 2: base64.b64encode(arrow)}],
                    6: "servicex-server",
                    7: [{1: {}}] * leaves,
                }
            )
            self._file.write(footer + len(footer).to_bytes(4, "little") + MAGIC)

    def _column(self, leaf: Leaf) -> dict[int, Any]:
        """Write the pages of a leaf and return its struct ColumnChunk."""
        start, raw = self._file.tell(), 0
        encoding = BYTE_STREAM_SPLIT if is_split(leaf) else PLAIN
        for slots, values in pages(leaf):
            content = body(leaf, slots, values)
            packed = self._codec.compress(content, asbytes=False)
            header = thrift(
                {
                    1: 0,
                    2: len(content),
                    3: packed.size,
                    5: {1: slots.count, 2: encoding, 3: RLE, 4: RLE},
                }
            )
            self._file.write(header)
            self._file.write(packed)
            raw += len(header) + len(content)
        return {
            2: I64(0),
            3: {
                1: STORED[leaf.node.dtype].physical,
                2: [encoding, RLE],
                3: list(leaf.path),
                4: ZSTD,
                5: I64(leaf.slots.count),
                6: I64(raw),
                7: I64(self._file.tell() - start),
                9: I64(start),
                12: _statistics(leaf),
            },
        }


def held(name: str, layout: Any) -> Node:
    """Return the type of an awkward layout as Parquet stores it.

    Raises
    ------
    UnheldError
        Parquet cannot hold the type; the message says why.
    """
    node = node_of(name, layout)
    _check_leaves(node)
    return node


def _check_leaves(node: Node) -> None:
    if node.kind == "leaf" and node.dtype not in STORED:
        raise UnheldError(f"there is no {node.dtype} in Parquet")
    for child in node.children:
        _check_leaves(child)


def _arrow(node: Node, *, missing: bool = False) -> Any:
    """Return the Arrow field as which a type is read back.

    Arrow 26 cannot read fixed-length lists that may be missing, alone or with their record, nor
    lists of length zero. Such lists become lists of any length.
    """
    missing = missing or node.optional
    if node.kind == "leaf":
        kind = STORED[node.dtype].arrow
    elif node.kind == "record":
        kind = pa.struct([_arrow(child, missing=missing) for child in node.children])
    else:
        size = [node.size] if node.size and not missing else []
        kind = pa.list_(_arrow(node.children[0]), *size)
    return pa.field(node.name, kind, nullable=node.optional)


def _elements(node: Node) -> Iterator[dict[int, Any]]:
    """Return the structs SchemaElement of a type and of the types below it."""
    nature = OPTIONAL if node.optional else REQUIRED
    if node.kind == "leaf":
        stored = STORED[node.dtype]
        length = 2 if stored.physical == FIXED else None
        yield {
            1: stored.physical,
            2: length,
            3: nature,
            4: node.name,
            6: stored.converted,
            10: stored.logical,
        }
        return
    if node.kind == "list":
        yield {3: nature, 4: node.name, 5: 1, 6: 3, 10: {3: {}}}
        yield {3: REPEATED, 4: "list", 5: 1}
    else:
        yield {3: nature, 4: node.name, 5: len(node.children)}
    for child in node.children:
        yield from _elements(child)


def _statistics(leaf: Leaf) -> dict[int, Any] | None:
    """Return the struct Statistics of a column outside of lists; None for a column in a list.

    It has the number of missing values and, for numbers, the minimum and maximum, which let readers
    skip row groups. As parquet.thrift requires, there is no minimum or maximum if a value is NaN,
    and a zero counts as both -0.0 and +0.0.
    """
    values = leaf.values
    if leaf.max_repetition:
        return None
    if isinstance(values, Texts):
        return {3: I64(leaf.slots.count - len(values.offsets) + 1)}
    found: dict[int, Any] = {3: I64(leaf.slots.count - len(values))}
    if STORED[leaf.node.dtype].physical not in (INT32, INT64, FLOAT, DOUBLE) or not len(values):
        return found
    least, greatest = values.min(keepdims=True), values.max(keepdims=True)
    if values.dtype.kind in "fMm" and np.isnan(least[0]):
        return found
    if values.dtype == "M8[ns]":
        return found  # pyarrow converts them to Python's times, which have no nanoseconds
    if values.dtype.kind == "f":
        least[least == 0], greatest[greatest == 0] = -0.0, 0.0
    return found | {5: plain(leaf, greatest).tobytes(), 6: plain(leaf, least).tobytes()}


def thrift(value: dict[int, Any]) -> bytes:
    """Return a struct in Thrift's compact protocol; fields that are None are left out."""
    made, last = bytearray(), 0
    for field, one in value.items():
        if one is None:
            continue
        kind = _thrift_type(one)
        made.append((field - last) << 4 | kind)
        last = field
        if not isinstance(one, bool):
            made += _thrift_value(one)
    return bytes(made) + b"\0"


def _thrift_type(value: Any) -> int:
    """Return the code of a type; for a truth value, the code includes the value."""
    if isinstance(value, bool):
        return 1 if value else 2
    kinds = {I8: 3, int: 5, I64: 6, str: 8, bytes: 8, list: 9, dict: 12}
    return kinds[type(value)]


def _thrift_value(value: Any) -> bytes:
    if isinstance(value, I8):
        return bytes([value])
    if isinstance(value, int):
        return varint(value << 1)  # zigzag encoding of a number that is not negative
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return varint(len(value)) + value
    if isinstance(value, dict):
        return thrift(value)
    kind = _thrift_type(value[0]) if value else 12
    short = len(value) < 15  # noqa: PLR2004 - the greatest that fits in four bits says "more"
    head = bytes([len(value) << 4 | kind]) if short else bytes([0xF0 | kind]) + varint(len(value))
    return head + b"".join(map(_thrift_value, value))
