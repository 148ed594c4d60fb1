"""The server trusts forwarded headers of a known proxy, and of nobody else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from servicex_server.errors import StartupError
from servicex_server.settings.loading import load
from tests.support import Server, refused

NewServer = Callable[..., Server]


@contextmanager
def at(address: str, server: Server, **headers: str) -> Iterator[httpx.Client]:
    """Give a client that connects from an address of this machine."""
    transport = httpx.HTTPTransport(local_address=address)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with httpx.Client(transport=transport, base_url=server.url, headers=named) as made:
        yield made


def described(client: httpx.Client, request_id: str) -> dict[str, Any]:
    """Return a request as a client is told of it, with the scheme of each address in it."""
    found = client.get(f"/servicex/transformation/{request_id}").json()
    name = client.get(f"/servicex/transformation/{request_id}/results").json()["results"][0]
    body = {"request_id": request_id, "file_list": [name["s3-object-name"]]}
    links = client.post("/servicex/transformation/file-urls", json=body).json()["uris"]
    ((link, _, _),) = links.values()
    page = client.get(f"/requests/{request_id}", headers={"Accept": "text/html"}).text
    return {
        "secured": found["minio-secured"],
        "log": found["log-url"].partition("://")[0],
        "link": link.partition("://")[0],
        "page": f"https://{found['minio-endpoint']}" in page,
        "endpoint": found["minio-endpoint"],
        "url": link,
    }


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give a server that knows a proxy at 127.0.0.1."""
    environment = {"SERVICEX_SERVER_TRUSTED_PROXIES": '["127.0.0.1", "10.1.0.0/16"]'}
    folder = tmp_path_factory.mktemp("behind") / "data"
    server = Server(folder, ["--workers", "1", "--allow-anonymous"], environment).start()
    yield server
    server.stop()


def test_links_use_https_behind_a_trusted_proxy(behind: Server) -> None:
    """Behind another proxy, they do not. The host is the one that the client named."""
    request_id = behind.run()["request_id"]
    host = "servicex.localhost"
    for address, secure in (("127.0.0.1", True), ("127.0.0.2", False)):
        with at(address, behind, X_Forwarded_Proto="https", Host=host) as client:
            found = described(client, request_id)
            scheme = "https" if secure else "http"
            assert found.pop("url").startswith(f"{scheme}://{host}/{request_id}/")
            assert found == {
                "secured": secure,
                "log": scheme,
                "link": scheme,
                "page": secure,
                "endpoint": host,
            }


def test_signatures_are_valid_through_a_proxy(behind: Server) -> None:
    """They cover the host that the client named. Other headers of a proxy do not matter."""
    import boto3
    from botocore.config import Config

    request = behind.run()
    (result,) = behind.results(request["request_id"])
    added = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
    with at("127.0.0.1", behind, **added) as client:
        found = described(client, request["request_id"])
        path = found["url"].partition(found["endpoint"])[2]
        assert client.get(path).status_code == 200
    s3 = boto3.client(
        "s3",
        endpoint_url=behind.url,
        aws_access_key_id=request["minio-access-key"],
        aws_secret_access_key=request["minio-secret-key"],
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )

    def pass_on(request: Any, **_: Any) -> None:
        for name, value in added.items():
            request.headers[name] = value

    s3.meta.events.register("before-send.s3", pass_on)
    got = s3.get_object(Bucket=request["request_id"], Key=result["s3-object-name"])
    assert got["Body"].read()


def test_forwarded_headers_are_ignored_without_the_setting(server: Server) -> None:
    """The server ignores those of a proxy on the same machine, too."""
    request_id = server.run()["request_id"]
    with at("127.0.0.1", server, X_Forwarded_Proto="https") as client:
        assert not described(client, request_id)["secured"]


def test_trusted_proxy_is_recognised_on_an_ipv6_socket(new_server: NewServer) -> None:
    """On such a socket, IPv4 addresses have the form ``::ffff:127.0.0.1``."""
    server = new_server(
        "--host",
        "::ffff:127.0.0.1",
        "--allow-anonymous",
        SERVICEX_SERVER_TRUSTED_PROXIES='["127.0.0.1"]',
    )
    server.url = f"http://127.0.0.1:{server.url.rpartition(':')[2]}"
    server.client.base_url = server.url
    request_id = server.run()["request_id"]
    for address, secure in (("127.0.0.1", True), ("127.0.0.2", False)):
        with at(address, server, X_Forwarded_Proto="https") as client:
            assert described(client, request_id)["secured"] is secure


@pytest.mark.parametrize("wrong", ["*", "proxy.example.org", "10.0.0.1/8", "10.0.0.0/33", ""])
def test_trusted_proxy_that_is_not_an_address_is_rejected(tmp_path: Path, wrong: str) -> None:
    """The server does not look up names, and ``*`` would trust everybody."""
    config = tmp_path / "settings.yaml"
    config.write_text(f"trusted_proxies: ['127.0.0.1', '{wrong}']\n")
    with pytest.raises(StartupError, match=r"setting trusted_proxies.1 .*IPv4 or IPv6 network"):
        load(config)


def test_command_reports_a_wrong_trusted_proxy_in_one_line(tmp_path: Path) -> None:
    """The command reports every wrong setting in this way."""
    options = ("--data-dir", str(tmp_path))
    line = refused(*options, SERVICEX_SERVER_TRUSTED_PROXIES='["*"]')
    assert "SERVICEX_SERVER_TRUSTED_PROXIES" in line
