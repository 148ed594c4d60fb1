"""Reading columns of an RNTuple: which pages are fetched, and how they are decoded.

uproot knows the schema and makes the arrays; the columns it makes them of come from here. All
pages that a range of entries needs, of all its fields, are asked for at once, near ones in one
piece, and decompressed by `servicex_server.columnar.codecs`. The columns of a cluster that reaches
into the next range are kept, and not decoded again. Columns of unusual encoding are left to uproot.

Facts: "RNTuple Binary Format Specification" of ROOT (tree/ntuple/doc/BinaryFormatSpecification.md),
sections "Column Description", "Page Locations" and "Page Encoding".
"""

import bisect
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from itertools import islice
from typing import Any

from servicex_server.columnar.codecs import DecompressionError, decompress
from servicex_server.columnar.pieces import Pieces, Place
from servicex_server.errors import CorruptError

_CHECKSUM = 8
"""Bytes of the little-endian XXH3 hash behind a page as it is in the file, if it has one."""

_LEFT_TO_UPROOT = ("switch", "real32trunc", "real32quant")


@cache
def ntuple_class() -> Any:
    """Return uproot's class of RNTuples, made to take its columns from `Clusters`.

    To be given to uproot as one of its ``custom_classes``.
    """
    import uproot

    base: Any = uproot.models.RNTuple.Model_ROOT_3a3a_RNTuple

    # uproot reads the name of the C++ class from the name of the model
    class Model_ROOT_3a3a_RNTuple(base):  # type: ignore[misc]  # noqa: N801  # uproot has no types
        """An RNTuple; until it has ``clusters`` it reads as uproot does."""

        clusters: "Clusters | None" = None

        @property
        def cluster_summaries(self) -> Any:
            # uproot would read one cluster too many where a range ends with a cluster
            end = None if self.clusters is None else self.clusters.end
            return super().cluster_summaries[:end]

        def read_cluster_range(
            self, col_idx: int, cluster_start: int, cluster_stop: int, *args: Any, **options: Any
        ) -> Any:
            made = super().read_cluster_range(
                col_idx, cluster_start, cluster_stop, *args, **options
            )
            if cluster_stop <= max(cluster_start, 0):
                # of no cluster; uproot leaves the first offset as the memory was
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
            if self.clusters is None or destination is None:
                return super().read_cluster_pages(
                    cluster_idx, col_idx, field_metadata, destination, array_cache
                )
            if (column := self.clusters.column(cluster_idx, col_idx, field_metadata)) is None:
                super().read_cluster_pages(cluster_idx, col_idx, field_metadata, destination)
            else:
                destination[:] = column
            return None

    return Model_ROOT_3a3a_RNTuple


class Clusters:
    """The columns of an RNTuple, cluster by cluster, best in ascending order.

    Parameters
    ----------
    url
        Of the file. The next range of a remote one is fetched while the present one is computed.
    ntuple
        uproot's model, of the class that `ntuple_class` returns.
    """

    end: int | None = None
    """While a range is read, the cluster after its last."""

    def __init__(self, url: str, ntuple: Any) -> None:
        self._url = url
        self._ntuple = ntuple
        self._pieces = Pieces(url)
        self.edges = [int(summary.num_first_entry) for summary in ntuple.cluster_summaries]
        """The first entry of each cluster, and the end."""

        self.edges.append(int(ntuple.num_entries))
        self._places: dict[tuple[int, int], list[Place]] = {}
        self._kept: dict[tuple[int, int], Any] = {}
        self._reaching = -1  # the cluster that reaches beyond the range
        self._ended: dict[int, int] = {}  # by column: where the last range of it ended
        ntuple.clusters = self

    def read(
        self, fields: Mapping[str, Any], start: int, stop: int, following: tuple[int, int] | None
    ) -> dict[str, Any]:
        """Return the awkward array of a range of entries for each field.

        Parameters
        ----------
        fields
            uproot's, by the names that their arrays get.
        start, stop
            The first entry, and the one after the last.
        following
            The range that will be read next, if that is known.

        Raises
        ------
        CorruptError
            A page cannot be right; its field is named. Whatever uproot raises is raised as it is.
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
        """Ask for the pages of a range, and for those of the next, if waiting for them is long."""
        columns = self._columns_of(fields)
        wanted = [(cluster, c) for cluster in range(*self._range(start, stop)) for c in columns]
        self._ask(wanted)
        if self._pieces.remote and following is not None:
            # one that is read only where a cut leaves something may not be needed again
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
            self._pieces.ask(source, [span for spans in pages.values() for span in spans])
        )
        for key, spans in pages.items():
            self._places[key] = list(islice(places, len(spans)))

    def _spans(self, cluster: int, column: int) -> list[tuple[int, int]]:
        """Return where each page of a column begins and ends in the file, with its checksum."""
        return [
            (page.locator.offset, page.locator.offset + page.locator.num_bytes + _tail(page))
            for page in self._pages(cluster, column)
        ]

    def _pages(self, cluster: int, column: int) -> Any:
        links = self._ntuple.page_link_list[cluster]
        # a column that was added while the file was written is not in the first clusters
        return links[column].pages if column < len(links) else ()

    @cached_property
    def _schema(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """The columns of each field, and the fields in it."""
        columns: dict[int, list[int]] = {}
        for at, column in enumerate(self._ntuple.column_records):
            columns.setdefault(column.field_id, []).append(at)
        inside: dict[int, list[int]] = {}
        for at, field in enumerate(self._ntuple.field_records):
            if field.parent_field_id != at:
                inside.setdefault(field.parent_field_id, []).append(at)
        return columns, inside

    def _columns_of(self, fields: Iterable[Any]) -> list[int]:
        """Return the columns that fields stand on: their own, of those in them and around them."""
        columns, inside = self._schema
        records = self._ntuple.field_records
        found: dict[int, None] = {}
        for field in fields:
            above, waiting = int(field.field_id), [int(field.field_id)]
            around = []
            while (parent := records[above].parent_field_id) != above:
                around.append(parent)
                above = parent
            while waiting:
                one = waiting.pop()
                waiting += inside.get(one, ())
                around.append(one)
            for one in around:
                source = records[one].source_field_id
                found.update(dict.fromkeys(columns.get(one if source is None else source, ())))
        return list(found)

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
            Which.
        kind
            What uproot knows of the encoding.

        Raises
        ------
        DecompressionError
            A page is not what was written.
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
            # the offsets of a list serve all fields in it
            self._kept[key] = made
        return made


def _tail(page: Any) -> int:
    return _CHECKSUM if page.has_checksum else 0


def _decode(page: Any, content: memoryview, kind: Any, made: Any) -> None:
    """Fill ``made`` with the elements of a page.

    Raises
    ------
    DecompressionError
        The page is not what was written.
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
    if stored < size:  # else it is not compressed
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
