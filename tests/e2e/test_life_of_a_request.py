"""A request from its submission to its results, against a real server process."""

import io
import json
from pathlib import Path
from typing import Any

import awkward as ak
import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot

from tests.support import Server, copies, sample

ZMUMU = sample("uproot-Zmumu.root")
HZZ = sample("uproot-HZZ.root")


def download(server: Server, status: dict[str, Any]) -> dict[str, bytes]:
    """Fetch all results by the links that need no keys."""
    names = [r["s3-object-name"] for r in server.results(status["request_id"])]
    body = {"request_id": status["request_id"], "file_list": names}
    answer = httpx.post(f"{server.url}/servicex/transformation/file-urls", json=body)
    assert answer.status_code == 200, answer.text
    return {name: httpx.get(uri[0]).content for name, uri in answer.json()["uris"].items()}


@pytest.mark.parametrize("result_format", ["parquet", "root-file", "root-rntuple"])
def test_delivered_columns_equal_those_of_uproot(server: Server, result_format: str) -> None:
    """In every format, the delivered columns equal those that uproot reads from the input."""
    status = server.run(
        file_list=[str(HZZ)],
        selection=json.dumps([{"treename": "events"}]),
        result_format=result_format,
    )
    assert (status["status"], status["files-completed"], status["files-failed"]) == (
        "Complete",
        1,
        0,
    )
    ((name, content),) = download(server, status).items()
    with uproot.open({HZZ: "events"}) as tree:
        expected = tree.arrays()
    if result_format == "parquet":
        assert name.endswith(".parquet")
        assert ".root" not in name
        table = pq.read_table(io.BytesIO(content))
        got = ak.from_arrow(table)
        assert table.column_names == expected.fields
    else:
        assert name.endswith(".root")
        with uproot.open(io.BytesIO(content)) as file:
            kind = "TTree" if result_format == "root-file" else "ROOT::RNTuple"
            assert file.classnames(cycle=False)["events"] == kind
            got = file["events"].arrays(expected.fields)
    for field in expected.fields:
        assert ak.array_equal(got[field], expected[field]), field


def test_cut_keeps_the_same_events_as_uproot(server: Server) -> None:
    """Expressions, aliases and a cut on objects give the same values as in uproot."""
    query = {
        "treename": "events",
        "expressions": ["pt", "NJet"],
        "aliases": {"pt": "sqrt(Jet_Px**2 + Jet_Py**2)"},
        "cut": "any(Jet_E > 60)",
    }
    status = server.run(file_list=[str(HZZ)], selection=json.dumps([query]))
    (content,) = download(server, status).values()
    got = ak.from_arrow(pq.read_table(io.BytesIO(content)))
    with uproot.open({HZZ: "events"}) as tree:
        all_events = tree.arrays(["Jet_Px", "Jet_Py", "Jet_E", "NJet"])
    kept = all_events[ak.any(all_events.Jet_E > 60, axis=1)]
    assert ak.array_equal(got.pt, np.sqrt(kept.Jet_Px**2 + kept.Jet_Py**2))
    assert got.NJet.tolist() == kept.NJet.tolist()
    (result,) = server.results(status["request_id"])
    assert result["total-events"] == 2421
    assert result["total-bytes"] == len(content)


def test_an_empty_selection_has_typed_columns(server: Server) -> None:
    """A cut that keeps nothing gives a file with the columns and their types, and no row."""
    query = [{"treename": "events", "filter_name": ["NJet", "Jet_Px"], "cut": "NJet > 1000"}]
    for result_format in ("parquet", "root-file", "root-rntuple"):
        status = server.run(
            file_list=[str(HZZ)], selection=json.dumps(query), result_format=result_format
        )
        assert status["status"] == "Complete"
        (content,) = download(server, status).values()
        if result_format == "parquet":
            table = pq.read_table(io.BytesIO(content))
            assert table.num_rows == 0
            assert [str(f.type) for f in table.schema] == ["int32", "list<element: float not null>"]
        else:
            with uproot.open(io.BytesIO(content)) as file:
                got = file["events"].arrays(["NJet", "Jet_Px"])
            assert len(got) == 0
            assert str(got.type.content).count("float32") == 1


