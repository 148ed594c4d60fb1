"""A name in a query is delivered or is an error. A pattern selects the readable branches."""

import json
import re
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from servicex_server.columnar.writing.root_writer import TTreeWriter
from servicex_server.errors import FormatError
from servicex_server.model import CheckSpec, Limits, Outcome, Replica, ResultFormat, TaskSpec
from servicex_server.worker.transform import check, transform
from tests.support import sample

X = np.arange(5.0)


def done(
    path: Path, target: Path, *subqueries: dict[str, Any], result_format: str = "parquet"
) -> Outcome:
    """Do the work of a query on one file."""
    spec = TaskSpec(
        request_id="r",
        file_id=1,
        attempt=1,
        replicas=(Replica(str(path)),),
        language="uproot-raw",
        selection=json.dumps(subqueries),
        format=ResultFormat(result_format),
        object_name="x",
        upload_url=target.as_uri(),
        limits=Limits(),
    )
    return transform(spec)


def refused(path: Path, target: Path, *subqueries: dict[str, Any], **options: Any) -> str:
    """Return the error of a query on one file, which leaves no result and fails the dry run."""
    outcome = done(path, target, *subqueries, **options)
    assert outcome.error is not None
    assert not target.exists()
    selection, result_format = json.dumps(subqueries), options.get("result_format", "parquet")
    spec = CheckSpec((Replica(str(path)),), "uproot-raw", selection, ResultFormat(result_format))
    assert check(spec, patience=10) == outcome.error
    assert outcome.error.blame in ("query", "file")
    return f"{outcome.error.message} ({outcome.error.hint})"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Write a tree with a flag and numbers, in a folder and at the top, and two histograms."""
    path = tmp_path / "made.root"
    with uproot.recreate(path) as file:
        for name in ("Events", "nominal/tree"):
            file.mktree(name, {"met": "f8", "HLT_mu": "?", "nMuon": "i4", "Muon_n": "i4"})
            integers = X.astype("i4")
            file[name].extend({"met": X, "HLT_mu": X > 2, "nMuon": integers, "Muon_n": integers})
        file["cutflow"] = np.histogram(X)
        file["deep/cutflow"] = np.histogram(X)
    return path


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"filter_name": ["met", "HLT_mo"]}, "no branch HLT_mo .*did you mean HLT_mu"),
        ({"filter_name": ["met", "lead"], "aliases": {"leda": "met"}}, "did you mean leda"),
        ({"filter_name": ["Moun_*", "/Jte/"]}, "no branch of tree Events matches"),
        ({"filter_name": "/uon/"}, "no branch of tree Events matches"),
        ({"filter_name": "met", "filter_typename": "int32_t"}, "filter_typename does not select"),
        ({"expressions": ["met", "HLT_mo"]}, "no branch HLT_mo .*did you mean HLT_mu"),
        ({"filter_name": "met", "cut": "HLT_mo"}, "no branch HLT_mo .*did you mean HLT_mu"),
    ],
)
def test_missing_name_fails_the_file(
    made: Path, tmp_path: Path, filters: dict[str, Any], words: str
) -> None:
    """The error suggests similar names, also if the query has other names that exist."""
    assert re.search(words, refused(made, tmp_path / "out", {"treename": "Events", **filters}))


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["met", "HLT_*", "Jet_*"], ["met", "HLT_mu"]),
        (["/Muon/"], ["Muon_n"]),
        (["/muon/i"], ["Muon_n"]),
        (["/ .* muon/ix"], ["nMuon", "Muon_n"]),
        (["/met"], ["met"]),
        (["twice", "met"], ["met", "twice"]),
    ],
)
def test_filters_deliver_names_and_aliases(
    made: Path, tmp_path: Path, names: list[str], columns: list[str]
) -> None:
    """A pattern beside others may match nothing, and an alias is a column like a branch."""
    query = {"treename": "Events", "filter_name": names, "aliases": {"twice": "2 * met"}}
    outcome = done(made, tmp_path / "out", query)
    assert outcome.error is None
    table = ak.from_parquet(tmp_path / "out")
    assert table.fields == columns
    values = {"met": X, "HLT_mu": X > 2, "twice": 2 * X}
    assert all(table[one].tolist() == values.get(one, X).tolist() for one in columns)
    assert ("Jet_*: no branch matches it" in outcome.log_tail) == ("Jet_*" in names)


@pytest.mark.parametrize(("missing", "value"), [("null", None), ("false", False)])
@pytest.mark.parametrize("key", ["filter_name", "expressions"])
def test_missing_name_is_filled_on_request(
    made: Path, tmp_path: Path, missing: str, value: object, key: str
) -> None:
    """With ``missing``, files with different trigger menus give the same columns."""
    query = {"treename": "Events", key: ["met", "HLT_mu", "HLT_e"], "missing": missing}
    assert done(made, tmp_path / "out", query).error is None
    table = ak.from_parquet(tmp_path / "out")
    assert table.fields == ["met", "HLT_mu", "HLT_e"]
    assert table["HLT_mu"].tolist() == (X > 2).tolist()
    assert table["HLT_e"].tolist() == [value] * len(X)
    query |= {"cut": "(HLT_e == 1) | (HLT_mu == 1)"}
    outcome = done(made, tmp_path / "cut", query | {"missing": "false"})
    assert outcome.events_written == 2


@pytest.mark.parametrize("result_format", ["root-file", "root-rntuple"])
def test_missing_flag_is_false_in_root_formats(
    made: Path, tmp_path: Path, result_format: str
) -> None:
    """A column of false is boolean, and each format can hold it."""
    query = {"treename": "Events", "expressions": ["met", "HLT_e"], "missing": "false"}
    assert done(made, tmp_path / "out", query, result_format=result_format).error is None
    with uproot.open({tmp_path / "out": "Events"}) as tree:
        assert tree["HLT_e"].array().tolist() == [False] * len(X)


def test_named_group_is_delivered_beside_others(tmp_path: Path) -> None:
    """A split object becomes a record of its members, as in a query for it alone."""
    path = sample("uproot-small-evnt-tree-fullsplit.root")
    query = {"treename": "tree", "filter_name": ["evt/P3", "evt/I16"]}
    assert done(path, tmp_path / "out", query).error is None
    table = ak.from_parquet(tmp_path / "out")
    with uproot.open({path: "tree"}) as tree:
        expected = tree["evt/P3"].array()
        assert len(table.fields) == 2
        group = next(one for one in table.fields if one != "I16")
        assert [list(one.values()) for one in table[group].tolist()] == [
            list(one.values()) for one in expected.tolist()
        ]
        assert table["I16"].tolist() == tree["evt/I16"].array().tolist()


@pytest.mark.parametrize("result_format", ["root-file", "root-rntuple"])
@pytest.mark.parametrize(
    ("tree", "output"),
    [("Events;1", "Events"), ("/Events", "Events"), ("nominal/tree", "nominal/tree")],
)
def test_tree_of_the_result_opens_by_its_name(
    made: Path, tmp_path: Path, tree: str, output: str, result_format: str
) -> None:
    """The writer drops a cycle and a leading slash, and creates a folder."""
    query = {"treename": tree, "filter_name": "met"}
    assert done(made, tmp_path / "out", query, result_format=result_format).error is None
    with uproot.open(tmp_path / "out") as file:
        assert file[output]["met"].array().tolist() == X.tolist()
        assert f"{output};1" in file.keys()  # noqa: SIM118  # it is not a dictionary


@pytest.mark.parametrize(
    ("copies", "copied"),
    [
        (["cutflow"], ["cutflow"]),
        (["/deep/cutflow;1"], ["deep/cutflow"]),
        (["/cut.*/"], ["cutflow"]),
        (["*cutflow", "h_*"], ["cutflow", "deep/cutflow"]),
    ],
)
def test_selected_histograms_are_copied(
    made: Path, tmp_path: Path, copies: list[str], copied: list[str]
) -> None:
    """A regular expression matches from the start of the path, so objects in folders stay out."""
    query = {"copy_histograms": copies}
    assert done(made, tmp_path / "out", query, result_format="root-file").error is None
    with uproot.open(tmp_path / "out") as file:
        found = [one.partition(";")[0] for one, kind in file.classnames().items() if "TH1" in kind]
    assert found == copied


def test_unreadable_object_is_left_out_or_an_error(tmp_path: Path) -> None:
    """Selected by a pattern, it is left out and logged. Selected by name, it fails the file."""
    bad = sample("uproot-issue209.root")  # a TEfficiency that uproot cannot read
    outcome = done(bad, tmp_path / "all", {"copy_histograms": "*"}, result_format="root-file")
    assert outcome.error is None
    assert "TEfficiencyName: object TEfficiencyName cannot be read" in outcome.log_tail
    with uproot.open(tmp_path / "all") as file:
        assert file.keys() == []
    named = {"copy_histograms": "TEfficiencyName"}
    error = done(bad, tmp_path / "named", named, result_format="root-file").error
    assert error is not None
    assert (error.kind, error.blame) == ("Unreadable", "file")


def test_tree_that_cannot_be_written_fails_the_file(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer writes its events before the first object, and does not leave the tree out."""

    def extend(self: TTreeWriter, tree: Any, layouts: dict[str, Any]) -> None:
        del self, tree, layouts
        raise FormatError("a list is too long")

    monkeypatch.setattr(TTreeWriter, "_extend", extend)
    queries = [{"treename": "Events", "filter_name": "met"}, {"copy_histograms": "*"}]
    error = done(made, tmp_path / "out", *queries, result_format="root-file").error
    assert error is not None
    assert (error.kind, error.message) == ("Format", "a list is too long")


