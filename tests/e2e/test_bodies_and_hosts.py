"""The server rejects endless bodies and host names of other sites before it reads more."""

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
    """A body in chunks, without a length, that records how much of it the server took."""

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


def test_json_without_a_length_is_limited_while_it_arrives(server: Server) -> None:
    """The server rejects it at the limit, reads no more, and keeps nothing of it in memory."""
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


def test_too_large_content_length_is_rejected_at_once(server: Server) -> None:
    """The server does not wait for the body."""
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /servicex/transformation HTTP/1.1\r\nHost: {host}\r\nContent-Length: "
    with socket.create_connection((host, int(port)), 10) as opened:
        opened.sendall(f"{head}{MAX_SUBMIT + 1}\r\n\r\n".encode())
        with opened.makefile("rb") as answer:
            assert b" 413 " in answer.readline()
            assert answer.read().endswith(f'at most {MAX_SUBMIT} bytes"}}'.encode())


@pytest.mark.parametrize("path", ["/sign-in", "/device/code", "/device/token"])
@pytest.mark.parametrize("chunks", [True, False])
def test_large_form_is_rejected(signing_in: Server, path: str, *, chunks: bool) -> None:
    """The limit holds with and without a length. The server processes a form that fits."""
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
def test_host_name_of_another_site_is_rejected(server: Server, host: str, path: str) -> None:
    """Programs get a sentence and people get a page, for each method. The server stores nothing."""
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
def test_host_names_of_this_machine_and_ip_addresses_are_allowed(server: Server, host: str) -> None:
    """The port may differ, as behind a tunnel or a container."""
    assert server.get("/servicex", headers={"Host": host}).status_code == 200
    own = f"{socket.gethostname()}:{server.url.rpartition(':')[2]}"
    assert server.get("/servicex", headers={"Host": own}).status_code == 200


def test_results_cannot_be_read_by_the_host_name_of_another_site(server: Server) -> None:
    """The server rejects the host name even if the signature of the link is valid."""
    request_id = server.run()["request_id"]
    body = {
        "request_id": request_id,
        "file_list": [one["s3-object-name"] for one in server.results(request_id)],
    }
    found = server.client.post("/servicex/transformation/file-urls", json=body).json()["uris"]
    ((link, _, _),) = found.values()
    assert httpx.get(link).status_code == 200
    assert httpx.get(link, headers={"Host": "evil.example"}).status_code == 421


def test_host_name_of_public_url_is_allowed(new_server: Callable[..., Server]) -> None:
    """A proxy passes this name on."""
    server = new_server(SERVICEX_SERVER_PUBLIC_URL="https://ServiceX.example.org")
    assert server.get("/servicex", headers={"Host": "servicex.example.org"}).status_code == 200
    assert server.get("/servicex", headers={"Host": "example.org"}).status_code == 421


def test_server_with_sign_in_allows_any_host_name(signing_in: Server) -> None:
    """A browser sends a cookie only to the host that has set it."""
    headers = {"Host": "evil.example"}
    assert signing_in.get("/servicex", headers=headers).status_code == 200
    assert json.loads(signing_in.get("/requests", headers=headers).text)["message"]
