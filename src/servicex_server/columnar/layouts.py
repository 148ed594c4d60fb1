"""What the baskets of a branch hold, and how they become a column.

Numbers, alone, in arrays of a fixed size or in lists, are copied by numpy straight from the
baskets into one array. Everything else is given to uproot's interpretation of the branch, basket
by basket, but already decompressed.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from servicex_server.errors import CorruptError


class NotUnderstoodError(ValueError):
    """Baskets are not as this module takes them to be; uproot may know better."""


@dataclass(frozen=True, slots=True)
class Basket:
    """A basket whose data are decompressed.

    ``data`` are the bytes of the entries from ``first`` to before ``stop``, up to ``border``, and
    then the offsets of the entries, if the branch has them. ``key`` is what precedes them in the
    file; offsets count from its beginning.
    """

    number: int
    first: int
    stop: int
    key: bytes
    data: Any
    border: int


def array_of(branch: Any, baskets: Sequence[Basket], start: int, stop: int) -> Any:
    """Return the awkward array of a range of entries, which is that of ``branch.array``.

    Parameters
    ----------
    branch
        uproot's model of it.
    baskets
        Those that hold the range, in order.
    start, stop
        The first entry, and the one after the last.

    Raises
    ------
    CorruptError
        The offsets of the entries cannot be right.
    NotUnderstoodError
        The baskets do not fit to what uproot says of the branch.
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
    return _by_uproot(branch, baskets, start, stop)


def _is_numbers(interpretation: Any) -> bool:
    from uproot import AsDtype

    # not a subclass, of which each has its own way
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
            raise NotUnderstoodError(f"basket {basket.number} has {basket.border} bytes of numbers")
        values = np.frombuffer(basket.data, base, basket.border // base.itemsize)
        low, high = max(start, basket.first), min(stop, basket.stop)
        entries = values.reshape(-1, *shape)[low - basket.first : high - basket.first]
        array[low - start : high - start] = entries  # and swaps the bytes
    return array


def _has_offsets(basket: Basket) -> bool:
    """Whether there are as many words after the data as offsets of entries have.

    Their count comes first, then one for each entry, then one that means nothing
    (TBasket::Streamer).
    """
    return len(basket.data) - basket.border == 4 * (basket.stop - basket.first + 2)


def _lists(dtype: Any, header: int, baskets: Sequence[Basket], start: int, stop: int) -> Any:
    """Return lists of numbers, each after ``header`` bytes, which a vector<T> has."""
    import awkward as ak
    import numpy as np

    offsets = np.zeros(stop - start + 1, np.int64)  # in bytes at first, all baskets one after other
    payloads = []
    total = 0
    for basket in baskets:
        low, high = max(start, basket.first), min(stop, basket.stop)
        within = offsets[low - start : high - start + 1]
        total, payload = _placed(basket, low - basket.first, within, total)
        payloads.append(payload)
    # the ends of each basket were looked at, so what never decreases stays inside
    if (offsets[1:] < offsets[:-1]).any():
        raise CorruptError("the entries of a basket are not in order")
    if header:
        parts = [_without_headers(part, at, header, dtype) for part, at in payloads]
        offsets -= np.arange(0, header * len(offsets), header)
        if (offsets[1:] < offsets[:-1]).any():
            raise NotUnderstoodError("an entry is shorter than its header")
    else:
        parts = [part for part, _ in payloads]
    size = dtype.itemsize
    if size > 1:
        if (offsets % size).any() if size & (size - 1) else np.bitwise_or.reduce(offsets) % size:
            raise NotUnderstoodError(f"an entry is no whole number of {dtype}")
        offsets //= size
    content = np.empty(int(offsets[-1]) * (size // dtype.base.itemsize), _native(dtype))
    filled = 0
    for part in parts:
        values = part.view(dtype.base)
        content[filled : filled + len(values)] = values  # and swaps the bytes
        filled += len(values)
    lists = _wrapped(content.reshape(-1, *dtype.shape))
    return ak.contents.ListOffsetArray(ak.index.Index64(offsets), lists)


def _native(dtype: Any) -> Any:
    return dtype.base.newbyteorder("=")


def _placed(basket: Basket, low: int, within: Any, total: int) -> tuple[int, tuple[Any, Any]]:
    """Write where entries begin, behind ``total`` bytes, and return their bytes.

    Parameters
    ----------
    basket
        Where they are.
    low
        The first of them, counted in the basket.
    within
        Gets their offsets, and the end of the last one.
    total
        Bytes of the baskets before.

    Returns
    -------
    The bytes together with those before; and the bytes of these entries with their offsets.
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
    """Return the bytes of entries without the first ``header`` of each."""
    import numpy as np

    # two bytes at a time where all lengths are even: less to look at
    unit = 2 if header % 2 == 0 and dtype.itemsize % 2 == 0 else 1
    if len(payload) % unit or (np.diff(offsets) < header).any():
        raise NotUnderstoodError("an entry is shorter than its header")
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
        # their numbers begin at the first one here: uproot walks over all of a branch
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
            raise NotUnderstoodError(f"a basket has {len(arrays[number])} entries")
    edges = [baskets[0].first, *(basket.stop for basket in baskets)]
    return interpretation.final_array(arrays, start, stop, edges, library, branch, options)


def _models(branch: Any, baskets: Sequence[Basket]) -> Iterator[Any]:
    """Yield uproot's models of baskets, made of what is decompressed already."""
    from uproot.models.TBasket import Model_TBasket
    from uproot.source.chunk import Chunk
    from uproot.source.cursor import Cursor

    for basket in baskets:
        # a basket is as long as its key and its data where it is not compressed
        length = len(basket.key) + len(basket.data)
        content = b"".join((length.to_bytes(4, "big"), basket.key[4:], memoryview(basket.data)))
        chunk = Chunk.wrap(branch.file.source, content)
        context = {"basket_num": basket.number}
        yield Model_TBasket.read(chunk, Cursor(0), context, branch.file, branch.file, branch)
