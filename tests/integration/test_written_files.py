"""All readers agree on a written file, whatever its types and however it is divided."""

import itertools
from pathlib import Path
from typing import Any

import awkward as ak
import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot
from awkward.contents import (
    BitMaskedArray,
    ByteMaskedArray,
    Content,
    IndexedOptionArray,
    ListArray,
    ListOffsetArray,
    NumpyArray,
    RecordArray,
    RegularArray,
    UnmaskedArray,
)
from awkward.index import Index8, Index64, IndexU8
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servicex_server.columnar.writing import parquet_pages
from servicex_server.columnar.writing import writer as writing
from servicex_server.columnar.writing.writer import Format, open_writer
from servicex_server.errors import FormatError

NUMBERS = ("bool i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8").split()
WORDS = ("", "a", "µ", "日本語", "x" * 40, "\N{SMILING FACE WITH OPEN MOUTH}", "\0")


def layouts(kind: Any, length: int, random: np.random.Generator) -> Content:
    """Return an awkward layout of a type, in one of the many ways to lay it out."""
    name, *inside = kind if isinstance(kind, tuple) else (kind,)
    if name in NUMBERS:
        return NumpyArray(random.integers(0, 2 if name == "bool" else 100, length).astype(name))
    if name in ("string", "bytes"):
        words = [WORDS[n] for n in random.integers(0, len(WORDS), length)]
        if name == "string":
            return ak.from_iter([*words, ""], highlevel=False)[:length]
        return ak.from_iter([word.encode() for word in [*words, ""]], highlevel=False)[:length]
    if name == "list":
        return _lists(inside[0], length, random)
    if name == "fixed":
        return RegularArray(layouts(inside[1], length * inside[0], random), inside[0], length)
    if name == "record":
        fields = {f"f{n}": layouts(one, length, random) for n, one in enumerate(inside)}
        return RecordArray(list(fields.values()), list(fields), length)
    return _options(inside[0], length, random)


def _lists(inside: Any, length: int, random: np.random.Generator) -> Content:
    counts = random.integers(0, 4, length) * (random.random(length) < random.random())
    stops = np.cumsum(counts)
    content = layouts(inside, int(counts.sum()) + 2, random)
    if random.random() < 0.5:
        return ListArray(Index64(stops - counts), Index64(stops), content)
    return ListOffsetArray(Index64(np.concatenate([[0], stops]).astype("i8")), content)


def _options(inside: Any, length: int, random: np.random.Generator) -> Content:
    valid = random.random(length) < random.choice([0, 0.5, 1])
    content = layouts(inside, length, random)
    match random.integers(4):
        case 0:
            return UnmaskedArray(content)
        case 1:
            return ByteMaskedArray(Index8(valid.view("i1")), content, valid_when=True)
        case 2:
            bits = IndexU8(np.packbits(valid, bitorder="little"))
            return BitMaskedArray(bits, content, valid_when=True, length=length, lsb_order=True)
    index = np.where(valid, random.permutation(length), -1)
    return IndexedOptionArray(Index64(index), content)


