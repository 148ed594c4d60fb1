"""Reads columns of an RNTuple: chooses the pages to fetch, and decodes them.

uproot parses the schema and makes the arrays from the columns that this module returns. All pages
that a range of entries needs, of all its fields, are requested at once, near ones as one coalesced
range, and decompressed by `servicex_server.columnar.reading.decompression`. The columns of a
cluster that reaches into the next range are kept, so they are not decoded twice. Columns of unusual
encoding are left to uproot.

Source: "RNTuple Binary Format Specification" of ROOT
(tree/ntuple/doc/BinaryFormatSpecification.md), sections "Column Description", "Page Locations" and
"Page Encoding".
"""

import bisect
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from itertools import islice
from typing import Any

from servicex_server.columnar.reading.coalescing import Place, RangeReader
from servicex_server.columnar.reading.decompression import DecompressionError, decompress
from servicex_server.errors import CorruptError

_CHECKSUM = 8
"""Bytes of the little-endian XXH3 hash that may follow a page in the file."""

_LEFT_TO_UPROOT = ("switch", "real32trunc", "real32quant")


@cache
def ntuple_class() -> Any:
    """Return a subclass of uproot's RNTuple class that takes its columns from a `PageReader`.

    Pass it to uproot as one of its ``custom_classes``.
    """
    import uproot

    base: Any = uproot.models.RNTuple.Model_ROOT_3a3a_RNTuple

    # uproot reads the name of the C++ class from the name of the model
    class Model_ROOT_3a3a_RNTuple(base):  # type: ignore[misc]  # noqa: N801  # uproot has no types
        """An RNTuple that reads like uproot's own until ``page_reader`` is set."""

        page_reader: "PageReader | None" = None

        @property
        def cluster_summaries(self) -> Any:
            # if a range ends with a cluster, uproot would read one cluster too many
            end = None if self.page_reader is None else self.page_reader.end
            return super().cluster_summaries[:end]

        def read_cluster_range(
            self, col_idx: int, cluster_start: int, cluster_stop: int, *args: Any, **options: Any
        ) -> Any:
            made = super().read_cluster_range(
                col_idx, cluster_start, cluster_stop, *args, **options
            )
            if cluster_stop <= max(cluster_start, 0):
                # no cluster was read; uproot leaves the first offset uninitialized
                made[:] = 0
            return made

        def read_cluster_pages(
            self,
            cluster_idx: int,
            col_idx: int,
            field_metadata: Any,
            destination: Any = None,
            array_cache: Any = None,
        ) -> Any:
            if self.page_reader is None or destination is None:
                return super().read_cluster_pages(
                    cluster_idx, col_idx, field_metadata, destination, array_cache
                )
            if (column := self.page_reader.column(cluster_idx, col_idx, field_metadata)) is None:
                super().read_cluster_pages(cluster_idx, col_idx, field_metadata, destination)
            else:
                destination[:] = column
            return None

    return Model_ROOT_3a3a_RNTuple


