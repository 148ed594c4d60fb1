"""Crashes, hangs, full disks and clock jumps in the middle of a request lose no file."""

import json
import re
import signal
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import uproot

from servicex_server.engine.workers import GRACE_SECONDS
from servicex_server.model import now
from tests.integration.servers import http, preloadable
from tests.postgres import postgres
from tests.support import Server, fill, plug_in, small_disk, until

FILES = 120
QUERY = '[{"treename": "events", "filter_name": "x"}]'
HOUR = 3600


def made(folder: Path, count: int) -> list[str]:
    """Make so many small files in a new folder, no two alike."""
    folder.mkdir()
    for number in range(count):
        with uproot.recreate(folder / f"{number}.root") as file:
            content = np.arange(number, number + 100, dtype="i8")
            file.mktree("events", {"x": "i8"}).extend({"x": content})
    return [str(folder / f"{number}.root") for number in range(count)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Give the files that all requests here ask for."""
    return made(tmp_path_factory.mktemp("bad-days") / "in", FILES)


@pytest.fixture(scope="module")
def undisturbed(server: Server, files: list[str]) -> dict[str, bytes]:
    """Give the objects of a request in whose way nothing came."""
    return delivered(server, submit(server, files), FILES)


def submit(server: Server, files: list[str] | None, **changes: Any) -> str:
    """Ask for files; return the id of the request."""
    answer = server.submit(file_list=files, selection=QUERY, **changes)
    assert answer.status_code == 200, answer.text
    request_id: str = answer.json()["request_id"]
    return request_id


def delivered(server: Server, request_id: str, count: int) -> dict[str, bytes]:
    """Wait for the end; return the objects by name, one for each file, after a look at all else."""
    status = server.wait(request_id, seconds=100)
    counters = [status[f"files{what}"] for what in ("", "-completed", "-failed", "-remaining")]
    assert (status["status"], counters) == ("Complete", [count, count, 0, 0])
    found = server.rows(
        "select object_name, object_key, file_id, state from tasks where request_id = ?", request_id
    )
    assert Counter(state for *_, state in found) == {"done": count}
    assert len({file_id for _, _, file_id, _ in found}) == count
    results = server.results(request_id)
    assert sorted(one["s3-object-name"] for one in results) == sorted(name for name, *_ in found)
    objects = server.data_dir / "objects"
    return {name: (objects / key).read_bytes() for name, key, *_ in found}


def tried(server: Server, request_id: str) -> list[list[str | None]]:
    """Return for each file how its tries ended, of those that have been told; None is well."""
    rows = server.rows("select tried from tasks where request_id = ? order by id", request_id)
    found = [json.loads(told) if isinstance(told, str) else told or [] for (told,) in rows]
    return [[one["error"] and one["error"]["kind"] for one in tries] for tries in found]


def some_done(server: Server, request_id: str, count: int = FILES // 3) -> None:
    """Wait until so many files of a request have ended."""
    path = f"/servicex/transformation/{request_id}"
    until(lambda: server.get(path).json()["files-completed"] >= count, f"{count} files ended")


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give a server with two workers of little memory, and two tries for each file."""
    large = str(8 << 30)
    environment = {
        "SERVICEX_SERVER_LIMITS__ATTEMPTS": "2",
        "SERVICEX_SERVER_LIMITS__WORKER_MEMORY": str(640 << 20),
        "SERVICEX_SERVER_READING__CHUNK_BYTES": large,
        "SERVICEX_SERVER_READING__PART_BYTES": large,
    }
    folder = tmp_path_factory.mktemp("steady") / "data"
    running = Server(folder, ["--workers", "2"], environment).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """Give a server with one worker whose wall clock a file sets."""
    folder = tmp_path_factory.mktemp("clocked")
    clock = folder / "clock"
    clock.write_bytes(struct.pack("l", 0))
    shim = preloadable("wall_clock", folder)
    environment = {"LD_PRELOAD": str(shim), "WALL_CLOCK": str(clock)}
    running = Server(folder / "data", ["--workers", "1"], environment).start()
    yield running, clock
    running.stop()


@contextmanager
def results_on(server: Server, disk: Path) -> Iterator[None]:
    """Have the results of a server on a disk, and those that there are out of its way."""
    objects = server.data_dir / "objects"
    aside = objects.rename(objects.with_name("objects-aside"))
    objects.symlink_to(disk)
    try:
        yield
    finally:
        objects.unlink()
        aside.rename(objects)


# --- what may come in the way of a request ---------------------------------------------------


class Day:
    """A fault that happens during a request.

    ``error`` is the class of the error of a try that the fault ends, and ``most`` is the largest
    number of such tries. Such a try is ``counted`` as an attempt, or not.
    """

    error = ""
    most = 0
    counted = True

    @contextmanager
    def prepared(self, given: pytest.FixtureRequest) -> Iterator[Server]:
        """Give a server that it can happen to."""
        yield given.getfixturevalue("steady")

    def happen(self, server: Server, request_id: str) -> None:
        """Come in the way."""
        raise NotImplementedError


class TheServerIsKilled(Day):
    """The test kills the server and its workers at once, and starts the server again."""

    def happen(self, server: Server, request_id: str) -> None:
        """Kill it, as it writes."""
        below = server.descendants()
        server.stop(signal.SIGKILL)
        psutil.wait_procs(below, timeout=10)
        assert not any(process.is_running() for process in below)
        states = server.rows("select state from tasks where request_id = ?", request_id)
        assert 0 < states.count(("done",)) < FILES
        # a worker that is killed while it uploads leaves this
        (server.stored(request_id)[0].parent / ".part-left").write_bytes(b"half")
        server.start()


class AWorkerIsKilled(Day):
    """The service tries the file of this worker once more."""

    error = "WorkerDied"
    most = 1

    def happen(self, server: Server, request_id: str) -> None:
        """Kill one, or as many as it may cost tries."""
        for worker in server.dask_processes()[: self.most]:
            worker.kill()


class TheDiskIsFull(Day):
    """The disk of the results has no space for a while. No file loses an attempt."""

    error = "StoreUnavailable"
    most = FILES
    counted = False

    @contextmanager
    def prepared(self, given: pytest.FixtureRequest) -> Iterator[Server]:
        """Give a server with its results on a disk of their own, whose workers do not wait."""
        start: Callable[..., Server] = given.getfixturevalue("new_server")
        folder: Path = given.getfixturevalue("tmp_path")
        with small_disk(folder / "disk") as self.disk:
            server = start("--workers", "1", SERVICEX_SERVER_STORAGE__UPLOAD_SECONDS="0")
            with results_on(server, self.disk):
                yield server
            server.stop()

    def happen(self, server: Server, request_id: str) -> None:
        """Fill the disk until no file starts any more."""
        fill(self.disk / "filler")
        said = "no file starts until the object store works: the folder of results: No space left"
        until(lambda: said in server.output, "a file has no space")
        (self.disk / "filler").unlink()


class TheDatabaseIsRestarted(Day):
    """PostgreSQL stops as in a crash while files end, and starts again."""

    @contextmanager
    def prepared(self, given: pytest.FixtureRequest) -> Iterator[Server]:
        """Give a server with a PostgreSQL that is in our hands."""
        start: Callable[..., Server] = given.getfixturevalue("new_server")
        with postgres() as self.postgres:
            server = start(
                "--workers", "1", SERVICEX_SERVER_STORAGE__DATABASE_URL=self.postgres.url()
            )
            yield server
            server.stop()

    def happen(self, server: Server, request_id: str) -> None:
        """Stop it until the server has felt it."""
        self.postgres.stop("immediate")
        assert server.get(f"/servicex/transformation/{request_id}").status_code == 503
        self.postgres.start()


class TheClockIsSet(AWorkerIsKilled):
    """The wall clock jumps while a file waits for its next try, and a new worker starts."""

    hours = 1

    @contextmanager
    def prepared(self, given: pytest.FixtureRequest) -> Iterator[Server]:
        """Give a server whose wall clock is in our hands; it may be wrong already."""
        server, self.clock = given.getfixturevalue("clocked")
        (seconds,) = struct.unpack("l", self.clock.read_bytes())
        self.before = seconds // HOUR
        yield server

    def happen(self, server: Server, request_id: str) -> None:
        """Set the clock as soon as a file waits: the only worker is gone."""
        super().happen(server, request_id)
        until(lambda: _waits(server, request_id), "a file waits to be tried again")
        self.set(self.hours)
        told = server.submit(selection=QUERY.replace("x", "E1")).json()["request_id"]
        at = server.get(f"/servicex/transformation/{told}").json()["submit-time"]
        off = (datetime.fromisoformat(at) - now()).total_seconds()
        assert abs(off - (self.before + self.hours) * HOUR) < HOUR / 2

    def set(self, hours: int) -> None:
        """Have the clock so many hours from where it was before the test."""
        with self.clock.open("r+b") as file:
            file.write(struct.pack("l", (self.before + hours) * HOUR))


class TheClockIsSetBack(TheClockIsSet):
    """A waiting file would wait an hour longer, and a new certificate would not be valid yet."""

    hours = -1


class TheClockIsSetBackAtWork(TheClockIsSet):
    """Messages to and from workers would wait for as long as the clock is set back."""

    error = ""
    most = 0

    def happen(self, server: Server, request_id: str) -> None:
        """Set it back again and again: it depends on the moment what it strikes."""
        for times in (1, 2):
            self.set(-times)
            some_done(server, request_id, FILES // 3 + 30 * times)


def _waits(server: Server, request_id: str) -> bool:
    query = "select count(*) from tasks where request_id = ? and not_before is not null"
    return server.rows(query, request_id) != [(0,)]


@pytest.mark.parametrize(
    "day",
    [
        TheServerIsKilled(),
        AWorkerIsKilled(),
        TheDatabaseIsRestarted(),
        TheDiskIsFull(),
        TheClockIsSet(),
        TheClockIsSetBack(),
        TheClockIsSetBackAtWork(),
    ],
    ids=lambda day: type(day).__name__,
)
def test_every_file_ends_once_despite_a_fault(
    undisturbed: dict[str, bytes], files: list[str], request: pytest.FixtureRequest, day: Day
) -> None:
    """The objects are those of an undisturbed request, bit for bit.

    The service tries no file more often than necessary. The deletion of the request removes all
    objects.
    """
    with day.prepared(request) as server:
        request_id = submit(server, files)
        some_done(server, request_id)
        day.happen(server, request_id)
        assert delivered(server, request_id, FILES) == undisturbed
        kinds = Counter(kind for tries in tried(server, request_id) for kind in tries)
        assert kinds.pop(None) == FILES - recovered(server, request_id)
        assert set(kinds) <= {day.error}
        assert kinds.total() <= day.most
        (attempts,) = server.rows(
            "select sum(attempts) from tasks where request_id = ?", request_id
        )
        assert attempts == (FILES + kinds.total() * day.counted,)
        server.client.delete(f"/servicex/transformation/{request_id}").raise_for_status()
        assert server.stored(request_id) == []


def recovered(server: Server, request_id: str) -> int:
    """Return how many files were found done at a start, of which nobody tells a try."""
    return tried(server, request_id).count([])


# --- what is wrong with one file -------------------------------------------------------------


def test_hanging_read_fails_only_its_own_file(steady: Server, files: list[str]) -> None:
    """The service ends each try of it at the time limit of the request.

    Meanwhile, the other files end, each at its first try.
    """
    server = steady
    with http("silent") as door:
        asked = [*files[:20], door.url("x.root"), *files[20:40]]
        request_id = submit(server, asked, file_seconds=2)
        status = server.wait(request_id)
    assert (status["status"], status["files-completed"], status["files-failed"]) == (
        "Complete",
        40,
        1,
    )
    (error,) = server.errors(request_id)
    said = "the work on this file was ended: it took longer than 2 s"
    assert (error["class"], error["message"], error["file"]) == ("Overdue", said, asked[20])
    assert [(one["class"], one["message"]) for one in error["attempts"]] == [("Overdue", said)] * 2
    limit = 2 + GRACE_SECONDS
    assert all(limit <= one["seconds"] < limit + 4 for one in error["attempts"])
    assert Counter(map(tuple, tried(server, request_id))) == {(None,): 40, ("Overdue",) * 2: 1}
    assert server.results(request_id)[-1]["transform_status"] == "failure"


def test_file_that_exhausts_memory_fails_no_other_file(
    steady: Server, files: list[str], tmp_path: Path
) -> None:
    """Each try of it ends its worker. The error names the signal and the memory of the worker."""
    giant = tmp_path / "giant.root"
    with uproot.recreate(giant, compression=uproot.LZ4(1)) as file:
        tree = file.mktree("events", {"x": "i8"})
        for _ in range(16):
            tree.extend({"x": np.zeros(5_000_000, "i8")})
    server = steady
    request_id = submit(server, [*files[:20], str(giant), *files[20:40]])
    status = server.wait(request_id)
    assert (status["status"], status["files-completed"], status["files-failed"]) == (
        "Complete",
        40,
        1,
    )
    (error,) = server.errors(request_id)
    assert (error["class"], error["file"], error["hint"]) == (
        "WorkerDied",
        str(giant),
        "it ran out of memory",
    )
    told = r"signal \d+ \(SIG(TERM|KILL)\), it had [0-9.]+ GB of memory, of 0\.67 GB$"
    assert re.search(told, error["message"])
    assert Counter(map(tuple, tried(server, request_id))) == {(None,): 40, ("WorkerDied",) * 2: 1}


# --- cancel ----------------------------------------------------------------------------------

FINDER = '''
import asyncio
from pathlib import Path

from servicex_server.errors import UnknownDatasetError
from servicex_server.finders.contract import Finder
from servicex_server.model import InputFile, Replica


class Held(Finder):
    """Finds what is written into a file, once that is there."""

    scheme = "held"

    async def find(self, reference):
        while not Path(reference).exists():
            await asyncio.sleep(0.02)
        paths = Path(reference).read_text().split()
        if not paths:
            raise UnknownDatasetError("there is no such dataset")
        for path in paths:
            yield InputFile((Replica(path),))
'''


@pytest.fixture(scope="module")
def holding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give a server with one worker and a finder that waits for the test."""
    folder = tmp_path_factory.mktemp("held")
    environment = plug_in(folder / "installed", "held", "Held", FINDER)
    server = Server(folder / "data", ["--workers", "1"], environment).start()
    yield server
    server.stop()


def lists(gate: Path, files: list[str]) -> None:
    """Let the finder go on with these files; it never sees half of the list."""
    gate.with_suffix(".part").write_text("\n".join(files))
    gate.with_suffix(".part").rename(gate)


def held(server: Server, gate: Path) -> str:
    """Ask for the dataset that a file lists, or will; return the id of the request."""
    return submit(server, None, did=f"held://{gate}")


def state_of(server: Server, request_id: str) -> str:
    """Return the state of a request."""
    return str(server.get(f"/servicex/transformation/{request_id}").json()["status"])


def cancel(server: Server, request_id: str) -> httpx.Response:
    """Cancel a request."""
    return server.client.post(f"/servicex/transformation/{request_id}/cancel")


@pytest.mark.parametrize("state", ["Lookup", "Pending Lookup", "Running"])
def test_request_can_be_cancelled_in_every_state(
    holding: Server, files: list[str], tmp_path: Path, state: str
) -> None:
    """It ends at once and for good. Another request on the same dataset continues."""
    gate = tmp_path / "gate"
    with http("silent") as door:
        listed = [files[0], door.url("x.root"), *files[1:20]] if state == "Running" else files[:20]
        if state == "Running":
            lists(gate, listed)
        other = held(holding, gate) if state == "Pending Lookup" else ""
        request_id = held(holding, gate)
        until(lambda: state_of(holding, request_id) == state, f"it is {state}")
        if state == "Running":
            some_done(holding, request_id, 1)
            until(lambda: bool(door.asked), "a file is read")
        assert cancel(holding, request_id).status_code == 200
        assert holding.rows("select 1 from tasks where state = 'running'") == []
        lists(gate, listed)
        if other:
            assert len(delivered(holding, other, 20)) == 20
        # there is one worker, and it was busy with a door that does not answer
        assert len(delivered(holding, submit(holding, files[:3]), 3)) == 3
    found = holding.get(f"/servicex/transformation/{request_id}").json()
    counters = [found[f"files{what}"] for what in ("", "-completed", "-failed")]
    assert (found["status"], counters) == (
        "Canceled",
        [21, 1, 0] if state == "Running" else [0, 0, 0],
    )
    assert len(holding.stored(request_id)) == found["files-completed"]
    again = cancel(holding, request_id)
    assert (again.status_code, again.json()["message"].endswith("already: Canceled")) == (400, True)


@pytest.mark.parametrize("state", ["Complete", "Fatal", "Bad Dataset"])
def test_ended_request_cannot_be_cancelled(
    holding: Server, files: list[str], tmp_path: Path, state: str
) -> None:
    """The server answers 400, and the request stays as it was."""
    gate = tmp_path / "gate"
    gate.write_text({"Complete": files[0], "Fatal": "/no/such.root", "Bad Dataset": ""}[state])
    request_id = held(holding, gate)
    before = holding.wait(request_id)
    assert before["status"] == state
    answer = cancel(holding, request_id)
    assert (answer.status_code, answer.json()["message"].endswith(state)) == (400, True)
    assert holding.get(f"/servicex/transformation/{request_id}").json() == before
