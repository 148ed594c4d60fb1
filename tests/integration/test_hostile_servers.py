"""Attacks by a URL, or by a server that it names, on files and credentials of the service.

The attacker has an account and servers of their own. The service has a token, a proxy and private
files, which the attacker names in a file list, a redirect or a folder. `hostile_xrootd` is a small
server of our own, for attacks that Debian's ``xrootd`` cannot make; the others are real.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
from tests.integration.hostile_xrootd import ZTN, Hostile, hostile_xrootd
from tests.integration.servers import XRootD, http, put, xrootd
from tests.support import Server, sample

ZMUMU = sample("uproot-Zmumu.root")
ISSUER = Issuer()


@pytest.fixture(scope="module")
def known() -> Iterator[Authority]:
    """Give the authority that the service trusts, also for the servers of the attacker."""
    with authority() as made:
        yield made


@dataclass
class Victim:
    """A service with credentials in its environment, and files that users may not read."""

    server: Server
    allowed: Path
    secret: Path
    token: Path

    def fails(self, url: str) -> dict[str, str]:
        """Request an unreadable file and a readable one; return the error of the former."""
        status = self.server.run(file_list=[url, str(self.allowed / "good.root")])
        counts = (status["files-completed"], status["files-failed"])
        assert (status["status"], counts) == ("Complete", (1, 1)), status
        (error,) = self.server.errors(status["request_id"])
        return {key: str(error[key]) for key in ("class", "message", "hint")}


@pytest.fixture(scope="module")
def victim(known: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """Give a service with a token and a proxy in all places where grid tools find them."""
    folder = tmp_path_factory.mktemp("victim")
    allowed, closed, run = folder / "allowed", folder / "private", folder / "run"
    for one in (allowed, closed, run):
        one.mkdir()
    put(allowed, "good.root", ZMUMU)
    put(closed, "x.root", ZMUMU).chmod(0o600)
    token = private(folder / "token", ISSUER.token().encode())
    environment = {
        "X509_CERT_DIR": str(known.certificates),
        "X509_USER_PROXY": str(known.proxy("of the service")),
        "BEARER_TOKEN_FILE": str(token),
        "XDG_RUNTIME_DIR": str(run),
        "SERVICEX_SERVER_READING__LOCAL_FOLDERS": json.dumps([str(allowed)]),
        "SERVICEX_SERVER_LIMITS__ATTEMPTS": "1",
    }
    server = Server(folder / "data", ["--workers", "1"], environment).start()
    try:
        yield Victim(server, allowed, closed / "x.root", token)
    finally:
        server.stop()


# --- what URLs may say ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("root://h.org//x?xrd.ztn=/etc/shadow", "has the field xrd.ztn"),
        ("root://h.org//x?xrd.gsiusrpxy=/etc/shadow", "has the field xrd.gsiusrpxy"),
        ("root://h.org//x?xrd.k5ccname=/etc/shadow", "has the field xrd.k5ccname"),
        ("root://h.org//x?xrd.sss=/etc/shadow", "has the field xrd.sss"),
        ("root://h.org//x?xrdcl.intent=1", "has the field xrdcl.intent"),
        ("root://h.org//x?xrdcl.secuid=0", "has the field xrdcl.secuid"),
        ("root://h.org//x?xrootd.x=1", "has the field xrootd.x"),
        ("root://h.org//x?XRD.ZTN=/etc/shadow", "has the field XRD.ZTN"),
        ("root://h.org//x?xrd%2Eztn=/etc/shadow", "has the field xrd%2Eztn"),
        ("root://h.org//x?authz=1&&xrd.ztn=/etc/shadow", "has the field xrd.ztn"),
        ("root://h.org//x?authz=1;xrd.ztn=/etc/shadow#", "has a value of authz"),
        ("root://h.org//x?authz=1?xrd.ztn=/etc/shadow", "has two question marks"),
        ("root://h.org//x??xrd.ztn=/etc/shadow", "has two question marks"),
        ("root://h.org//x?tried=a.org", "has the field tried"),
        ("root://h.org//x?eos.ruid=0", "has the field eos.ruid"),
        ("ROOT://h.org//x?xrd.ztn=/etc/shadow", "has the field xrd.ztn"),
        ("root://c.org//root://h.org//x?xrd.ztn=/etc/shadow", "has the field xrd.ztn"),
        ("root://c.org//root:/u@h.org//x", "names a user"),
        ("root://c.org//file:///etc/shadow", "reads file:// through another server"),
        ("root://u@h.org//x", "names a user"),
        ("root://u:p@h.org//x", "names a user"),
        ("root://good.org?@h.org//x", "has no path behind its host"),
        ("root://good.org#@h.org//x", "has no path behind its host"),
        ("https://u:p@h.org/x", "names a user"),
        ("https://good.org\\@h.org/x", "names a user"),
        ("root://\uff11\uff12\uff17.0.0.1//x", "where a host and a port belong"),
        ("https://h.org:0/x", "where a host and a port belong"),
        ("FILE://h.org/etc/shadow", "names a file on another machine"),
        ("FILE:///etc/shadow", "is not in a folder that may be read"),
        ("file://localhost/etc/shadow", "is not in a folder that may be read"),
        ("file:///etc/shadow?x", "has a query"),
    ],
)
def test_url_that_configures_a_client_is_rejected_at_submission(
    victim: Victim, url: str, said: str
) -> None:
    answer = victim.server.submit(file_list=[str(victim.allowed / "good.root"), url])
    assert answer.status_code == 400, answer.text
    message = answer.json()["message"]
    assert message.startswith("file-list: entry 2, ")
    assert said in message


def test_worker_rejects_a_url_of_a_catalogue_that_configures_a_client(known: Authority) -> None:
    """URLs of replicas, listings and caches reach a worker without the check at submission."""
    program = (
        "import sys\n"
        "from servicex_server.model import ProbeSpec\n"
        "from servicex_server.worker.probe import probe\n"
        "print(probe(ProbeSpec(sys.argv[1])).error.message)\n"
    )
    with hostile_xrootd(security=ZTN, certificate=known.host) as theirs:
        url = theirs.url("x?xrd.ztn=/etc/passwd")
        for place in (url, f"root://127.0.0.1:1//{url}"):
            command = [sys.executable, "-c", program, place]
            ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)
            assert "has the field xrd.ztn, which is not allowed" in ran.stdout
        assert (theirs.logins, theirs.shown) == (0, [])


# --- credentials that nobody has chosen -----------------------------------------------------


def test_token_in_the_environment_is_shown_to_no_server(known: Authority, victim: Victim) -> None:
    """Neither a worker, nor the look-up of a folder, nor `servicex-server probe` shows it."""
    with hostile_xrootd(security=ZTN, certificate=known.host) as theirs:
        error = victim.fails(theirs.url("x.root"))
        assert error["class"] == "Denied", error
        assert "no entry for this host" in error["hint"]
        status = victim.server.run(file_list=None, did=f"xrootd://{theirs.url('*.root')}")
        assert status["status"] == "Bad Dataset", status
        program = str(Path(sys.executable).with_name("servicex-server"))
        subprocess.run(
            [program, "probe", theirs.url("x.root")],
            env={**victim.server.environment, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=False,
            timeout=90,
        )
        assert theirs.logins >= 3
        assert theirs.shown == []


@pytest.fixture(scope="module")
def tokens(known: Authority) -> Iterator[TokenXRootD]:
    """Give a real server that requires tokens."""
    with token_xrootd(known, ISSUER, "127.0.0.2") as door:
        put(door.folder, "x.root", ZMUMU)
        yield door


@pytest.fixture(scope="module")
def gsi(known: Authority) -> Iterator[XRootD]:
    """Give a real server that requires proxies."""
    with gsi_xrootd(known) as door:
        put(door.folder, "x.root", ZMUMU)
        yield door


def test_real_servers_are_shown_no_credential_of_the_environment(
    victim: Victim, tokens: TokenXRootD, gsi: XRootD
) -> None:
    """With the token or the proxy in its environment, the service could read from all of them."""
    for url in (tokens.url("x.root"), tokens.https("x.root"), gsi.url("x.root")):
        assert victim.fails(url)["class"] == "Denied", url


def test_field_of_a_redirect_does_not_choose_a_credential(known: Authority, victim: Victim) -> None:
    with hostile_xrootd(security=ZTN, certificate=known.host) as theirs:
        fields = f"xrd.ztn={victim.token}&xrd.wantprot=ztn&xrdcl.intent=mine"
        with hostile_xrootd("127.0.0.2", redirect=f"{theirs.url('x.root')}?{fields}") as first:
            assert victim.fails(first.url("x.root"))["class"] == "Denied"
        assert theirs.logins
        assert theirs.shown == []


# --- redirects ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "file://{secret}",
        "file://localhost{secret}",
        "FILE://{secret}",
        "root://localfile/{secret}",
        "http://127.0.0.1:1/x.root",
        "root://user@127.0.0.1:1//x.root",
    ],
)
def test_redirect_to_a_file_or_a_forbidden_server_is_not_followed(
    victim: Victim, target: str
) -> None:
    """The worker reads no byte of the private file, although uproot could read it."""
    with hostile_xrootd(redirect=target.format(secret=victim.secret)) as theirs:
        error = victim.fails(theirs.url("x.root"))
        assert error["class"] == "Unreachable", error
        assert theirs.asked
    if target.startswith(("file:", "http:", "root://user")):
        assert "which is not followed" in error["message"]


def test_redirects_in_a_circle_end(victim: Victim) -> None:
    with hostile_xrootd() as theirs:
        theirs.redirect = theirs.url("x.root")
        error = victim.fails(theirs.url("x.root"))
        assert error["class"] == "Unreachable", error
        assert "leads through more than 16 servers" in error["message"]
        assert len(theirs.asked) <= 2 * 16


def test_metalink_is_not_followed(victim: Victim) -> None:
    """A real server has the metalink file, which names a private file."""
    with xrootd() as door:
        for suffix in ("meta4", "metalink"):
            text = (
                '<?xml version="1.0"?><metalink xmlns="urn:ietf:params:xml:ns:metalink">'
                f'<file name="x.root"><url>file://localhost{victim.secret}</url></file></metalink>'
            )
            put(door.folder, f"x.root.{suffix}", text.encode())
            assert victim.fails(door.url(f"x.root.{suffix}"))["class"] == "Corrupt"


@pytest.mark.parametrize("target", ["file://{secret}", "root://127.0.0.1:1//x", "//u:p@h.org/x"])
def test_http_redirect_to_another_scheme_is_not_followed(victim: Victim, target: str) -> None:
    with http("redirects", elsewhere=target.format(secret=victim.secret)) as door:
        error = victim.fails(door.url("x.root"))
        assert error["class"] == "Unreachable", error
        assert "which is not followed" in error["message"]


# --- local files ----------------------------------------------------------------------------


def test_link_out_of_an_allowed_folder_is_not_followed(victim: Victim) -> None:
    """The URLs name a link to a file, and a file below a link to a folder."""
    file, folder = victim.allowed / "link.root", victim.allowed / "folder"
    file.symlink_to(victim.secret)
    folder.symlink_to(victim.secret.parent)
    inside = victim.allowed / "inside.root"
    inside.symlink_to(victim.allowed / "good.root")
    for url in (str(file), file.as_uri(), f"{folder}/x.root"):
        error = victim.fails(url)
        assert error["class"] == "Denied", error
        assert "is not in a folder that this service may read from" in error["message"]
    assert victim.server.run(file_list=[str(inside)])["files-completed"] == 1


def test_redirect_to_a_server_is_followed(victim: Victim) -> None:
    """The worker passes on the fields that the first server sets for the second."""
    with xrootd("127.0.0.2") as door:
        put(door.folder, "data.root", ZMUMU)
        target = door.url("data.root?cap.sym=abc&cap.msg=a+b/c=")
        with hostile_xrootd(redirect=target) as first:
            status = victim.server.run(file_list=[first.url("x.root?authz=t")])
    assert (status["status"], status["files-completed"]) == ("Complete", 1), status


def _asked(theirs: Hostile) -> list[str]:
    return [path.partition("?")[0] for path in theirs.asked]


def test_another_server_of_a_redirector_is_tried_after_a_failure(known: Authority) -> None:
    """XrdCl asks the redirector once more, with the name of the server that failed."""
    from servicex_server.columnar.reading.access import Access
    from servicex_server.columnar.reading.download import look
    from servicex_server.errors import MissingError

    with hostile_xrootd("127.0.0.2") as without, hostile_xrootd() as first:
        first.redirect = without.url("x.root")
        with pytest.raises(MissingError):
            look(first.url("x.root"), Access(opening=5, silence=5))
    assert _asked(first) == ["/x.root", "/x.root"]
    assert "tried=127.0.0.2" in first.asked[1]
