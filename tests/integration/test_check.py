"""The dry run of a query gives the error that the work would give, and leaves no files."""

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
    """Return the errors of the dry run and of the work for a query."""
    selection = query.get("text") or json.dumps([{"treename": "events"} | query])
    replicas = (Replica(str(file)),)
    said = transform.check(CheckSpec(replicas, language, selection, result_format), patience=5)
    with tempfile.TemporaryDirectory() as folder:
        url = (Path(folder) / "x").as_uri()
        spec = TaskSpec("r", 1, 1, replicas, language, selection, result_format, "x", url, Limits())
        return said, transform.transform(spec).error


@pytest.mark.parametrize("result_format", ResultFormat)
@pytest.mark.parametrize(("name", "tree"), FILES)
def test_dry_run_rejects_all_columns_exactly_if_the_work_fails(
    name: str, tree: str, result_format: ResultFormat
) -> None:
    """The query asks for all columns of files of many kinds, in each format."""
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
def test_dry_run_gives_the_same_error_as_the_work(query: dict[str, Any], kind: str) -> None:
    """A sound query passes, and a wrong one gets the same message."""
    said, worked = found(HZZ, ResultFormat.TTREE, **query)
    assert (said.kind if said else None) == kind
    assert said == worked


def test_dry_run_rejects_two_trees_with_different_columns(tmp_path: Path) -> None:
    """The writer reports the second tree without entries, too."""
    path = tmp_path / "two.root"
    with uproot.recreate(path) as file:
        file.mktree("a", {"x": "f4"}).extend({"x": np.zeros(3, "f4")})
        file.mktree("b", {"y": "f4"}).extend({"y": np.zeros(3, "f4")})
    said, worked = found(path, ResultFormat.PARQUET, treename=["a", "b"])
    assert said is not None
    assert said.kind == "Format"
    assert said == worked


def test_dry_run_ignores_an_error_that_occurs_only_without_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A query that fails on no entries and works on some is accepted."""
    compute = ColumnPlan.compute

    def on_some(plan: ColumnPlan, tree: Tree, start: int, stop: int, *, typed: bool) -> Any:
        if start == stop:
            raise QueryTypeError("an empty column has no type")
        return compute(plan, tree, start, stop, typed=typed)

    monkeypatch.setattr(ColumnPlan, "compute", on_some)
    said, worked = found(HZZ, ResultFormat.PARQUET, expressions=["NJet"])
    assert (said, worked) == (None, None)


def test_dry_run_accepts_an_error_that_only_values_show(tmp_path: Path) -> None:
    """Lists of different lengths have one type: the dry run passes, and the work fails."""
    path = tmp_path / "lists.root"
    with uproot.recreate(path) as file:
        lists = {"x": ak.Array([[1.0], [1.0]]), "y": ak.Array([[1.0], [1.0, 2.0]])}
        file.mktree("events", {"x": "var * float64", "y": "var * float64"}).extend(lists)
    said, worked = found(path, ResultFormat.PARQUET, expressions=["x + y"])
    assert said is None
    assert worked is not None
    assert worked.kind == "QueryType"


def test_dry_run_uses_the_next_replica(tmp_path: Path) -> None:
    """A missing replica says nothing about the query. If all are missing, this is the error."""
    selection = '[{"treename": "events", "filter_name": "NJett"}]'
    nowhere = Replica(str(tmp_path / "no.root"))
    for replicas, kind in (((nowhere, Replica(str(HZZ))), "UnknownName"), ((nowhere,), "Missing")):
        spec = CheckSpec(replicas, "uproot-raw", selection, ResultFormat.PARQUET)
        said = transform.check(spec, patience=5)
        assert said is not None
        assert said.kind == kind


def test_dry_run_does_not_run_user_code(tmp_path: Path) -> None:
    """It does not call the user's function, and does not open the file."""
    text = "ZGVmIHJ1bl9xdWVyeShwYXRoKToKICAgIHJldHVybiB7fQ=="
    spec = CheckSpec((Replica("/no/such.root"),), "python", text, ResultFormat.PARQUET)
    assert transform.check(spec, patience=5) is None


@pytest.mark.parametrize("branch", ["NJet", "NJett"])
def test_dry_run_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, branch: str
) -> None:
    """It deletes the result that it began for the writer, with its folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    selection = json.dumps([{"treename": "events", "filter_name": branch}])
    for result_format in ResultFormat:
        spec = CheckSpec((Replica(str(HZZ)),), "uproot-raw", selection, result_format)
        transform.check(spec, patience=5)
    assert list(tmp_path.iterdir()) == []
