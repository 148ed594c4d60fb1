"""Failures form one group if they differ only in names of files and in measured amounts."""

from datetime import UTC, datetime

import pytest

from servicex_server.database.failure_groups import grouped
from servicex_server.database.finished_files import FailedFile
from servicex_server.errors import CorruptError, ErrorRecord, MissingError, WorkerDiedError
from servicex_server.model import Request, RequestState, ResultFormat
from servicex_server.web.api.failure_report import failure_report

MISSING = [
    (MissingError(f"{path} does not exist").record(), path)
    for path in ("/data/a.root", "/data/b.root", "root://h//c.root", "root://h//d.root?authz=***")
]
EQUAL = [(CorruptError("no ROOT file").record(), path) for path in ("/data/e.root", "/data/f.root")]


def test_different_files_with_one_fault_are_one_group() -> None:
    """The group is the largest, although no two of its messages are equal."""
    first, second = grouped((error, path, 1, path) for error, path in [*EQUAL, *MISSING])
    assert (first.count, first.shown.message) == (4, "(the file) does not exist")
    assert first.members == [path for _, path in MISSING]
    assert (second.count, second.shown.message) == (2, "no ROOT file")


def test_single_failure_names_its_file() -> None:
    """A group of one failure keeps the whole message."""
    (group,) = grouped((error, path, 1, None) for error, path in MISSING[:1])
    assert group.shown == MISSING[0][0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("root://a//x cannot be reached: refused", "root://b//y cannot be reached: refused"),
        ("the worker ended: it had 1.23 GB of memory", "the worker ended: it had 1.9 GB of memory"),
        ("cut off after 3 bytes of 10 bytes", "cut off after 7 bytes of 90 bytes"),
    ],
)
def test_replica_names_and_amounts_do_not_split_a_group(one: str, other: str) -> None:
    """A message may name a replica other than the one that identifies the file."""
    errors = [WorkerDiedError(text).record() for text in (one, other)]
    (group,) = grouped((error, "/data/x.root", 1, None) for error in errors)
    assert group.count == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [("status 404", "status 500"), ("no branch pt1", "no branch pt2"), ("a", "b")],
)
def test_different_faults_are_different_groups(one: str, other: str) -> None:
    """Numbers that are not amounts belong to the fault."""
    errors = [MissingError(text).record() for text in (one, other)]
    assert len(grouped((error, "/data/x.root", 1, None) for error in errors)) == 2


def failed(error: ErrorRecord, path: str) -> FailedFile:
    """Return a failed file."""
    return FailedFile(1, path, 0, datetime.now(UTC), "", (), (), error, "")


def test_report_lists_the_groups() -> None:
    """The largest group comes first, with its files below it."""
    request = Request(
        id="id",
        title=None,
        owner="ann",
        dataset_id=1,
        did="x",
        language="uproot-raw",
        selection="",
        format=ResultFormat.PARQUET,
        state=RequestState.FATAL,
        submitted_at=datetime.now(UTC),
        finished_at=None,
        failure="",
        app_version="1",
    )
    text = failure_report(request, [failed(*one) for one in [*EQUAL, *MISSING]], "")
    assert text.index("4 x Missing: (the file) does not exist") < text.index("2 x Corrupt")
    assert "    /data/a.root\n    /data/b.root\n" in text
