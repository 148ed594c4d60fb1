"""Queries and plans: an extraction is bound to a tree, then run one range of entries at a time.

A language compiles the user's text into a `Query`, which holds an `Extraction` for each tree.
``bind`` resolves the names of an extraction in one tree and returns a `Plan`. `chunks` reads and
computes a plan, one range of entries after the other, so that memory is bounded by the range and
never by the file. There are two kinds of extraction: columns of expressions
(`servicex_server.columnar.column_plan`) and rows of nested loops
(`servicex_server.columnar.loop_plan`).
"""

import bisect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from servicex_server.columnar.sizes import RangeTooLargeError, bounded
from servicex_server.errors import QueryError
from servicex_server.text.patterns import (
    NotLinearError,
    PatternError,
    Patterns,
    Sources,
    glob,
    is_glob,
    regex,
)

if TYPE_CHECKING:
    from servicex_server.columnar.reading.trees import Tree

_SHARE = 0.25
"""Fraction of the memory budget of a range that the result of one function may take."""

FIRST_CHUNK = 20_000
"""Entries in the first range if the file does not tell how large its entries are."""

_SHOWN = 100
"""Characters of a pattern that an error shows."""


@dataclass(frozen=True, slots=True)
class Extraction(ABC):
    """What to extract from one tree, and the name of that tree in the result.

    An empty ``tree`` means the only tree of the file. ``required`` says what happens if the file
    does not have the tree: True raises an error, False skips the extraction, and None raises an
    error only if the file has none of the trees that the query names.
    """

    tree: str
    output: str
    required: bool | None = None

    @abstractmethod
    def bind(self, tree: "Tree") -> "Plan":
        """Resolve the names of the extraction in a tree.

        Raises
        ------
        UnknownNameError
            The tree does not have a name; the hint suggests the nearest ones.
        """


@dataclass(frozen=True, slots=True)
class Query:
    """What to extract from each file: columns of trees, and objects that are copied unchanged."""

    extractions: tuple[Extraction, ...] = ()
    copies: tuple[str, ...] = ()


class Selected(NamedTuple):
    """The columns that a list of names and patterns selects."""

    names: list[str]
    by_pattern: frozenset[str]
    """Those of ``names`` that only a pattern selects; the query does not name them."""
    left_out: dict[str, str]
    """Columns that a pattern selects but that cannot be read, with the reason."""


NOTHING = Selected([], frozenset(), {})


@dataclass(frozen=True, slots=True)
class Plan(ABC):
    """An extraction bound to one tree: the branches to read first, and the rest."""

    first: tuple[str, ...]
    rest: tuple[str, ...]
    by_pattern: frozenset[str]
    """Columns that only a pattern selects: they are left out if they cannot be read."""
    left_out: Mapping[str, str]
    """Columns that were selected but are not in the result, with the reason."""

    @abstractmethod
    def compute(
        self, tree: "Tree | HeldRange", start: int, stop: int, *, typed: bool
    ) -> tuple[int, dict[str, Any]]:
        """Read and compute one range of entries.

        Parameters
        ----------
        tree, start, stop
            The range.
        typed
            Whether to return empty columns, which tell the types, when no row remains.

        Returns
        -------
        The number of rows, and the columns by name, each with as many rows. There are no columns
        if no row remains and ``typed`` is false.
        """


