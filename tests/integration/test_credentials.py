"""One process reads with proxies and tokens from many hosts, which are real servers."""

import contextlib
import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.grid import (
    Authority,
    Issuer,
    TokenXRootD,
    authority,
    gsi_xrootd,
    private,
    token_xrootd,
)
from tests.integration.hostile_xrootd import ZTN, hostile_xrootd
from tests.integration.servers import XRootD, free_port, http, put
from tests.support import sample

ZMUMU = sample("uproot-Zmumu.root")
ENTRIES = 2304

WORKER = """
import json, sys, tempfile
from pathlib import Path
from servicex_server.model import Credential, Limits, Replica, ResultFormat, TaskSpec
from servicex_server.worker.transform import transform

for number, line in enumerate(sys.stdin):
    asked = json.loads(line)
    ours = [
        Credential(
            tuple(one["hosts"]),
            proxy=Path(one["proxy"]) if "proxy" in one else None,
            token=Path(one["token"]) if "token" in one else None,
        )
        for one in asked["credentials"]
    ]
    with tempfile.TemporaryDirectory() as folder:
        found = transform(TaskSpec(
            request_id="r", file_id=number, attempt=1,
            replicas=tuple(Replica(url) for url in asked["urls"]),
            language=asked["language"], selection=asked["selection"],
            format=ResultFormat.PARQUET, object_name="x.parquet",
            upload_url=(Path(folder) / "x.parquet").as_uri(),
            limits=Limits(seconds=60, opening=5, silence=5), credentials=tuple(ours),
        ))
    error = found.error
    told = {
        "kind": error and error.kind, "message": error and error.message,
        "hint": error and error.hint, "events": found.events_read, "url": found.url,
        "log": found.log_tail, "attempts": [one.url for one in found.attempts],
        "seconds": found.seconds,
    }
    print(json.dumps(told), flush=True)
"""
"""A worker of its own, because XrdCl reads some of its environment once in a process."""

QUERY = '[{"treename": "events", "filter_name": ["E1"]}]'


@pytest.fixture(scope="module")
def known() -> Iterator[Authority]:
    """Give the authority that servers and users trust."""
    with authority() as made:
        yield made


@pytest.fixture(scope="module")
def gsi(known: Authority) -> Iterator[XRootD]:
    """Give a server that requires proxies; below ``vo``, it requires those of the VO."""
    with gsi_xrootd(known) as door:
        put(door.folder, "x.root", ZMUMU)
        put(door.folder / "vo", "x.root", ZMUMU)
        yield door


ISSUER = Issuer()


