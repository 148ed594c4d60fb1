"""Workers read files of real servers by XRootD and HTTP, and distinguish their failures."""

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot

from servicex_server.columnar.reading.trees import open_root
from servicex_server.errors import ReplicaError
from servicex_server.model import Limits, Outcome, Replica, ResultFormat, TaskSpec
from servicex_server.worker.transform import transform
from tests.integration import servers
from tests.integration.servers import Http, XRootD, free_port, http, put, xrootd
from tests.support import Server, sample

ZMUMU = sample("uproot-Zmumu.root")
HZZ = sample("uproot-HZZ.root")
QUERY = json.dumps([{"treename": "events", "filter_name": ["Jet_P*", "MET_*"]}])
NOWHERE = "no-such-host.invalid"

Protocol = Literal["root", "http"]


# --- what is served ------------------------------------------------------------------------


@functools.cache
def corrupt() -> bytes:
    """Return a file with one basket that cannot be decompressed."""
    content = bytearray(HZZ.read_bytes())
    with uproot.open(HZZ) as file:
        branch = file["events"]["Jet_Px"]
        start, size = int(branch.member("fBasketSeek")[0]), int(branch.member("fBasketBytes")[0])
    for place in range(start + 100, start + size):
        content[place] ^= 0x5A
    return bytes(content)


def fill(folder: Path) -> None:
    """Place good and bad files in a served folder."""
    put(folder, "hzz.root", HZZ)
    put(folder, "zmumu.root", ZMUMU)
    put(folder, "no_root.root", b"x" * 999)
    put(folder, "corrupt.root", corrupt())
    put(folder, "denied.root", HZZ).chmod(0)


@pytest.fixture(scope="module")
def root_door() -> Iterator[XRootD]:
    """Give an XRootD server with all files."""
    with xrootd() as door:
        fill(door.folder)
        yield door


@pytest.fixture(scope="module")
def other_door() -> Iterator[XRootD]:
    """Give a second XRootD server on an address of its own."""
    with xrootd("127.0.0.2") as door:
        fill(door.folder)
        yield door


@pytest.fixture
def http_door() -> Iterator[Http]:
    """Give an HTTP server with all files, which a test may let go wrong."""
    with http() as door:
        fill(door.folder)
        yield door


@dataclass
class Run:
    """Runs the work on one file, and knows where the result is."""

    folder: Path

    def __call__(
        self, *urls: str, selection: str = QUERY, form: ResultFormat = ResultFormat.PARQUET
    ) -> Outcome:
        return transform(
            TaskSpec(
                request_id="remote",
                file_id=1,
                attempt=1,
                replicas=tuple(Replica(url) for url in urls),
                language="uproot-raw",
                selection=selection,
                format=form,
                object_name="result",
                upload_url=(self.folder / "result").as_uri(),
                limits=Limits(seconds=30),
            )
        )

    def table(self, *urls: str, **more: Any) -> pa.Table:
        """Return the columns of what must work."""
        outcome = self(*urls, **more)
        assert outcome.error is None, outcome.error
        return pq.read_table(self.folder / "result")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Give a runner of this test's own."""
    return Run(tmp_path)


def kinds(outcome: Outcome) -> list[str]:
    """Return the classes of all attempts in their order; empty for the one that worked."""
    return [attempt.error.kind if attempt.error else "" for attempt in outcome.attempts]


def test_servers_listen_on_loopback_addresses_only(root_door: XRootD, other_door: XRootD) -> None:
    """Only this machine can reach the files of these tests."""
    for door in (root_door, other_door):
        process = psutil.Process(door.process.pid)
        heard = [c.laddr for c in process.net_connections("inet") if c.status == "LISTEN"]
        assert {(place.ip.removeprefix("::ffff:"), place.port) for place in heard} == {
            (door.address, door.port)
        }


# --- what works ----------------------------------------------------------------------------

SELECTIONS = {
    "branches": (HZZ, QUERY),
    "expressions and a cut": (
        HZZ,
        json.dumps(
            [
                {
                    "treename": "events",
                    "expressions": ["Jet_Px", "NJet", "hypot(MET_px, MET_py)"],
                    "cut": "NJet > 1",
                }
            ]
        ),
    ),
    "all branches": (ZMUMU, json.dumps([{"treename": "events"}])),
}


@pytest.mark.parametrize("protocol", ["root", "http"])
@pytest.mark.parametrize("case", SELECTIONS)
def test_columns_equal_those_of_the_local_file(
    root_door: XRootD, http_door: Http, run: Run, protocol: Protocol, case: str
) -> None:
    """The result does not depend on the place of the file."""
    path, selection = SELECTIONS[case]
    door = root_door if protocol == "root" else http_door
    url = door.url(path.name.removeprefix("uproot-").lower())
    expected = run.table(str(path), selection=selection)
    assert expected.num_rows > 0
    outcome = run(url, selection=selection)
    assert outcome.error is None
    assert pq.read_table(run.folder / "result").equals(expected)
    assert (outcome.url, kinds(outcome)) == (url, [""])
    assert outcome.events_written == expected.num_rows
    assert 0 < outcome.bytes_read <= 2 * path.stat().st_size


