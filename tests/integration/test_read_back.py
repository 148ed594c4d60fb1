"""A result that cannot be read back is an error of its file. The service never delivers it."""

from collections.abc import Callable
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from servicex_server.columnar.writing.read_back import read_back
from servicex_server.columnar.writing.writer import Format, open_writer
from servicex_server.errors import InternalError
from servicex_server.model import Limits, Replica, ResultFormat, TaskSpec
from servicex_server.worker.transform import transform
from tests.support import sample

ROWS = 3_000


def written(path: Path, result_format: Format) -> None:
    """Write a result."""
    with open_writer(path, result_format) as writer:
        columns = {"x": ak.Array(np.random.default_rng(1).normal(size=ROWS))}
        writer.write("events", columns | {"name": ak.Array(["", "a", "bc"] * (ROWS // 3))})


@pytest.mark.parametrize("result_format", ["parquet", "root-file", "root-rntuple"])
def test_incomplete_result_is_rejected(tmp_path: Path, result_format: Format) -> None:
    """The file is truncated, or has another number of rows. A complete file is accepted."""
    path = tmp_path / "result"
    written(path, result_format)
    read_back(path, result_format, ROWS)
    read_back(path, result_format, None)
    with pytest.raises(InternalError, match=f"{ROWS} rows"):
        read_back(path, result_format, ROWS + 1)
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2):
        path.write_bytes(content[:size])
        with pytest.raises(InternalError, match="read back"):
            read_back(path, result_format, ROWS)


def test_trees_in_folders_are_counted(tmp_path: Path) -> None:
    """The rows of a result are those of all its trees. Other objects do not count."""
    path = tmp_path / "result.root"
    with uproot.recreate(path) as file:
        file.mktree("nominal/tree", {"x": "f8"}).extend({"x": np.zeros(3)})
        file.mktree("up/tree", {"x": "f8"}).extend({"x": np.zeros(4)})
        file["h"] = np.histogram([1.0, 2.0])
    read_back(path, "root-file", 7)


@pytest.mark.parametrize("result_format", list(ResultFormat))
def test_faulty_writer_delivers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result_format: ResultFormat
) -> None:
    """The file fails with an error of the service, and the worker uploads no object."""

    def without_the_end(function: Callable[..., None]) -> Callable[..., None]:
        def wrong(path: Path, *rest: object) -> None:
            path.write_bytes(path.read_bytes()[:-200])
            function(path, *rest)

        return wrong

    target = tmp_path / "object"
    spec = TaskSpec(
        request_id="r",
        file_id=1,
        attempt=1,
        replicas=(Replica(str(sample("uproot-HZZ.root"))),),
        language="uproot-raw",
        selection='[{"treename": "events", "filter_name": ["NJet", "Jet_Px"]}]',
        format=result_format,
        object_name="object",
        upload_url=target.as_uri(),
        limits=Limits(),
    )
    assert transform(spec).error is None
    target.unlink()
    monkeypatch.setattr("servicex_server.worker.transform.read_back", without_the_end(read_back))
    error = transform(spec).error
    assert error is not None
    assert (error.kind, error.blame) == ("Internal", "service")
    assert not target.exists()
