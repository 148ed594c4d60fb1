"""Reads branches of a TTree: chooses the baskets to fetch, and keeps those it needs again.

All baskets that a range of entries needs, of all its branches, are requested at once, near ones as
one coalesced range. `servicex_server.columnar.reading.decompression` decompresses them, and
`servicex_server.columnar.reading.basket_decoding` makes columns of them. A basket that reaches into
the next range is kept, so it is not decompressed twice. Branches with an unusual layout are left to
uproot.
"""

import struct
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from servicex_server.columnar.reading.basket_decoding import (
    Basket,
    UnsupportedLayoutError,
    array_of,
)
from servicex_server.columnar.reading.coalescing import Place, RangeReader
from servicex_server.columnar.reading.decompression import DecompressionError, decompress
from servicex_server.errors import CorruptError

_KEY = struct.Struct(">ihiIh")
"""fNbytes, fVersion, fObjlen, fDatime, fKeylen: how every TKey begins (ROOT's TFile)."""

_BASKET = struct.Struct(">hiiiiB")
"""The end of a basket's key: fVersion, fBufferSize, fNevBufSize, fNevBuf, fLast and a flag.

Source: ROOT's TBasket::Streamer. ``fNevBuf`` is the number of entries. ``fLast`` is the end of
their data, counted from the beginning of the key.
"""


