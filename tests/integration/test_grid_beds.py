"""Test servers that require credentials: a user reads with the right one, and nobody else does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.grid import (
    Authority,
    Cache,
    Issuer,
    TokenXRootD,
    authority,
    cache,
    gsi_xrootd,
    private,
    token_xrootd,
)
from tests.integration.servers import XRootD, put, xrootd

CONTENT = b"what is read"

PROGRAM = """
import sys
from XRootD.client import File

for url in sys.argv[1:]:
    file = File()
    opened, _ = file.open(url, timeout=20)
    if opened.ok:
        read, content = file.read()
        print(content.decode() if read.ok else read.message.strip())
        file.close()
    else:
        print(opened.message.strip())
"""
"""XrdCl and its plug-ins read the environment once in a process: each look is one of its own."""

NOBODY = "[FATAL] Auth failed: No protocols left to try"
NOT_YOU = "Server responded with an error: [3010] Unable to open"


def read(known: Authority, *urls: str, **environment: str | Path) -> list[str]:
    """Return the content of each URL, or the error, in a process of one user."""
    own = ("BEARER_", "X509_", "XRD_", "XrdSec")  # another test may have set them for this process
    alone = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    alone["X509_CERT_DIR"] = str(known.certificates)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *urls],
        env=alone | {name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ran.stdout.splitlines()


@pytest.fixture(scope="module")
def known() -> Iterator[Authority]:
    """Give the authority that servers and users trust."""
    with authority() as made:
        yield made


@pytest.fixture(scope="module")
def stranger() -> Iterator[Authority]:
    """Give an authority that nobody else trusts."""
    with authority("a stranger") as made:
        yield made


@pytest.fixture(scope="module")
def gsi(known: Authority) -> Iterator[XRootD]:
    """Give a server that requires proxies."""
    with gsi_xrootd(known) as door:
        put(door.folder, "file", CONTENT)
        put(door.folder / "vo", "file", CONTENT)
        yield door


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    """Give an issuer of tokens."""
    return Issuer()


@pytest.fixture(scope="module")
def ztn(known: Authority, issuer: Issuer) -> Iterator[TokenXRootD]:
    """Give a server that requires tokens."""
    with token_xrootd(known, issuer, "127.0.0.2") as door:
        for folder in ("one", "two"):
            (door.folder / folder).mkdir()
            put(door.folder / folder, "file", CONTENT)
        yield door


@pytest.fixture(scope="module")
def origin() -> Iterator[XRootD]:
    """Give a server that anybody may read."""
    with xrootd() as door:
        put(door.folder, "file", CONTENT)
        yield door


@pytest.fixture(scope="module")
def near() -> Iterator[Cache]:
    """Give a cache."""
    with cache() as door:
        yield door


def test_server_requires_a_valid_proxy(known: Authority, stranger: Authority, gsi: XRootD) -> None:
    """The server must know its authority. Files of the VO need a proxy of the VO."""
    own, others = gsi.url("file"), gsi.url("vo/file")
    text = CONTENT.decode()
    assert read(known, own) == [NOBODY]
    assert read(known, own, X509_USER_PROXY=known.proxy("old", seconds=-60)) == [NOBODY]
    assert read(known, own, X509_USER_PROXY=stranger.proxy()) == [NOBODY]
    first, second = read(known, own, others, X509_USER_PROXY=known.proxy())
    assert first == text
    assert NOT_YOU in second
    assert read(known, own, others, X509_USER_PROXY=known.voms_proxy()) == [text, text]


def test_client_requires_a_trusted_server(
    known: Authority, stranger: Authority, gsi: XRootD, ztn: TokenXRootD, issuer: Issuer
) -> None:
    """A user who does not know its authority does not read from it."""
    url = gsi.url("file")
    assert read(stranger, url, X509_USER_PROXY=known.proxy("away")) == [NOBODY]
    (said,) = read(stranger, ztn.url("one/file"), BEARER_TOKEN=issuer.token())
    assert said.startswith("[FATAL] TLS error: ")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(ztn.https("one/file"))


def test_each_url_may_have_a_proxy_of_its_own(known: Authority, gsi: XRootD) -> None:
    """One process reads all URLs from one server."""
    proxy, member = known.proxy("one"), known.voms_proxy("member")
    of = "?xrd.gsiusrpxy="
    url = gsi.url("vo/file")
    said = read(known, f"{url}{of}{proxy}", f"{url}{of}{member}", url)
    assert NOT_YOU in said[0]
    assert said[1:] == [CONTENT.decode(), NOBODY]


def test_server_requires_a_valid_token(known: Authority, ztn: TokenXRootD, issuer: Issuer) -> None:
    """It must be valid for the path, by HTTPS as well."""
    url, other = ztn.url("one/file"), ztn.url("two/file")
    assert read(known, url) == [NOBODY]
    tokens = {
        "good": (issuer.token("storage.read:/one"), 200),
        "for another path": (issuer.token("storage.read:/two"), 403),
        "expired": (issuer.token(seconds=-60), 403),
        "of a stranger": (Issuer().token(), 403),
    }
    first, second = read(known, url, other, BEARER_TOKEN=tokens["good"][0])
    assert first == CONTENT.decode()
    assert NOT_YOU in second
    assert read(known, url, BEARER_TOKEN=tokens["expired"][0]) == [NOBODY]
    assert read(known, url, BEARER_TOKEN=tokens["of a stranger"][0]) != [CONTENT.decode()]
    with httpx.Client(verify=known.context()) as client:
        for token, status in tokens.values():
            headers = {"Authorization": f"Bearer {token}", "Range": "bytes=5-8"}
            reply = client.get(ztn.https("one/file"), headers=headers)
            assert reply.status_code == (206 if status == 200 else status)
            assert (reply.content == b"is r") == (status == 200)
        assert client.get(ztn.https("one/file")).status_code == 403


def test_each_url_may_have_a_token_of_its_own(
    known: Authority, ztn: TokenXRootD, issuer: Issuer, tmp_path: Path
) -> None:
    """A URL names a file, and a word that makes it another connection to the same server."""
    urls = []
    for name in ("one", "two"):
        path = private(tmp_path / name, issuer.token(f"storage.read:/{name}").encode())
        urls += [f"{ztn.url(name)}/file?xrdcl.intent={name}&xrd.ztn={path}"]
    crossed = urls[0].replace("//one", "//two")
    said = read(known, *urls, crossed)
    assert said[:2] == [CONTENT.decode()] * 2
    assert NOT_YOU in said[2]


def test_cache_reads_from_the_server_of_the_file(
    known: Authority, near: Cache, origin: XRootD
) -> None:
    """It stores the content, and reads from no server that it may not use."""
    url = near.of(origin.url("file"))
    assert read(known, url) == [CONTENT.decode()]
    assert (near.folder / "file").read_bytes() == CONTENT
    (said,) = read(known, near.of(f"root://127.0.0.3:{origin.port}//file"))
    assert "Unable to open" in said


def test_servers_listen_on_loopback_addresses_only(
    gsi: XRootD, ztn: TokenXRootD, near: Cache
) -> None:
    """Only this machine can reach them."""
    for door in (gsi, ztn, near):
        ports = {door.port, *([door.http_port] if isinstance(door, TokenXRootD) else [])}
        connections = psutil.Process(door.process.pid).net_connections("inet")
        heard = [one.laddr for one in connections if one.status == "LISTEN"]
        assert {(place.ip.removeprefix("::ffff:"), place.port) for place in heard} == {
            (door.address, port) for port in ports
        }
