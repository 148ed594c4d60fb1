"""Files that do not match the expectations of a query, in both languages.

A file gives its content, or an error that names the branch; never a result that is partly right.
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from servicex_server.columnar.reading.decompression import DecompressionError, decompress
from servicex_server.columnar.reading.trees import open_root
from servicex_server.errors import UnreadableError
from servicex_server.model import Limits, Outcome, Replica, ResultFormat, TaskSpec
from servicex_server.worker.transform import transform
from tests.integration.func_adl_cases import query
from tests.support import sample

CLUSTERS, CLUSTER = 4, 2000
X = np.arange(CLUSTERS * CLUSTER, dtype="f8")

Asked = Callable[[str, str], tuple[str, str]]
"""A language and its text, from a tree and a column."""


def raw(tree: str, column: str) -> tuple[str, str]:
    """Ask for a column by its name."""
    return "uproot-raw", json.dumps([{"treename": tree, "filter_name": [column]}])


def func_adl(tree: str, column: str) -> tuple[str, str]:
    """Ask for a column of each event, under its name."""
    return "uproot", query(f"{{'{column}': e['{column}']}}", tree)


both_languages = pytest.mark.parametrize("ask", [raw, func_adl])


def done(
    asked: tuple[str, str], path: Path, target: Path, result_format: str = "parquet"
) -> Outcome:
    """Do the work on one file, in small ranges."""
    language, selection = asked
    return transform(
        TaskSpec(
            request_id="r",
            file_id=1,
            attempt=1,
            replicas=(Replica(str(path)),),
            language=language,
            selection=selection,
            format=ResultFormat(result_format),
            object_name="x",
            upload_url=target.as_uri(),
            limits=Limits(chunk=16_000),
        )
    )


def made(path: Path, *, rntuple: bool, columns: dict[str, Any]) -> Path:
    """Write columns to ``t`` in several clusters, compressed by zlib, which has a checksum."""
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        types = {name: ak.type(ak.Array(array)).content for name, array in columns.items()}
        tree = (file.mkrntuple if rntuple else file.mktree)("t", types)
        for start in range(0, len(X), CLUSTER):
            tree.extend({name: array[start : start + CLUSTER] for name, array in columns.items()})
    return path


@both_languages
def test_corrupt_basket_is_an_error(tmp_path: Path, ask: Asked) -> None:
    """The error names the branch, there is no result, and other branches can still be read."""
    path = tmp_path / "x.root"
    made(path, columns={"x": X, "y": X}, rntuple=False)
    with uproot.open({path: "t"}) as plain:
        place, length = plain["x"].basket_chunk_cursor(2)[1].index, 60
    content = bytearray(path.read_bytes())
    content[place + 100 : place + 100 + length] = b"\x5a" * length
    path.write_bytes(content)
    only_x_is_corrupt(ask, path, tmp_path / "out")


@both_languages
def test_corrupt_rntuple_page_is_an_error(tmp_path: Path, ask: Asked) -> None:
    """The error names the field of the page, and other fields can still be read."""
    path = made(tmp_path / "x.root", columns={"x": X, "y": X}, rntuple=True)
    content = path.read_bytes()
    start, stop = page(content, X[2 * CLUSTER])
    middle = (start + stop) // 2
    path.write_bytes(content[:middle] + b"\x5a" * (stop - middle) + content[stop:])
    only_x_is_corrupt(ask, path, tmp_path / "out")


def only_x_is_corrupt(ask: Asked, path: Path, target: Path) -> None:
    """Ask for the column that is, which is named, and for the other one, which is delivered."""
    outcome = done(ask("t", "x"), path, target)
    assert outcome.error is not None
    assert outcome.error.kind == "Corrupt"
    assert f" x of {path} is corrupt" in outcome.error.message
    assert not target.exists()
    assert done(ask("t", "y"), path, target).error is None
    assert ak.from_parquet(target)["y"].to_numpy().tolist() == X.tolist()


def page(content: bytes, first: float) -> tuple[int, int]:
    """Return where the page lies whose first number is this."""
    for found in re.finditer(b"ZL\x08", content):
        sizes = content[found.end() : found.end() + 6]
        packed, size = (int.from_bytes(part, "little") for part in (sizes[:3], sizes[3:]))
        stop = found.end() + 6 + packed
        with suppress(DecompressionError):
            data = decompress(content[found.start() : stop], size)
            if np.frombuffer(data, "f8", 1)[0] == first:
                return found.end() + 6, stop
    raise LookupError(first)


@both_languages
def test_result_keeps_the_type_of_the_branch_in_its_file(tmp_path: Path, ask: Asked) -> None:
    """The branch has integers in one file, and floats or lists in the next."""
    kinds = {"i4": X.astype("i4"), "f8": X, "list": ak.unflatten(X, np.full(len(X), 1))}
    for name, array in kinds.items():
        path = made(tmp_path / f"{name}.root", rntuple=False, columns={"x": array})
        assert done(ask("t", "x"), path, tmp_path / name).error is None
        got = ak.from_parquet(tmp_path / name)["x"]
        assert ak.array_equal(got, array, check_regular=False)


@pytest.mark.parametrize(
    "asked",
    [
        ("uproot-raw", json.dumps([{"treename": "t", "expressions": ["y"], "cut": "x > 1"}])),
        ("uproot", query("Where(lambda e: e.x > 1).Select(lambda e: {'y': e.y})", "t")),
    ],
    ids=["raw", "func_adl"],
)
def test_cut_on_a_branch_of_the_wrong_type_fails_that_file(
    tmp_path: Path, asked: tuple[str, str]
) -> None:
    """A cut on a number, where a file has a list of them, is an error of the query on that file."""
    good = made(tmp_path / "a.root", rntuple=False, columns={"x": X, "y": X})
    lists = ak.unflatten(X, np.full(len(X), 1))
    bad = made(tmp_path / "b.root", rntuple=False, columns={"x": lists, "y": X})
    assert done(asked, good, tmp_path / "good").events_written == len(X) - 2
    outcome = done(asked, bad, tmp_path / "bad")
    assert outcome.error is not None
    assert outcome.error.blame == "query"
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("result_format", ResultFormat)
def test_trees_of_different_length_keep_their_lengths(
    tmp_path: Path, result_format: ResultFormat
) -> None:
    """Two trees of a file are two trees of the result. In Parquet, a column names the tree."""
    path = tmp_path / "x.root"
    with uproot.recreate(path) as file:
        for name, count in (("long", 5000), ("short", 3)):
            file.mktree(name, {"x": "f8"}).extend({"x": X[:count]})
    both = [{"treename": name, "expressions": ["x"]} for name in ("long", "short")]
    target = tmp_path / "out"
    asked = ("uproot-raw", json.dumps(both))
    assert done(asked, path, target, result_format).error is None
    if result_format is ResultFormat.PARQUET:
        table = ak.from_parquet(target)
        counts = {name: int(ak.sum(table["treename"] == name)) for name in ("long", "short")}
    else:
        with uproot.open(target) as file:
            counts = {name: len(file[name]["x"].array()) for name in ("long", "short")}
    assert counts == {"long": 5000, "short": 3}
    assert done(func_adl("short", "x"), path, target).events_written == 3


@both_languages
@pytest.mark.parametrize("result_format", ResultFormat)
def test_empty_tree_gives_typed_columns_without_rows(
    tmp_path: Path, ask: Asked, result_format: ResultFormat
) -> None:
    """The tree has no entries, and its branches have no baskets."""
    path, target = tmp_path / "x.root", tmp_path / "out"
    with uproot.recreate(path) as file:
        file.mktree("t", {"x": "f4", "j": "var * int16"})
    for column, kind in (("x", "float32"), ("j", "var * int16")):
        outcome = done(ask("t", column), path, target, result_format)
        assert (outcome.error, outcome.events_read, outcome.events_written) == (None, 0, 0)
        if result_format is ResultFormat.PARQUET:
            got = ak.from_parquet(target)[column]
        else:
            with uproot.open(target) as file:
                got = file[file.keys()[0]][column].array()
        assert str(got.type) == f"0 * {kind}"


@both_languages
def test_branch_without_baskets_in_a_tree_with_entries_is_rejected(
    tmp_path: Path, ask: Asked
) -> None:
    """It has no value for any event. The error names it, and ``*`` leaves it out."""
    path, empty = sample("uproot-issue327.root"), "fTracks.fTPCEta"
    outcome = done(ask("DstTree", empty), path, tmp_path / "out")
    assert outcome.error is not None
    assert f"branch {empty} has 0 entries, but its tree has 98" in outcome.error.message
    assert done(raw("DstTree", "*"), path, tmp_path / "out").error is None
    table = ak.from_parquet(tmp_path / "out")
    assert len(table) == 98
    assert empty not in table.fields


def with_texts_of_root(path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Write texts three times as ROOT does: of an empty one not even its length."""
    writing = uproot.writing._cascadetree.Tree
    plain = writing.write_string_basket

    def write(
        self: Any, sink: Any, name: str, compression: Any, array: Any, offsets: Any
    ) -> tuple[Any, ...]:
        sizes = np.diff(offsets.astype(np.int64))
        array = np.delete(array, offsets[:-1][sizes == 1])
        places = np.concatenate([[0], np.cumsum(np.where(sizes == 1, 0, sizes))])
        written: tuple[Any, ...] = plain(
            self, sink, name, compression, array, places.astype(offsets.dtype)
        )
        return written

    with monkeypatch.context() as patched, uproot.recreate(path) as file:
        patched.setattr(writing, "write_string_basket", write)
        tree = file.mktree("t", {"process": "string"})
        for _ in range(3):
            tree.extend({"process": ak.Array(texts)})