def _more(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    may_miss = inner.filter(lambda kind: kind[0] != "option").map(lambda kind: ("option", kind))
    return st.one_of(
        inner.map(lambda kind: ("list", kind)),
        may_miss,
        st.tuples(st.just("fixed"), st.integers(1, 3), inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda kinds: ("record", *kinds)),
    )


KINDS = st.recursive(st.sampled_from([*NUMBERS, "string", "bytes"]), _more, max_leaves=5)


def pieces(layout: Content, count: int) -> list[Content]:
    """Cut a layout into ranges, some of which may be empty."""
    edges = np.linspace(0, len(layout), count + 1).astype(int)
    return [layout[start:stop] for start, stop in itertools.pairwise(edges)]


def readings(path: Path) -> dict[str, list[Any]]:
    """Return column ``x`` of a Parquet file as all readers see it."""
    table = pq.read_table(path)
    table.validate(full=True)
    return {
        "pyarrow": table["x"].to_pylist(),
        "awkward": ak.from_parquet(path)["x"].to_list(),
        "polars": pl.read_parquet(path)["x"].to_list(),
        "duckdb": [row[0] for row in duckdb.read_parquet(str(path)).fetchall()],
    }


def kept(kind: ak.types.Type, *, missing: bool = False) -> str:
    """Return a type as text; Arrow has no lists of fixed length that may be missing."""
    types = ak.types
    if isinstance(kind, types.OptionType):
        return f"?{kept(kind.content, missing=True)}"
    if isinstance(kind, types.RecordType):
        inner = zip(kind.fields, kind.contents, strict=True)
        return str({name: kept(content, missing=missing) for name, content in inner})
    if isinstance(kind, types.RegularType | types.ListType) and not _is_text(kind):
        size = "var" if missing or isinstance(kind, types.ListType) else kind.size
        return f"{size} * {kept(kind.content)}"
    return str(kind)


def _is_text(kind: ak.types.Type) -> bool:
    return kind.parameter("__array__") in ("string", "bytestring")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=KINDS,
    length=st.integers(0, 40),
    seed=st.integers(0, 1 << 16),
    count=st.integers(1, 4),
    cluster=st.sampled_from([1, 200, 1 << 20]),
    page=st.sampled_from([8, 100, 1 << 20]),
)
def test_all_readers_agree_on_any_nested_type(
    tmp_path: Path, kind: Any, length: int, seed: int, count: int, cluster: int, page: int
) -> None:
    """They see the same values and types of nested lists, options, records and texts."""
    layout = layouts(kind, length, np.random.default_rng(seed))
    path = tmp_path / "x.parquet"
    with pytest.MonkeyPatch.context() as patch, open_writer(path, "parquet") as writer:
        patch.setattr(writing, "CLUSTER", cluster)
        patch.setattr(parquet_pages, "PAGE", page)
        for piece in pieces(layout, count):
            writer.write("t", {"x": piece})
    expected = ak.to_list(layout)
    for reader, values in readings(path).items():
        assert values == expected, reader
    assert kept(ak.from_parquet(path)["x"].type.content) == kept(layout.form.type)


EXACT: dict[str, Any] = {
    **{name: np.array([0, 1, 100, 3], name) for name in NUMBERS},
    **{name: np.array([np.iinfo(name).min, np.iinfo(name).max], name) for name in ("i1", "u4")},
    "i8 extremes": np.array([-(1 << 63), (1 << 63) - 1]),
    "u8 extremes": np.array([0, (1 << 64) - 1], "u8"),
    "all missing": ak.Array([None, None]),
    "empty lists": ak.Array([[], []]),
    "empty lists of floats": ak.Array([[1.0], [], []])[1:],
    "lists of nothing known": ak.Array([[[]], [], [[], []]]),
    "fixed of length 0": np.zeros((2, 0)),
    "categories": ak.str.to_categorical(["a", "b", "a"]),
    "a column like a keyword": ak.Array([{"element": 1, "list": [2]}]),
}