class Branch:
    """A branch with the positions of its baskets in the file.

    Parameters
    ----------
    model
        uproot's model of the branch.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.kept: Basket | None = None
        self.ended = -1  # the end of the range that was read last
        self.ahead: dict[int, Place] = {}

    @cached_property
    def edges(self) -> Any:
        """The first entry of each basket, and the end; empty if a basket is embedded in the TTree.

        The last baskets are embedded if the program that wrote the file was interrupted.
        """
        import numpy as np
        from uproot.interpretation.grouped import AsGrouped

        if isinstance(self.model.interpretation, AsGrouped) or self.model.embedded_baskets:
            return np.zeros(0, np.int64)
        return np.asarray(self.model.entry_offsets, np.int64)

    def covers(self, start: int, stop: int) -> bool:
        """Whether this module can read all baskets of a range; true for an empty range."""
        edges = self.edges
        return len(edges) > 0 and edges[0] <= start <= stop <= edges[-1]

    def baskets(self, start: int, stop: int) -> list[int]:
        """Return the numbers of the baskets that hold entries of a range."""
        if start == stop:
            return []
        edges = self.edges
        low = int(edges.searchsorted(start, "right")) - 1
        high = int(edges.searchsorted(stop, "left"))
        return [number for number in range(low, high) if edges[number] < edges[number + 1]]

    def place(self, number: int) -> tuple[int, int]:
        """Return the byte range of a basket in the file."""
        start = int(self.model.member("fBasketSeek")[number])
        return start, start + int(self.model.member("fBasketBytes")[number])


class BasketReader:
    """Reads the baskets of a tree by ranges of entries, best in ascending order.

    Parameters
    ----------
    url
        The URL of the file. If it is remote, the baskets of the next range are fetched while the
        present range is computed.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._ranges = RangeReader(url)
        self._branches: dict[int, Branch] = {}

    def read(
        self,
        models: Mapping[str, Any],
        start: int,
        stop: int,
        following: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """Return the awkward array of a range of entries for each branch.

        Parameters
        ----------
        models
            uproot's branches, by the names of their arrays.
        start, stop
            The first entry, and the one after the last.
        following
            The range that will be read next, if that is known.

        Raises
        ------
        CorruptError
            The content of a basket is impossible; the message names the branch. Exceptions of
            uproot pass unchanged.
        """
        wanted = {}  # by branch, because a branch may have two names
        for model in models.values():
            branch = self._branches.setdefault(id(model), Branch(model))
            if branch.covers(start, stop):
                wanted[id(model)] = branch
        places = self._fetch(wanted.values(), start, stop)
        if self._ranges.remote and following is not None:
            self._fetch_ahead(wanted.values(), start, following)
        arrays = {}
        for name, model in models.items():
            key = id(model)
            if key not in wanted:
                arrays[name] = _left_to_uproot(model, start, stop)
            elif key in places:
                arrays[name] = self._array(name, wanted[key], places.pop(key), start, stop)
            else:
                first = next(n for n, other in models.items() if other is model)
                arrays[name] = arrays[first]
        return arrays

    def _fetch(
        self, branches: Iterable[Branch], start: int, stop: int
    ) -> dict[int, dict[int, Place]]:
        """Request the baskets of a range; return the requested places by branch and number."""
        found: dict[int, dict[int, Place]] = {}
        missing = []
        for branch in branches:
            here = found[id(branch.model)] = {}
            for number in branch.baskets(start, stop):
                if branch.kept is not None and branch.kept.number == number:
                    continue
                if number in branch.ahead:
                    here[number] = branch.ahead.pop(number)
                else:
                    missing.append((*branch.place(number), here, number))
            branch.ahead = {n: p for n, p in branch.ahead.items() if branch.edges[n] >= stop}
        self._ask(branches, missing)
        return found

    def _fetch_ahead(
        self, branches: Iterable[Branch], start: int, following: tuple[int, int]
    ) -> None:
        missing = []
        for branch in branches:
            # a branch that is read only if events pass the cut may not be needed again
            steady = branch.ended in (-1, start)
            if not steady or not branch.covers(*following):
                continue
            missing += [
                (*branch.place(number), branch.ahead, number)
                for number in branch.baskets(*following)
                if branch.edges[number] >= following[0] and number not in branch.ahead
            ]
        self._ask(branches, missing)

    def _ask(
        self, branches: Iterable[Branch], missing: list[tuple[int, int, dict[int, Place], int]]
    ) -> None:
        """Request the missing baskets, all at once."""
        if not missing:
            return
        source = next(iter(branches)).model.file.source
        places = self._ranges.ask(source, [one[:2] for one in missing])
        for place, (_, _, here, number) in zip(places, missing, strict=True):
            here[number] = place

    def _array(
        self, name: str, branch: Branch, places: dict[int, Place], start: int, stop: int
    ) -> Any:
        try:
            baskets = []
            for number in branch.baskets(start, stop):
                if branch.kept is not None and branch.kept.number == number:
                    baskets.append(branch.kept)
                else:
                    baskets.append(_opened(branch, number, places.pop(number).content()))
            if baskets:
                branch.kept = baskets[-1] if baskets[-1].stop > stop else None
                branch.ended = stop
            return array_of(branch.model, baskets, start, stop)
        except (CorruptError, DecompressionError) as error:
            raise CorruptError(f"branch {name} of {self._url} is corrupt: {error}") from error
        except UnsupportedLayoutError:
            return _left_to_uproot(branch.model, start, stop)


def _left_to_uproot(model: Any, start: int, stop: int) -> Any:
    return model.array(entry_start=start, entry_stop=stop, library="ak", array_cache=None)


def _opened(branch: Branch, number: int, content: memoryview) -> Basket:
    """Return a basket, given its bytes in the file.

    Raises
    ------
    CorruptError
        The values in its key contradict each other.
    DecompressionError
        Its data cannot be decompressed.
    """
    first, stop = int(branch.edges[number]), int(branch.edges[number + 1])
    if len(content) < _KEY.size:
        raise CorruptError(f"basket {number} ends within its key")
    total, _, size, _, length = _KEY.unpack_from(content)
    if not _KEY.size + _BASKET.size <= length <= total <= len(content) or size < 0:
        raise CorruptError(f"basket {number} has a key of impossible lengths")
    *_, entries, last, _ = _BASKET.unpack_from(content, length - _BASKET.size)
    if entries != stop - first:
        raise CorruptError(f"basket {number} has {entries} entries, not {stop - first}")
    if not 0 <= last - length <= size:
        raise CorruptError(f"the data of basket {number} end at an impossible place")
    data = content[length:total]
    if len(data) != size:  # otherwise the basket is not compressed
        data = decompress(data, size)
    return Basket(number, first, stop, bytes(content[:length]), data, last - length)