@pytest.fixture(scope="module")
def tokens(known: Authority) -> Iterator[TokenXRootD]:
    """Give a server that requires tokens, on another address."""
    with token_xrootd(known, ISSUER, "127.0.0.2") as door:
        put(door.folder, "x.root", ZMUMU)
        yield door


Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask(known: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Give a function that makes a worker read a file. All tests use one process, in turn.

    Open connections belong to other users, as in a worker of a service.
    """
    with _worker(known, XDG_RUNTIME_DIR=str(tmp_path_factory.mktemp("runtime"))) as read:
        yield read


@contextlib.contextmanager
def _worker(known: Authority, **environment: str) -> Iterator[Ask]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XRD_", "X509_", "BEARER_"))}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER],
        env=kept | environment | {"X509_CERT_DIR": str(known.certificates)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told, answers = process.stdin, process.stdout

        def read(*urls: str, of: list[dict[str, Any]], code: str = "") -> dict[str, Any]:
            question = {
                "urls": urls,
                "credentials": of,
                "language": "python" if code else "uproot-raw",
                "selection": b64encode(code.encode()).decode() if code else QUERY,
            }
            told.write(json.dumps(question) + "\n")
            told.flush()
            found: dict[str, Any] = json.loads(answers.readline())
            return found

        yield read
        told.close()
        process.wait(20)


def shown(*hosts: str, **files: Path) -> dict[str, Any]:
    """Return a credential in the form of the settings."""
    return {"hosts": hosts, **{name: str(path) for name, path in files.items()}}


def test_worker_shows_each_host_its_own_credential(
    ask: Ask, known: Authority, gsi: XRootD, tokens: TokenXRootD, tmp_path: Path
) -> None:
    """One process shows a proxy by ``root://``, and a token by ``root://`` and by HTTPS."""
    token = private(tmp_path / "token", ISSUER.token().encode())
    of_https = f"127.0.0.2:{tokens.http_port}"
    ours = [shown("127.0.0.1", proxy=known.proxy()), shown("127.0.0.2", of_https, token=token)]
    doors = gsi.url("x.root"), tokens.url("x.root"), tokens.https("x.root")
    for url in doors:
        found = ask(url, of=ours)
        assert (found["kind"], found["events"]) == (None, ENTRIES), found
        assert found["attempts"] == [url]
    for url in doors:
        found = ask(url, of=[])
        assert found["kind"] == "Denied", found
        assert (
            found["hint"] == "the setting reading.credentials has no entry for this host and port"
        )
    # the connection that is open belongs to somebody else by now
    for url, wrong in (
        (doors[0], shown("*", token=token)),
        (doors[1], shown("*", proxy=known.proxy("other"))),
    ):
        found = ask(url, of=[wrong])
        assert found["kind"] == "Denied", found
        assert "it was shown" in found["hint"]


def test_only_members_of_a_vo_read_its_files(ask: Ask, known: Authority, gsi: XRootD) -> None:
    """Two users who read from one server each have their own rights."""
    plain, member = known.proxy("plain"), known.voms_proxy()
    for proxy, kind in ((plain, "Denied"), (member, None), (plain, "Denied")):
        found = ask(gsi.url("vo/x.root"), of=[shown("127.0.0.1", proxy=proxy)])
        assert found["kind"] == kind, found
    assert "xrd." not in found["message"] + found["url"]


def test_expired_credential_is_not_shown(ask: Ask, known: Authority, tmp_path: Path) -> None:
    """The worker states when it expired, asks no server, and tries the next replica."""
    port = free_port()
    nobody = f"127.0.0.1:{port}"
    proxy = known.proxy("old", seconds=-60)
    token = private(tmp_path / "token", ISSUER.token(seconds=-60).encode())
    for url, of in (
        (f"root://{nobody}//x.root", shown("127.0.0.1", proxy=proxy)),
        (f"root://{nobody}//x.root", shown("127.0.0.1", token=token)),
        (f"https://{nobody}/x.root", shown(f"*:{port}", token=token)),
    ):
        found = ask(url, of=[of])
        assert found["kind"] == "Expired", found
        assert "expired at 20" in found["message"]
        assert found["seconds"] < 5
        found = ask(url, str(ZMUMU), of=[of])
        assert (found["kind"], found["attempts"]) == (None, [url, str(ZMUMU)])


def test_renewed_credential_is_used_at_once(
    ask: Ask, known: Authority, gsi: XRootD, tokens: TokenXRootD, tmp_path: Path
) -> None:
    """Another program writes the file while the worker runs."""
    proxy = known.proxy("renewed", seconds=-60)
    token = private(tmp_path / "token", ISSUER.token(seconds=-60).encode())
    of_https = f"127.0.0.2:{tokens.http_port}"
    ours = [shown("127.0.0.1", proxy=proxy), shown("127.0.0.2", of_https, token=token)]
    doors = gsi.url("x.root"), tokens.url("x.root"), tokens.https("x.root")
    assert {ask(url, of=ours)["kind"] for url in doors} == {"Expired"}
    known.proxy("renewed")
    token.unlink()
    private(token, ISSUER.token().encode())
    assert [ask(url, of=ours)["events"] for url in doors] == [ENTRIES] * 3


def test_entry_without_files_shows_usual_credentials_to_its_hosts(
    known: Authority, gsi: XRootD, tokens: TokenXRootD, tmp_path: Path
) -> None:
    """It means the proxy and the token in their usual places, for its hosts only."""
    token = private(tmp_path / "token", ISSUER.token().encode())
    usual = {"X509_USER_PROXY": str(known.proxy("usual")), "XDG_RUNTIME_DIR": str(tmp_path)}
    doors = gsi.url("x.root"), tokens.url("x.root"), tokens.https("x.root")
    every = shown("127.0.0.1", "127.0.0.2", f"127.0.0.2:{tokens.http_port}")
    for way in ({"BEARER_TOKEN_FILE": str(token)}, {"BEARER_TOKEN": token.read_text()}):
        with _worker(known, **usual, **way) as ask:
            for url in doors:
                for of in ([], [shown("other.org")], [shown("127.0.0.*:1")]):
                    assert ask(url, of=of)["kind"] == "Denied", (url, of)
                found = ask(url, of=[every])
                assert (found["kind"], found["events"]) == (None, ENTRIES), found


def test_chosen_token_is_shown_and_not_the_one_in_the_environment(
    known: Authority, tmp_path: Path
) -> None:
    """XrdCl looks for those in the environment first."""
    chosen = private(tmp_path / "chosen", b"chosen-token")
    other = private(tmp_path / "other", b"other-token")
    for way in ({"BEARER_TOKEN_FILE": str(other)}, {"BEARER_TOKEN": "other-token"}):
        with (
            hostile_xrootd(security=ZTN, certificate=known.host) as door,
            _worker(known, **way) as ask,
        ):
            ask(door.url("x.root"), of=[shown("127.0.0.1", token=chosen)])
            assert [b"chosen-token" in what for _, what in door.shown] == [True]
            assert b"other" not in door.shown[0][1]


def test_token_is_shown_to_no_other_server_after_a_redirect(
    ask: Ask, known: Authority, tmp_path: Path
) -> None:
    """With ``root://`` a server with an entry gets it; with HTTPS no other host, port or scheme."""
    token = private(tmp_path / "token", b"a-token")
    with hostile_xrootd("127.0.0.2", security=ZTN, certificate=known.host) as theirs:
        target = theirs.url("x.root", scheme="roots")
        with hostile_xrootd(security=ZTN, certificate=known.host, redirect=target) as ours:
            found = ask(ours.url("x.root"), of=[shown("127.0.0.1", token=token)])
            assert (found["kind"], len(ours.shown), theirs.shown) == ("Denied", 1, []), found
            assert "redirects to roots://127.0.0.2" in found["hint"]
            found = ask(ours.url("x.root"), of=[shown("127.0.0.1", "127.0.0.2", token=token)])
            assert (found["kind"], len(theirs.shown)) == ("Missing", 1), found


def test_token_is_shown_by_https_only_to_the_port_of_its_entry(
    ask: Ask, known: Authority, tmp_path: Path
) -> None:
    token = private(tmp_path / "token", b"a-token")
    with (
        http(certificate=known.host) as other,
        http() as plain,
        http("redirects", certificate=known.host) as named,
    ):
        put(other.folder, "x.root", ZMUMU)
        put(plain.folder, "x.root", ZMUMU)
        ours = shown(f"127.0.0.1:{named.port}", f"127.0.0.1:{plain.port}", token=token)
        for door in (other, plain):
            assert ask(door.url("x.root"), of=[ours])["events"] == ENTRIES
            named.elsewhere = door.url("x.root")
            assert ask(named.url("x.root"), of=[ours])["events"] == ENTRIES
            assert set(door.shown) == {""}
        assert set(named.shown) == {"Bearer a-token"}


PEEPS = """
import os, uproot
def run_query(path):
    print("read", path)
    print("env", sorted(name for name in os.environ if "PROXY" in name or "BEARER" in name))
    return uproot.open(path)["events"].arrays(["E1"])
"""


def test_user_code_gets_no_credentials(
    ask: Ask, tokens: TokenXRootD, known: Authority, tmp_path: Path
) -> None:
    """The worker downloads the file for it."""
    token = private(tmp_path / "token", ISSUER.token().encode())
    for url in (tokens.url("x.root"), tokens.https("x.root")):
        found = ask(url, of=[shown("*", f"*:{tokens.http_port}", token=token)], code=PEEPS)
        assert (found["kind"], found["events"]) == (None, ENTRIES), found
        assert "read /" in found["log"]
        assert "env []" in found["log"]
        assert str(token) not in found["log"]
    missing = ask(tokens.url("y.root"), of=[shown("*", token=token)], code=PEEPS)
    assert missing["kind"] == "Missing", missing
