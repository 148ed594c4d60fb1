"""Connections of real clients to a real server in this process, with low limits."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from servicex_server.web import connections
from servicex_server.web.connections import Connections, Listener, protocol

LARGE = b"x" * (32 << 20)

Start = Callable[[Connections], tuple[str, int]]


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a large body at ``/large``, and with a small one elsewhere."""
    del receive
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    body = LARGE if scope["path"] == "/large" else b"small"
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def start() -> Iterator[Start]:
    """Give a function that starts a server."""
    with contextlib.ExitStack() as running:

        def started(watched: Connections) -> tuple[str, int]:
            listener = running.enter_context(Listener(socket.AF_INET, socket.SOCK_STREAM))
            listener.connections = watched
            listener.bind(("127.0.0.1", 0))
            listener.listen(1000)
            config = uvicorn.Config(
                application, http=protocol(watched), ws="none", lifespan="off", log_level="error"
            )
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            running.callback(thread.join, 30)
            running.callback(setattr, server, "force_exit", True)
            running.callback(setattr, server, "should_exit", True)
            host, port = listener.getsockname()
            return host, port

        yield started


def opened(address: tuple[str, int], path: str = "", source: str = "127.0.0.1") -> socket.socket:
    """Open a connection, and send a request if there is a path."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    made.bind((source, 0))
    made.settimeout(60)
    made.connect(address)
    if path:
        made.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return made


def is_served(address: tuple[str, int], source: str = "127.0.0.1") -> bool:
    """Return whether a new client gets an answer."""
    with opened(address, "/", source) as one, contextlib.suppress(ConnectionError):
        return one.recv(1000).startswith(b"HTTP/1.1 200")
    return False


def test_server_closes_clients_that_do_not_read_for_new_ones(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It closes those whose response has not moved for the longest time."""
    monkeypatch.setattr(connections, "STALLED_SECONDS", 1.0)
    address = start(Connections(40))
    with contextlib.ExitStack() as held:
        for _ in range(20):
            held.enter_context(opened(address, "/large"))
        deadline = time.monotonic() + 60
        while not is_served(address):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert all(is_served(address) for _ in range(10))


def test_server_closes_a_stopped_reader_and_not_a_slow_one(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow reader may take any time."""
    monkeypatch.setattr(connections, "STALL_SECONDS", 4.0)
    address = start(Connections(1000))
    with opened(address, "/large") as slow, opened(address, "/large") as stopped:
        read = 0
        began = time.monotonic()
        while read < len(LARGE):
            piece = slow.recv(1 << 20)
            assert piece, "a client that reads was closed"
            read += len(piece)
            if time.monotonic() - began < 12:
                time.sleep(0.2)
        assert time.monotonic() - began > 12
        rest = 0
        with contextlib.suppress(ConnectionError):
            while piece := stopped.recv(1 << 20):
                rest += len(piece)
        assert rest < len(LARGE)


def test_connections_of_one_address_are_limited(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address loses its own oldest ones, not those of others. A proxy has no limit."""
    monkeypatch.setattr(connections, "WAITING_EACH", 10)
    address = start(Connections(1000, [ip_network("127.0.0.3/32")]))
    with contextlib.ExitStack() as held:
        other = held.enter_context(opened(address, source="127.0.0.2"))
        proxy = [held.enter_context(opened(address, source="127.0.0.3")) for _ in range(30)]
        many = [held.enter_context(opened(address, source="127.0.0.4")) for _ in range(30)]
        for one in many[:20]:
            assert one.recv(1) == b""
        for one in (*many[20:], other, *proxy):
            one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert one.recv(1000).startswith(b"HTTP/1.1 200")


def test_server_closes_silent_connections_before_active_ones(start: Start) -> None:
    """Many addresses together have more connections than the server allows."""
    address = start(Connections(100))
    with contextlib.ExitStack() as held:
        reading = [held.enter_context(opened(address, "/large")) for _ in range(5)]
        for one in reading:
            assert one.recv(100)
        silent = [held.enter_context(opened(address, source=f"127.0.1.{n}")) for n in range(1, 101)]
        assert is_served(address)
        assert silent[0].recv(1) == b""
        for one in reading:
            read = 0
            while read < len(LARGE) - 200:
                piece = one.recv(1 << 20)
                assert piece, "a client that reads was closed"
                read += len(piece)
