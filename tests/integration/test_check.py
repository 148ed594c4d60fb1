"""What is said of a query before the work is what the work would say; and nothing is left of it."""

import json
import tempfile
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from servicex_server.columnar.column_plan import ColumnPlan
from servicex_server.columnar.reading.trees import Tree
from servicex_server.errors import ErrorRecord, QueryTypeError
from servicex_server.model import CheckSpec, Limits, Replica, ResultFormat, TaskSpec
from servicex_server.worker import transform
from tests.support import sample

HZZ = sample("uproot-HZZ.root")
FILES = [
    ("uproot-HZZ.root", "events"),
    ("uproot-Zmumu.root", "events"),
    ("uproot-issue371.root", "Header"),
    ("uproot-vectorVectorDouble.root", "t"),
    ("uproot-sample-6.20.04-uncompressed.root", "sample"),
    ("uproot-stl_containers.root", "tree"),
    ("uproot-ntpl001_staff_rntuple_v1-0-0-0.root", "Staff"),
    ("uproot-issue431b.root", "E"),
]


def found(
    file: Path | str, result_format: ResultFormat, language: str = "uproot-raw", **query: Any
) -> tuple[ErrorRecord | None, ErrorRecord | None]:
    """Return what the check and the work say about a query."""
    selection = query.get("text") or json.dumps([{"treename": "events"} | query])
    replicas = (Replica(str(file)),)
    said = transform.check(CheckSpec(replicas, language, selection, result_format), patience=5)
    with tempfile.TemporaryDirectory() as folder:
        url = (Path(folder) / "x").as_uri()
        spec = TaskSpec("r", 1, 1, replicas, language, selection, result_format, "x", url, Limits())
        return said, transform.transform(spec).error


@pytest.mark.parametrize("result_format", ResultFormat)
@pytest.mark.parametrize(("name", "tree"), FILES)
def test_a_check_refuses_what_the_work_would(
    name: str, tree: str, result_format: ResultFormat
) -> None:
    """All columns of files of many kinds, in each format: it refuses no more and no less."""
    said, worked = found(sample(name), result_format, treename=tree)
    if said is None or said.blame == "query":
        assert said == worked
    else:
        # which of a branch's oddities is met first depends on what is read of it
        assert worked is not None
        assert (said.kind, said.blame) == (worked.kind, worked.blame)


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ({"expressions": ["NJet"]}, None),
        ({"expressions": ["Njet"]}, "UnknownName"),
        ({"treename": "evnts"}, "UnknownName"),
        ({"expressions": ["Jet_Px"], "cut": "Jet_Px > 20"}, None),
        ({"expressions": ["NJet"], "cut": "Jet_Px > 20"}, "QueryType"),
        ({"expressions": ["Jet_Px"], "aliases": {"Jet_Px": "Jet_Px"}}, "Query"),
        ({"expressions": ["x"], "aliases": {"x": "x + 1"}}, "Query"),
        ({"expressions": ["max(Jet_Px)"]}, "Format"),
        ({"expressions": ["fill_none(max(Jet_Px), 0)"]}, None),
        ({"expressions": ["NJet / max(NJet, axis=None)"]}, "QueryType"),
        ({"expressions": ["sort(NJet)"]}, "QueryType"),
        ({"expressions": ["NJet"], "cut": "combinations(Jet_Px, 2)"}, "QueryType"),
        ({"expressions": ["Jet_Px[argmax(Jet_Py)]"]}, "QueryType"),
        ({"expressions": ["Jet_Px[:, 0]"], "cut": "NJet > 0"}, None),
        ({"treename": ["events", "nope"]}, None),
        ({"treename": ["events", "nope"], "fail_on_missing_trees": True}, "UnknownName"),
    ],
)
def test_a_query_for_a_tree_is_judged_as_by_the_work(query: dict[str, Any], kind: str) -> None:
    """What is sound passes, and what is not is named in the same words."""
    said, worked = found(HZZ, ResultFormat.TTREE, **query)
    assert (said.kind if said else None) == kind
    assert said == worked


def test_two_trees_that_make_no_table_are_refused(tmp_path: Path) -> None:
    """What the writer says of the second tree is known without entries too."""
    path = tmp_path / "two.root"
    with uproot.recreate(path) as file:
        file.mktree("a", {"x": "f4"}).extend({"x": np.zeros(3, "f4")})
        file.mktree("b", {"y": "f4"}).extend({"y": np.zeros(3, "f4")})
    said, worked = found(path, ResultFormat.PARQUET, treename=["a", "b"])
    assert said is not None
    assert said.kind == "Format"
    assert said == worked


def test_an_error_that_entries_cure_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails on no numbers and works on some refuses nothing."""
    compute = ColumnPlan.compute

    def on_some(plan: ColumnPlan, tree: Tree, start: int, stop: int, *, typed: bool) -> Any:
        if start == stop:
            raise QueryTypeError("an empty column has no type")
        return compute(plan, tree, start, stop, typed=typed)

    monkeypatch.setattr(ColumnPlan, "compute", on_some)
    said, worked = found(HZZ, ResultFormat.PARQUET, expressions=["NJet"])
    assert (said, worked) == (None, None)


def test_what_only_values_show_is_not_seen(tmp_path: Path) -> None:
    """Lists of different lengths have one type: the check passes, and the work says it."""
    path = tmp_path / "lists.root"
    with uproot.recreate(path) as file:
        lists = {"x": ak.Array([[1.0], [1.0]]), "y": ak.Array([[1.0], [1.0, 2.0]])}
        file.mktree("events", {"x": "var * float64", "y": "var * float64"}).extend(lists)
    said, worked = found(path, ResultFormat.PARQUET, expressions=["x + y"])
    assert said is None
    assert worked is not None
    assert worked.kind == "QueryType"


def test_the_next_replica_is_asked(tmp_path: Path) -> None:
    """A copy that is not there says nothing about the query; if none is, that is what is said."""
    selection = '[{"treename": "events", "filter_name": "NJett"}]'
    nowhere = Replica(str(tmp_path / "no.root"))
    for replicas, kind in (((nowhere, Replica(str(HZZ))), "UnknownName"), ((nowhere,), "Missing")):
        spec = CheckSpec(replicas, "uproot-raw", selection, ResultFormat.PARQUET)
        said = transform.check(spec, patience=5)
        assert said is not None
        assert said.kind == kind


def test_code_is_not_run(tmp_path: Path) -> None:
    """A function of the user is not called, and its file not opened."""
    text = "ZGVmIHJ1bl9xdWVyeShwYXRoKToKICAgIHJldHVybiB7fQ=="
    spec = CheckSpec((Replica("/no/such.root"),), "python", text, ResultFormat.PARQUET)
    assert transform.check(spec, patience=5) is None


@pytest.mark.parametrize("branch", ["NJet", "NJett"])
def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, branch: str) -> None:
    """The result that is begun to ask the writer is gone with its folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    selection = json.dumps([{"treename": "events", "filter_name": branch}])
    for result_format in ResultFormat:
        spec = CheckSpec((Replica(str(HZZ)),), "uproot-raw", selection, result_format)
        transform.check(spec, patience=5)
    assert list(tmp_path.iterdir()) == []
