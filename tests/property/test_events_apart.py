"""Generated expressions of uproot-raw: their values do not depend on the ranges of a file."""

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

import awkward as ak
import numpy as np
from hypothesis import event, given, note
from hypothesis import strategies as st

from servicex_server.columnar.functions import ELEMENTWISE, FUNCTIONS, OF_TWO
from servicex_server.columnar.reading.trees import Tree
from servicex_server.errors import QueryError
from servicex_server.languages.uproot_raw import UprootRaw
from servicex_server.model import ResultFormat
from tests.property.examples import made_up

EVENTS = 40
"""Events of the tree; a property looks at a few that follow one another."""


def _columns() -> dict[str, Any]:
    """Return columns: flat, jagged, of fixed size, optional, of records, of texts."""
    random = np.random.default_rng(14)

    def whole(low: int, high: int, *shape: int) -> Any:
        return random.integers(low, high, (EVENTS, *shape))

    def jagged(low: int, high: int, most: int) -> Any:
        counts = whole(0, most + 1)
        return ak.unflatten(random.integers(low, high, counts.sum()), counts)

    inner = jagged(-3, 9, 2)[: EVENTS // 2]
    deep = ak.concatenate([inner, inner])[:EVENTS]
    missing = ak.Array(whole(0, 2) == 1)
    return {
        "x": ak.Array(whole(-3, 9)),
        "n": ak.Array(whole(0, 3)),
        "b": ak.Array(whole(0, 2) == 1),
        "j": jagged(-3, 9, 3),
        "i": jagged(0, 2, 2),
        "d": ak.unflatten(deep, np.tile([2, 1, 0, 1], EVENTS // 4)),
        "two": ak.Array(whole(-1, 2, 2)),
        "cube": ak.Array(whole(0, 2, 2, 2)),
        "maybe": ak.mask(ak.Array(whole(0, 3)), missing),
        "lists": ak.mask(jagged(0, 3, 2), missing),
        "r": ak.zip({"p": (p := jagged(0, 3, 2)), "q": p * 2}),
        "s": ak.Array(["", "a", "ab", "b"] * (EVENTS // 4)),
    }


COLUMNS = _columns()


@dataclass
class InMemory(Tree):
    """A tree of arrays."""

    arrays: dict[str, Any]
    entries: int
    names: dict[str, Any] = field(default_factory=dict)
    url: str = "memory"

    def read(self, branches: Any, start: int, stop: int) -> dict[str, Any]:
        """Return a range of entries, in memory of its own."""
        return {name: ak.to_packed(self.arrays[name][start:stop]) for name in branches}


def part(start: int, count: int) -> InMemory:
    """Return a tree of some of the events."""
    arrays = {name: array[start : start + count] for name, array in COLUMNS.items()}
    return InMemory(arrays, count, dict.fromkeys(arrays))


AXES = (
    *[""] * 6,
    *(f", axis={axis}" for axis in (None, -3, -2, -1, -1, 0, 1, 1, 2)),
    *(", 0", ", 1", ", -1", ", keepdims=True", ", axis=-1, keepdims=True"),
)
POSITIONS = ": : : :1 1: ::-1 ::1 0 0 -1 1 None [0] [0,1] True".split()
OF_ONE = sorted((FUNCTIONS - ELEMENTWISE) | {"abs", "sqrt", "isnan", "floor"})
ROWS = ("concatenate", "cartesian", "argcartesian", "broadcast_arrays", "broadcast_fields")


class Writer:
    """Writes expressions, most of which mean something."""

    def __init__(self, random: Random) -> None:
        self._pick = random.choice

    def write(self, depth: int) -> str:
        """Return an expression of at most this depth."""
        if depth <= 0:
            return self._pick([*COLUMNS, *COLUMNS, "r['q']", "1", "2.5", "[1]", "'a'"])
        one, two, three = (self.write(depth - self._pick((1, 1, 2, 3))) for _ in range(3))
        axis = self._pick(AXES)
        position = ", ".join(self._pick([*POSITIONS, two]) for _ in range(self._pick((1, 2, 2, 3))))
        function = self._pick(OF_ONE)
        return self._pick(
            (
                f"({one} {self._pick('+*<-&')} {two})",
                f"({one} == {two})",
                f"({one})[{two}]",
                f"({one})[({two}) > 0]",
                f"({one})[{position}]",
                f"({one})[{position}]",
                *[f"{function}({one}{axis})"] * 4,
                f"{self._pick(sorted(OF_TWO))}({one}, {two})",
                f"where({one}, {two}, {three})",
                f"mask({one}, ({two}) > 0)",
                f"isclose({one}, {two})",
                f"fill_none({one}, {two}{axis})",
                f"mean({one}, {two}{axis})",
                f"{self._pick(ROWS)}([{one}, {two}]{axis})",
                f"broadcast_arrays({one}, {two})[1]",
                f"{self._pick(('combinations', 'argcombinations', 'pad_none'))}({one}, 2{axis})",
            )
        )

    def cut(self) -> str | None:
        """Return a cut, or none."""
        known = ("x > 2", "num(j) > 0", "max(j) > 1", "b", "j > 0", "two > 0", "b & True")
        return self._pick((None, None, None, *known, self.write(2)))


def outcome(plan: Any, tree: Tree, step: int) -> list[Any] | None:
    """Return the rows that a plan gives in ranges of so many events; None if it is refused."""
    rows: list[Any] = []
    for start in range(0, tree.entries, step):
        stop = min(start + step, tree.entries)
        try:
            kept, arrays = plan.compute(tree, start, stop, typed=False)
        except QueryError as error:
            note(f"{start}:{stop} {error}")
            return None
        if arrays:
            found = ak.to_list(arrays["column"])
            assert kept == len(found)
            rows += found
    return rows


def check(text: str, cut: str | None, tree: InMemory, *, standard_axis: bool) -> bool:
    """Compare ranges of each length with the whole; return whether the query was accepted."""
    query = {
        "treename": "t",
        "expressions": ["column"],
        "aliases": {"column": text},
        "cut": cut,
        "use_standard_awkward_axis": standard_axis,
    }
    note(json.dumps(query))
    try:
        (extraction,) = UprootRaw().compile(json.dumps([query]), ResultFormat.PARQUET).extractions
        plan = extraction.bind(tree)
        plan.compute(tree, 0, 0, typed=True)
    except QueryError as error:
        note(str(error))
        return False
    whole = outcome(plan, tree, max(tree.entries, 1))
    for step in range(1, tree.entries):
        assert repr(outcome(plan, tree, step)) == repr(whole), f"ranges of {step} events"
    return True


@made_up
@given(
    seed=st.integers(0, 2**32),
    start=st.integers(0, EVENTS - 5),
    count=st.integers(1, 5),
    standard_axis=st.booleans(),
)
def test_values_do_not_depend_on_ranges(
    seed: int, start: int, count: int, *, standard_axis: bool
) -> None:
    """Each number of events per range gives the same rows, or the service refuses the query."""
    writer = Writer(Random(seed))
    tree = part(start, count)
    for depth in (1, 2, 3):
        accepted = check(writer.write(depth), writer.cut(), tree, standard_axis=standard_axis)
        event("accepted" if accepted else "refused")
