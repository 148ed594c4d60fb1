"""A replica fails in the middle: another one continues, and the result is the same."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot

from servicex_server.model import Limits, Outcome, Replica, ResultFormat, TaskSpec
from servicex_server.worker.transform import transform
from tests.integration.servers import Http, http, put

CLUSTERS, EVENTS = 24, 10_000
CHUNK = 512 << 10
"""Bytes of columns in memory: about three clusters of the file."""

TABLES = 200_000
"""Bytes that are read of any file, whatever is wanted of it."""

QUERIES = {
    "all": {"treename": "events"},
    "cut": {"treename": "events", "cut": "x > 0.9"},
    "nothing kept": {"treename": "events", "cut": "x > 9"},
}


def made(path: Path, clusters: int = CLUSTERS, *, other: bool = True) -> Path:
    """Make a file of several clusters, and a second tree behind the first."""
    numbers = np.random.default_rng(3)
    with uproot.recreate(path) as file:
        for name in ("events", "other") if other else ("events",):
            tree = file.mktree(name, {"x": "f8", "y": "f8"})
            for _ in range(clusters):
                tree.extend({"x": numbers.random(EVENTS), "y": numbers.random(EVENTS)})
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a file that several servers have."""
    return made(tmp_path_factory.mktemp("failover") / "x.root")


@pytest.fixture
def doors(file: Path) -> Iterator[tuple[Http, Http]]:
    """Give two servers with the file. A test may make either of them fail."""
    with http() as first, http() as second:
        for door in (first, second):
            put(door.folder, "x.root", file)
        yield first, second


def run(folder: Path, selection: list[object], form: ResultFormat, *urls: str) -> Outcome:
    """Do the work on a file."""
    return transform(
        TaskSpec(
            request_id="failover",
            file_id=1,
            attempt=1,
            replicas=tuple(map(Replica, urls)),
            language="uproot-raw",
            selection=json.dumps(selection),
            format=form,
            object_name="result",
            upload_url=(folder / "result").as_uri(),
            limits=Limits(chunk=CHUNK, part=1 << 40),
        )
    )


def sent(asked: list[str]) -> int:
    """Return how many bytes a server has sent as answers."""
    ranges = [one.partition(" bytes=")[2].split("-") for one in asked]
    return sum(int(last) - int(first) + 1 for first, last in ranges)


def result(folder: Path, form: ResultFormat) -> object:
    """Return the delivered bytes, or the delivered trees if the format stores a time."""
    path = folder / "result"
    if form is ResultFormat.PARQUET:
        return path.read_bytes()
    with uproot.open(path) as found:
        return {name: tree.arrays().to_list() for name, tree in found.items(cycle=False)}


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=() if form is ResultFormat.PARQUET else pytest.mark.long)
        for form in ResultFormat
    ],
)
@pytest.mark.parametrize("query", QUERIES)
def test_next_replica_continues_where_one_failed(
    doors: tuple[Http, Http], tmp_path: Path, query: str, form: ResultFormat
) -> None:
    """It may fail at any time. The worker reads at most the range of the failure twice."""
    first, second = doors
    selection: list[object] = [QUERIES[query]]
    undisturbed = run(tmp_path, selection, form, second.url("x.root"))
    assert undisturbed.error is None
    expected, asked, needed = result(tmp_path, form), len(second.asked), sent(second.asked)
    costs = []
    for well in range(1, asked, 2):
        first.asked.clear()
        second.asked.clear()
        first.well, first.status = well, 500
        outcome = run(tmp_path, selection, form, first.url("x.root"), second.url("x.root"))
        assert [one.error and one.error.kind for one in outcome.attempts] == ["Unreachable", None]
        assert outcome.error is None
        assert result(tmp_path, form) == expected
        assert (outcome.events_read, outcome.events_written) == (
            undisturbed.events_read,
            undisturbed.events_written,
        )
        costs.append(sent(first.asked[:well]) + sent(second.asked) - needed)
    # what is read ahead is one more range, and there are the tables of the file
    assert max(costs) < 2 * CHUNK + TABLES
    assert len(costs) > 3