@both_languages
@pytest.mark.parametrize("result_format", ResultFormat)
@pytest.mark.parametrize(
    "texts",
    [
        ["eBrem", "", "", "phot", "", "x" * 254, "y" * 255, "z" * 70_000, ""],
        ["", "compt", "", ""],
        ["", "", ""],
        ["msc", "eIoni"],
    ],
    ids=["ends", "begins", "all", "none"],
)
def test_empty_texts_of_root_are_read(
    tmp_path: Path,
    ask: Asked,
    result_format: ResultFormat,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Branches of ``char*``, as Geant4 writes them, come back from each format."""
    path, target = tmp_path / "x.root", tmp_path / "out"
    with_texts_of_root(path, texts, monkeypatch)
    assert done(ask("t", "process"), path, target, result_format).error is None
    if result_format is ResultFormat.PARQUET:
        got = ak.from_parquet(target)["process"]
    else:
        with uproot.open(target) as file:
            got = file[file.keys()[0]]["process"].array()
    assert got.tolist() == 3 * texts


def test_variant_is_refused_by_name_and_left_out_by_a_pattern(tmp_path: Path) -> None:
    """Uproot reads a ``std::variant`` wrongly from the second cluster on."""
    path = tmp_path / "x.root"
    with uproot.recreate(path) as file:
        file.mkrntuple("t", {"x": X, "v": X, "w": ak.zip({"pt": X})})
    with open_root(str(path)) as opened:
        tree = opened.tree("t")
        record = tree.names["v"].record
        record.struct_role = uproot.const.RNTupleFieldRole.VARIANT
        assert sorted(tree.select(["*"], []).names) == ["w", "x"]
        assert "std::variant" in tree.select(["*"], []).left_out["v"]
        with pytest.raises(UnreadableError, match="field v holds a std::variant"):
            tree.read(["v"], 0, 3)
        assert tree.read(["x"], 0, 3)["x"].tolist() == [0, 1, 2]
