"""Generated func_adl queries on generated trees, compared with a loop over the events."""

import math
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import awkward as ak
import pytest
from hypothesis import event, given, note, settings
from hypothesis import strategies as st

from servicex_server.columnar.plan import chunks
from servicex_server.columnar.reading.trees import open_root
from servicex_server.languages.func_adl import FuncAdl
from servicex_server.model import ResultFormat
from tests.property import event_loop
from tests.property.examples import EXAMPLES, made_up
from tests.property.typed_trees import Kind, Many, Number, Row, Text, Tree, trees
from tests.property.written_queries import Query, queries


def run(query: str, path: Path, edges: list[int], budget: int) -> list[tuple[int, dict[str, Any]]]:
    """Return how many rows each range of entries gives, and its columns."""
    (extraction,) = FuncAdl().compile(query, ResultFormat.PARQUET).extractions
    found = []
    with open_root(str(path)) as file:
        tree = file.tree(extraction.tree)
        plan = extraction.bind(tree)
        for start, stop in pairwise(edges):
            found += [
                (kept, columns)
                for _, kept, columns in chunks(plan, tree, budget=budget, start=start, stop=stop)
            ]
    return found


def columns_of(rows: list[Any], kind: Kind) -> dict[str, tuple[Kind, list[Any]]]:
    """Return the columns that rows make, each with the type of its values.

    A record makes one for each of its parts, also if it is in lists.
    """
    lists, below = [], kind
    while isinstance(below, Many):
        lists.append(below)
        below = below.element
    if not isinstance(below, Row):
        return {"branch": (kind, rows)}
    columns = {}
    for name, of in below.fields:
        whole = of
        for one in reversed(lists):
            whole = replace(one, element=whole)
        columns[name] = whole, [event_loop.part(row, name) for row in rows]
    return columns


def fits(array: Any, kind: Kind) -> bool:
    """Return whether the type of an array is of a kind; width and missing values do not matter."""
    return _fits(array.layout, kind)


def _fits(layout: Any, kind: Kind) -> bool:
    while layout.is_option or layout.is_indexed:
        layout = layout.content
    match kind:
        case Number(kind=letter):
            wanted = {"b": ("bool",), "i": ("int", "uint"), "f": ("float",)}[letter]
            dtype = str(layout.dtype) if layout.is_numpy else ""
            return dtype != "float16" and dtype.startswith(wanted)
        case Text():
            return bool(layout.parameter("__array__") == "string")
        case Many(element=element):
            is_text = layout.parameter("__array__") == "string"
            return bool(layout.is_list) and not is_text and _fits(layout.content, element)
        case Row(fields=fields):
            return (
                bool(layout.is_record)
                and layout.fields == [name for name, _ in fields]
                and layout.is_tuple == (kind.what == "tuple")
                and all(_fits(layout.content(name), of) for name, of in fields)
            )


def same(got: Any, wanted: Any, kind: Kind) -> bool:
    """Return whether two values are equal within rounding."""
    if got is None or wanted is None:
        return got is wanted
    match kind:
        case Number():
            return close(got, wanted, kind)
        case Many(element=element):
            return len(got) == len(wanted) and all(
                same(one, other, element) for one, other in zip(got, wanted, strict=True)
            )
        case Row(fields=fields):
            return all(
                same(event_loop.part(got, name), event_loop.part(wanted, name), of)
                for name, of in fields
            )
    return bool(got == wanted)


def close(got: float, wanted: float, kind: Number) -> bool:
    """Return whether two numbers are equal, or nearly so if they were rounded."""
    if kind.kind == "f" and math.isnan(wanted):
        return math.isnan(got)
    if kind.exact or math.isinf(wanted):
        return got == wanted
    return math.isclose(got, wanted, rel_tol=1e-5, abs_tol=2.0 ** (kind.size - 18))


def check(tree: Tree, query: Query, path: Path, edges: list[int], budget: int) -> None:
    """Compare the columns of the service, in all ranges, with those of the loop."""
    note(query.text)
    pieces = run(query.text, path, edges, budget)
    wanted = columns_of(event_loop.rows(query.text, tree.events), query.row)
    there = [columns for _, columns in pieces if columns]
    assert there
    for name, (kind, values) in wanted.items():
        types = {str(columns[name].type.content) for columns in there}
        assert len(types) == 1, f"{name} has several types: {types}"
        assert fits(there[0][name], kind), f"{name} is {types}, and should be {kind}"
        got = [one for columns in there for one in ak.to_list(columns[name])]
        assert sum(kept for kept, _ in pieces) == len(values) == len(got)
        for at, (one, other) in enumerate(zip(got, values, strict=True)):
            assert same(one, other, kind), f"{name} in row {at} is {one}, and should be {other}"
    assert all(set(columns) == set(wanted) for columns in there)


def compare_with_loop(data: st.DataObject) -> None:
    """Draw a tree and three queries of it, and check each of them."""
    tree = data.draw(trees())
    count = sum(tree.steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made-up.root"
        tree.write(path)
        for _ in range(3):
            query = data.draw(queries(tree))
            cut = data.draw(st.integers(0, count))
            budget = data.draw(st.sampled_from((1, 200, 1 << 20)))
            event("RNTuple" if tree.ntuple else "TTree")
            check(tree, query, path, [0, cut, count], budget)


@settings(made_up, max_examples=EXAMPLES or 25)
@given(data=st.data())
def test_columns_equal_those_of_a_loop_over_events(data: st.DataObject) -> None:
    """Rows, names, structure, kinds of numbers and values are the same for any ranges of events."""
    compare_with_loop(data)


@pytest.mark.long
@made_up
@given(data=st.data())
def test_columns_of_many_trees_equal_those_of_a_loop_over_events(data: st.DataObject) -> None:
    """`test_columns_equal_those_of_a_loop_over_events` checks fewer trees in the same way."""
    compare_with_loop(data)
