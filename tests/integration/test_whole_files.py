"""The worker compares size and checksum of a file with those of its catalogue."""

import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from servicex_server.columnar.reading.access import Access
from servicex_server.columnar.reading.download import fetch, look
from servicex_server.errors import MissingError, ReplicaError, TruncatedError, UnreachableError
from servicex_server.model import Limits, Outcome, Replica, ResultFormat, TaskSpec
from servicex_server.worker.transform import transform
from tests.integration.servers import Http, XRootD, free_port, http, put, xrootd
from tests.support import sample

ZMUMU = sample("uproot-Zmumu.root")
CONTENT = ZMUMU.read_bytes()
CHECKSUM = f"{zlib.adler32(CONTENT):08x}"


@pytest.fixture(scope="module")
def root_door() -> Iterator[XRootD]:
    """Give a server by XRootD."""
    with xrootd() as door:
        yield door


@pytest.fixture(params=["root", "http", "path"])
def door(request: pytest.FixtureRequest, root_door: XRootD, tmp_path: Path) -> Iterator[str]:
    """Give the beginning of URLs, with the file below it, and others that are not as they seem."""
    changed = bytearray(CONTENT)
    changed[-1] ^= 1  # nothing reads it
    files = {"x.root": CONTENT, "changed.root": bytes(changed), "longer.root": CONTENT + b"x"}
    with http() as web:
        folder = {"root": root_door.folder, "http": web.folder, "path": tmp_path}[request.param]
        for name, content in files.items():
            put(folder, name, content)
        yield {"root": root_door.url(""), "http": web.url(""), "path": f"{tmp_path}/"}[
            request.param
        ]


def run(folder: Path, *urls: str, **known: object) -> Outcome:
    """Do the work on a file of which the catalogue has told something."""
    spec = TaskSpec(
        request_id="whole",
        file_id=1,
        attempt=1,
        replicas=tuple(map(Replica, urls)),
        language="uproot-raw",
        selection='[{"treename": "events", "filter_name": ["E1"]}]',
        format=ResultFormat.PARQUET,
        object_name="x.parquet",
        upload_url=(folder / "out" / "x.parquet").as_uri(),
        limits=Limits(opening=5, silence=5),
    )
    return transform(replace(spec, **known))  # type: ignore[arg-type]  # names of fields


def test_a_file_of_another_size_is_not_read(door: str, tmp_path: Path) -> None:
    """It may have the requested branches, but it is not the requested file."""
    for size, kind in ((len(CONTENT) + 1, "Truncated"), (len(CONTENT) - 1, "Corrupt")):
        found = run(tmp_path, f"{door}x.root", size=size)
        assert found.error is not None
        assert found.error.kind == kind
        assert (
            f"has {len(CONTENT):,} bytes, but its catalogue lists {size:,}" in found.error.message
        )
    for size in (0, len(CONTENT)):
        assert run(tmp_path, f"{door}x.root", size=size).error is None


@pytest.mark.parametrize("whole", [False, True])
def test_checksum_is_compared_after_a_full_download(
    door: str, tmp_path: Path, *, whole: bool
) -> None:
    """A wrong checksum is the replica's fault, and the worker reads another replica."""
    known = {"size": len(CONTENT), "adler32": CHECKSUM, "whole": whole}
    good, bad = f"{door}x.root", f"{door}changed.root"
    clean = run(tmp_path, good, **known)
    content = (tmp_path / "out" / "x.parquet").read_bytes()
    assert (clean.error, clean.events_read) == (None, 2304)
    found = run(tmp_path, bad, good, **known)
    assert (tmp_path / "out" / "x.parquet").read_bytes() == content
    kinds = [one.error and one.error.kind for one in found.attempts]
    assert kinds == (["Checksum", None] if whole else [None])
    if whole:
        error = run(tmp_path, bad, **known).error
        assert error is not None
        assert (error.kind, error.blame) == ("Checksum", "replica")
        assert f"but its catalogue lists {CHECKSUM}" in error.message
        assert bad in error.message


def test_full_download_is_not_split_and_leaves_no_file(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each split would fetch the file again."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    few = Limits(part=1 << 10, opening=5, silence=5)
    found = run(tmp_path, f"{door}x.root", limits=few, whole=True)
    assert (found.error, found.parts, found.events_read) == (None, (), 2304)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("whole", [False, True])
def test_full_download_gives_the_same_errors_as_other_reads(
    root_door: XRootD, tmp_path: Path, *, whole: bool
) -> None:
    """They have the same classes, and the URL of the replica instead of that of a copy."""
    put(root_door.folder, "none.root", b"")
    put(root_door.folder, "text.root", b"this is no ROOT file at all " * 40)
    nobody = free_port()
    for url, kind in (
        (root_door.url("missing.root"), "Missing"),
        (root_door.url("none.root"), "Truncated"),
        (root_door.url("text.root"), "Corrupt"),
        (f"root://127.0.0.1:{nobody}//x.root", "Unreachable"),
        (f"http://127.0.0.1:{nobody}/x.root", "Unreachable"),
    ):
        error = run(tmp_path, url, whole=whole).error
        assert error is not None
        assert (error.kind, url in error.message) == (kind, True), error


@pytest.fixture
def web() -> Iterator[Http]:
    """Give a server by HTTP."""
    with http() as door:
        put(door.folder, "x.root", ZMUMU)
        yield door


def test_interrupted_download_is_an_error(web: Http, tmp_path: Path) -> None:
    """A download is complete, or it fails."""
    url, path = web.url("x.root"), tmp_path / "copy"
    fetch(url, path, Access(), adler32=CHECKSUM, step=lambda: None)
    assert path.read_bytes() == CONTENT
    web.status = 500
    with pytest.raises(UnreachableError):
        fetch(url, path, Access(), adler32=None, step=lambda: None)
    web.status, web.manner = 0, "silent"
    with pytest.raises(ReplicaError):
        fetch(url, path, Access(silence=0.5), adler32=None, step=lambda: None)


def test_probe_reads_the_first_block(door: str, web: Http) -> None:
    """It does so for any file, because it has no query."""
    look(f"{door}x.root", Access())
    look(f"{door}longer.root", Access(size=len(CONTENT) + 1))
    with pytest.raises(MissingError):
        look(f"{door}missing.root", Access())
    with pytest.raises(TruncatedError):
        look(f"{door}x.root", Access(size=len(CONTENT) + 1))
    asked = len(web.asked)
    look(web.url("x.root"), Access())
    assert web.asked[asked:] == ["/x.root bytes=0-65535"]