def test_only_requested_branches_are_fetched(http_door: Http, run: Run) -> None:
    """One branch of many costs the file's tables and that branch's baskets, in few requests."""
    selection = json.dumps([{"treename": "events", "filter_name": "MET_px"}])
    outcome = run(http_door.url("hzz.root"), selection=selection)
    assert outcome.error is None
    assert outcome.bytes_read < HZZ.stat().st_size / 5
    assert len(http_door.asked) <= 6
    assert all(" bytes=" in asked for asked in http_door.asked)


def test_rntuple_pages_are_fetched_in_few_requests(http_door: Http, run: Run) -> None:
    """Columns of several clusters do not cost one request for each page."""
    path = http_door.folder / "ntuple.root"
    values = np.random.default_rng(5).normal(size=(4, 1_000))
    with uproot.recreate(path) as file:
        ntuple = file.mkrntuple("events", {"x": values[0], "y": values[0]})
        for part in values[1:]:
            ntuple.extend({"x": part, "y": part})
    table = run.table(http_door.url("ntuple.root"), selection='[{"treename": "events"}]')
    assert table["y"].to_pylist() == values.reshape(-1).tolist()
    # five tables of the file, a list of pages for each of the four clusters, all eight pages in one
    assert len(http_door.asked) == 5 + 4 + 1


def test_redirect_of_a_storage_endpoint_is_followed(http_door: Http, run: Run) -> None:
    """The result equals that of the server which has the file."""
    with http("redirects", elsewhere=http_door.url("hzz.root")) as door:
        assert run.table(door.url("hzz.root")).equals(run.table(str(HZZ)))


def test_query_string_of_a_url_reaches_the_server_unchanged(http_door: Http, run: Run) -> None:
    """The text after the question mark may be a signature."""
    query = "?X-Sig=a%2Fb%2Bc%3D&x=1+2"
    run.table(http_door.url("hzz.root") + query)
    assert {asked.split()[0] for asked in http_door.asked} == {f"/hzz.root{query}"}


# --- what fails ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "manner", "kind"),
    [
        (404, "ranges", "Missing"),
        (403, "ranges", "Denied"),
        (500, "ranges", "Unreachable"),
        (0, "breaks", "Unreachable"),
        (0, "whole", "Unreachable"),
    ],
)
@pytest.mark.parametrize("well", [1, 2, 3])
def test_failure_of_a_server_during_the_work_keeps_its_class(
    http_door: Http, run: Run, status: int, manner: servers.Manner, kind: str, well: int
) -> None:
    """The worker does not take it for a corrupt branch."""
    http_door.status, http_door.manner, http_door.well = status, manner, well
    outcome = run(http_door.url("hzz.root"), str(HZZ))
    assert outcome.error is None
    assert kinds(outcome) == [kind, ""]


def test_server_failure_is_not_blamed_on_a_corrupt_branch(http_door: Http, run: Run) -> None:
    """The server fails while the worker searches for the corrupt branch."""
    url = http_door.url("corrupt.root")
    assert kinds(run(url)) == ["Corrupt"]
    # the search begins with Jet_Px, and ends there: it is the last of what was asked
    http_door.status, http_door.well = 500, len(http_door.asked) - 1
    assert kinds(run(url, str(HZZ))) == ["Unreachable", ""]


def test_query_error_stops_at_the_first_replica(
    root_door: XRootD, other_door: XRootD, http_door: Http, run: Run
) -> None:
    """Another replica cannot correct the error, so the worker does not try it."""
    selection = json.dumps([{"treename": "events", "expressions": ["nope"]}])
    for door in (root_door, http_door):
        outcome = run(door.url("hzz.root"), other_door.url("hzz.root"), selection=selection)
        assert kinds(outcome) == ["UnknownName"]
        assert outcome.error == outcome.attempts[0].error
        assert outcome.url == door.url("hzz.root")


def test_outcome_has_the_error_of_the_last_bad_replica(
    root_door: XRootD, http_door: Http, run: Run
) -> None:
    """It lists all attempts in their order, and no file is left."""
    urls = [
        root_door.url("missing.root"),
        http_door.url("no_root.root"),
        f"http://127.0.0.1:{free_port()}/hzz.root",
        root_door.url("denied.root"),
    ]
    outcome = run(*urls)
    assert kinds(outcome) == ["Missing", "Corrupt", "Unreachable", "Denied"]
    assert [attempt.url for attempt in outcome.attempts] == urls
    assert outcome.error == outcome.attempts[-1].error
    assert outcome.url == urls[-1]
    assert not (run.folder / "result").exists()