def test_next_replica_does_not_read_finished_trees_again(
    doors: tuple[Http, Http], tmp_path: Path
) -> None:
    """The result has every tree once."""
    first, second = doors
    selection: list[object] = [{"treename": "events"}, {"treename": "other"}]
    undisturbed = run(tmp_path, selection, ResultFormat.PARQUET, second.url("x.root"))
    asked = len(second.asked)
    expected = result(tmp_path, ResultFormat.PARQUET)
    assert pq.read_table(tmp_path / "result").num_rows == 2 * CLUSTERS * EVENTS
    first.well, first.status = asked - 2, 500
    second.asked.clear()
    urls = (first.url("x.root"), second.url("x.root"))
    outcome = run(tmp_path, selection, ResultFormat.PARQUET, *urls)
    assert result(tmp_path, ResultFormat.PARQUET) == expected
    assert outcome.events_read == undisturbed.events_read
    assert len(second.asked) < asked / 2


def test_replica_that_lacks_a_tree_of_the_file_is_corrupt(
    doors: tuple[Http, Http], tmp_path: Path
) -> None:
    """A file may lack a tree, but another replica of a file that has the tree may not."""
    first, second = doors
    made(second.folder / "few.root", other=False)
    trees = ("other", "events")
    selection: list[object] = [{"treename": name, "fail_on_missing_trees": False} for name in trees]
    asked = len(first.asked)
    run(tmp_path, selection, ResultFormat.PARQUET, first.url("x.root"))
    expected, asked = result(tmp_path, ResultFormat.PARQUET), len(first.asked) - asked
    for well in (asked // 2, asked - 1):
        first.well, first.status = well, 500
        urls = (first.url("x.root"), second.url("few.root"), second.url("x.root"))
        outcome = run(tmp_path, selection, ResultFormat.PARQUET, *urls)
        kinds = [one.error and one.error.kind for one in outcome.attempts]
        assert kinds == ["Unreachable", "Corrupt", None]
        assert result(tmp_path, ResultFormat.PARQUET) == expected


def test_replica_with_another_number_of_entries_is_corrupt(
    doors: tuple[Http, Http], tmp_path: Path
) -> None:
    """The worker reports it, and the next one continues."""
    first, second = doors
    made(first.folder / "short.root", CLUSTERS - 1)
    selection: list[object] = [{"treename": "events"}]
    url = second.url("x.root")
    assert run(tmp_path, selection, ResultFormat.PARQUET, url).error is None
    expected, asked = result(tmp_path, ResultFormat.PARQUET), len(second.asked)
    with http() as third:
        put(third.folder, "x.root", second.folder / "x.root")
        third.well, third.status = asked - 2, 500
        urls = (third.url("x.root"), first.url("short.root"), url)
        outcome = run(tmp_path, selection, ResultFormat.PARQUET, *urls)
    kinds = [one.error and one.error.kind for one in outcome.attempts]
    assert (kinds, outcome.error) == (["Unreachable", "Corrupt", None], None)
    error = outcome.attempts[1].error
    assert error is not None
    assert f"has {(CLUSTERS - 1) * EVENTS} entries, and another replica has" in error.message
    assert result(tmp_path, ResultFormat.PARQUET) == expected


def test_number_of_entries_of_a_corrupt_replica_is_not_trusted(tmp_path: Path) -> None:
    """The replica has another length and is corrupt. The worker starts again with the next one."""
    good = made(tmp_path / "good.root")
    longer = made(tmp_path / "longer.root", CLUSTERS + 1, other=False)
    content = longer.read_bytes()
    with uproot.open(longer) as file:
        place = int(file["events"]["y"].member("fBasketSeek")[CLUSTERS // 2])
    longer.write_bytes(content[: place + 100] + bytes(500) + content[place + 600 :])
    folder = tmp_path / "out"
    selection: list[object] = [{"treename": "events"}]
    assert run(folder, selection, ResultFormat.PARQUET, str(good)).error is None
    expected = result(folder, ResultFormat.PARQUET)
    outcome = run(folder, selection, ResultFormat.PARQUET, str(longer), str(good))
    assert [one.error and one.error.kind for one in outcome.attempts] == ["Corrupt", None]
    assert result(folder, ResultFormat.PARQUET) == expected
    assert outcome.events_read == outcome.events_written == CLUSTERS * EVENTS


def test_file_that_fails_everywhere_leaves_no_result(
    doors: tuple[Http, Http], tmp_path: Path
) -> None:
    """It leaves no part of a result either."""
    for door in doors:
        door.well, door.status = 3, 500
    selection: list[object] = [{"treename": "events"}]
    urls = [door.url("x.root") for door in doors]
    outcome = run(tmp_path, selection, ResultFormat.PARQUET, *urls)
    assert outcome.error is not None
    assert (outcome.error.kind, len(outcome.attempts)) == ("Unreachable", 2)
    assert list(tmp_path.iterdir()) == []
