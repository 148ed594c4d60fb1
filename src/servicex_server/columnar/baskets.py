"""Reading branches of a TTree: which baskets are fetched, and which are kept.

All baskets that a range of entries needs, of all its branches, are asked for at once, near ones
in one piece; they are decompressed by `servicex_server.columnar.codecs` and become columns in
`servicex_server.columnar.layouts`. A basket that reaches into the next range is kept, and not
decompressed again. Branches of unusual build are left to uproot.
"""

import struct
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from servicex_server.columnar.codecs import DecompressionError, decompress
from servicex_server.columnar.layouts import Basket, NotUnderstoodError, array_of
from servicex_server.columnar.pieces import Pieces, Place
from servicex_server.errors import CorruptError

_KEY = struct.Struct(">ihiIh")
"""fNbytes, fVersion, fObjlen, fDatime, fKeylen: how every TKey begins (ROOT's TFile)."""

_BASKET = struct.Struct(">hiiiiB")
"""fVersion, fBufferSize, fNevBufSize, fNevBuf, fLast and a flag, with which a basket's key ends.

ROOT's TBasket::Streamer. ``fNevBuf`` is the number of entries, ``fLast`` where their data end,
counted from the beginning of the key.
"""


class Branch:
    """A branch with the places of its baskets.

    Parameters
    ----------
    model
        uproot's.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.kept: Basket | None = None
        self.ended = -1  # where the last range that was read ended
        self.ahead: dict[int, Place] = {}

    @cached_property
    def edges(self) -> Any:
        """The first entry of each basket, and the end; empty if baskets are not alone in the file.

        When a program that writes a file is interrupted, the last baskets are inside the TTree.
        """
        import numpy as np
        from uproot.interpretation.grouped import AsGrouped

        if isinstance(self.model.interpretation, AsGrouped) or self.model.embedded_baskets:
            return np.zeros(0, np.int64)
        return np.asarray(self.model.entry_offsets, np.int64)

    def covers(self, start: int, stop: int) -> bool:
        """Whether all entries of a range, and any at all, are in baskets that are read here."""
        edges = self.edges
        return len(edges) > 0 and edges[0] <= start < stop <= edges[-1]

    def baskets(self, start: int, stop: int) -> list[int]:
        """Return the numbers of the baskets that hold entries of a range."""
        edges = self.edges
        low = int(edges.searchsorted(start, "right")) - 1
        high = int(edges.searchsorted(stop, "left"))
        return [number for number in range(low, high) if edges[number] < edges[number + 1]]

    def place(self, number: int) -> tuple[int, int]:
        """Return where the bytes of a basket begin and end in the file."""
        start = int(self.model.member("fBasketSeek")[number])
        return start, start + int(self.model.member("fBasketBytes")[number])


class Baskets:
    """The baskets of a tree, read by ranges of entries, best in ascending order.

    Parameters
    ----------
    url
        Of the file. The next range of a remote one is fetched while the present one is computed.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._pieces = Pieces(url)
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
            uproot's branches, by the names that their arrays get.
        start, stop
            The first entry, and the one after the last.
        following
            The range that will be read next, if that is known.

        Raises
        ------
        CorruptError
            A basket cannot be right; its branch is named. Whatever uproot raises is raised as
            it is.
        """
        wanted = {}  # by branch: there may be two names for one
        for model in models.values():
            branch = self._branches.setdefault(id(model), Branch(model))
            if branch.covers(start, stop):
                wanted[id(model)] = branch
        places = self._fetch(wanted.values(), start, stop)
        if self._pieces.remote and following is not None:
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
        """Ask for the baskets of a range, and return where they will be, by branch and number."""
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
            # one that is read only where a cut leaves something may not be needed again
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
        """Ask for the missing baskets, all at once."""
        if not missing:
            return
        source = next(iter(branches)).model.file.source
        places = self._pieces.ask(source, [one[:2] for one in missing])
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
            branch.kept = baskets[-1] if baskets[-1].stop > stop else None
            branch.ended = stop
            return array_of(branch.model, baskets, start, stop)
        except (CorruptError, DecompressionError) as error:
            raise CorruptError(f"branch {name} of {self._url} is corrupt: {error}") from error
        except NotUnderstoodError:
            return _left_to_uproot(branch.model, start, stop)


def _left_to_uproot(model: Any, start: int, stop: int) -> Any:
    return model.array(entry_start=start, entry_stop=stop, library="ak", array_cache=None)


def _opened(branch: Branch, number: int, content: memoryview) -> Basket:
    """Return a basket from its bytes in the file.

    Raises
    ------
    CorruptError
        What is said in its key does not fit together.
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
        raise CorruptError(f"basket {number} has {entries} entries where {stop - first} are said")
    if not 0 <= last - length <= size:
        raise CorruptError(f"the data of basket {number} end at an impossible place")
    data = content[length:total]
    if len(data) != size:  # else it is not compressed
        data = decompress(data, size)
    return Basket(number, first, stop, bytes(content[:length]), data, last - length)