def test_several_trees_make_one_table_or_several_trees(server: Server) -> None:
    """A column in Parquet and the name of the tree in ROOT tell two outputs of a query apart."""
    query = json.dumps(
        [
            {"treename": {"events": "plus"}, "filter_name": "E1", "cut": "Q1 > 0"},
            {"treename": {"events": "minus"}, "filter_name": "E1", "cut": "Q1 < 0"},
        ]
    )
    with uproot.open({ZMUMU: "events"}) as tree:
        charge = tree["Q1"].array()
    wanted = {"plus": int(ak.sum(charge > 0)), "minus": int(ak.sum(charge < 0))}
    (content,) = download(server, server.run(selection=query)).values()
    names = pq.read_table(io.BytesIO(content))["treename"].to_pylist()
    assert {name: names.count(name) for name in set(names)} == wanted
    (content,) = download(server, server.run(selection=query, result_format="root-file")).values()
    with uproot.open(io.BytesIO(content)) as file:
        assert {name: file[name].num_entries for name in wanted} == wanted


def test_histograms_are_copied(server: Server) -> None:
    """The ROOT output has the histogram of the input, equal bin by bin."""
    source = sample("uproot-hepdata-example.root")
    status = server.run(
        file_list=[str(source)],
        selection='[{"copy_histograms": "hpx"}]',
        result_format="root-file",
    )
    assert status["status"] == "Complete", server.errors(status["request_id"])
    (content,) = download(server, status).values()
    with uproot.open(io.BytesIO(content)) as got, uproot.open(source) as expected:
        assert got["hpx"].classname == "TH1F"
        assert got["hpx"].errors().tolist() == expected["hpx"].errors().tolist()
        assert got["hpx"].axis().edges().tolist() == expected["hpx"].axis().edges().tolist()


def test_counters_and_results_agree(server: Server, tmp_path: Path) -> None:
    """No poll of a running request counts more completed files than it lists results."""
    files = [*copies(tmp_path / "a", 10), *copies(tmp_path / "b", 10, HZZ.name)]
    answer = server.submit(
        file_list=[f"file://{f}" if n % 2 else f for n, f in enumerate(files)],
        selection='[{"treename": "events"}]',
    )
    request_id = answer.json()["request_id"]
    while True:
        status = server.get(f"/servicex/transformation/{request_id}").json()
        listed = server.results(request_id)
        assert status["files-completed"] <= len({r["s3-object-name"] for r in listed})
        assert status["files-remaining"] is None or status["files-remaining"] >= 0
        if status["status"] == "Complete":
            break
    assert (status["files"], status["files-completed"]) == (20, 20)
    times = [r["created_at"] for r in listed]
    assert times == sorted(times)
    assert len(set(times)) == len(times)
    late = server.get(
        f"/servicex/transformation/{request_id}/results", params={"later_than": times[-1]}
    ).json()["results"]
    assert [r["created_at"] for r in late] == times[-1:]
    first = {"later_than": "0001-01-01T00:00:00+00:00"}
    everything = server.get(f"/servicex/transformation/{request_id}/results", params=first).json()
    assert len(everything["results"]) == 20


def test_deleting_removes_rows_and_objects(server: Server) -> None:
    """After a delete the request is unknown everywhere, and its objects are gone."""
    status = server.run()
    request_id = status["request_id"]
    assert len(server.stored(request_id)) == 1
    answer = httpx.delete(f"{server.url}/servicex/transformation/{request_id}")
    assert answer.status_code == 200
    assert server.get(f"/servicex/transformation/{request_id}").status_code == 404
    assert server.stored(request_id) == []
    assert server.rows("select 1 from tasks where request_id = ?", request_id) == []


def test_status_route_serves_clients_before_version_three(server: Server) -> None:
    """Older clients get counters and statistics, and details only if they ask for them."""
    request_id = server.run()["request_id"]
    path = f"/servicex/transformation/{request_id}/status"
    status = server.get(path).json()
    assert status["files-processed"] == status["files-completed"] == 1
    assert status["stats"]["total-events"] == 2304
    assert "details" not in status
    assert "details" not in server.get(f"{path}?details=false").json()
    assert len(server.get(f"{path}?details=true").json()["details"]) == 1


def test_doubled_slashes_are_accepted(server: Server) -> None:
    """A configured address with a slash at its end works without a redirect."""
    assert server.get("//servicex").status_code == 200
    assert server.get("//servicex//transformation/").status_code == 200
    request_id = server.run()["request_id"]
    page = server.get(f"/transformation-request//{request_id}/results?status=failure")
    assert page.status_code == 200
    assert "No file has failed." in page.text


def test_unicode_is_preserved(server: Server, tmp_path: Path) -> None:
    """Titles, paths and branches may contain any character. The names of results stay safe."""
    odd = tmp_path / "Z→μμ données #1 100% +.root"
    odd.write_bytes(ZMUMU.read_bytes())
    title = "Z→μμ 🎉 'quoted' \"twice\" <b>"
    status = server.run(title=title, file_list=[str(odd)])
    assert status["status"] == "Complete"
    assert status["title"] == title
    (name,) = download(server, status)
    assert name.isascii()
    assert len(name) <= 60
