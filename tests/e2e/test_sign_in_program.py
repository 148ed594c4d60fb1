"""Sign-in of a command line: it shows a code, a user answers in a browser, it gets a token."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from servicex_server.cli import client_config
from servicex_server.errors import StartupError
from tests.e2e.test_accounts import People
from tests.support import Server

GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """Give a server with two users."""
    folder = tmp_path_factory.mktemp("devices") / "data"
    environment = {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_SCALING__LEAST_WORKERS": "0",  # no request is run
    }
    server = Server(folder, ["--workers", "1"], environment).start()
    try:
        made = People(server)
        made.add("owner", "operator")
        made.add("other")
        yield made
    finally:
        server.stop()


def started(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start the program as somebody with a home of their own."""
    program = str(Path(sys.executable).with_name("servicex-server"))
    return subprocess.Popen(
        [program, *arguments],
        cwd=home,
        env=os.environ | {"HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def code_of(program: "subprocess.Popen[str]") -> str:
    """Return the code that a program shows."""
    assert program.stdout is not None
    for line in program.stdout:
        if found := re.search(r"the code ([B-Z]{4}-[B-Z]{4})", line):
            return found[1]
    raise AssertionError("it shows no code")


def ended(program: "subprocess.Popen[str]", code: int = 0) -> str:
    """Return what a program has said to its end."""
    said, _ = program.communicate(timeout=60)
    assert program.returncode == code, said
    return said


def test_a_command_line_is_signed_in_from_a_browser(people: People, tmp_path: Path) -> None:
    """It stores its token where the client and other commands find it, and does not show it."""
    url = people.server.url
    old = tmp_path / "servicex.yaml"
    old.write_text("# mine\napi_endpoints:\n- name: far\n  endpoint: https://far.org\n")
    assert "servicex-server sign-in" in ended(started(tmp_path, "queue", "--url", url), 1)
    program = started(tmp_path, "sign-in", url)
    code = code_of(program)
    page = people.browse("owner", "GET", f"/device?code={code.lower().replace('-', ' ')}")
    assert "command line on" in page.text
    assert people.browse(
        "owner", "POST", "/device", data={"code": code, "answer": "yes"}
    ).is_success
    assert f"signed in as {people.email('owner')}" in ended(program)
    assert (tmp_path / "servicex.yaml").stat().st_mode & 0o777 == 0o600
    assert "# mine" in old.read_text()
    far, near = yaml.safe_load(old.read_text())["api_endpoints"]
    assert far == {"name": "far", "endpoint": "https://far.org"}
    assert near["endpoint"] == url
    assert "The queue is empty" in ended(started(tmp_path, "queue", "--url", url))
    assert "wanted" in ended(started(tmp_path, "workers", "--url", url))
    assert near["token"] not in people.server.output
    # once more: it has another token, and nobody's is replaced
    program = started(tmp_path, "sign-in", url)
    people.browse("owner", "POST", "/device", data={"code": code_of(program), "answer": "yes"})
    ended(program)
    assert people.exchange(near["token"]).status_code == 200
    (_, fresh) = yaml.safe_load(old.read_text())["api_endpoints"]
    assert people.exchange(fresh["token"]).status_code == 200


def test_program_ends_when_the_user_refuses(people: People, tmp_path: Path) -> None:
    """It leaves no file."""
    program = started(tmp_path, "sign-in", people.server.url)
    answer = {"code": code_of(program), "answer": "no"}
    assert people.browse("other", "POST", "/device", data=answer).is_success
    assert "the user refused it in the browser" in ended(program, 1)
    assert list(tmp_path.iterdir()) == []


def test_device_code_is_answered_once_and_its_token_fetched_once(people: People) -> None:
    """The first user who answers decides. Errors have the names of the standard."""
    post = people.server.client.post
    begun = post("/device/code", data={"client_id": "a script"}).json()
    assert begun["verification_uri"] == f"{people.server.url}/device"

    def ask(**changes: str) -> httpx.Response:
        form = {"grant_type": GRANT, "device_code": begun["device_code"]} | changes
        return post("/device/token", data=form)

    assert ask().json()["error"] == "authorization_pending"
    assert ask(device_code="x").json()["error"] == "expired_token"
    assert ask(grant_type="password").json()["error"] == "unsupported_grant_type"
    answer = {"code": begun["user_code"], "answer": "yes"}
    assert people.server.client.post("/device", data=answer).status_code == 401
    assert people.browse("other", "POST", "/device", data=answer).status_code == 200
    late = people.browse("owner", "POST", "/device", data=answer)
    assert (late.status_code, "was already used" in late.text) == (400, True)
    given = ask().json()
    assert given["user"] == people.email("other")
    assert people.exchange(given["access_token"]).status_code == 200
    assert ask().json()["error"] == "expired_token"
    assert post("/device/code", data={"client_id": "x\ny"}).status_code == 400
    assert post("/device/code").status_code == 400


def test_command_finds_a_token_as_the_client_does(tmp_path: Path) -> None:
    """It reads the nearest file on the way up, and names a file that is not valid."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = client_config.remember("http://here:5000/", "one", tmp_path / "servicex.yaml")
    client_config.remember("http://there:5000", "two", path)
    folder = tmp_path / "a" / "b"
    assert client_config.token_for("http://here:5000", folder=folder) == "one"
    assert client_config.token_for("http://there:5000/", folder=folder) == "two"
    (tmp_path / "a" / ".servicex").write_text("api_endpoints: []")
    assert client_config.token_for("http://here:5000", folder=folder) is None
    (tmp_path / "a" / ".servicex").write_text("token: [")
    with pytest.raises(StartupError, match="cannot be read"):
        client_config.token_for("http://here:5000", folder=folder)
    assert list(tmp_path.glob(".servicex.yaml-*")) == []