@pytest.mark.parametrize("place", ["path", "root", "http"])
def test_failures_leave_no_threads_or_descriptors(
    root_door: XRootD, http_door: Http, run: Run, place: str
) -> None:
    """The reader releases them at once, also while a caller holds the errors."""
    path = put(run.folder, "no_root.root", b"x" * 999)
    url = {
        "path": str(path),
        "root": root_door.url("no_root.root"),
        "http": http_door.url("no_root.root"),
    }[place]

    def count() -> tuple[int, int]:
        ours = [t for t in threading.enumerate() if "process_request" not in t.name]
        return len(ours), psutil.Process().num_fds()

    def fail() -> ReplicaError:
        with pytest.raises(ReplicaError) as caught, open_root(url):
            pass
        return caught.value

    held = [fail()]  # XrdCl keeps its connection to a server
    before = count()
    held += [fail() for _ in range(20)]
    # the test's own HTTP server may still be closing the last connection
    assert count()[0] <= before[0]
    assert count()[1] <= before[1] + 1


# --- settings of XRootD ---------------------------------------------------------------------

# XrdCl reads them once in the life of a process
AGAIN = """
import json, sys, time
from servicex_server.columnar.reading.trees import open_root
from servicex_server.errors import ServiceXError

def attempt():
    try:
        with open_root(sys.argv[1]):
            return ""
    except ServiceXError as error:
        return type(error).__name__

found = [attempt()]
print("tried", flush=True)
sys.stdin.readline()
began = time.monotonic()
while found[-1] and time.monotonic() < began + 20:
    time.sleep(0.1)
    found.append(attempt())
print(json.dumps({"kinds": found, "seconds": time.monotonic() - began}))
"""


def test_recovered_server_is_used_again() -> None:
    """After a refused connection, XRootD waits for two seconds, and not for half an hour."""
    port = free_port()
    command = [sys.executable, "-c", AGAIN, f"root://127.0.0.1:{port}//hzz.root"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "tried\n"
        with xrootd(port=port) as door:
            put(door.folder, "hzz.root", HZZ)
            output, _ = process.communicate("\n", timeout=30)
    found = json.loads(output)
    assert found["kinds"][0] == "UnreachableError"
    assert found["kinds"][-1] == ""
    assert found["seconds"] < 5


def test_xrootd_deadlines_are_set_unless_the_environment_has_them() -> None:
    """A worker does not wait ten minutes for a dead server. An administrator can change this."""
    program = (
        "import json, os\n"
        "from servicex_server.columnar.reading.trees import open_root\n"
        "from servicex_server.columnar.reading.xrootd_source import xrootd_settings\n"
        "from servicex_server.errors import UnreachableError\n"
        f"try:\n    with open_root('root://{NOWHERE}//x'): pass\n"
        "except UnreachableError:\n    pass\n"
        "print(json.dumps({name: os.environ[name] for name in xrootd_settings(1, 1)}))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XRD_")}
    output = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"XRD_STREAMTIMEOUT": "777"},
        check=True,
        capture_output=True,
        timeout=30,
    ).stdout
    found = json.loads(output)
    assert found.pop("XRD_STREAMTIMEOUT") == "777"
    assert {"XRD_CONNECTIONWINDOW", "XRD_REQUESTTIMEOUT"} < set(found)
    assert all(0 < int(value) <= 60 for value in found.values())


def test_error_without_the_xrootd_client_says_what_to_install() -> None:
    """A root:// URL gives this error if XRootD is not installed."""
    program = (
        "import sys\n"
        "sys.modules['XRootD'] = None\n"
        "from servicex_server.columnar.reading.trees import open_root\n"
        "from servicex_server.errors import UnreachableError\n"
        "try:\n"
        "    with open_root('root://127.0.0.1//x.root'): pass\n"
        "except UnreachableError as error: print(error)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=30
    ).stdout
    assert "needs the XRootD client" in output
    assert "pip install xrootd" in output


# --- the whole service ---------------------------------------------------------------------


def test_file_list_may_mix_protocols(
    server: Server, root_door: XRootD, http_door: Http, tmp_path: Path
) -> None:
    """A path, file://, http:// and root:// in one list give equal results."""
    copy = put(tmp_path, "a copy.root", HZZ)
    files = [str(HZZ), copy.as_uri(), http_door.url("hzz.root"), root_door.url("hzz.root")]
    status = server.run(file_list=files, selection=QUERY)
    counts = (status["files"], status["files-completed"], status["files-failed"])
    assert (status["status"], counts) == ("Complete", (4, 4, 0))
    tables = [pq.read_table(path) for path in server.stored(status["request_id"])]
    assert len(tables) == 4
    assert all(table.equals(tables[0]) for table in tables)
    assert tables[0].num_rows == 2421


def test_a_missing_file_on_a_server_fails_alone(
    server: Server, root_door: XRootD, http_door: Http
) -> None:
    """A 404 fails its file with the class Missing. The service delivers the other files."""
    bad = http_door.url("missing.root")
    files = [str(HZZ), bad, root_door.url("hzz.root")]
    status = server.run(file_list=files, selection=QUERY)
    counts = (status["files"], status["files-completed"], status["files-failed"])
    assert (status["status"], counts) == ("Complete", (3, 2, 1))
    (error,) = server.errors(status["request_id"])
    assert (error["class"], error["blame"], error["file"]) == ("Missing", "replica", bad)
    assert [attempt["class"] for attempt in error["attempts"]] == ["Missing"]
    assert len(server.stored(status["request_id"])) == 2