@pytest.mark.parametrize(
    ("queries", "words"),
    [
        ([{"copy_histograms": ["cutflow", "cutfow"]}], "no object cutfow .*did you mean cutflow"),
        ([{"copy_histograms": "h_*"}], "no object matches h_"),
        ([{"copy_histograms": "Events"}], "Events is a TTree, which is not copied"),
        (
            [{"treename": {"Events": "cutflow"}}, {"copy_histograms": "cutflow"}],
            "two objects of the result are called cutflow",
        ),
        (
            [{"treename": {"Events": "deep"}}, {"copy_histograms": "*cutflow"}],
            "deep cannot be an object of the result and the folder",
        ),
    ],
)
def test_invalid_histogram_selection_fails_the_file(
    made: Path, tmp_path: Path, queries: list[dict[str, Any]], words: str
) -> None:
    """A missing histogram, and one that clashes with a tree, are errors of the query."""
    assert re.search(words, refused(made, tmp_path / "out", *queries, result_format="root-file"))


def test_pattern_leaves_out_unreadable_branches(tmp_path: Path) -> None:
    """``*`` gives all readable branches, and the log has the others. A name is an error."""
    path = sample("uproot-issue327.root")
    outcome = done(path, tmp_path / "out", {"treename": "DstTree", "filter_name": "*"})
    assert outcome.error is None
    assert "fTracks.fTPCEta: branch fTracks.fTPCEta has 0 entries" in outcome.log_tail
    query = {"treename": "DstTree", "filter_name": ["*", "fTracks.fTPCEta"]}
    assert "fTracks.fTPCEta has 0 entries" in refused(path, tmp_path / "named", query)
