"""A large file is done in parts by several workers, and the user gets all of it."""

import json
from collections.abc import Callable
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
@pytest.mark.parametrize("result_format", ["parquet", "root-file"])
def test_parts_together_are_the_file(
    new_server: Callable[..., Server], large: Path, language: str, result_format: str
) -> None:
    """Sorted by name the parts are what the whole file gives, and they are counted as files."""
    server = new_server("--workers", "2", SERVICEX_SERVER_PART_BYTES=str(1 << 20))
    query = {"codegen": language, "selection": selection(language), "result_format": result_format}
    status = server.run(file_list=[str(large)], **query)
    assert status["status"] == "Complete", server.errors(status["request_id"])
    results = sorted(server.results(status["request_id"]), key=lambda one: one["s3-object-name"])
    assert len(results) == status["files"] == status["files-completed"] >= 2
    edges = [one["entries"] for one in results]
    assert edges[0][0] == 0
    assert edges[-1][1] == EVENTS
    assert [end for _, end in edges[:-1]] == [start for start, _ in edges[1:]]
    assert all(start % CLUSTER == 0 for start, _ in edges)
    assert sum(one["total-events"] for one in results) == EVENTS

    paths = sorted(server.stored(status["request_id"]), key=lambda path: path.name)
    if result_format == "parquet":
        got = ak.concatenate([ak.from_parquet(path) for path in paths])
    else:
        got = uproot.concatenate(
            [{path: "servicex" if language == "uproot" else "events"} for path in paths]
        )
    with uproot.open({large: "events"}) as tree:
        whole = tree.arrays(["number", "jets"])
    expected = whole[ak.fill_none(ak.max(whole.jets, axis=1), 0) > 60]
    assert got.number.tolist() == expected.number.tolist()
    assert ak.all(ak.flatten(got.jets) == ak.flatten(expected.jets))


def test_a_small_file_stays_whole(server: Server, large: Path) -> None:
    """With the default size of a part, a file of a few megabytes gives one result."""
    status = server.run(file_list=[str(large)], selection=selection("uproot-raw"))
    (one,) = server.results(status["request_id"])
    assert (status["files"], one["entries"]) == (1, None)
