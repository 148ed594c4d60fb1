"""With sign-in, a service connects only to servers that its settings allow.

An attacker with an account names servers in every place that takes one. A listener on a forbidden
address counts its connections, and gets none.
"""

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.test_accounts import People
from tests.integration.servers import Http, Listener, http, listener, put, xrootd
from tests.support import Server, refused, sample, until

ALLOWED = "127.0.0.2"
ZMUMU = sample("uproot-Zmumu.root")

FUNCTION = """
def run_query(path):
    import uproot
    return uproot.open(f"{path}:events").arrays(["E1"])
"""


@pytest.fixture(scope="module")
def attacker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """Give a service that reads from one loopback address only, and a user of it."""
    environment = {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_READING__ALLOWED_HOSTS": json.dumps([ALLOWED]),
        "SERVICEX_SERVER_LIMITS__ATTEMPTS": "1",
    }
    server = Server(tmp_path_factory.mktemp("network") / "data", ["--workers", "1"], environment)
    server.start()
    try:
        people = People(server)
        people.add("owner")
        yield people
    finally:
        server.stop()


@pytest.fixture
def allowed() -> Iterator[Http]:
    """Give a server that may be read from."""
    with http(address=ALLOWED) as door:
        put(door.folder, "x.root", ZMUMU)
        yield door


@pytest.fixture
def internal() -> Iterator[Listener]:
    """Give a port on this machine that nobody may connect to; `localhost` is its name."""
    with listener("127.0.0.1") as made:
        yield made
        assert made.connections == 0


def _posted(people: People, **changes: Any) -> httpx.Response:
    body = {
        "selection": json.dumps([{"treename": "events", "filter_name": ["E1"]}]),
        "codegen": "uproot-raw",
        "result-destination": "object-store",
        "result-format": "parquet",
    } | changes
    return people.ask("owner", "POST", "/servicex/transformation", json=body)


def _refused(people: People, **changes: Any) -> str:
    answer = _posted(people, **changes)
    assert answer.status_code == 400, answer.text
    return str(answer.json()["message"])


def _error(people: People, **changes: Any) -> dict[str, Any]:
    """Submit a request on one file that fails; return its error."""
    request_id = people.submit(**changes)
    assert people.ended(request_id)["status"] == "Fatal"
    path = f"/servicex/transformation/{request_id}/errors"
    (file,) = people.ask("owner", "GET", path).json()["errors"]
    error: dict[str, Any] = file
    return error


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "127.0.0.1.",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "10.0.0.1",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https", "root"])
def test_forbidden_address_in_a_file_list_is_refused_at_submit(
    attacker: People, internal: Listener, scheme: str, host: str
) -> None:
    files = [f"root://{ALLOWED}//x.root", f"{scheme}://{host}:{internal.port}//x.root"]
    said = _refused(attacker, **{"file-list": files})
    assert said.startswith("file-list: entry 2, ")
    assert "cannot be read: this service may not connect to " in said
    assert said.endswith("(its setting reading.allowed_hosts does not list it)")


@pytest.mark.parametrize(
    "host",
    [
        "user@127.0.0.1",
        "\uff11\uff12\uff17.0.0.1",
        "188.184.1.1#@127.0.0.1",
        "188.184.1.1?@127.0.0.1",
        "188.184.1.1:1094?x=@127.0.0.1",
        "188.184.1.1\\@127.0.0.1",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https", "root"])
def test_host_that_libraries_read_differently_is_refused_at_submit(
    attacker: People, internal: Listener, scheme: str, host: str
) -> None:
    files = [f"root://{ALLOWED}//x.root", f"{scheme}://{host}:{internal.port}//x.root"]
    assert _refused(attacker, **{"file-list": files}).startswith("file-list: entry 2, ")


def test_address_behind_an_allowed_proxy_of_xrootd_is_refused_at_submit(attacker: People) -> None:
    url = f"root://{ALLOWED}:1094//root://127.0.0.1:1094//x.root"
    assert "may not connect to 127.0.0.1" in _refused(attacker, **{"file-list": [url]})


@pytest.mark.parametrize("scheme", ["http", "https", "root"])
def test_name_with_a_forbidden_address_is_refused_by_the_worker(
    attacker: People, internal: Listener, scheme: str
) -> None:
    """The message is the same whether a server listens there or not."""
    said = set()
    for port in (internal.port, 9):
        error = _error(attacker, **{"file-list": [f"{scheme}://LocalHost:{port}//x.root"]})
        assert (error["class"], error["blame"]) == ("ForbiddenHost", "dataset")
        said.add(error["message"].lower())
    assert len(said) == 1
    assert "may not connect to localhost (" in said.pop()


def test_redirect_to_a_forbidden_address_is_refused(
    attacker: People, allowed: Http, internal: Listener
) -> None:
    allowed.manner = "redirects"
    for host in ("127.0.0.1", "localhost", "[::ffff:7f00:1]"):
        allowed.elsewhere = f"http://{host}:{internal.port}/latest/meta-data/"
        error = _error(attacker, **{"file-list": [allowed.url("x.root")]})
        assert error["class"] == "ForbiddenHost"
    assert allowed.asked


def test_file_for_a_user_function_is_not_read_from_a_forbidden_server(
    attacker: People, allowed: Http, internal: Listener
) -> None:
    code = {"codegen": "python", "selection": b64encode(FUNCTION.encode()).decode()}
    good = {"file-list": [allowed.url("x.root")], **code}
    answer = _posted(attacker, **good)
    if answer.status_code == 400:
        pytest.skip(f"this service offers no code: {answer.json()['message']}")
    assert attacker.ended(answer.json()["request_id"])["files-completed"] == 1
    error = _error(attacker, **{**good, "file-list": [f"http://localhost:{internal.port}/x.root"]})
    assert error["class"] == "ForbiddenHost"


def test_folder_of_a_forbidden_server_is_not_listed(attacker: People, internal: Listener) -> None:
    folder = f"{internal.port}//data/*.root"
    said = _refused(attacker, did=f"xrootd://root://127.0.0.1:{folder}")
    assert said.startswith("did: this service may not connect to 127.0.0.1")
    answer = _posted(attacker, did=f"xrootd://root://localhost:{folder}")
    path = f"/servicex/transformation/{answer.json()['request_id']}"
    until(lambda: attacker.ask("owner", "GET", path).json()["status"] == "Bad Dataset", "it failed")
    assert "may not connect to localhost (" in attacker.ask("owner", "GET", path).text


def test_allowed_servers_are_still_read(attacker: People, allowed: Http) -> None:
    with xrootd(ALLOWED) as door:
        put(door.folder, "x.root", ZMUMU)
        files = [allowed.url("x.root"), door.url("x.root"), f"http://localhost:9/{door.port}"]
        found = attacker.ended(attacker.submit(**{"file-list": files}))
    assert (found["files-completed"], found["files-failed"]) == (2, 1)


def test_entry_of_a_setting_that_can_match_nothing_stops_the_start(tmp_path: Path) -> None:
    line = refused(
        "--data-dir", str(tmp_path), SERVICEX_SERVER_READING__FORBIDDEN_HOSTS='["10.0.0.1/8"]'
    )
    assert "setting reading.forbidden_hosts" in line
    assert "10.0.0.1/8 has host bits set" in line
