"""SQLite and the results on one full disk: commands that free space work, and no file is lost."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from servicex_server.database.disk_reserve import RESERVE
from tests.support import Server, copies, doctor, fill, small_disk, until

FILES = 40
FULL = "the disk of the database is full"

_numbers = itertools.count()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk with room for the reserve and many results."""
    with small_disk(tmp_path / "disk", "160m") as path:
        yield path


@pytest.fixture
def server(disk: Path) -> Iterator[Server]:
    """Give a server that has all its files on that disk, except its log."""
    # workers wait for each other's results no longer than it takes to say so
    server = Server(disk, ["--workers", "1"], {"SERVICEX_SERVER_STORAGE__UPLOAD_SECONDS": "1"})
    server.start()
    yield server
    server.stop()


def fill_again(disk: Path) -> None:
    """Fill all free space."""
    fill(disk / f"filler-{next(_numbers)}")


def make_room(disk: Path) -> None:
    """Remove everything that filled the disk."""
    for filler in disk.glob("filler-*"):
        filler.unlink()


def running(server: Server) -> int:
    """Return how many files are in the engine."""
    return int(server.rows("select count(*) from tasks where state = 'running'")[0][0])


def state_of(server: Server, request_id: str) -> str:
    """Return the state of a request in the database."""
    return str(server.rows("select state from requests where id = ?", request_id)[0][0])


def test_full_disk_costs_time_and_fails_no_command(
    server: Server, disk: Path, tmp_path: Path
) -> None:
    """Cancel, delete and a restart work. The server rejects new requests, and files wait."""
    reserve = disk / "servicex.sqlite.reserve"
    assert reserve.stat().st_size == RESERVE
    old = server.run(file_list=copies(tmp_path / "old", 3))["request_id"]
    kept, canceled, deleted = (
        server.submit(title=name, file_list=copies(tmp_path / name, FILES)).json()["request_id"]
        for name in ("kept", "canceled", "deleted")
    )
    fill_again(disk)
    until(lambda: running(server) == 0, "no file starts")

    fill_again(disk)
    refused = server.submit()
    assert refused.status_code == 503
    assert FULL in refused.json()["message"]
    assert "delete requests" in refused.json()["message"]
    ready = server.get("/readyz")
    assert (ready.status_code, ready.json()["message"]) == (503, FULL)
    told = doctor("--data-dir", str(disk))
    assert FULL in told.stdout
    assert server.get(f"/servicex/transformation/{canceled}/cancel").status_code == 200
    fill_again(disk)
    assert server.client.delete(f"/servicex/transformation/{old}").status_code == 200
    assert server.get(f"/servicex/transformation/{old}").status_code == 404
    assert not server.stored(old)

    fill_again(disk)
    server.stop()
    fill_again(disk)
    server.start()
    assert FULL in server.output
    assert server.get("/readyz").status_code == 503
    assert state_of(server, canceled) == "Canceled"
    fill_again(disk)
    assert server.client.delete(f"/servicex/transformation/{deleted}").status_code == 200

    make_room(disk)
    status = server.wait(kept)
    assert (status["status"], status["files-completed"]) == ("Complete", FILES)
    assert server.rows("select max(attempts) from tasks where request_id = ?", kept) == [(1,)]
    assert len(server.stored(kept)) == FILES
    assert server.get("/readyz").status_code == 200
    assert server.run()["status"] == "Complete"
    assert reserve.stat().st_size == RESERVE


def test_full_scratch_folder_costs_no_attempt(tmp_path: Path) -> None:
    """The files of a worker without space for results wait until it has some."""
    with small_disk(tmp_path / "scratch", "16m") as scratch:
        engine = {
            "SERVICEX_SERVER_ENGINE__KIND": "local",
            "SERVICEX_SERVER_ENGINE__SCRATCH_FOLDER": str(scratch),
        }
        server = Server(tmp_path / "data", ["--workers", "1"], engine).start()
        fill_again(scratch)
        request_id = server.submit(file_list=copies(tmp_path / "files", 3)).json()["request_id"]
        until(lambda: server.output.count("file failed: ScratchFull: no space") >= 3, "it is full")
        assert server.rows("select max(attempts), sum(state = 'failed') from tasks") == [(0, 0)]
        make_room(scratch)
        assert server.wait(request_id)["files-completed"] == 3
        assert server.rows("select max(attempts) from tasks") == [(1,)]
        server.stop()