class PageReader:
    """Reads the columns of an RNTuple, cluster by cluster, best in ascending order.

    Parameters
    ----------
    url
        The URL of the file. If it is remote, the pages of the next range are fetched while the
        present range is computed.
    ntuple
        uproot's model, of the class that `ntuple_class` returns.
    """

    end: int | None = None
    """While a range is read: the number of the cluster after its last one."""

    def __init__(self, url: str, ntuple: Any) -> None:
        self._url = url
        self._ntuple = ntuple
        self._ranges = RangeReader(url)
        self.edges = [int(summary.num_first_entry) for summary in ntuple.cluster_summaries]
        """The first entry of each cluster, and the number of entries."""

        self.edges.append(int(ntuple.num_entries))
        self._places: dict[tuple[int, int], list[Place]] = {}
        self._kept: dict[tuple[int, int], Any] = {}
        self._reaching = -1  # the cluster that reaches beyond the range
        self._ended: dict[int, int] = {}  # by column: the end of the range that was read last
        ntuple.page_reader = self

    def read(
        self, fields: Mapping[str, Any], start: int, stop: int, following: tuple[int, int] | None
    ) -> dict[str, Any]:
        """Return the awkward array of a range of entries for each field.

        Parameters
        ----------
        fields
            uproot's fields, by the names of their arrays.
        start, stop
            The first entry, and the one after the last.
        following
            The range that will be read next, if that is known.

        Raises
        ------
        CorruptError
            The content of a page is impossible; the message names the field. Exceptions of uproot
            pass unchanged.
        """
        first, self.end = self._range(start, stop)
        self._reaching = self.end - 1 if self.end > first and self.edges[self.end] > stop else -1
        self._places = {key: there for key, there in self._places.items() if key[0] >= first}
        self._fetch(fields.values(), start, stop, following)
        arrays = {}
        try:
            for name, field in fields.items():
                arrays[name] = self._array(name, field, start, stop)
        finally:
            self._kept = {key: kept for key, kept in self._kept.items() if key[0] == self._reaching}
            self.end = None
        return arrays

    def _array(self, name: str, field: Any, start: int, stop: int) -> Any:
        try:
            return field.array(entry_start=start, entry_stop=stop, library="ak", array_cache=None)
        except DecompressionError as error:
            raise CorruptError(f"field {name} of {self._url} is corrupt: {error}") from error

    def _range(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first cluster that holds entries of a range, and the one after the last."""
        first = max(bisect.bisect_right(self.edges, start) - 1, 0)
        return first, max(bisect.bisect_left(self.edges, stop), first) if stop > start else first

    def _fetch(
        self, fields: Iterable[Any], start: int, stop: int, following: tuple[int, int] | None
    ) -> None:
        """Request the pages of a range; of a remote file also those of the following range."""
        columns = self._columns_of(fields)
        wanted = [(cluster, c) for cluster in range(*self._range(start, stop)) for c in columns]
        self._ask(wanted)
        if self._ranges.remote and following is not None:
            # a column that is read only if events pass the cut may not be needed again
            steady = [column for column in columns if self._ended.get(column, start) == start]
            self._ask([(cluster, c) for cluster in range(*self._range(*following)) for c in steady])
        self._ended.update(dict.fromkeys(columns, stop))

    def _ask(self, wanted: Iterable[tuple[int, int]]) -> None:
        pages = {
            key: self._spans(*key)
            for key in wanted
            if key not in self._places and key not in self._kept
        }
        source = self._ntuple.file.source
        places = iter(
            self._ranges.ask(source, [span for spans in pages.values() for span in spans])
        )
        for key, spans in pages.items():
            self._places[key] = list(islice(places, len(spans)))

    def _spans(self, cluster: int, column: int) -> list[tuple[int, int]]:
        """Return the byte range of each page of a column in the file, including its checksum."""
        return [
            (page.locator.offset, page.locator.offset + page.locator.num_bytes + _tail(page))
            for page in self._pages(cluster, column)
        ]

    def _pages(self, cluster: int, column: int) -> Any:
        links = self._ntuple.page_link_list[cluster]
        # the first clusters lack a column that was added while the file was written
        return links[column].pages if column < len(links) else ()

    @cached_property
    def _schema(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """The columns of each field, and its subfields, by the number of the field."""
        columns: dict[int, list[int]] = {}
        for at, column in enumerate(self._ntuple.column_records):
            columns.setdefault(column.field_id, []).append(at)
        inside: dict[int, list[int]] = {}
        for at, field in enumerate(self._ntuple.field_records):
            if field.parent_field_id != at:
                inside.setdefault(field.parent_field_id, []).append(at)
        return columns, inside

    def _columns_of(self, fields: Iterable[Any]) -> list[int]:
        """Return the columns of fields, of their subfields, and of the fields that contain them."""
        columns, _ = self._schema
        records = self._ntuple.field_records
        found: dict[int, None] = {}
        for field in fields:
            for one in self._related_fields(int(field.field_id)):
                source = records[one].source_field_id
                found.update(dict.fromkeys(columns.get(one if source is None else source, ())))
        return list(found)

    def _related_fields(self, field: int) -> list[int]:
        """Return the numbers of a field, of its subfields, and of the fields that contain it."""
        _, inside = self._schema
        records = self._ntuple.field_records
        above, waiting = field, [field]
        found = []
        while (parent := records[above].parent_field_id) != above:
            found.append(parent)
            above = parent
        while waiting:
            one = waiting.pop()
            waiting += inside.get(one, ())
            found.append(one)
        return found

    def has_variant(self, field: Any) -> bool:
        """Return whether a field contains a ``std::variant`` or is within one.

        uproot 5.7.7 reads the values of a variant wrongly from the second cluster on.
        """
        return int(field.field_id) in self._with_variant

    @cached_property
    def _with_variant(self) -> frozenset[int]:
        from uproot.const import RNTupleFieldRole

        records = enumerate(self._ntuple.field_records)
        variants = [at for at, one in records if one.struct_role == RNTupleFieldRole.VARIANT]
        return frozenset(one for variant in variants for one in self._related_fields(variant))

    def bytes_of(self, fields: Iterable[Any]) -> int:
        """Return how many bytes the columns of fields take in memory, over all clusters."""
        return sum(map(self._size, self._columns_of(fields)))

    def _size(self, column: int) -> int:
        if column not in self._sizes:
            each = int(self._ntuple.get_field_metadata(column).dtype_result.itemsize)
            clusters = range(len(self._ntuple.page_link_list))
            pages = (page for cluster in clusters for page in self._pages(cluster, column))
            self._sizes[column] = each * sum(page.num_elements for page in pages)
        return self._sizes[column]

    @cached_property
    def _sizes(self) -> dict[int, int]:
        return {}

    def column(self, cluster: int, number: int, kind: Any) -> Any:
        """Return the decoded elements of a column in a cluster, or None to leave it to uproot.

        Parameters
        ----------
        cluster, number
            The numbers of the cluster and of the column.
        kind
            uproot's metadata of the field, with the encoding.

        Raises
        ------
        DecompressionError
            A page was changed after it was written.
        """
        import numpy as np
        from uproot.const import rntuple_index_types

        links = self._ntuple.page_link_list[cluster]
        if (
            number >= len(links)
            or links[number].suppressed
            or kind.dtype_str in _LEFT_TO_UPROOT
            or kind.dtype != kind.dtype_result
        ):
            return None
        key = (cluster, number)
        if key in self._kept:
            return self._kept[key]
        if key not in self._places:
            self._ask([key])
        pages = self._pages(cluster, number)
        made = np.empty(sum(page.num_elements for page in pages), kind.dtype)
        at = 0
        for page, place in zip(pages, self._places.pop(key), strict=True):
            _decode(page, place.content(), kind, made[at : at + page.num_elements])
            at += page.num_elements
        if cluster == self._reaching or kind.dtype_byte in rntuple_index_types:
            # all fields of a list use its offsets
            self._kept[key] = made
        return made


def _tail(page: Any) -> int:
    return _CHECKSUM if page.has_checksum else 0


def _decode(page: Any, content: memoryview, kind: Any, made: Any) -> None:
    """Fill ``made`` with the elements of a page.

    Raises
    ------
    DecompressionError
        The page was changed after it was written.
    """
    import numpy as np

    count, stored = len(made), page.locator.num_bytes
    size = -(-count // 8) if kind.isbit else count * made.itemsize
    data: Any = content[:stored]
    if page.has_checksum:
        import xxhash

        said = int.from_bytes(content[stored : stored + _CHECKSUM], "little")
        if xxhash.xxh3_64_intdigest(data) != said:
            raise DecompressionError("the checksum of a page is wrong")
    if stored < size:  # otherwise the page is not compressed
        data = decompress(data, size)
    if kind.isbit:
        packed = np.frombuffer(data, np.uint8, size)
        made[:] = np.unpackbits(packed, count=count, bitorder="little")
    elif kind.split:
        streams = np.frombuffer(data, np.uint8, size).reshape(made.itemsize, count)
        elements = made.view(np.uint8).reshape(count, made.itemsize)
        for byte, stream in enumerate(streams):
            elements[:, byte] = stream
    else:
        made[:] = np.frombuffer(data, made.dtype, count)
    if kind.delta:
        np.cumsum(made, out=made, dtype=made.dtype)
    elif kind.zigzag:
        folded = made.view(f"u{made.itemsize}")
        folded[:] = (folded >> 1) ^ -(folded & 1)
