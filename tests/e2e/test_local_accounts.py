"""Without sign-in, the service serves only the account of the machine that runs it."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import Server, missing, refused, sample

NewServer = Callable[..., Server]

STRANGER = 65534
PROGRAM = Path(__file__).with_name("client_program.py")


def strange_socket(server: Server) -> socket.socket:
    """Return a connection whose socket another account has made, as the kernel remembers."""
    if os.geteuid() != 0:
        missing("to be another account, tests need root")
    os.seteuid(STRANGER)
    try:
        made = socket.socket()
    finally:
        os.seteuid(0)
    url = httpx.URL(server.url)
    made.connect((url.host, url.port))
    return made


def strange(server: Server, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """Ask as another account; return the status and the text of the answer."""
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = strange_socket(server)
    headers = {"Content-Type": "application/json"}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_another_account_is_refused_and_the_owner_is_served(server: Server) -> None:
    """The server refuses information, pages, results and a query that runs code."""
    done = server.run()
    code = "def run_query(path):\n    return {'n': [1]}\n"
    order = {
        "file-list": [str(sample("uproot-Zmumu.root"))],
        "selection": code,
        "codegen": "python",
        "result-destination": "object-store",
        "result-format": "parquet",
    }
    before = server.counts()
    for method, path, body in (
        ("GET", "/servicex", None),
        ("GET", "/", None),
        ("GET", "/requests", None),
        ("GET", f"/servicex/transformation/{done['request_id']}", None),
        ("GET", f"/{done['request_id']}", None),
        ("POST", "/token/refresh", None),
        ("POST", "/servicex/transformation", order),
        ("DELETE", f"/servicex/transformation/{done['request_id']}", None),
    ):
        status, text = strange(server, method, path, body)
        assert status == 403, (method, path, text)
        assert "does not serve user nobody" in text
        assert "servicex-server serve" in text
    assert server.counts() == before
    assert server.run()["status"] == "Complete"


def test_client_that_has_disconnected_is_rejected(server: Server) -> None:
    """The tables of the kernel list a socket without a process as one of root."""
    before = server.counts()
    selection = json.dumps([{"treename": "events", "filter_name": ["E1"]}])
    order = {"selection": selection, "codegen": "uproot-raw", "result-destination": "object-store"}
    body = json.dumps({**order, "result-format": "parquet", "file-list": ["/data/x.root"]})
    head = "POST /servicex/transformation HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(20):
        with strange_socket(server) as gone:
            gone.sendall((head + body).encode())
    assert server.run()["status"] == "Complete"
    assert server.counts()["requests"] == before["requests"] + 1


def test_allow_anonymous_serves_every_account(new_server: NewServer) -> None:
    options = ("--workers", "1", "--allow-anonymous")
    server = new_server(*options, SERVICEX_SERVER_SCALING__LEAST_WORKERS="0")
    assert strange(server, "GET", "/servicex")[0] == 200


def printed(server: Server) -> str:
    """Return the token that the service has printed."""
    return server.says(r"    token: (\S+)")


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give a server that wants its token from everybody."""
    folder = tmp_path_factory.mktemp("asking") / "data"
    # the start of a worker is paid by the only test that needs one
    environment = {"SERVICEX_SERVER_SCALING__LEAST_WORKERS": "0"}
    server = Server(folder, ["--workers", "1", "--require-token"], environment).start()
    yield server
    server.stop()


def test_require_token_rejects_calls_without_the_token(asking: Server, tmp_path: Path) -> None:
    """The published client reads the token from servicex.yaml, as the service prints it."""
    server = asking
    before = server.counts()["requests"]
    assert server.get("/healthz").status_code == 200
    for path in ("/servicex/transformation", "/requests", "/servicex/workers", "/workers"):
        answer = server.get(path)
        assert answer.status_code == 401, path
    assert "put the token into servicex.yaml" in server.get("/servicex/transformation").text
    wrong = {"Authorization": "Bearer sxt_wrong"}
    assert server.client.post("/token/refresh", headers=wrong).status_code == 401
    assert server.client.post("/token/refresh").status_code == 401
    assert server.submit().status_code == 401
    assert server.counts()["requests"] == before

    config = tmp_path / "servicex.yaml"
    configuration = re.search(r"^api_endpoints:\n(?: .*\n)+", server.output, re.MULTILINE)
    assert configuration is not None
    config.write_text(f"{configuration[0]}cache_path: {tmp_path / 'cache'}\n")
    subqueries = [{"treename": "events", "filter_name": ["E1"]}]
    order = {
        "config": str(config),
        "general": {"OutputFormat": "parquet"},
        "samples": {"mine": [[str(sample("uproot-Zmumu.root"))], subqueries]},
    }
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps(order)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    delivered = json.loads(ran.stdout.partition("DELIVERED ")[2])
    assert [Path(path).suffix for path in delivered["mine"]] == [".parquet"]


def test_printed_address_lets_a_browser_in(asking: Server) -> None:
    server = asking
    token = printed(server)
    assert f"/open?token={token}" in server.output
    with httpx.Client(base_url=server.url, headers={"Accept": "text/html"}) as browser:
        assert browser.get("/open", params={"token": f"{token}0"}).status_code == 401
        assert browser.get("/requests").status_code == 401
        answer = browser.get("/open", params={"token": token})
        assert (answer.status_code, answer.headers["location"]) == (303, "/requests")
        assert "HttpOnly" in answer.headers["set-cookie"]
        assert browser.get("/requests").status_code == 200
        forged = {"Cookie": "servicex-owner=wrong"}
        assert httpx.get(f"{server.url}/requests", headers=forged).status_code == 401


def test_the_token_stays_the_same_over_a_restart(asking: Server) -> None:
    token = printed(asking)
    asking.stop()
    asking.start()
    assert printed(asking) == token


def test_trusted_proxy_without_sign_in_needs_consent(tmp_path: Path) -> None:
    line = refused(
        *("--port", "0", "--data-dir", str(tmp_path)),
        SERVICEX_SERVER_TRUSTED_PROXIES='["127.0.0.1"]',
    )
    assert "anybody who reaches the proxy" in line
