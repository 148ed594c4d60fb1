"""Decodes the baskets of a branch into a column.

numpy copies numbers (single, in arrays of fixed size, or in lists) and texts straight from the
baskets into one array. Every other type goes through uproot's interpretation of the branch, basket
by basket, but already decompressed.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from servicex_server.errors import CorruptError

_LONG_TEXT = 255
"""Length byte that says that the length of a text follows in four more bytes (TBuffer)."""


class UnsupportedLayoutError(ValueError):
    """Baskets have a layout that cannot be decoded here; uproot may be able to."""


@dataclass(frozen=True, slots=True)
class Basket:
    """A basket whose data are decompressed.

    ``data`` holds the bytes of the entries from ``first`` to before ``stop``, up to ``border``,
    followed by the offsets of the entries, if the branch has them. ``key`` holds the bytes before
    ``data`` in the file; offsets count from its beginning.
    """

    number: int
    first: int
    stop: int
    key: bytes
    data: Any
    border: int


def array_of(branch: Any, baskets: Sequence[Basket], start: int, stop: int) -> Any:
    """Return the awkward array of a range of entries, equal to that of ``branch.array``.

    Parameters
    ----------
    branch
        uproot's model of the branch.
    baskets
        The baskets that hold the range, in order; none if the range is empty.
    start, stop
        The first entry, and the one after the last.

    Raises
    ------
    CorruptError
        The offsets of the entries are impossible.
    UnsupportedLayoutError
        The baskets do not match what uproot knows of the branch.
    """
    import awkward as ak
    from uproot import AsDtype, AsJagged

    interpretation = branch.interpretation
    if _is_numbers(interpretation):
        return ak.Array(_wrapped(_numbers(interpretation.from_dtype, baskets, start, stop)))
    if (
        type(interpretation) is AsJagged
        and type(interpretation.content) is AsDtype
        and _is_numbers(interpretation.content)
        and all(_has_offsets(basket) for basket in baskets)
    ):
        header = interpretation.header_bytes
        return ak.Array(_lists(interpretation.content.from_dtype, header, baskets, start, stop))
    if _is_texts(interpretation) and all(_has_offsets(basket) for basket in baskets):
        return ak.Array(_texts(baskets, start, stop))
    if not baskets:
        raise UnsupportedLayoutError("only uproot knows its type")
    return _by_uproot(branch, baskets, start, stop)


def _is_texts(interpretation: Any) -> bool:
    """Return whether entries are texts, each preceded by its length in one or five bytes."""
    from uproot import AsStrings

    return (
        type(interpretation) is AsStrings
        and interpretation.header_bytes == 0
        and interpretation.length_bytes == "1-5"
    )


def _texts(baskets: Sequence[Basket], start: int, stop: int) -> Any:
    """Return the texts of a range.

    ROOT does not even write the length of an empty text (TLeafC::FillBasket): the entry has no
    bytes.
    """
    import awkward as ak
    import numpy as np

    counts = np.zeros(stop - start, np.int64)
    parts = []
    for basket in baskets:
        low, high = max(start, basket.first), min(stop, basket.stop)
        offsets = np.zeros(high - low + 1, np.int64)
        _, (payload, _) = _placed(basket, low - basket.first, offsets, 0)
        sizes = np.diff(offsets)
        if (sizes < 0).any():
            raise CorruptError(f"the entries of basket {basket.number} are not in order")
        counts[low - start : high - start], part = _without_lengths(payload, offsets[:-1], sizes)
        parts.append(part)
    content = np.concatenate([np.zeros(0, np.uint8), *parts])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    characters = ak.contents.NumpyArray(content, parameters={"__array__": "char"})
    return ak.contents.ListOffsetArray(
        ak.index.Index64(offsets), characters, parameters={"__array__": "string"}
    )


def _without_lengths(payload: Any, begins: Any, sizes: Any) -> tuple[Any, Any]:
    """Return the length of each text, and the bytes of all texts.

    Raises
    ------
    UnsupportedLayoutError
        The length of an entry contradicts the length that it starts with.
    """
    import numpy as np

    filled = sizes > 0
    begins, sizes = begins[filled], sizes[filled]
    said = payload[begins].astype(np.int64)
    heads = np.where(said == _LONG_TEXT, 5, 1)
    long = np.flatnonzero(heads > 1)
    if (sizes[long] < heads[long]).any():
        raise UnsupportedLayoutError("an entry is shorter than its header")
    if len(long):
        words = payload[begins[long, None] + np.arange(1, 5)]
        said[long] = np.ascontiguousarray(words).view(">i4")[:, 0]
    if (said != sizes - heads).any():
        raise UnsupportedLayoutError("a text does not have the length that it states")
    kept = np.ones(len(payload), np.bool_)
    for place in range(5):
        kept[begins[heads > place] + place] = False
    counts = np.zeros(len(filled), np.int64)
    counts[filled] = said
    return counts, payload[kept]


def _is_numbers(interpretation: Any) -> bool:
    from uproot import AsDtype

    # not a subclass: each decodes in its own way
    if type(interpretation) is not AsDtype:
        return False
    stored, wanted = interpretation.from_dtype, interpretation.to_dtype
    return stored.base.names is None and wanted == stored.newbyteorder("=")


def _wrapped(array: Any) -> Any:
    import awkward as ak

    return ak.from_numpy(array, regulararray=True, highlevel=False)


def _numbers(dtype: Any, baskets: Sequence[Basket], start: int, stop: int) -> Any:
    import numpy as np

    base, shape = dtype.base, dtype.shape
    array = np.empty((stop - start, *shape), base.newbyteorder("="))
    for basket in baskets:
        if basket.border != (basket.stop - basket.first) * dtype.itemsize:
            raise UnsupportedLayoutError(
                f"basket {basket.number} has {basket.border} bytes of numbers"
            )
        values = np.frombuffer(basket.data, base, basket.border // base.itemsize)
        low, high = max(start, basket.first), min(stop, basket.stop)
        entries = values.reshape(-1, *shape)[low - basket.first : high - basket.first]
        array[low - start : high - start] = entries  # the assignment also swaps the bytes
    return array


def _has_offsets(basket: Basket) -> bool:
    """Whether the words after the data have the number that offsets of entries need.

    The words are their count, one offset for each entry, and one word without meaning
    (TBasket::Streamer).
    """
    return len(basket.data) - basket.border == 4 * (basket.stop - basket.first + 2)


def _lists(dtype: Any, header: int, baskets: Sequence[Basket], start: int, stop: int) -> Any:
    """Return lists of numbers, each preceded by ``header`` bytes, as in a vector<T>."""
    import awkward as ak
    import numpy as np

    offsets = np.zeros(stop - start + 1, np.int64)  # in bytes at first, over all baskets
    payloads = []
    total = 0
    for basket in baskets:
        low, high = max(start, basket.first), min(stop, basket.stop)
        within = offsets[low - start : high - start + 1]
        total, payload = _placed(basket, low - basket.first, within, total)
        payloads.append(payload)
    # `_placed` checked the first and last offset of each basket; the order covers the others
    if (offsets[1:] < offsets[:-1]).any():
        raise CorruptError("the entries of a basket are not in order")
    if header:
        parts = [_without_headers(part, at, header, dtype) for part, at in payloads]
        offsets -= np.arange(0, header * len(offsets), header)
        if (offsets[1:] < offsets[:-1]).any():
            raise UnsupportedLayoutError("an entry is shorter than its header")
    else:
        parts = [part for part, _ in payloads]
    size = dtype.itemsize
    if size > 1:
        if (offsets % size).any() if size & (size - 1) else np.bitwise_or.reduce(offsets) % size:
            raise UnsupportedLayoutError(f"an entry is not a multiple of the size of {dtype}")
        offsets //= size
    content = np.empty(int(offsets[-1]) * (size // dtype.base.itemsize), _native(dtype))
    filled = 0
    for part in parts:
        values = part.view(dtype.base)
        content[filled : filled + len(values)] = values  # the assignment also swaps the bytes
        filled += len(values)
    lists = _wrapped(content.reshape(-1, *dtype.shape))
    return ak.contents.ListOffsetArray(ak.index.Index64(offsets), lists)


def _native(dtype: Any) -> Any:
    return dtype.base.newbyteorder("=")


def _placed(basket: Basket, low: int, within: Any, total: int) -> tuple[int, tuple[Any, Any]]:
    """Write the offsets of a basket's entries to ``within``, and return their bytes.

    Parameters
    ----------
    basket
        The basket of the entries.
    low
        Index of the first entry within the basket.
    within
        Receives the offsets of the entries, counted from the first basket, and the end of the
        last entry.
    total
        Bytes of the baskets before this one.

    Returns
    -------
    The bytes up to the end of these entries; and the bytes of these entries, with their offsets.
    """
    import numpy as np

    count = len(within)
    entries = basket.stop - basket.first
    words = np.frombuffer(basket.data, ">i4", entries + 2, basket.border)[1:]
    begins = int(words[low]) - len(basket.key)
    np.subtract(words[low : low + count], np.int64(len(basket.key) + begins - total), out=within)
    if low + count == entries + 1:
        within[-1] = basket.border - begins + total
    ends = int(within[-1]) - total + begins
    if not 0 <= begins <= ends <= basket.border:
        raise CorruptError(f"the entries of basket {basket.number} are not within it")
    payload = np.frombuffer(basket.data, np.uint8, ends - begins, begins)
    return total + len(payload), (payload, within - total)


def _without_headers(payload: Any, offsets: Any, header: int, dtype: Any) -> Any:
    """Return the bytes of entries without the first ``header`` bytes of each."""
    import numpy as np

    # two bytes at a time if all lengths are even: half as many elements
    unit = 2 if header % 2 == 0 and dtype.itemsize % 2 == 0 else 1
    if len(payload) % unit or (np.diff(offsets) < header).any():
        raise UnsupportedLayoutError("an entry is shorter than its header")
    units = payload.view(f"u{unit}")
    begins = offsets[:-1] // unit
    kept = np.ones(len(units), np.bool_)
    for place in range(header // unit):
        kept[begins + place] = False
    return units[kept].view(np.uint8)


def _by_uproot(branch: Any, baskets: Sequence[Basket], start: int, stop: int) -> Any:
    from uproot.interpretation.library import Awkward

    interpretation = branch.interpretation
    library, options = Awkward(), {"ak_add_doc": False}
    context = {**branch.context, "forth": threading.local()}
    arrays = {}
    for number, model in enumerate(_models(branch, baskets)):
        # numbered from the first basket of the range: uproot would walk over the whole branch
        arrays[number] = interpretation.basket_array(
            model.data,
            model.byte_offsets,
            model,
            branch,
            context,
            model.member("fKeylen"),
            library,
            options,
        )
        if len(arrays[number]) != model.num_entries:
            raise UnsupportedLayoutError(f"a basket has {len(arrays[number])} entries")
    edges = [baskets[0].first, *(basket.stop for basket in baskets)]
    return interpretation.final_array(arrays, start, stop, edges, library, branch, options)


def _models(branch: Any, baskets: Sequence[Basket]) -> Iterator[Any]:
    """Yield uproot's models of baskets, made from bytes that are already decompressed."""
    from uproot.models.TBasket import Model_TBasket
    from uproot.source.chunk import Chunk
    from uproot.source.cursor import Cursor

    for basket in baskets:
        # fNbytes of an uncompressed basket: the length of its key and its data
        length = len(basket.key) + len(basket.data)
        content = b"".join((length.to_bytes(4, "big"), basket.key[4:], memoryview(basket.data)))
        chunk = Chunk.wrap(branch.file.source, content)
        context = {"basket_num": basket.number}
        yield Model_TBasket.read(chunk, Cursor(0), context, branch.file, branch.file, branch)
