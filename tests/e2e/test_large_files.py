"""Several workers process the splits of a large file, and the user gets all of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from tests.support import Server

EVENTS, CLUSTER = 120_000, 5_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 24 clusters whose number of events says where each part begins."""
    path = tmp_path_factory.mktemp("large") / "large.root"
    rng = np.random.default_rng(1)
    with uproot.recreate(path) as file:
        tree = file.mktree("events", {"number": "i8", "jets": "var * float32"})
        for start in range(0, EVENTS, CLUSTER):
            counts = rng.poisson(4, CLUSTER)
            jets = ak.unflatten(rng.exponential(30, counts.sum()).astype("f4"), counts)
            tree.extend({"number": np.arange(start, start + CLUSTER), "jets": jets})
    return path


@pytest.fixture(scope="module")
def splitting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give a server that splits the file."""
    environment = {"SERVICEX_SERVER_READING__PART_BYTES": str(1 << 20)}
    folder = tmp_path_factory.mktemp("splitting") / "data"
    running = Server(folder, ["--workers", "2"], environment).start()
    yield running
    running.stop()


def selection(language: str) -> str:
    """Return one query in two languages: events with an energetic jet."""
    if language == "uproot-raw":
        return json.dumps(
            [{"treename": "events", "expressions": ["number", "jets"], "cut": "max(jets) > 60"}]
        )
    return (
        "(call Select (call Where (call EventDataset) (lambda (list e) (> (call (attr (attr e "
        "'jets') 'Max')) 60))) (lambda (list e) (dict (list 'number' 'jets') (list (attr e "
        "'number') (attr e 'jets')))))"
    )


@pytest.mark.parametrize("language", ["uproot-raw", "uproot"])
@pytest.mark.parametrize("result_format", ["parquet", "root-file", "root-rntuple"])
def test_splits_become_one_result(
    splitting: Server, large: Path, language: str, result_format: str
) -> None:
    """One file gives one result with its events in order. No other object stays in the store."""
    server = splitting
    before = len(server.output)
    query = {"codegen": language, "selection": selection(language), "result_format": result_format}
    status = server.run(file_list=[str(large)], **query)
    assert status["status"] == "Complete", server.errors(status["request_id"])
    assert (status["files"], status["files-completed"]) == (1, 1)
    (result,) = server.results(status["request_id"])
    assert result["total-events"] == EVENTS
    rows = "select count(*), sum(parts) > 1 from tasks where request_id = ?"
    assert server.rows(rows, status["request_id"]) == [(1, 1)]
    assert re.search(r"file is split into \d+ parts", server.output[before:])

    (path,) = server.stored(status["request_id"])
    if result_format == "parquet":
        got = ak.from_parquet(path)
    else:
        with uproot.open({path: "servicex" if language == "uproot" else "events"}) as tree:
            got = tree.arrays(["number", "jets"])
    with uproot.open({large: "events"}) as tree:
        whole = tree.arrays(["number", "jets"])
    expected = whole[ak.fill_none(ak.max(whole.jets, axis=1), 0) > 60]
    assert got.number.tolist() == expected.number.tolist()
    assert ak.all(ak.flatten(got.jets) == ak.flatten(expected.jets))


def test_small_file_is_not_split(server: Server, large: Path) -> None:
    """With the default size of a split, a file of a few megabytes gives one result."""
    status = server.run(file_list=[str(large)], selection=selection("uproot-raw"))
    assert len(server.results(status["request_id"])) == status["files"] == 1
    query = "select parts from tasks where request_id = ?"
    assert server.rows(query, status["request_id"]) == [(0,)]