@lru_cache(maxsize=32)
def matcher(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Return a function that tells whether a name matches any of the patterns.

    A pattern is a name, a glob, or a ``/regular expression/`` that may be followed by flags. As in
    uproot, a regular expression has to match from the start of the name, but not up to its end. A
    name with brackets matches both itself and what it means as a glob. Matching takes time linear
    in the length of the name.

    Raises
    ------
    QueryError
        A pattern cannot be read, or cannot be matched in linear time.

    Examples
    --------
    >>> fits = matcher(("met", "lep_*", "/JET_(PT|eta)/i"))
    >>> fits("met"), fits("lep_pt"), fits("jet_pt"), fits("met_et")
    (True, True, True, False)
    """
    exact, sources = frozenset(patterns), Sources()
    add_patterns(sources, patterns)
    wild = wild_patterns(sources)
    return lambda name: name in exact or wild.match(name)


def wild_patterns(sources: Sources) -> Patterns:
    """Compile globs and regular expressions, so that names can be matched.

    Raises
    ------
    QueryError
        A pattern is not a regular expression, or the patterns need too much memory.
    """
    try:
        return Patterns(sources)
    except PatternError as error:
        raise QueryError(f"a pattern is not a regular expression: {error}") from None


def add_patterns(sources: Sources, patterns: Iterable[str]) -> None:
    """Add the globs and regular expressions among some patterns; skip plain names.

    Raises
    ------
    QueryError
        A pattern cannot be read or cannot be matched in linear time, or there are too many.
    """
    for pattern in patterns:
        try:
            if translated := _translated(pattern):
                sources.add(translated)
        except NotLinearError as error:
            raise QueryError(
                f"{_short(pattern)} is not supported: {error}",
                hint="write the pattern without it, or split it into several patterns",
            ) from None
        except PatternError as error:
            raise QueryError(f"{_short(pattern)} is not a regular expression: {error}") from None


def is_name(pattern: str) -> bool:
    """Return whether a pattern is a plain name: not a glob, and not a regular expression."""
    return not is_glob(pattern) and _REGEX.fullmatch(pattern) is None


_REGEX = re.compile(r"/(.*)/([iLmsux]*)", re.DOTALL)
"""A regular expression between slashes, and its flags, as uproot writes them."""


def _translated(pattern: str) -> str:
    """Return a glob or a regular expression in RE2 syntax; an empty string for a plain name."""
    if found := _REGEX.fullmatch(pattern):
        return regex(found[1], found[2])
    return glob(pattern) if is_glob(pattern) else ""


def _short(pattern: str) -> str:
    return pattern if len(pattern) <= _SHOWN else f"{pattern[:_SHOWN]}…"


def chunks(
    plan: Plan,
    tree: "Tree",
    *,
    budget: int,
    start: int = 0,
    stop: int | None = None,
    typed: bool = True,
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Run a plan over a tree.

    Parameters
    ----------
    plan, tree
        What to compute, and on what.
    budget
        Bytes that the arrays of one range may take in memory, roughly.
    start, stop
        The first entry, and the one after the last; all entries if not given.
    typed
        Whether the first range has columns, which tell the types, even when no row remains.

    Yields
    ------
    end
        The entry after the last one of this range.
    kept
        The number of rows of the range.
    arrays
        The columns by name, each with ``kept`` rows. The dict is empty when no row remains; only
        the first range then has empty columns, which tell the types of a result without events.
    """
    total = tree.entries if stop is None else min(stop, tree.entries)
    if start >= total:
        if typed:
            yield start, 0, plan.compute(tree, start, start, typed=True)[1]
        return
    branches = (*plan.first, *plan.rest)
    bounds = tree.boundaries(branches)
    sub_ranges = _SubRanges(plan, budget * _SHARE)
    while start < total:
        per_entry = tree.bytes_per_entry(branches)
        size = max(1, int(budget / per_entry)) if per_entry else FIRST_CHUNK
        end = _aligned(start, size, bounds, total)
        tree.following = (end, _aligned(end, size, bounds, total)) if end < total else None
        for at, kept, arrays in sub_ranges.of(HeldRange(tree, start, end), typed=typed):
            yield at, kept, arrays
            typed = False
        start = end


class HeldRange:
    """A range of entries of a tree that is read once and computed in one or more sub-ranges.

    Parameters
    ----------
    tree, start, stop
        The range.
    """

    def __init__(self, tree: "Tree", start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self._tree = tree
        self._arrays: dict[str, Any] = {}

    def read(self, branches: Sequence[str], start: int, stop: int) -> dict[str, Any]:
        """Return the arrays of a sub-range; read the branches that are not held yet."""
        missing = [name for name in branches if name not in self._arrays]
        self._arrays.update(self._tree.read(missing, self.start, self.stop))
        if (start, stop) == (self.start, self.stop):
            return {name: self._arrays[name] for name in branches}
        piece = slice(start - self.start, stop - self.start)
        return {name: self._arrays[name][piece] for name in branches}

    def release(self) -> None:
        """Drop the arrays."""
        self._arrays.clear()


class _SubRanges:
    """Computes ranges of entries, each in as many sub-ranges as the memory limit requires.

    Parameters
    ----------
    plan
        What to compute.
    room
        Bytes that the result of one function may take for the entries of a sub-range.
    """

    def __init__(self, plan: Plan, room: float) -> None:
        self._plan = plan
        self._room = room
        self._most = 0
        """Most entries of a sub-range; 0 for no limit."""

    def of(self, held: HeldRange, *, typed: bool) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yield the end of each sub-range, its number of rows, and its columns."""
        waiting = _split(held.start, held.stop, self._most)
        failed = False
        while waiting:
            start, stop = waiting.pop()
            # a single entry cannot be split further; only the limit of `check_bytes` holds for it
            room = self._room if stop - start > 1 else math.inf
            try:
                with bounded(room):
                    kept, arrays = self._plan.compute(held, start, stop, typed=typed)
            except RangeTooLargeError as error:
                self._most = math.ceil((stop - start) / max(error.pieces, 2))
                failed = True
                waiting += _split(start, stop, self._most)
                continue
            if not waiting:
                held.release()
            yield stop, kept, arrays
            typed = False
        if not failed:
            self._most *= 2


def _split(start: int, stop: int, most: int) -> list[tuple[int, int]]:
    """Split a range into sub-ranges of at most ``most`` entries; return the last one first."""
    edges = [*range(start, stop, most or stop - start), stop]
    return list(pairwise(edges))[::-1]


def parts(plan: Plan, tree: "Tree", *, size: int) -> tuple[tuple[int, int], ...]:
    """Return the ranges of entries that a large tree is split into; empty if it is not large.

    Parameters
    ----------
    plan, tree
        What to compute, and on what.
    size
        Approximate bytes of a split in memory. Splits begin where clusters begin; they are as
        equal in size as the clusters allow.
    """
    branches = (*plan.first, *plan.rest)
    total = tree.entries
    wanted = round(tree.bytes_per_entry(branches) * total / size)
    if wanted < 2:  # noqa: PLR2004  # one part is the whole
        return ()
    bounds = tree.boundaries(branches)
    near = [_nearest(bounds, total * number // wanted) for number in range(1, wanted)]
    edges = sorted({0, total, *near})
    return tuple(pairwise(edges)) if len(edges) > 2 else ()  # noqa: PLR2004


def _nearest(bounds: list[int], entry: int) -> int:
    """Return the boundary nearest to an entry; the entry itself if there are no boundaries."""
    at = bisect.bisect_left(bounds, entry)
    return min(bounds[max(0, at - 1) : at + 1], key=lambda one: abs(one - entry), default=entry)


def _aligned(start: int, size: int, bounds: list[int], total: int) -> int:
    """Return the end of a range of about ``size`` entries; a boundary, if there is one nearby."""
    target = start + size
    if target >= total:
        return total
    at = bisect.bisect_right(bounds, target) - 1
    if at >= 0 and bounds[at] > start and bounds[at] - start >= size // 2:
        return bounds[at]
    return target
