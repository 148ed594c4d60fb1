"""Files with several replicas: the service delivers all, and records bad replicas and endpoints.

The storage endpoints are real XRootD servers. The catalogue is a finder of a package that the
test installs.
"""

import csv
import inspect
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from servicex_server.cli.main import cli
from servicex_server.replicas.health import OPEN_AFTER
from tests import listed
from tests.integration.grid import cache
from tests.integration.servers import Http, XRootD, free_port, http, put, xrootd
from tests.support import Server, plug_in, sample, until

ZMUMU = sample("uproot-Zmumu.root")
QUERY = '[{"treename": "events", "filter_name": ["E1", "E2"]}]'
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-plug-in.md"


@pytest.fixture(scope="module")
def doors() -> Iterator[tuple[XRootD, XRootD]]:
    """Give two servers of files."""
    with xrootd() as first, xrootd("127.0.0.2") as second:
        yield first, second


@pytest.fixture(scope="module")
def files() -> Iterator[Http]:
    """Give a server of files by HTTP."""
    with http() as door:
        yield door


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, files: Http) -> dict[str, str]:
    """Give an environment with the catalogue of the tests, and with the finder of the page."""
    folder = tmp_path_factory.mktemp("finders") / "installed"
    text = PAGE.read_text(encoding="utf-8")
    source = next(iter(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)))
    environment = plug_in(folder, "listed", "Listed", inspect.getsource(listed))
    environment |= plug_in(folder, "mylab", "MyLab", source)
    return environment | {"SERVICEX_SERVER_FINDERS__MYLAB__DOOR": files.url("").rstrip("/")}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory, installed: dict[str, str]) -> Iterator[Server]:
    """Give a server of two workers that is set as it is by default."""
    folder = tmp_path_factory.mktemp("usual") / "data"
    running = Server(folder, ["--workers", "2"], installed).start()
    yield running
    running.stop()


@pytest.fixture
def start(new_server: Callable[..., Server], installed: dict[str, str]) -> Callable[..., Server]:
    """Give a function that starts a server with other settings."""
    return lambda workers, **more: new_server("--workers", str(workers), **installed, **more)


def ask(server: Server, folder: Path, places: list[list[str]]) -> dict[str, Any]:
    """Ask for files that are in these places, and wait."""
    catalogue = folder / f"{len(list(folder.iterdir()))}.json"
    catalogue.write_text(json.dumps(places))
    answer = server.submit(file_list=None, did=f"listed://{catalogue}", selection=QUERY)
    assert answer.status_code == 200, answer.text
    request_id = answer.json()["request_id"]
    return {"request_id": request_id, **server.wait(request_id)}


def objects(server: Server, request_id: str) -> list[bytes]:
    """Return the results in the order of the files."""
    query = "select object_key from tasks where request_id = ? order by id"
    folder = server.data_dir / "objects"
    return [(folder / key).read_bytes() for (key,) in server.rows(query, request_id)]


def site(server: Server, door: str, state: str) -> dict[str, Any]:
    """Wait until a door is shown in a state; return what is said of it."""
    found: dict[str, Any] = {}

    def seen() -> bool:
        for one in server.get("/servicex/sites").json()["sites"]:
            if one["endpoint"].startswith(door):
                found.update(one)
        return found.get("state") == state

    until(seen, f"{door} is {state}")
    return found


def tries_at(server: Server, request_id: str, door: str) -> int:
    """Return how often files of a request were tried at a door."""
    rows = server.rows("select tried from tasks where request_id = ?", request_id)
    tried = [json.loads(told) if isinstance(told, str) else told or [] for (told,) in rows]
    return sum(one["url"].startswith(door) for tries in tried for one in tries)


