"""Reading by HTTP from servers that a network policy allows: names, redirects, TLS, proxies."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest

from servicex_server.columnar.reading.access import Access
from servicex_server.columnar.reading.download import look
from servicex_server.columnar.reading.http_source import http_client
from servicex_server.columnar.reading.http_transport import CheckedTransport
from servicex_server.errors import ForbiddenHostError, UnreachableError
from servicex_server.network.policy import NetworkPolicy
from tests.integration.servers import Http, Listener, certificate, http, listener, put
from tests.support import sample

POLICY = NetworkPolicy(allowed=("127.0.0.1/32",), public_only=True)
ACCESS = Access(network=POLICY)
ZMUMU = sample("uproot-Zmumu.root")


@pytest.fixture
def door() -> Iterator[Http]:
    """Give a server to which connections are allowed."""
    with http() as made:
        put(made.folder, "x.root", ZMUMU)
        yield made


@pytest.fixture
def internal() -> Iterator[Listener]:
    """Give a port to which nobody may connect."""
    with listener("127.0.0.3") as made:
        yield made
        assert made.connections == 0


Names = Callable[..., list[str]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Give a function that makes a name resolve to one address after the other."""
    import socket

    real = socket.getaddrinfo
    answers: dict[str, list[str]] = {}
    asked: list[str] = []

    def resolver(host: str, port: int, *given: Any, **named: Any) -> list[Any]:
        if host not in answers:
            return real(host, port, *given, **named)
        asked.append(host)
        address = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        return real(address, port, *given, **named)

    def name(host: str, *addresses: str) -> list[str]:
        answers[host] = list(addresses)
        return asked

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    return name


def test_allowed_server_is_read_by_name(door: Http, names: Names) -> None:
    asked = names("files.example.org", "127.0.0.1")
    look(door.url("x.root").replace("127.0.0.1", "files.example.org"), ACCESS)
    assert asked == ["files.example.org"]


def test_name_is_resolved_once_so_that_rebinding_does_not_help(
    door: Http, internal: Listener, names: Names
) -> None:
    asked = names("rebound.example.org", "127.0.0.1", "127.0.0.3")
    url = door.url("x.root").replace("127.0.0.1", "rebound.example.org")
    with http_client(ACCESS) as client:
        for _ in range(3):
            assert client.get(url).status_code == 200
        assert asked == ["rebound.example.org"]
        with pytest.raises(ForbiddenHostError, match=r"rebound\.example\.org \(127\.0\.0\.3\)"):
            client.get(f"http://rebound.example.org:{internal.port}/x.root")


@pytest.mark.parametrize(
    "host", ["127.0.0.3", "0x7f.3", "2130706435", "[::ffff:127.0.0.3]", "localhost.example.org"]
)
def test_redirect_to_a_forbidden_server_is_not_followed(
    door: Http, internal: Listener, names: Names, host: str
) -> None:
    names("localhost.example.org", "127.0.0.3")
    door.manner, door.elsewhere = "redirects", f"http://{host}:{internal.port}/secret"
    with pytest.raises(ForbiddenHostError, match="this service may not connect to"):
        look(door.url("x.root"), ACCESS)
    assert len(door.asked) == 1


def test_redirect_between_allowed_servers_is_followed(door: Http) -> None:
    with http("redirects", elsewhere=door.url("x.root")) as other:
        look(other.url("y.root"), ACCESS)


def test_message_is_the_same_for_open_and_closed_ports(internal: Listener) -> None:
    said = set()
    for port in (internal.port, 1):
        with pytest.raises(ForbiddenHostError) as caught:
            look(f"http://127.0.0.3:{port}/x", ACCESS)
        said.add(str(caught.value))
    assert len(said) == 1


def test_certificate_is_checked_against_the_name(tmp_path: Path, names: Names) -> None:
    """The client rejects another address of the server, and another name of the address."""
    names("files.example.org", "127.0.0.1")
    names("other.example.org", "127.0.0.1")
    pem, key = certificate(tmp_path, host="files.example.org")
    context = ssl.create_default_context(cafile=pem)
    with (
        http(certificate=(pem, key)) as door,
        httpx.Client(transport=CheckedTransport(POLICY, context)) as client,
    ):
        put(door.folder, "x.root", ZMUMU)
        at = f":{door.port}/x.root"
        assert client.get(f"https://files.example.org{at}").status_code == 200
        for host in ("other.example.org", "127.0.0.1"):
            with pytest.raises(httpx.ConnectError, match="certificate"):
                client.get(f"https://{host}{at}")


def test_next_address_of_a_name_is_tried(
    door: Http, monkeypatch: pytest.MonkeyPatch, names: Names
) -> None:
    del names
    policy = NetworkPolicy(allowed=("127.0.0.0/8",), public_only=True)
    monkeypatch.setattr(
        "servicex_server.network.policy.resolve", lambda *_: ("127.0.0.4", "127.0.0.1")
    )
    look(door.url("x.root").replace("127.0.0.1", "two.example.org"), Access(network=policy))


def test_unknown_name_is_unreachable() -> None:
    with pytest.raises(UnreachableError, match=r"no-such-host\.invalid cannot be resolved"):
        look("http://no-such-host.invalid/x.root", ACCESS)


@pytest.mark.parametrize("host", ["127.0.0.3", "127.3", "127.0.0.9"])
def test_proxy_of_the_environment_does_not_lead_to_forbidden_addresses(
    door: Http, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("http_proxy", door.url(""))
    monkeypatch.setenv("no_proxy", "127.0.0.9")
    with http_client(ACCESS) as client, pytest.raises(ForbiddenHostError):
        client.get(f"http://{host}/x.root")
    assert door.asked == []


def test_proxy_of_the_environment_resolves_names_that_only_it_knows(
    door: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", door.url(""))
    with http_client(ACCESS) as client:
        assert client.get("http://only.proxy.invalid/x.root").status_code == 200
    assert door.asked == ["http://only.proxy.invalid/x.root"]


def test_httpx_keeps_its_pool_where_the_transport_replaces_it() -> None:
    """A canary for the only private name of httpx on which the transport relies."""
    transport = httpx.HTTPTransport()
    assert isinstance(transport._pool, httpcore.ConnectionPool)
    assert "network_backend" in httpcore.ConnectionPool.__init__.__annotations__


def test_client_without_a_policy_uses_the_transport_of_httpx() -> None:
    with http_client(Access()) as client:
        assert not isinstance(client._transport, CheckedTransport)
