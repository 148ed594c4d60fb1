"""The columnar engine on files: columns stay the same in every format and at any chunk size."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servicex_server.columnar.column_plan import Column, ColumnQuery
from servicex_server.columnar.expression import parse
from servicex_server.columnar.plan import chunks
from servicex_server.columnar.reading.trees import open_root
from servicex_server.columnar.writing.writer import Format, open_writer
from servicex_server.errors import FormatError, QueryTypeError, ServiceXError
from tests.support import sample

HZZ = sample("uproot-HZZ.root")
FORMATS: tuple[Format, ...] = ("parquet", "root-file", "root-rntuple")


def column(text: str, name: str = "") -> Column:
    """Return a column from its text."""
    return Column(name or text, text, parse(text))


def extract(source: Path, extraction: ColumnQuery, *, budget: int = 32 << 20) -> Any:
    """Return all ranges of an extraction, put together."""
    with open_root(str(source)) as file:
        tree = file.tree(extraction.tree)
        parts = [
            ak.zip(arrays, depth_limit=1)
            for _, _, arrays in chunks(extraction.bind(tree), tree, budget=budget)
            if arrays
        ]
    return ak.concatenate(parts)


def written(path: Path, result_format: Format, columns: dict[str, Any], pieces: int = 3) -> Any:
    """Write columns in several ranges and read them back with pyarrow or uproot."""
    table = ak.zip(columns, depth_limit=1)
    edges = np.linspace(0, len(table), pieces + 1).astype(int)
    with open_writer(path, result_format) as writer:
        for start, stop in itertools.pairwise(edges):
            part = table[start:stop]
            writer.write("t", {name: part[name] for name in part.fields})
    if result_format == "parquet":
        return ak.from_arrow(pq.read_table(path))
    with uproot.open({path: "t"}) as tree:
        return tree.arrays(list(columns))


NUMBERS = {
    name: np.array([0, 1, 100, 3, 4, 5, 6], name)
    for name in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")
}
JAGGED = ak.values_astype(ak.Array([[1.5], [], [2, 3], [], [4], [5], [6, 7, 8]]), "float32")
SIMPLE: dict[str, Any] = {
    **NUMBERS,
    "bool": np.array([True, False] * 3 + [True]),
    "text": ak.Array(["a", "", "µµ", "d", "e", "f", "g" * 300]),
    "jagged": JAGGED,
    "jagged_bool": JAGGED > 3,
    "fixed": np.arange(14.0).reshape(7, 2),
}
NESTED: dict[str, Any] = {
    "deep": ak.Array([[[1]], [], [[], [2, 3]], [[4]], [], [], [[5, 6]]]),
    "words": ak.Array([["a"], [], ["b", ""], ["µ"], [], [], ["c"]]),
    "missing": ak.Array([1, None, 3, None, 5, 6, None]),
    "record": ak.Array([{"x": n, "y": n / 2} for n in range(7)]),
}


def same(got: Any, expected: Any) -> bool:
    """Return whether two arrays have the same values and the same type."""
    expected = ak.from_regular(ak.Array(expected), axis=None)
    got = ak.from_regular(got, axis=None)
    return str(got.type) == str(expected.type) and got.to_list() == expected.to_list()


@pytest.mark.parametrize("result_format", FORMATS)
@pytest.mark.parametrize("name", SIMPLE)
def test_types_are_preserved(tmp_path: Path, result_format: Format, name: str) -> None:
    """Integers of every width, booleans, floats, strings and lists come back unchanged."""
    got = written(tmp_path / "x", result_format, {name: SIMPLE[name]})
    assert same(got[name], SIMPLE[name]), (got[name].type, ak.type(SIMPLE[name]))


@pytest.mark.parametrize("result_format", ["parquet", "root-rntuple"])
@pytest.mark.parametrize("name", NESTED)
def test_nested_types_are_preserved(tmp_path: Path, result_format: Format, name: str) -> None:
    """Lists of lists, lists of strings, missing values and records come back unchanged."""
    got = written(tmp_path / "x", result_format, {name: NESTED[name]})
    assert same(got[name], NESTED[name]), (got[name].type, ak.type(NESTED[name]))


def test_half_precision_is_kept_in_parquet(tmp_path: Path) -> None:
    """A float16 column stays a float16 column in Parquet."""
    half = np.array([0.5, 1.5, 65504], "f2")
    assert same(written(tmp_path / "x", "parquet", {"h": half})["h"], half)


@pytest.mark.parametrize(
    ("result_format", "array", "words"),
    [
        ("root-file", NESTED["deep"], "lists lie in lists"),
        ("root-file", NESTED["words"], "texts lie in lists"),
        ("root-file", NESTED["missing"], "fill_none"),
        ("root-file", np.array([1], "f2"), "no type float16"),
        ("root-rntuple", np.array([1], "f2"), "cannot write float16"),
        ("root-rntuple", np.array([1], "c16"), "complex128"),
        ("parquet", np.array([1], "c16"), "column x"),
    ],
)
def test_type_that_a_format_cannot_hold_is_rejected(
    tmp_path: Path, result_format: Format, array: Any, words: str
) -> None:
    """The error names the column."""
    with pytest.raises(FormatError, match="column x") as error:
        written(tmp_path / "x", result_format, {"x": array}, pieces=1)
    assert words in str(error.value)


@pytest.mark.parametrize("result_format", FORMATS)
def test_columns_without_rows_keep_their_types(tmp_path: Path, result_format: Format) -> None:
    """Empty columns come back with their types."""
    empty = {name: ak.Array(array)[:0] for name, array in SIMPLE.items() if name != "fixed"}
    got = written(tmp_path / "x", result_format, empty, pieces=1)
    for name, array in empty.items():
        assert len(got[name]) == 0
        assert str(got[name].type.content) == str(array.type.content), name


def test_column_with_the_name_of_a_counter_is_kept(tmp_path: Path) -> None:
    """A jagged column, and a column with the name of its counter, both come back."""
    columns = {"jet": JAGGED, "njet": np.arange(7)}
    got = written(tmp_path / "x", "root-file", columns)
    assert same(got["jet"], JAGGED)
    assert got["njet"].tolist() == list(range(7))


ODD: dict[str, Any] = {
    "a.b": JAGGED,
    "c/d": np.arange(7),
    "e[f]": np.arange(7.0),
    "g h": ak.Array(["x"] * 7),
    "i\\j": ak.Array([{"k.l": n, "m": [{"n/o": n}] * n} for n in range(7)]),
}


def test_ttree_has_branches_for_odd_names_and_records(tmp_path: Path) -> None:
    """The writer replaces characters for lengths and types. Each member of a record is a branch."""
    columns = {**ODD, "muon": ak.Array([[{"pt": 1.5, "q": 1}] * n for n in range(7)])}
    del columns["i\\j"]
    columns["i\\j"] = ODD["i\\j"][["k.l"]]
    path = tmp_path / "x"
    with open_writer(path, "root-file") as writer:
        writer.write("t", columns)
    with uproot.open({path: "t"}) as tree:
        branches = ["a.b", "c_d", "e_f_", "g h", "muon_pt", "muon_q", "i\\j_k.l"]
        assert sorted(tree.keys()) == sorted([*branches, "na.b", "nmuon"])
        assert tree["nmuon"].array().tolist() == list(range(7))
        assert same(tree["a.b"].array(), ODD["a.b"])
        assert same(tree["muon_q"].array(), columns["muon"].q)
        assert tree["i\\j_k.l"].array().tolist() == list(range(7))


def test_rntuple_has_fields_for_odd_names(tmp_path: Path) -> None:
    """The writer replaces characters for paths through fields, also in records in lists."""
    path = tmp_path / "x"
    with open_writer(path, "root-rntuple") as writer:
        writer.write("t", ODD)
    with uproot.open({path: "t"}) as tree:
        assert tree.keys(recursive=False) == ["a_b", "c_d", "e[f]", "g_h", "i_j"]
        assert same(tree["a_b"].array(), ODD["a.b"])
        got = tree["i_j"].array()
    assert got["k_l"].tolist() == list(range(7))
    assert got["m", "n_o"].tolist() == [[n] * n for n in range(7)]


@pytest.mark.parametrize(
    ("result_format", "columns", "words"),
    [
        ("root-file", {"a": ak.Array([{"b": 1}]), "a_b": [1]}, "column a_b .*: a makes a branch"),
        ("root-file", {"c/d": [1], "c_d": [1]}, "column c_d .*: c/d makes a branch c_d too"),
        ("root-rntuple", {"c/d": [1], "c.d": [1]}, "column c.d .*: c/d makes a field c_d too"),
        ("root-rntuple", {"r": ak.Array([{"a.b": 1, "a/b": 1}])}, "two members .* a field a_b"),
    ],
)
def test_columns_with_the_same_name_in_the_file_are_rejected(
    tmp_path: Path, result_format: Format, columns: dict[str, Any], words: str
) -> None:
    """The writer does not silently lose one of them."""
    with pytest.raises(FormatError, match=words), open_writer(tmp_path / "x", result_format) as w:
        w.write("t", {name: ak.Array(array) for name, array in columns.items()})


@pytest.mark.parametrize(
    ("result_format", "count", "words"),
    [
        ("root-file", 2, "column c0 .*: lists lie in lists; nor c1"),
        ("root-file", 30, "column c0 .*; nor c1, c2, .* c20 and 9 more"),
        ("parquet", 2, "column c0 .*: a record in it has no fields; nor c1"),
    ],
)
def test_one_error_names_all_columns_that_a_format_cannot_hold(
    tmp_path: Path, result_format: Format, count: int, words: str
) -> None:
    """Of very many columns, it names the first ones."""
    column = ak.Array([[[1]]]) if result_format == "root-file" else ak.Array([{}])
    with pytest.raises(FormatError, match=words), open_writer(tmp_path / "x", result_format) as w:
        w.write("t", {f"c{number}": column for number in range(count)})


def test_parquet_rejects_trees_with_different_columns(tmp_path: Path) -> None:
    """The error names the differences."""
    with open_writer(tmp_path / "x", "parquet", tree_column=True) as writer:
        writer.write("a", {"x": ak.Array([1])})
        with pytest.raises(FormatError, match="b lacks x and adds y"):
            writer.write("b", {"y": ak.Array([1])})


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(budget=st.integers(1_000, 300_000), cut=st.sampled_from(["", "NJet > 1", "any(Jet_E > 60)"]))
def test_chunks_do_not_change_the_result(budget: int, cut: str) -> None:
    """Small ranges have the columns that one range has."""
    extraction = ColumnQuery(
        tree="events",
        output="events",
        columns=(column("sqrt(Jet_Px**2 + Jet_Py**2)", "pt"), column("NJet"), column("MET_px")),
        cut=column(cut) if cut else None,
    )
    whole = extract(HZZ, extraction, budget=1 << 30)
    parts = extract(HZZ, extraction, budget=budget)
    assert ak.array_equal(whole, parts, dtype_exact=True)
    with uproot.open({HZZ: "events"}) as tree:
        assert len(tree.arrays(["NJet"], cut.replace("any(Jet_E > 60)", "") or None)) >= len(whole)


def test_extraction_can_start_in_the_middle_of_a_file() -> None:
    """Ranges from an entry on are those that the whole run has from there."""
    extraction = ColumnQuery("events", "events", columns=(column("NJet"),))
    with open_root(str(HZZ)) as file:
        tree = file.tree("events")
        plan = extraction.bind(tree)
        stops = [stop for stop, _, _ in chunks(plan, tree, budget=2000)]
        rest = [a["NJet"] for _, _, a in chunks(plan, tree, budget=2000, start=stops[1])]
    assert len(stops) > 3
    assert sum(map(len, rest)) == 2421 - stops[1]


def test_aliases_may_refer_to_each_other() -> None:
    """An alias may use another one. The error about a circle names the alias."""
    aliases = {"pt2": column("Jet_Px**2 + Jet_Py**2"), "pt": column("sqrt(pt2)")}
    got = extract(HZZ, ColumnQuery("events", "e", columns=(column("pt"),), aliases=aliases))
    with uproot.open({HZZ: "events"}) as tree:
        expected = np.hypot(tree["Jet_Px"].array(), tree["Jet_Py"].array())
    assert ak.all(ak.isclose(got.pt, expected), axis=None)
    circle = {"a": column("b + 1"), "b": column("a + 1")}
    with pytest.raises(ServiceXError, match="a is defined by itself"):
        extract(HZZ, ColumnQuery("events", "e", columns=(column("a"),), aliases=circle))


def test_each_of_many_chained_aliases_is_computed_once() -> None:
    """Each of forty aliases is twice the one before."""
    aliases = {f"a{n}": column(f"a{n - 1} + a{n - 1}") for n in range(1, 41)}
    aliases["a0"] = column("NJet * 0.0 + 1")
    got = extract(HZZ, ColumnQuery("events", "e", columns=(column("a40"),), aliases=aliases))
    assert got.a40[0] == 2.0**40


def test_jagged_cut_fits_only_jagged_columns() -> None:
    """It filters jagged columns. For others, the error says what to do."""
    jets = ColumnQuery("events", "e", filter_name=("Jet_P*",), cut=column("Jet_Px > 0"))
    got = extract(HZZ, jets)
    assert len(got) == 2421
    assert ak.all(got.Jet_Px > 0, axis=None)
    mixed = ColumnQuery("events", "e", filter_name=("Jet_Px", "NJet"), cut=column("Jet_Px > 0"))
    with pytest.raises(QueryTypeError, match="does not fit column NJet"):
        extract(HZZ, mixed)


def test_constant_is_a_column() -> None:
    """It has one value for each event."""
    got = extract(HZZ, ColumnQuery("events", "e", columns=(column("NJet"), column("13.6", "s"))))
    assert got.s.tolist() == [13.6] * 2421


@pytest.mark.parametrize("symbol", ["/", "//", "%"])
@pytest.mark.parametrize(("left", "right"), [(-300, 0), (0, 0), (7, -2), (7.5, 0), (3, 0.0)])
def test_constants_are_divided_like_columns(symbol: str, left: float, right: float) -> None:
    """Division by zero works, too, although Python itself rejects it."""
    texts = f"{left} {symbol} {right}", f"(NJet*0 + {left}) {symbol} (NJet*0 + {right})"
    columns = tuple(column(text, name) for text, name in zip(texts, "ab", strict=True))
    got = extract(HZZ, ColumnQuery("events", "e", columns=columns))
    assert got.a.tolist() == got.b.tolist() or ak.all(np.isnan(got.a) & np.isnan(got.b))


def test_filters_choose_the_same_branches_as_uproot() -> None:
    """The filters are globs, regular expressions and type names."""
    for names, types in (
        (("Jet_*",), ()),
        (("/^(N|n)[A-Z]/",), ()),
        (("/met_px/i",), ()),
        ((), ("float",)),
        (("*",), ("int32_t",)),
    ):
        with open_root(str(HZZ)) as file:
            chosen = file.tree("events").select(names, types).names
        with uproot.open({HZZ: "events"}) as tree:
            expected = tree.keys(
                filter_name=list(names) or None, filter_typename=list(types) or None
            )
        assert chosen == expected
        assert chosen


def test_columns_are_computed_after_a_cut_on_events() -> None:
    """Events that pass the cut have the element. Without the cut, the error says what to write."""
    columns = (column("Jet_Px[:, 0]"), column("second"), column("NJet"))
    aliases = {"second": column("Jet_Px[:, 1]")}
    chosen = ColumnQuery(
        "events", "e", columns=columns, aliases=aliases, cut=column("num(Jet_Px) > 1")
    )
    with uproot.open({HZZ: "events"}) as tree:
        jets = tree["Jet_Px"].array()
    jets = jets[ak.num(jets) > 1]
    for budget in (1_000, 1 << 30):
        got = extract(HZZ, chosen, budget=budget)
        assert got["Jet_Px[:, 0]"].tolist() == jets[:, 0].tolist()
        assert got.second.tolist() == jets[:, 1].tolist()
        assert got.NJet.tolist() == ak.num(jets).tolist()
    with pytest.raises(QueryTypeError, match="some event has no element 0") as error:
        extract(HZZ, ColumnQuery("events", "e", columns=columns, aliases=aliases))
    assert "firsts" in error.value.hint
    assert "pad_none" in error.value.hint


def test_alias_of_the_cut_is_filtered_by_the_cut() -> None:
    """The values of all events do not replace those of the events that pass."""
    aliases = {"lead": column("firsts(Jet_Px)")}
    chosen = ColumnQuery(
        "events", "e", columns=(column("lead"),), aliases=aliases, cut=column("lead > 10")
    )
    with uproot.open({HZZ: "events"}) as tree:
        lead = ak.firsts(tree["Jet_Px"].array())
    assert extract(HZZ, chosen).lead.tolist() == ak.drop_none(lead[lead > 10]).tolist()


def test_combinations_are_computed_in_pieces() -> None:
    """The memory holds a few combinations at a time, and the values are those of the whole."""
    triples = "combinations(Jet_E, 3, replacement=True)"
    chosen = ColumnQuery(
        "events", "e", columns=(column("max(t['0'] + t['1'] - t['2'])", "m"), column("NJet"))
    )
    chosen = replace(chosen, aliases={"t": column(triples)}, cut=column("NJet > 0"))
    with uproot.open({HZZ: "events"}) as tree:
        jets = tree["Jet_E"].array()
    jets = jets[ak.num(jets) > 0]
    ways = ak.combinations(jets, 3, replacement=True)
    expected = ak.max(ways["0"] + ways["1"] - ways["2"], axis=1)
    with open_root(str(HZZ)) as file:
        tree = file.tree("events")
        plan = chosen.bind(tree)
        budget = 40_000
        wide = math.ceil(tree.bytes_per_entry((*plan.first, *plan.rest)) * tree.entries / budget)
        found = list(chunks(plan, tree, budget=budget))
    assert len(found) > 2 * wide
    assert sum(kept for _, kept, _ in found) == len(jets)
    assert [end for end, _, _ in found] == sorted({end for end, _, _ in found})
    got = ak.concatenate([arrays["m"] for _, _, arrays in found if arrays])
    assert got.tolist() == expected.tolist()