@pytest.mark.parametrize("name", EXACT)
def test_all_readers_agree_on_edge_cases(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.parquet"
    with open_writer(path, "parquet") as writer:
        writer.write("t", {"x": EXACT[name]})
    for reader, values in readings(path).items():
        assert values == ak.to_list(EXACT[name]), reader


@pytest.mark.parametrize("gaps", ["in none", "in all", "in one"])
def test_floats_of_optional_records_are_written_in_pages(
    tmp_path: Path, gaps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages with and without a missing record follow one another."""
    monkeypatch.setattr(parquet_pages, "PAGE", 16)
    path = tmp_path / "x.parquet"
    some = [{"a": 1.5, "b": [0.5, None]}] * 9
    records = {
        "in none": [*some, None],
        "in all": [value for pair in zip(some, [None] * 9, strict=True) for value in pair],
        "in one": [*some, *[None] * 9, *some],
    }[gaps]
    with open_writer(path, "parquet") as writer:
        writer.write("t", {"x": ak.Array(records)})
    for reader, values in readings(path).items():
        assert values == records, reader


TIMES = ("M8[D] M8[s] M8[ms] M8[us] M8[ns] m8[s] m8[ms] m8[us] m8[ns]").split()


@pytest.mark.parametrize("unit", TIMES)
def test_times_keep_their_unit(tmp_path: Path, unit: str) -> None:
    """Days, times and durations come back. Parquet has no seconds, so these are milliseconds."""
    path = tmp_path / "x.parquet"
    times = np.array([0, 1, 20_000, -3], unit)
    with open_writer(path, "parquet") as writer:
        writer.write("t", {"x": times, "listed": ak.unflatten(times, [3, 0, 1, 0])})
    got = ak.from_parquet(path)
    back = np.dtype("M8[ms]" if unit == "M8[s]" else unit)
    assert got.x.type.content == ak.types.NumpyType(back.name)
    assert np.array_equal(got.x.to_numpy(), times.astype(back))
    assert ak.num(got.listed).to_list() == [3, 0, 1, 0]
    assert np.array_equal(ak.flatten(got.listed).to_numpy(), times.astype(back))
    assert np.array_equal(pl.read_parquet(path)["x"].to_numpy(), times)


def test_day_out_of_range_is_rejected(tmp_path: Path) -> None:
    with (
        pytest.raises(FormatError, match="column x: a day"),
        open_writer(tmp_path / "x", "parquet") as writer,
    ):
        writer.write("t", {"x": np.array(["NaT", "2020-01-01"], "M8[D]")})


def test_special_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    """They are NaN, infinities, negative zero and the smallest floats."""
    path = tmp_path / "x.parquet"
    values = {
        name: np.array([np.nan, np.inf, -np.inf, -0.0, np.finfo(name).smallest_subnormal], name)
        for name in ("f2", "f4", "f8")
    }
    with open_writer(path, "parquet") as writer:
        writer.write("t", values)
    for name, array in values.items():
        assert ak.from_parquet(path)[name].to_numpy().tobytes() == array.tobytes()
        assert pl.read_parquet(path)[name].to_numpy().tobytes() == array.tobytes()


def test_many_pages_and_row_groups_are_one_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns of one collection share their offsets, and pages end between rows."""
    monkeypatch.setattr(writing, "CLUSTER", 1 << 20)
    monkeypatch.setattr(parquet_pages, "PAGE", 1 << 14)
    random = np.random.default_rng(5)
    counts = random.poisson(3, 60_000)
    columns: dict[str, Any] = {
        name: ak.unflatten(random.normal(size=int(counts.sum())).astype(name), counts)
        for name in ("f4", "f8")
    }
    other = random.poisson(1, len(counts))
    columns["i4"] = ak.unflatten(np.arange(other.sum(), dtype="i4"), other)
    columns["masked"] = ak.mask(np.arange(len(counts)), counts > 2)
    columns["deep"] = ak.unflatten(columns["f4"], np.full(20_000, 3))[np.arange(60_000) % 20_000]
    path = tmp_path / "x.parquet"
    with open_writer(path, "parquet") as writer:
        for start in range(0, 60_000, 7_000):
            writer.write("t", {k: a[start : start + 7_000] for k, a in columns.items()})
    assert pq.ParquetFile(path).num_row_groups > 2
    table = ak.from_parquet(path)
    for name, array in columns.items():
        assert ak.almost_equal(table[name], array, rtol=0, atol=0), name
    frame = pl.read_parquet(path)
    assert frame["f4"].explode().drop_nulls().to_list() == ak.flatten(columns["f4"]).to_list()
    total = duckdb.read_parquet(str(path)).aggregate("sum(list_sum(i4))").fetchall()
    assert total == [(int(ak.sum(columns["i4"])),)]


def test_writer_without_columns_or_rows_leaves_a_valid_file(tmp_path: Path) -> None:
    """The table has the columns that are known."""
    with open_writer(tmp_path / "none.parquet", "parquet"):
        pass
    assert pq.read_table(tmp_path / "none.parquet").shape == (0, 0)
    nothing = {"x": ak.Array([[1.5]])[:0], "y": np.zeros(0, "u2")}
    with open_writer(tmp_path / "rows.parquet", "parquet") as writer:
        writer.write("t", nothing)
    frame = pl.read_parquet(tmp_path / "rows.parquet")
    assert frame.schema == {"x": pl.List(pl.Float64), "y": pl.UInt16}
    assert duckdb.read_parquet(str(tmp_path / "rows.parquet")).fetchall() == []
    assert pq.read_schema(tmp_path / "rows.parquet").field("x").nullable is False


def test_readers_skip_rows_by_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns outside lists have their extremes, without NaN and without the sign of zero."""
    monkeypatch.setattr(writing, "CLUSTER", 1)
    path = tmp_path / "x.parquet"
    with open_writer(path, "parquet") as writer:
        for run in (1, 2):
            values = {
                "run": np.array([run, run + 10], "u4"),
                "big": np.array([run, (1 << 64) - 1], "u8"),
                "small": np.array([-run, run], "i1"),
                "nan": np.array([np.nan, run]),
                "zero": np.array([0.0, -1.0]),
                "gone": ak.Array([None, run]),
                "day": np.array([run, run + 1], "M8[D]"),
                "list": ak.Array([[run], []]),
            }
            writer.write("t", values)
    metadata = pq.read_metadata(path)
    assert metadata.num_row_groups == 2
    group = metadata.row_group(1)
    found = {group.column(n).path_in_schema: group.column(n).statistics for n in range(8)}
    assert (found["run"].min, found["run"].max) == (2, 12)
    assert (found["big"].min, found["big"].max) == (2, (1 << 64) - 1)
    assert (found["small"].min, found["small"].max) == (-2, 2)
    assert not found["nan"].has_min_max
    assert str(found["zero"].max) == "0.0"
    assert (found["gone"].null_count, found["gone"].min) == (1, 2)
    assert str(found["day"].max) == "1970-01-04"
    assert found["list.list.element"] is None
    late = duckdb.read_parquet(str(path)).filter("run > 11").project("run").fetchall()
    assert late == [(12,)]
    assert pl.scan_parquet(path).filter(pl.col("small") < -1).collect()["run"].to_list() == [2]


def test_second_tree_is_cast_to_the_types_of_the_first(tmp_path: Path) -> None:
    """Width and order of its columns may differ if the values fit."""
    path = tmp_path / "x.parquet"
    with open_writer(path, "parquet", tree_column=True) as writer:
        writer.write("a", {"i": np.array([1], "i4"), "f": ak.Array([[1.5]]), "o": ak.Array([None])})
        writer.write("a", {"i": np.array([2], "i4"), "f": ak.Array([[]]), "o": ak.Array([None])})
        writer.write("µ", {"f": np.array([[3]], "i2"), "i": np.array([7], "i8"), "o": [None]})
    assert pq.read_table(path).to_pylist() == [
        {"i": 1, "f": [1.5], "o": None, "treename": "a"},
        {"i": 2, "f": [], "o": None, "treename": "a"},
        {"i": 7, "f": [3.0], "o": None, "treename": "µ"},
    ]


UNFIT: dict[str, tuple[Any, Any, str]] = {
    "too large": (np.array([1], "i4"), np.array([1 << 40]), "only int64"),
    "negative": (np.array([1], "u8"), np.array([-1]), "only int64"),
    "fraction": (np.array([1]), np.array([0.5]), "only float64"),
    "inexact": (np.array([0.5]), np.array([(1 << 53) + 1]), "only int64"),
    "nan": (np.array([1]), np.array([np.nan]), "only float64"),
    "time": (np.array([1]), np.array([1], "M8[s]"), "is datetime64"),
    "missing": (np.array([1]), ak.Array([None, 1]), "missing values"),
    "text": (np.array([1]), ak.Array(["a"]), "is string"),
    "no text": (ak.Array(["a"]), np.array([1]), "is int64"),
    "bytes": (ak.Array(["a"]), ak.Array([b"a"]), "is bytes"),
    "list": (ak.Array([[1]]), np.array([1]), "was a list"),
    "text for a list": (ak.Array([[1]]), ak.Array(["a"]), "was a list"),
    "deeper": (ak.Array([[1]]), ak.Array([[[1]]]), "is var"),
    "length": (np.zeros((1, 2)), np.zeros((1, 3)), "another length"),
    "record": (ak.Array([{"a": 1}]), np.array([1]), "was a record"),
    "fields": (ak.Array([{"a": 1}]), ak.Array([{"b": 1}]), "other fields"),
    "known": (ak.Array([None]), np.array([1]), "was unknown"),
}


def write_trees(path: Path, trees: dict[str, Any]) -> None:
    """Write column ``x`` of several trees to a Parquet file."""
    with open_writer(path, "parquet", tree_column=True) as writer:
        for tree, array in trees.items():
            writer.write(tree, {"x": array})


@pytest.mark.parametrize("name", UNFIT)
def test_second_tree_that_does_not_fit_is_rejected(tmp_path: Path, name: str) -> None:
    """The writer does not write values that would change, and leaves no readable file."""
    first, second, words = UNFIT[name]
    path = tmp_path / "x.parquet"
    with pytest.raises(FormatError, match=f"of b have other types.*{words}"):
        write_trees(path, {"a": first, "b": second})
    with pytest.raises(pa.ArrowInvalid):
        pq.read_table(path)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (ak.Array([[1, "a"]]), "differ in type"),
        (ak.Array([{"r": [{}]}]), "no fields"),
        (ak.Array([[[1j]]]), "no complex128"),
        (np.array([1], "M8[h]"), "no datetime64"),
    ],
)
def test_error_names_an_unsupported_type(tmp_path: Path, array: Any, words: str) -> None:
    with (
        pytest.raises(FormatError, match=f"column x of type .*{words}"),
        open_writer(tmp_path / "x", "parquet") as writer,
    ):
        writer.write("t", {"x": array})


def baskets(path: Path, result_format: Format) -> int:
    """Return how many row groups, clusters or baskets of a branch a file has."""
    if result_format == "parquet":
        return int(pq.read_metadata(path).num_row_groups)
    with uproot.open({path: "t"}) as tree:
        if result_format == "root-file":
            return int(tree["x"].num_baskets)
        return len(tree.cluster_summaries)


@pytest.mark.parametrize("result_format", ["parquet", "root-file", "root-rntuple"])
def test_small_ranges_are_written_together(
    tmp_path: Path, result_format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer collects the events that a cut leaves of many ranges, and loses none."""
    monkeypatch.setattr(writing, "CLUSTER", 8_000)
    path = tmp_path / "x"
    with open_writer(path, result_format) as writer:
        for start in range(0, 2000, 10):
            number = np.arange(start, start + 10)
            x = ak.Array(np.arange(start * 3, start * 3 + 30)).to_numpy().reshape(10, 3)
            writer.write("t", {"x": ak.from_regular(x), "n": number, "word": ak.Array(["w"] * 10)})
    assert 5 < baskets(path, result_format) < 20
    if result_format == "parquet":
        got = ak.from_parquet(path)
    else:
        with uproot.open({path: "t"}) as tree:
            got = tree.arrays(["x", "n", "word"])
    assert got.n.to_list() == list(range(2000))
    assert ak.flatten(got.x).to_list() == list(range(6000))
    assert got.word.to_list() == ["w"] * 2000


def test_writer_keeps_only_events_that_pass_a_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a range with few events left, it keeps and counts only these."""
    path = tmp_path / "x"
    with open_writer(path, "parquet") as writer:
        for _ in range(4):
            lists = ak.unflatten(np.zeros(3_000_000, "f4"), np.full(300_000, 10))
            writer.write("t", {"x": lists[np.arange(300_000) % 1000 == 0]})
    assert pq.read_metadata(path).num_row_groups == 1
    assert len(pq.read_table(path)) == 1200


def test_an_rntuple_keeps_options_and_nesting(tmp_path: Path) -> None:
    """Missing values at any level, texts and lists in lists come back."""
    columns = {
        "missing": ak.Array([1.5, None, 2]),
        "inside": ak.Array([[1, None], [], [None]]),
        "outside": ak.Array([[1], None, []]),
        "both": ak.Array([[1, None], None, []]),
        "word": ak.Array(["a", None, "µ"]),
        "words": ak.Array([["a"], [], ["", "b"]]),
        "deep": ak.Array([[[1.5], []], [], [[2, 3]]]),
        "record": ak.Array([{"a": 1, "b": [None]}, {"a": None, "b": []}, {"a": 2, "b": [3]}]),
        "unmasked": ak.Array(UnmaskedArray(NumpyArray(np.arange(3)))),
    }
    with open_writer(tmp_path / "x", "root-rntuple") as writer:
        for part in (slice(0, 1), slice(1, 3)):
            writer.write("t", {name: array[part] for name, array in columns.items()})
    with uproot.open({tmp_path / "x": "t"}) as tuple_:
        got = tuple_.arrays()
    for name, array in columns.items():
        assert got[name].to_list() == array.to_list(), name
        assert got[name].type == array.type, name


def test_rntuple_rejects_a_record_that_may_be_missing(tmp_path: Path) -> None:
    """The library uproot stores such a record as a list of none or one."""
    with (
        pytest.raises(FormatError, match=r"column x of type .*a record may be missing"),
        open_writer(tmp_path / "x", "root-rntuple") as writer,
    ):
        writer.write("t", {"x": ak.Array([None, [{"a": 1}]])})
