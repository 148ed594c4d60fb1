"""What a service refuses before it looks at it: bodies without an end, and names of other sites."""

import json
import socket
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest

from servicex_server.settings.service import Settings
from servicex_server.web.request_bodies import MAX_BODY, max_submit
from tests.support import Server

MIB = 1 << 20
MAX_SUBMIT = max_submit(Settings())
HTML = {"Accept": "text/html"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def signing_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give a server on which users sign in."""
    folder = tmp_path_factory.mktemp("bodies") / "data"
    environment = {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_SCALING__LEAST_WORKERS": "0",  # no request is run
    }
    server = Server(folder, ["--workers", "1"], environment).start()
    yield server
    server.stop()


class Stream:
    """A body that is sent in chunks, without a length, and knows how much of it was taken."""

    def __init__(self, begin: bytes, size: int, piece: int = MIB) -> None:
        self.sent = 0
        self._begin = begin
        self._size = size
        self._piece = b"x" * piece

    def __iter__(self) -> Iterator[bytes]:
        """Give the pieces."""
        yield self._begin
        while self.sent < self._size:
            yield self._piece
            self.sent += len(self._piece)


def memory(server: Server) -> int:
    """Return the bytes that the process of a server has."""
    assert server.process is not None
    return int(psutil.Process(server.process.pid).memory_info().rss)


def test_json_without_a_length_is_counted_as_it_comes(server: Server) -> None:
    """It is refused at the bound, no more is read, and the service keeps nothing of it."""
    before = memory(server)
    body = Stream(b'{"title": "', 16 * MAX_SUBMIT)
    answer = server.client.post("/servicex/transformation", content=body, headers=JSON)
    assert answer.status_code == 413
    assert answer.json() == {"message": f"the body is too large; at most {MAX_SUBMIT} bytes"}
    assert answer.headers["Connection"] == "close"
    assert body.sent < MAX_SUBMIT + 32 * MIB  # what is on the way is in the kernel's buffers
    assert memory(server) - before < 2 * MAX_SUBMIT
    fits = Stream(b'{"title": "', MAX_SUBMIT // 2)
    answer = server.client.post("/servicex/transformation", content=fits, headers=JSON)
    assert (answer.status_code, "the body is not JSON" in answer.text) == (400, True)
    assert server.submit().status_code == 200


def test_a_length_that_is_too_much_is_refused_at_once(server: Server) -> None:
    """Nothing of the body is waited for."""
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /servicex/transformation HTTP/1.1\r\nHost: {host}\r\nContent-Length: "
    with socket.create_connection((host, int(port)), 10) as opened:
        opened.sendall(f"{head}{MAX_SUBMIT + 1}\r\n\r\n".encode())
        with opened.makefile("rb") as answer:
            assert b" 413 " in answer.readline()
            assert answer.read().endswith(f'at most {MAX_SUBMIT} bytes"}}'.encode())


@pytest.mark.parametrize("path", ["/sign-in", "/device/code", "/device/token"])
@pytest.mark.parametrize("chunks", [True, False])
def test_forms_are_small(signing_in: Server, path: str, *, chunks: bool) -> None:
    """Whether their length is told or not; what fits is looked at."""
    body = Stream(b"token=", MAX_SUBMIT // 2, piece=MAX_BODY)
    content = body if chunks else b"token=" + b"x" * MAX_BODY
    answer = signing_in.client.post(path, content=content, headers=FORM)
    assert answer.status_code == 413
    assert answer.json() == {"message": f"the body is too large; at most {MAX_BODY} bytes"}
    assert body.sent < 16 * MIB
    page = signing_in.client.post(path, content=b"x" * (MAX_BODY + 1), headers=FORM | HTML)
    assert (page.status_code, "Request too large" in page.text) == (413, True)
    fits = b"token=" + b"x" * (MAX_BODY - 6)
    assert signing_in.client.post(path, content=fits, headers=FORM).status_code in (400, 401)


STRANGE = ("evil.example", "evil.example:5000", "127.0.0.1.evil.example", "localhost.evil.example")


@pytest.mark.parametrize("host", STRANGE)
@pytest.mark.parametrize("path", ["/", "/servicex", "/servicex/transformation", "/token/refresh"])
def test_a_name_of_another_site_is_refused(server: Server, host: str, path: str) -> None:
    """Of each method, by a sentence for programs and a page for people, and nothing is done."""
    before = server.counts()["requests"]  # files of others may still be found
    for method in ("GET", "POST", "DELETE", "OPTIONS"):
        answer = server.client.request(method, path, headers={"Host": host})
        assert answer.status_code == 421
        assert f"the host '{host}' is not allowed" in answer.json()["message"]
        assert "public_url" in answer.json()["message"]
    page = server.get(path, headers={"Host": host} | HTML)
    assert (page.status_code, "Host not allowed" in page.text) == (421, True)
    assert server.counts()["requests"] == before


@pytest.mark.parametrize(
    "host", ["localhost:1", "LOCALHOST", "x.localhost.", "10.0.0.7", "[::1]:5"]
)
def test_names_of_this_machine_and_addresses_are_good(server: Server, host: str) -> None:
    """Also those of tunnels and containers, of which the port is another."""
    assert server.get("/servicex", headers={"Host": host}).status_code == 200
    own = f"{socket.gethostname()}:{server.url.rpartition(':')[2]}"
    assert server.get("/servicex", headers={"Host": own}).status_code == 200


def test_results_are_not_reached_by_the_name_of_another_site(server: Server) -> None:
    """Though their links have signatures."""
    request_id = server.run()["request_id"]
    body = {
        "request_id": request_id,
        "file_list": [one["s3-object-name"] for one in server.results(request_id)],
    }
    found = server.client.post("/servicex/transformation/file-urls", json=body).json()["uris"]
    ((link, _, _),) = found.values()
    assert httpx.get(link).status_code == 200
    assert httpx.get(link, headers={"Host": "evil.example"}).status_code == 421


def test_the_name_in_public_url_is_good(new_server: Callable[..., Server]) -> None:
    """As a proxy passes it on."""
    server = new_server(SERVICEX_SERVER_PUBLIC_URL="https://ServiceX.example.org")
    assert server.get("/servicex", headers={"Host": "servicex.example.org"}).status_code == 200
    assert server.get("/servicex", headers={"Host": "example.org"}).status_code == 421


def test_where_users_sign_in_any_name_is_good(signing_in: Server) -> None:
    """A cookie is sent to the host only that has set it."""
    headers = {"Host": "evil.example"}
    assert signing_in.get("/servicex", headers=headers).status_code == 200
    assert json.loads(signing_in.get("/requests", headers=headers).text)["message"]
