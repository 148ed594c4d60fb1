"""The join of the results of splits equals one result of all events."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot

from servicex_server.columnar.writing.joining import PartWriter, join
from servicex_server.columnar.writing.writer import Format, open_writer
from servicex_server.errors import FormatError, InternalError

EVENTS = 2_000
FORMATS: tuple[Format, ...] = ("parquet", "root-file", "root-rntuple")


def events(result_format: Format) -> dict[str, Any]:
    """Return columns of all kinds that a format holds."""
    rng = np.random.default_rng(3)
    counts = rng.poisson(2, EVENTS)
    lists = ak.unflatten(rng.normal(size=counts.sum()).astype("f4"), counts)
    columns: dict[str, Any] = {
        "met": ak.Array(rng.normal(size=EVENTS)),
        "run": ak.Array(np.arange(EVENTS, dtype="i8")),
        "good": ak.Array(rng.integers(0, 2, EVENTS).astype(bool)),
        "pt": lists,
        "name": ak.Array([f"µ{n % 7}" * (n % 3) for n in range(EVENTS)]),
        "vector": ak.from_numpy(rng.normal(size=(EVENTS, 3)), regulararray=True),
    }
    if result_format != "root-file":
        columns["nested"] = ak.Array([[[n], [], [n, 1]][: n % 4] for n in range(EVENTS)])
        columns["maybe"] = ak.mask(columns["met"], columns["good"])
    if result_format == "parquet":
        columns["of"] = ak.zip({"pt": lists, "one": lists + 1})
    return columns


def written(
    folder: Path, columns: dict[str, Any], edges: Sequence[int], result_format: Format
) -> list[Path]:
    """Return the files of the parts between edges."""
    paths = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        path = folder / f"{number}.part"
        parquet = result_format == "parquet"
        with open_writer(path, "parquet") if parquet else PartWriter(path) as writer:
            writer.write("events", {name: array[start:stop] for name, array in columns.items()})
        paths.append(path)
    return paths


@contextmanager
def given(path: Path) -> Iterator[Path]:
    """Give a file, and let nobody have it afterwards."""
    yield path
    path.unlink()


def read(path: Path, result_format: Format) -> Any:
    """Return what is in a result."""
    if result_format == "parquet":
        return ak.from_parquet(path)
    with uproot.open({path: "events"}) as tree:
        return tree.arrays([name for name in tree.keys() if name != "npt"])  # noqa: SIM118


@pytest.mark.parametrize("result_format", FORMATS)
@pytest.mark.parametrize(
    "edges",
    [
        [0, 700, 701, EVENTS],
        [0, 0, 900, 900, EVENTS, EVENTS],
        [0, EVENTS],
        [0, 0, 0],
    ],
)
def test_join_equals_one_result_of_all_events(
    tmp_path: Path, result_format: Format, edges: list[int]
) -> None:
    """Values, order and types are equal, also with splits of which a cut kept no event."""
    columns = {name: array[: edges[-1]] for name, array in events(result_format).items()}
    parts = written(tmp_path, columns, edges, result_format)
    joined, whole = tmp_path / "joined", tmp_path / "whole"
    join((given(part) for part in parts), joined, result_format)
    with open_writer(whole, result_format) as writer:
        writer.write("events", columns)
    got, expected = read(joined, result_format), read(whole, result_format)
    assert str(got.type) == str(expected.type)
    assert got.tolist() == expected.tolist()
    assert len(got) == edges[-1]


def test_join_copies_row_groups_unchanged(tmp_path: Path) -> None:
    """The join does not rewrite pages. It keeps the statistics, and drops groups without rows."""
    parts = written(tmp_path, events("parquet"), [0, 500, 500, 1200, EVENTS], "parquet")
    before = [pq.ParquetFile(part).metadata.row_group(0) for part in parts]
    joined = tmp_path / "joined"
    join((given(part) for part in parts), joined, "parquet")
    after = pq.ParquetFile(joined).metadata
    assert after.num_rows == EVENTS
    groups = [after.row_group(number) for number in range(after.num_row_groups)]
    assert [group.num_rows for group in groups] == [500, 700, 800]
    for old, new in zip([before[0], *before[2:]], groups, strict=True):
        for number in range(old.num_columns):
            one, other = old.column(number), new.column(number)
            assert one.statistics == other.statistics
            assert one.total_compressed_size == other.total_compressed_size
    assert groups[1].column(1).statistics.min == 500


@pytest.mark.parametrize("result_format", FORMATS)
def test_join_of_different_types_is_rejected(tmp_path: Path, result_format: Format) -> None:
    """The error names the types. The join does not cast values."""
    paths = []
    for number, kind in enumerate(("f4", "f8")):
        part = {"x": ak.Array(np.ones(3, kind))}
        (tmp_path / kind).mkdir()
        paths += written(tmp_path / kind, part, [0, 3], result_format)
        assert len(paths) == number + 1
    with pytest.raises(FormatError, match="types"):
        join((given(path) for path in paths), tmp_path / "joined", result_format)


@pytest.mark.parametrize("result_format", FORMATS)
def test_truncated_split_is_an_error(tmp_path: Path, result_format: Format) -> None:
    """The join detects a truncation at any place."""
    (part,) = written(tmp_path, events(result_format), [0, EVENTS], result_format)
    content = part.read_bytes()
    for size in (0, 3, 11, len(content) // 2, len(content) - 1):
        part.write_bytes(content[:size])
        with pytest.raises(InternalError):
            join([given(part)], tmp_path / "joined", result_format)
        part.touch()
