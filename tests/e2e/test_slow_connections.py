"""Clients open connections and keep silent: the server serves others, and its log stays short."""

import asyncio
import contextlib
import logging
import resource
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from servicex_server.observability import log_throttling
from servicex_server.web import connections
from servicex_server.web.connections import HEAD_BYTES, HEADERS, PIPELINED, Connections, Listener
from tests.support import Server

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


def opened(server: Server, source: str, content: bytes = b"") -> socket.socket:
    """Open a connection from an address of this machine, and send something."""
    host, port = server.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), 30, source_address=(source, 0))
    made.sendall(content)
    return made


@contextlib.contextmanager
def silent(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """Hold connections from eight addresses, half of them in the middle of their headers."""
    with contextlib.ExitStack() as held:
        yield [
            held.enter_context(opened(server, f"127.0.0.{2 + n % 8}", HEAD if n % 2 else b""))
            for n in range(count)
        ]


def status(answer: socket.socket) -> int:
    """Return the status of a response; 0 if the connection is closed without one."""
    try:
        with answer.makefile("rb") as lines:
            return int((lines.readline().split() or [b"", b"0"])[1])
    except ConnectionError:
        return 0


def serves(server: Server) -> float:
    """Do all that a user does, on new connections; return the slowest answer in seconds."""
    slowest = 0.0
    for path in ("/servicex", "/healthz", "/readyz", "/servicex/transformation", "/"):
        began = time.monotonic()
        assert httpx.get(f"{server.url}{path}", timeout=30).status_code == 200
        slowest = max(slowest, time.monotonic() - began)
    assert server.run()["status"] == "Complete"
    return slowest


def test_others_are_served_beside_2000_slow_connections(server: Server) -> None:
    """The log of the service stays short."""
    before = len(server.output)
    with silent(server, 2000):
        assert serves(server) < 5
    assert len(server.output) - before < 20_000


@pytest.fixture
def limited(new_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> Server:
    """Give a server that may have 400 file descriptors."""
    launch = Server.launch

    def under_limit(self: Server, *command: str) -> None:
        launch(self, *command)
        assert self.process is not None
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (400, 400))

    monkeypatch.setattr(Server, "launch", under_limit)
    return new_server()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits other processes")
def test_others_are_served_where_file_descriptors_are_few(limited: Server) -> None:
    """The server closes the connections that wait the longest, and accepts a new one."""
    with silent(limited, 2000) as held:
        assert serves(limited) < 5
        gone = 0
        for one in held[:1000]:
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                gone += not one.recv(1)
        assert gone > 500
    assert "Traceback" not in limited.output
    assert len(limited.output) < 100_000
    assert limited.stop() < 10


def head_times_out(server: Server, content: bytes) -> None:
    """Begin a head, and go on with it byte by byte until it is refused."""
    with opened(server, "127.0.0.1", content) as one:
        began = time.monotonic()
        one.settimeout(1)
        answer = b""
        while time.monotonic() - began < connections.HEAD_SECONDS + 10:
            try:
                if not (piece := one.recv(1000)):
                    break
                answer += piece
            except TimeoutError:
                with contextlib.suppress(ConnectionError):
                    one.send(b"x")
        assert time.monotonic() - began < connections.HEAD_SECONDS + 5
    assert b" 408 " in answer
    assert b"the headers have not arrived in 15 s" in answer


def body_times_out(server: Server) -> None:
    """Begin a body, and send no more of it until it is refused."""
    head = "POST /servicex/transformation HTTP/1.1\r\nHost: localhost\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"
    with opened(server, "127.0.0.1", head.encode()) as one:
        began = time.monotonic()
        one.settimeout(connections.BODY_SECONDS + 10)
        answer = one.recv(10_000)
        assert time.monotonic() - began < connections.BODY_SECONDS + 5
    assert b" 408 " in answer
    assert b"the body arrives too slowly" in answer


def test_heads_and_bodies_have_to_arrive_in_time(server: Server) -> None:
    """They come byte by byte, or not at all. For a body, the server counts the bytes so far."""
    heads = [b"GET /heal", HEAD, HEAD + b"X: y", b"POST /sign-in HTTP/1.1\r\nConten"]
    with ThreadPoolExecutor(len(heads) + 1) as threads:
        told = [threads.submit(head_times_out, server, content) for content in heads]
        told.append(threads.submit(body_times_out, server))
        for one in told:
            one.result()
    assert "Traceback" not in server.output


@pytest.mark.parametrize(
    "content",
    [
        b"GET /" + b"x" * (HEAD_BYTES + 1),
        HEAD + b"X: " + b"x" * (HEAD_BYTES + 1),
        HEAD + b"".join(b"X%d: y\r\n" % n for n in range(HEADERS + 1)),
    ],
    ids=["address", "one header", "many headers"],
)
def test_too_long_headers_are_rejected(server: Server, content: bytes) -> None:
    """The server rejects them before they have ended."""
    with opened(server, "127.0.0.1", content) as one:
        assert status(one) == 431


def test_endless_headers_in_a_chunked_body_are_rejected(server: Server) -> None:
    """They are between the chunks, or after them."""
    head = b"POST /token/refresh HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    for rest in (b"1;" + b"x" * 4 * HEAD_BYTES, b"0\r\n" + b"X: y\r\n" * 4 * HEAD_BYTES):
        with opened(server, "127.0.0.1") as one:
            began = time.monotonic()
            with contextlib.suppress(ConnectionError):
                one.sendall(head)
                while time.monotonic() - began < 5:
                    one.sendall(rest)
                pytest.fail("the server reads on and on")
    assert serves(server) < 5


def test_pipelined_requests_are_limited(server: Server) -> None:
    """The server closes a connection with very many requests. It answers all if they are few."""
    request = HEAD + b"\r\n"
    with opened(server, "127.0.0.1", PIPELINED * request) as one:
        answer = b""
        while answer.count(b" 200 OK") < PIPELINED:
            answer += one.recv(10_000)
    with opened(server, "127.0.0.1", 5000 * request) as one:
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := one.recv(100_000):
                answer += piece
        assert answer.count(b" 200 OK") <= 2 * PIPELINED


def test_a_slow_reader_is_served_to_the_end(server: Server) -> None:
    """It may read a little of a result now and then; see also `STALL_SECONDS`."""
    request_id = server.run()["request_id"]
    (result,) = server.results(request_id)
    body = {"request_id": request_id, "file_list": [result["s3-object-name"]]}
    found = server.client.post("/servicex/transformation/file-urls", json=body).json()["uris"]
    ((link, _, _),) = found.values()
    expected = httpx.get(link).content
    with opened(server, "127.0.0.1") as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.sendall(
            f"GET {link.removeprefix(server.url)} HTTP/1.1\r\nHost: {_host(server)}\r\n".encode()
        )
        one.sendall(b"Connection: close\r\n\r\n")
        answer = b""
        while piece := one.recv(16_384):
            answer += piece
            time.sleep(0.01)
    assert answer.endswith(expected)


def _host(server: Server) -> str:
    return server.url.removeprefix("http://")


def test_private_names_of_uvicorn_exist() -> None:
    """The protocol overrides, calls and reads undocumented names. The test names missing ones."""
    for name in (
        "connection_made connection_lost data_received on_message_begin on_header on_body "
        "on_headers_complete on_message_complete on_response_complete"
    ).split():
        assert name in vars(HttpToolsProtocol), f"web/connections.py relies on {name}"
    code = HttpToolsProtocol.__init__.__code__.co_names
    for name in ("loop", "client", "flow", "transport", "pipeline", "cycle", "headers"):
        assert name in code, f"web/connections.py relies on {name}"
    code = RequestResponseCycle.__init__.__code__.co_names
    assert {"response_started", "response_complete"} <= set(code)


@pytest.mark.anyio
async def test_a_listener_without_descriptors_turns_clients_away() -> None:
    """It closes the new connection if it has no other one, and asyncio sees no failure."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Listener(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(10)
        listener.setblocking(False)
        listener.connections = Connections(1000)
        with pytest.raises(BlockingIOError):
            listener.accept()
        with socket.create_connection(listener.getsockname()) as client:
            spare = socket.socket()
            lowest = spare.fileno()
            spare.close()
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
                with pytest.raises(BlockingIOError):
                    listener.accept()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert client.recv(1) == b""
        with socket.create_connection(listener.getsockname()):
            listener.accept()[0].close()


@pytest.mark.anyio
async def test_a_listener_accepts_a_few_at_once() -> None:
    """Others wait until the server has counted these, and has closed those that are too many."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(Listener(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        listener.setblocking(False)
        for _ in range(connections.ACCEPTED + 1):
            held.enter_context(socket.create_connection(listener.getsockname()))
        for _ in range(connections.ACCEPTED):
            held.enter_context(listener.accept()[0])
        with pytest.raises(BlockingIOError):
            listener.accept()
        await asyncio.sleep(0)
        held.enter_context(listener.accept()[0])


def test_the_log_is_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log repeats a message a few times, and again after a while. Others are not affected."""
    moment = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: moment)
    throttle = log_throttling.Throttle()

    def passes(text: str, level: int = logging.WARNING) -> bool:
        record = logging.LogRecord("name", level, "", 0, text, (), None)
        passed = throttle.filter(record)
        return bool(passed)

    written = sum(passes(f"one %s\nsocket {n}") for n in range(1000))
    assert written == log_throttling.EACH
    assert passes("another")
    assert sum(passes("who has signed in", logging.INFO) for _ in range(1000)) == 1000
    moment += log_throttling.SECONDS
    assert passes("one %s")
