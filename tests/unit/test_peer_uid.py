"""The account behind a connection, as the kernel names it."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from servicex_server.web.middleware.peer_uid import PeerUids, peer_uids

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sock_diag")


@pytest.fixture
def finder() -> Iterator[PeerUids]:
    with closing(PeerUids()) as made:
        yield made


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_peer_uid_is_that_of_the_clients_process(finder: PeerUids, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as client,
    ):
        ends = client.getsockname()[:2], listener.getsockname()[:2]
        assert finder.find(*ends) == os.getuid()
        client.shutdown(socket.SHUT_WR)  # as programs do that have sent all they have
        assert finder.find(*ends) == os.getuid()


@linux
def test_peer_uid_of_a_mapped_address_is_found(finder: PeerUids) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        ends = client.getsockname(), listener.getsockname()
        mapped = [(f"::ffff:{host}", port) for host, port in ends]
        assert finder.find(*mapped) == os.getuid()


@linux
def test_peer_uid_of_a_closed_client_is_unknown(finder: PeerUids) -> None:
    """The kernel names root for a socket without a process; the service must not believe it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ends = client.getsockname(), listener.getsockname()
        served, _ = listener.accept()
        client.close()
        assert finder.find(*ends) is None  # FIN_WAIT2
        served.close()
        assert finder.find(*ends) is None  # TIME_WAIT


@linux
def test_peer_uid_of_a_listening_socket_is_unknown(finder: PeerUids) -> None:
    """The kernel's table falls back to the listener at an address, which is not a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        assert finder.find(address, ("127.0.0.1", 1)) is None


@linux
@pytest.mark.parametrize(
    ("client", "server"),
    [
        (("192.0.2.1", 5), ("127.0.0.1", 6)),
        (("127.0.0.1", 5), ("::1", 6)),
        (("a name", 5), ("127.0.0.1", 6)),
    ],
)
def test_peer_uid_without_a_connection_is_unknown(
    finder: PeerUids, client: tuple[str, int], server: tuple[str, int]
) -> None:
    assert finder.find(client, server) is None


def test_peer_uids_are_not_used_if_the_system_reports_wrong_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The service first tries the answer of the system on a connection of its own."""
    monkeypatch.setattr(PeerUids, "find", lambda *_: os.getuid() + 1)
    assert peer_uids() is None
