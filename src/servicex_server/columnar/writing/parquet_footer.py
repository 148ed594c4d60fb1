"""Reads, merges and writes footers of Parquet files that this project wrote.

Sources: parquet.thrift of the Parquet format (github.com/apache/parquet-format), and the compact
protocol of Thrift (github.com/apache/thrift, doc/specs/thrift-compact-protocol.md).
"""

from typing import IO, Any, Self

from servicex_server.columnar.writing.parquet_file import I8, I64, MAGIC, thrift
from servicex_server.errors import InternalError

_SCHEMA, _ROWS, _GROUPS, _KEYS = 2, 3, 4, 5
"""Fields of the struct FileMetaData."""

_COLUMNS, _GROUP_ROWS, _GROUP_PLACE = 1, 3, 5
"""Fields of the struct RowGroup."""

_COLUMN, _PAGES = 3, 9
"""The field of ColumnChunk that holds ColumnMetaData, and its fields with places of pages."""


class Footer:
    """The footer of a Parquet file: its schema, and the places of its row groups.

    Parameters
    ----------
    fields
        The struct FileMetaData by the numbers of its fields.
    begin
        Where the footer begins in its file; all bytes before it are pages.
    """

    def __init__(self, fields: dict[int, Any], begin: int) -> None:
        self._fields = fields
        self.begin = begin

    @classmethod
    def read(cls, file: IO[bytes], size: int) -> Self:
        """Read the footer of a file that has ``size`` bytes.

        Raises
        ------
        InternalError
            `servicex_server.columnar.writing.parquet_file` has not written the file.
        """
        tail = 4 + len(MAGIC)
        file.seek(max(0, size - tail))
        end = file.read(tail)
        length = int.from_bytes(end[:4], "little")
        if end[4:] != MAGIC or length + tail + len(MAGIC) > size:
            raise InternalError("the result of a part is not a complete Parquet file")
        begin = size - tail - length
        file.seek(begin)
        try:
            return cls(_Decoder(file.read(length)).struct(), begin)
        except (IndexError, KeyError) as error:
            raise InternalError("the footer of a Parquet file cannot be read") from error

    def fits(self, other: "Footer") -> bool:
        """Whether another file has the same columns, of the same types."""
        return all(self._fields[one] == other._fields[one] for one in (_SCHEMA, _KEYS))

    def append(self, other: "Footer", shift: int) -> None:
        """Add the row groups of another file, whose pages have moved by ``shift`` bytes."""
        for group in other._fields[_GROUPS]:
            group[_GROUP_PLACE] = I64(group[_GROUP_PLACE] + shift)
            for chunk in group[_COLUMNS]:
                chunk[_COLUMN][_PAGES] = I64(chunk[_COLUMN][_PAGES] + shift)
        self._fields[_GROUPS] += other._fields[_GROUPS]
        self._fields[_ROWS] = I64(self._fields[_ROWS] + other._fields[_ROWS])

    def encoded(self) -> bytes:
        """Return the bytes that end a file; drop row groups without rows, but keep at least one."""
        groups = self._fields[_GROUPS]
        filled = [group for group in groups if group[_GROUP_ROWS]] or groups[:1]
        footer = thrift(self._fields | {_GROUPS: filled})
        return footer + len(footer).to_bytes(4, "little") + MAGIC


class _Decoder:
    """Decodes structs in Thrift's compact protocol, of the types that `parquet_file` writes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct(self) -> dict[int, Any]:
        made: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field += head >> 4
            made[field] = self._value(head & 15)
        return made

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:  # noqa: PLR2004
                return value

    def _bytes(self) -> bytes:
        size = self._varint()
        self._at += size
        return self._data[self._at - size : self._at]

    def _list(self) -> list[Any]:
        head = self._byte()
        count = head >> 4
        if count == 15:  # noqa: PLR2004  # there are more
            count = self._varint()
        return [self._value(head & 15) for _ in range(count)]

    def _value(self, kind: int) -> Any:
        match kind:
            case 1 | 2:
                return kind == 1
            case 3:
                return I8(self._byte())
            case 5:
                return self._varint() >> 1
            case 6:
                return I64(self._varint() >> 1)
            case 8:
                return self._bytes()
            case 9:
                return self._list()
            case 12:
                return self.struct()
        raise KeyError(kind)