def test_bad_replicas_lose_no_file_and_are_listed(
    doors: tuple[XRootD, XRootD], usual: Server, tmp_path: Path
) -> None:
    """Six of twenty files have a bad first replica. The list has only these, with their errors."""
    first, second = doors
    content = ZMUMU.read_bytes()
    bad: dict[int, tuple[str, bytes | None]] = {
        2: ("Missing", None),
        5: ("Truncated", content[: len(content) // 2]),
        8: ("Corrupt", b"x" * len(content)),
        11: ("Missing", None),
        14: ("Truncated", b""),
        17: ("Corrupt", b"root" + b"\0" * 400),
    }
    for number in range(20):
        put(second.folder, f"{number}.root", ZMUMU)
        _, broken = bad.get(number, ("", content))
        if broken is not None:
            put(first.folder, f"{number}.root", broken)
    names = [f"{number}.root" for number in range(20)]
    server = usual
    clean = ask(server, tmp_path, [[str(ZMUMU)]])
    found = ask(server, tmp_path, [[first.url(name), second.url(name)] for name in names])
    assert server.errors(found["request_id"]) == []
    assert (found["status"], found["files-completed"], found["files-failed"]) == ("Complete", 20, 0)
    assert objects(server, found["request_id"]) == 20 * objects(server, clean["request_id"])
    told = server.get("/servicex/replicas/bad").json()["replicas"]
    expected = {first.url(f"{number}.root"): kind for number, (kind, _) in bad.items()}
    assert {one["replica"]: one["error"] for one in told} == expected
    assert {(one["rse"], one["times"]) for one in told} == {("RSE_0", 1)}
    assert {one["file"] for one in told} == {f"scope:file{number}" for number in bad}
    door = first.url("")[:-2]
    # what is shown is written down every two seconds
    until(
        lambda: sum(site(server, door, "healthy")["failed"].values()) == 6, "six have failed there"
    )
    of_first = site(server, door, "healthy")
    assert (of_first["site"], of_first["bad-replicas"]) == ("RSE_0", 6)
    until(lambda: site(server, door, "healthy")["reported"] == 6, "all six are reported")
    answer = server.get("/servicex/replicas/bad?format=csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    table = list(csv.DictReader(io.StringIO(answer.text)))
    assert {row["replica"]: row["error"] for row in table} == expected
    assert server.get("/servicex/replicas/bad?format=xml").status_code == 400


def test_dead_storage_endpoint_is_tried_a_few_times_only(
    doors: tuple[XRootD, XRootD], usual: Server, tmp_path: Path
) -> None:
    """Then its circuit breaker opens, and its replicas come last.

    The next process knows the state, too, and an operator sees it.
    """
    _, second = doors
    dead = f"root://127.0.0.1:{free_port()}"
    put(second.folder, "x.root", ZMUMU)
    places = [[f"{dead}//{number}.root", second.url("x.root")] for number in range(40)]
    server = usual
    found = ask(server, tmp_path, places)
    assert (found["status"], found["files-completed"]) == ("Complete", 40)
    at_work = 2  # which had begun when it was shut
    assert OPEN_AFTER <= tries_at(server, found["request_id"], dead) < OPEN_AFTER + at_work
    shut = site(server, dead, "open")
    assert (shut["worked"], shut["attempts"]) == (0, shut["failed"]["Unreachable"])
    assert "cannot be reached" in shut["last-error"]
    site(server, second.url("")[:-2], "healthy")
    program = str(Path(sys.executable).with_name("servicex-server"))
    command = [program, "sites", "--url", server.url]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert re.search(rf"^{dead} +RSE_0 +open ", shown, re.MULTILINE)
    assert re.search(rf"^root://{second.address}\S* +RSE_1 +healthy ", shown, re.MULTILINE)
    server.stop()
    server.start()
    again = ask(server, tmp_path, places)
    assert (again["status"], again["files-completed"]) == ("Complete", 40)
    assert tries_at(server, again["request_id"], dead) == 1  # somebody has to see whether it is up


def test_frozen_storage_endpoint_costs_a_few_deadlines(
    doors: tuple[XRootD, XRootD], start: Callable[..., Server], tmp_path: Path
) -> None:
    """The operator sets the deadlines. The service waits for a few, and not one for each file."""
    _, second = doors
    put(second.folder, "x.root", ZMUMU)
    server = start(
        2, SERVICEX_SERVER_READING__OPEN_SECONDS="2", SERVICEX_SERVER_READING__SILENCE_SECONDS="2"
    )
    with xrootd("127.0.0.3") as third:
        put(third.folder, "x.root", ZMUMU)
        urls = [third.url("x.root"), second.url("x.root")]
        with third.frozen():
            found = ask(server, tmp_path, [urls] * 30)
    assert (found["status"], found["files-completed"]) == ("Complete", 30)
    door = f"root://{third.address}"
    assert 1 <= tries_at(server, found["request_id"], door) <= 2  # once for each worker
    assert set(site(server, door, "open")["failed"]) == {"Slow"}


def test_idle_worker_starts_a_speculative_read_of_a_slow_file(
    doors: tuple[XRootD, XRootD], start: Callable[..., Server], tmp_path: Path
) -> None:
    """It does so at the end of a request, for one in twenty files, if the operator allows it."""
    _, second = doors
    put(second.folder, "x.root", ZMUMU)
    good = second.url("x.root")
    with xrootd("127.0.0.5") as slow:
        put(slow.folder, "x.root", ZMUMU)
        places = [[good]] * 40 + [[slow.url("x.root"), good]]
        server = start(
            2,
            SERVICEX_SERVER_READING__SPECULATIVE_READS="true",
            SERVICEX_SERVER_READING__SILENCE_SECONDS="60",
        )
        with slow.frozen():
            found = ask(server, tmp_path, places)
        assert (found["status"], found["files-completed"]) == ("Complete", 41)
        query = "select max(seconds) from tasks where request_id = ?"
        [(longest,)] = server.rows(query, found["request_id"])
        assert longest < 20  # of the 60 that are waited for a byte
        assert server.says("(speculative read) after")
        assert tries_at(server, found["request_id"], f"root://{slow.address}") == 0
        assert len(server.stored(found["request_id"])) == 41
        # the worker that waited was started again, and there are two as before
        again = ask(server, tmp_path, [[good]] * 4)
        assert (again["status"], again["files-completed"]) == ("Complete", 4)


def test_files_are_read_through_caches_while_they_are_up(
    doors: tuple[XRootD, XRootD], start: Callable[..., Server], tmp_path: Path
) -> None:
    """Each file goes through one cache. The error of a cache does not count for the replica."""
    first, second = doors
    dead = f"root://127.0.0.3:{free_port()}"
    names = [f"cached-{number}.root" for number in range(24)]
    for name in names[1:]:
        put(first.folder, name, ZMUMU)
    put(second.folder, names[0], ZMUMU)
    places = [[first.url(name), second.url(name)] for name in names]
    with cache("127.0.0.4", allowed=first.address) as near:
        caches = [f"root://{near.address}:{near.port}", dead]
        server = start(1, SERVICEX_SERVER_READING__CACHES=json.dumps(caches))
        found = ask(server, tmp_path, places)
        assert (found["status"], found["files-completed"]) == ("Complete", 24)
        request_id = found["request_id"]
        assert 0 < tries_at(server, request_id, dead) < OPEN_AFTER + 2
        through = tries_at(server, request_id, caches[0])
        assert through >= 24 - OPEN_AFTER - 2
        assert {path.name for path in near.folder.rglob("*.root")} <= set(names[1:])
        told = server.get("/servicex/replicas/bad").json()["replicas"]
        assert [one["replica"] for one in told] == [first.url(names[0])]
        # what users know files by has no cache in it
        paths = {path for (path,) in server.rows("select path from tasks")}
        assert paths == {first.url(name) for name in names[1:]} | {second.url(names[0])}
    site(server, caches[1], "open")
    again = ask(server, tmp_path, places)  # the other one has ended by now
    assert (again["status"], again["files-completed"]) == ("Complete", 24)


def probed(*arguments: str, **environment: str) -> tuple[int, list[list[str]]]:
    """Run the command; return its exit code, and the lines of its table."""
    program = str(Path(sys.executable).with_name("servicex-server"))
    ran = subprocess.run(
        [program, "probe", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )
    assert ran.stderr == ""
    return ran.returncode, [line.split() for line in ran.stdout.splitlines()[1:-1]]


def probed_by(server: Server) -> tuple[int, list[list[str]]]:
    """Run the command in this process, which asks a server; return what `probed` returns."""
    ran = CliRunner().invoke(cli, ["probe", "--url", server.url])
    assert ran.stderr == ""
    return ran.exit_code, [line.split() for line in ran.stdout.splitlines()[1:-1]]


def test_storage_endpoints_are_probed_by_command_and_on_a_schedule(
    doors: tuple[XRootD, XRootD],
    files: Http,
    start: Callable[..., Server],
    installed: dict[str, str],
    tmp_path: Path,
) -> None:
    """The service uses the outcome. The exit code is the number of failed replicas."""
    first, second = doors
    put(first.folder, "x.root", ZMUMU)
    put(files.folder, "x.root", ZMUMU)
    port = free_port()
    gone = f"root://127.0.0.3:{port}//x.root"
    here = [first.url("x.root"), first.url("y.root"), files.url("x.root"), gone, str(ZMUMU)]
    code, lines = probed(*here)
    assert code == 2
    assert [line[:2] for line in lines] == [
        [here[0], "ok"],
        [here[1], "Missing"],
        [here[2], "ok"],
        [here[3], "Unreachable"],
        [here[4], "ok"],
    ]
    server = start(1, SERVICEX_SERVER_REPORTS__PROBE_SECONDS="1")
    assert probed_by(server) == (0, [])
    put(second.folder, "x.root", ZMUMU)
    found = ask(server, tmp_path, [[gone, second.url("x.root")]] * OPEN_AFTER)
    assert found["files-completed"] == OPEN_AFTER
    code, lines = probed_by(server)
    assert (code, [line[:2] for line in lines]) == (
        1,
        [[gone, "Unreachable"], [second.url("x.root"), "ok"]],
    )
    site(server, gone.removesuffix("//x.root"), "open")
    with xrootd("127.0.0.3", port=port) as back:
        put(back.folder, "x.root", ZMUMU)
        # nobody asks for a file, and it is seen
        site(server, gone.removesuffix("//x.root"), "healthy")
    listed_urls = tmp_path / "installed.json"
    listed_urls.write_text(json.dumps([here[:2], here[2:]]))
    code, lines = probed(f"listed://{listed_urls}", **installed)
    assert (code, [line[1] for line in lines]) == (1, ["ok", "Missing"])
    code, lines = probed(f"listed://{listed_urls}?files=2", **installed)
    assert (code, len(lines)) == (2, 5)


def test_finder_of_the_documentation_works(files: Http, usual: Server) -> None:
    """The test runs the unchanged code of the page, with its option, on files that exist."""
    server = usual
    (files.folder / "2024-a").mkdir()
    for number in range(3):
        put(files.folder / "2024-a", f"{number}.root", ZMUMU)
    for asked, count in (("2024-a", 3), ("2024-a?files=2", 2)):
        request_id = server.submit(file_list=None, did=f"mylab://{asked}", selection=QUERY).json()[
            "request_id"
        ]
        found = server.wait(request_id)
        assert (found["status"], found["files-completed"]) == ("Complete", count)
    refused = server.submit(file_list=None, did="mylab://nonsense", selection=QUERY)
    assert (refused.status_code, refused.json()["message"]) == (
        400,
        "did: 'nonsense' is no run (write mylab://2024-a)",
    )
    unknown = server.wait(
        server.submit(file_list=None, did="mylab://a-b", selection=QUERY).json()["request_id"]
    )
    assert (unknown["status"], unknown["failure-info"]) == ("Bad Dataset", "there is no run a-b")
