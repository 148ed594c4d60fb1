"""What a query wants of a file, and how it is got: extractions, bound to a tree, run by chunks.

A language turns the user's text into a `Query` of `Extraction`; ``bind`` holds each against the
names a tree really has; `chunks` reads and computes, one range of entries after the other, so that
memory is bounded by the chunk and never by the file. There are two kinds: columns of expressions
(`servicex_server.columnar.columns`) and rows of nested loops (`servicex_server.columnar.rows`).
"""

import bisect
import fnmatch
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servicex_server.columnar.read import Tree

FIRST_CHUNK = 20_000
"""Entries read first when a file does not tell how large its entries are."""


@dataclass(frozen=True, slots=True)
class Extraction(ABC):
    """What is wanted of one tree, and the name of the tree it becomes.

    ``tree`` empty means the only one of the file. ``required`` tells what a file without the tree
    means: True an error, False nothing to do, None an error only if the file has none of the trees
    that the query names.
    """

    tree: str
    output: str
    required: bool | None = None

    @abstractmethod
    def bind(self, tree: "Tree") -> "Plan":
        """Hold the extraction against the names of a tree.

        Raises
        ------
        UnknownNameError
            A name is not there; the nearest are offered.
        """


@dataclass(frozen=True, slots=True)
class Query:
    """All that is wanted of each file: columns of trees, and objects copied as they are."""

    extractions: tuple[Extraction, ...] = ()
    copies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan(ABC):
    """An extraction held against one tree: which branches are read first, and which may follow."""

    first: tuple[str, ...]
    rest: tuple[str, ...]

    @abstractmethod
    def compute(
        self, tree: "Tree", start: int, stop: int, *, typed: bool
    ) -> tuple[int, dict[str, Any]]:
        """Read and compute one range of entries.

        Parameters
        ----------
        tree, start, stop
            The range.
        typed
            Whether empty columns are wanted where nothing survives, for their types.

        Returns
        -------
        How many rows there are, and the columns by name, each as long; none if nothing survives
        and ``typed`` is false.
        """


@lru_cache(maxsize=128)
def matcher(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Return whether a name fits any of the patterns, as a function of the name.

    A pattern is a name, a glob, or a ``/regular expression/`` (with ``i`` to ignore case). A name
    with brackets is both itself and a glob.

    Examples
    --------
    >>> fits = matcher(("met", "lep_*", "/JET_(PT|eta)/i"))
    >>> fits("met"), fits("lep_pt"), fits("jet_pt"), fits("met_et")
    (True, True, True, False)
    """
    exact, searched = set(patterns), []
    for pattern in patterns:
        if regex := re.fullmatch(r"/(.*)/(i?)", pattern, re.DOTALL):
            searched.append(re.compile(regex[1], re.IGNORECASE if regex[2] else 0).search)
        elif any(mark in pattern for mark in "*?["):
            searched.append(re.compile(fnmatch.translate(pattern)).match)
    return lambda name: name in exact or any(found(name) for found in searched)


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
        Whether the first range has columns even where nothing survives, for their types.

    Yields
    ------
    end
        The entry after the last one of this range.
    kept
        How many rows the range gives.
    arrays
        The columns, by name, each ``kept`` long. Empty where nothing survives, but for the first
        range, whose empty columns tell the types of a result without events.
    """
    total = tree.entries if stop is None else min(stop, tree.entries)
    if start >= total:
        if typed:
            yield start, 0, plan.compute(tree, start, start, typed=True)[1]
        return
    branches = (*plan.first, *plan.rest)
    bounds = tree.boundaries(branches)
    while start < total:
        per_entry = tree.bytes_per_entry(branches)
        size = max(1, int(budget / per_entry)) if per_entry else FIRST_CHUNK
        end = _aligned(start, size, bounds, total)
        tree.following = (end, _aligned(end, size, bounds, total)) if end < total else None
        kept, arrays = plan.compute(tree, start, end, typed=typed)
        yield end, kept, arrays
        typed = False
        start = end


def parts(plan: Plan, tree: "Tree", *, size: int) -> tuple[tuple[int, int], ...]:
    """Return the ranges of entries in which a large tree is better done; none if it is not large.

    Parameters
    ----------
    plan, tree
        What to compute, and on what.
    size
        Bytes of a part in memory, about; parts begin where clusters do and are as large as
        each other, as far as the clusters allow.
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
    """Return the boundary nearest to an entry; the entry itself where there are none."""
    at = bisect.bisect_left(bounds, entry)
    return min(bounds[max(0, at - 1) : at + 1], key=lambda one: abs(one - entry), default=entry)


def _aligned(start: int, size: int, bounds: list[int], total: int) -> int:
    """Return where a range from ``start`` of about ``size`` entries ends, on a boundary if near."""
    target = start + size
    if target >= total:
        return total
    at = bisect.bisect_right(bounds, target) - 1
    if at >= 0 and bounds[at] > start and bounds[at] - start >= size // 2:
        return bounds[at]
    return target
