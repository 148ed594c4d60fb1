"""Generated trees for the tests: columns of all the types that a tree has, and few events.

Floats are small multiples of a quarter, so that sums and products of some of them are exact in 32
bits, too: whether two of them are equal does not depend on the order of operations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot
from hypothesis import strategies as st

WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
MOST = 3
"""Elements of a list."""


@dataclass(frozen=True)
class Number:
    """A number: its kind by numpy's letter, and what is known of its values.

    They are less than 2 to the power of ``size``. ``places`` are the binary digits after the
    point, or None where rounding decides. ``unsigned`` tells that a result beyond 63 bits has no
    sign.
    """

    kind: str
    size: int = 1
    places: int | None = 0
    unsigned: bool = False

    @property
    def exact(self) -> bool:
        """Whether all ways to compute it give the same."""
        return self.places is not None and (self.kind != "f" or self.size + self.places <= 24)


@dataclass(frozen=True)
class Text:
    """A text."""


@dataclass(frozen=True)
class Many:
    """A list of less than two to the power of ``most`` elements.

    Lists of the same ``group`` are equally long, event by event.
    """

    element: "Kind"
    most: int = 2
    group: str = ""


@dataclass(frozen=True)
class Row:
    """A record, a tuple, or the event itself."""

    fields: "tuple[tuple[str, Kind], ...]"
    what: str = "record"


Kind = Number | Text | Many | Row


@dataclass(frozen=True)
class Tree:
    """A tree that is written in several steps, and the meaning of its columns.

    ``kinds`` are the columns that queries may name; ``types`` are numpy's. A column is a list of
    one value for each event.
    """

    kinds: dict[str, Kind]
    types: dict[str, str]
    columns: dict[str, list[Any]]
    steps: tuple[int, ...]
    ntuple: bool

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events one after the other, with the counters of lists that a TTree has."""
        columns = dict(self.columns)
        if not self.ntuple:
            for name, kind in self.kinds.items():
                if isinstance(kind, Many):
                    columns[f"n{kind.group}"] = [len(one) for one in self.columns[name]]
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]

    def write(self, path: Path) -> None:
        """Write it; each step becomes a basket, or a cluster."""
        arrays = {name: self._array(name) for name in self.kinds}
        if not self.ntuple:
            groups: dict[str, dict[str, Any]] = {}
            for name, kind in self.kinds.items():
                if isinstance(kind, Many) and name != kind.group:
                    groups.setdefault(kind.group, {})[name.removeprefix(f"{kind.group}_")] = (
                        arrays.pop(name)
                    )
            arrays |= {name: ak.zip(parts) for name, parts in groups.items()}
        types = {name: array.type.content for name, array in arrays.items()}
        with uproot.recreate(path) as file:
            made = (file.mkrntuple if self.ntuple else file.mktree)("events", types)
            start = 0
            for step in self.steps:
                made.extend({name: one[start : start + step] for name, one in arrays.items()})
                start += step

    def _array(self, name: str) -> Any:
        kind, dtype = self.kinds[name], self.types[name]
        values = self.columns[name]
        if dtype == "str":
            # one more value, so that the type is known where there is none
            more = "" if isinstance(kind, Text) else [""]
            return ak.Array([*values, more])[:-1]
        if isinstance(kind, Many):
            flat = np.array([one for each in values for one in each], dtype)
            return ak.unflatten(flat, np.array([len(one) for one in values], np.int64))
        return ak.Array(np.array(values, dtype))


def whole(dtype: str) -> st.SearchStrategy[int]:
    """Return whole numbers of a type: small ones, all, and the ends."""
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    if dtype == "uint64":
        high = 2**62
    return st.one_of(
        st.integers(max(low, -4), 5), st.integers(low, high), st.sampled_from((low, high))
    )


def floats() -> st.SearchStrategy[float]:
    """Return floats that are exact in 32 bits, and now and then none at all."""
    quarters = st.integers(-255, 255).map(lambda one: one / 4)
    small = st.integers(-8, 8).map(lambda one: one / 4)
    return st.one_of(
        small, quarters, quarters, st.sampled_from((0.0, math.nan, math.inf, -math.inf))
    )


def number_of(dtype: str) -> Number:
    """Return what is known of a column of numbers."""
    if dtype == "bool":
        return Number("b")
    if dtype.startswith("float"):
        return Number("f", 6, 2)
    size = {"int64": 63, "uint64": 63}.get(dtype, int(dtype.removeprefix("u")[3:]))
    return Number("i", size, unsigned=dtype.startswith("u"))


@st.composite
def trees(
    draw: st.DrawFn, *, whole_types: Sequence[str] = WHOLE, least: int = 0, kinds_of_tree: int = 2
) -> Tree:
    """Return trees of one layout, in which types, lengths and values are made up.

    Parameters
    ----------
    draw
        Given by hypothesis.
    whole_types
        Of the whole numbers.
    least
        Elements that a list has.
    kinds_of_tree
        2 for TTrees and RNTuples, 1 for TTrees alone.
    """
    ntuple = draw(st.integers(1, kinds_of_tree)) > 1
    steps = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))
    count = sum(steps)
    kinds: dict[str, Kind] = {}
    types: dict[str, str] = {}
    columns: dict[str, list[Any]] = {}
    of_whole, of_floats = st.sampled_from(whole_types), st.sampled_from(("float32", "float64"))
    always: Callable[[str], st.SearchStrategy[str]] = st.just
    values: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
        "bool": st.booleans,
        "str": lambda: st.sampled_from(("", "a", "ab", "b")),
    }

    def add(name: str, dtypes: st.SearchStrategy[str], lengths: list[int] | None = None) -> None:
        dtype = types[name] = draw(dtypes)
        one = whole(dtype) if "int" in dtype else values.get(dtype, floats)()
        kind: Kind = Text() if dtype == "str" else number_of(dtype)
        if lengths is None:
            kinds[name] = kind
            columns[name] = draw(st.lists(one, min_size=count, max_size=count))
        else:
            kinds[name] = Many(kind, group=name.split("_", maxsplit=1)[0])
            columns[name] = [draw(st.lists(one, min_size=n, max_size=n)) for n in lengths]

    def lengths() -> list[int]:
        return draw(st.lists(st.integers(least, MOST), min_size=count, max_size=count))

    add("i", of_whole)
    add("j", of_whole)
    add("f", of_floats)
    add("g", of_floats)
    add("b", always("bool"))
    add("ws", of_whole, lengths())
    add("fs", of_floats, lengths())
    objects = lengths()
    add("o_p", of_floats, objects)
    add("o_q", of_whole, objects)
    add("o_b", always("bool"), objects)
    add("s", always("str"))
    if ntuple:
        add("ss", always("str"), lengths())
    return Tree(kinds, types, columns, steps, ntuple)
