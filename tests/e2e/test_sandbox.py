"""The code of users on a real service: with and without sign-in, with and without a sandbox."""

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from servicex_server.app import App
from servicex_server.model import Limits, Replica, ResultFormat, SandboxChoice, TaskSpec
from servicex_server.settings.groups import QuerySettings
from servicex_server.settings.service import Settings
from servicex_server.testing.memory_engine import MemoryEngine
from servicex_server.web.application import web_app
from servicex_server.worker.sandbox import sandbox_problem
from servicex_server.worker.transform import transform
from tests.e2e.test_accounts import ZMUMU, People
from tests.integration.servers import http, put
from tests.support import Server, missing, plug_in, refused

ATTACK = """
def run_query(path):
    import glob, os, socket

    data = {data!r}
    wanted = [data, data + "/service.key", data + "/servicex.sqlite", "/etc/shadow", path + "/.."]
    wanted += glob.glob("/proc/[0-9]*/environ")
    if path.endswith("in.root"):
        wanted.append(path.replace("in.root", "other.root"))
    for place in wanted:
        try:
            got = os.listdir(place) if os.path.isdir(place) else open(place, "rb").read(500)
        except OSError as error:
            print("shut", place, error)
        else:
            # the data folder is there as far as the function's own scratch folder is in it
            print("OPEN" if b"SERVICEX_SERVER" in bytes(str(got), "utf-8")
                  or data in place and got != ["scratch"]
                  or "shadow" in place or "other" in place else "shut", place, str(got)[:60])
    try:
        print("OPEN", socket.create_connection(("127.0.0.1", {port}), 2))
    except OSError as error:
        print("shut", error)
    print("read", path, len(open(path, "rb").read()))
    return [1, 2, 3]
"""

LANGUAGES = """
from servicex_server.languages.contract import Language, Program

class Shell(Language):
    name = "shell"
    runs_code = True

    def compile(self, selection, result_format):
        return Program(("/bin/sh", "-c", selection))

class Liar(Shell):
    name = "liar"
    runs_code = False
"""


def code(source: str) -> dict[str, str]:
    """Return what submits a function."""
    return {"codegen": "python", "selection": base64.b64encode(source.encode()).decode()}


def attack(server: Server) -> dict[str, str]:
    """Return what submits the attack on a service."""
    port = server.url.rpartition(":")[2]
    return code(ATTACK.format(data=str(server.data_dir), port=port))


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Give an environment without bubblewrap."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "openssl"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    return {"PATH": str(programs)}


@pytest.fixture
def sandboxed() -> None:
    """Need the sandbox."""
    if problem := sandbox_problem():
        missing(problem)


def inputs(folder: Path) -> list[str]:
    """Return the path of a file beside which there is one of somebody else's."""
    folder.mkdir()
    shutil.copy(ZMUMU, folder / "other.root")
    return [str(shutil.copy(ZMUMU, folder / "in.root"))]


def body(**changes: Any) -> dict[str, Any]:
    """Return the body of a request, keys as on the wire with underscores."""
    selection = json.dumps([{"treename": "events", "filter_name": ["E1"]}])
    made = {"title": "a test", "selection": selection, "codegen": "uproot-raw"} | changes
    made |= {"result_destination": "object-store", "result_format": "parquet"}
    return {key.replace("_", "-"): value for key, value in made.items()}


def ended(people: People, who: str, **changes: Any) -> tuple[str, str]:
    """Submit a request as somebody; return how it ended, and what the function printed."""
    answer = people.ask(who, "POST", "/servicex/transformation", json=body(**changes))
    assert answer.status_code == 200, answer.text
    request_id = answer.json()["request_id"]
    status = people.ended(request_id, who)["status"]
    query = "select log_tail from tasks where request_id = ?"
    ((log,),) = people.server.rows(query, request_id)
    return status, log or ""


@pytest.mark.usefixtures("sandboxed")
def test_user_code_cannot_reach_the_service(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """With sign-in, the attack that once made a user an administrator fails at each step."""
    files = inputs(tmp_path / "files")
    environment = plug_in(tmp_path / "site", "shell", "Shell", LANGUAGES, group="languages")
    environment |= plug_in(tmp_path / "two", "liar", "Liar", LANGUAGES, group="languages")
    environment["PYTHONPATH"] = f"{tmp_path / 'site'}{os.pathsep}{environment['PYTHONPATH']}"
    server = new_server(
        *("--workers", "1"),
        SERVICEX_SERVER_SIGN_IN="true",
        SERVICEX_SERVER_READING__LOCAL_FOLDERS=json.dumps([str(tmp_path / "files")]),
        SERVICEX_SERVER_QUERIES__LANGUAGES=json.dumps(
            {"python": "user", "uproot-raw": "user", "liar": "user", "shell": "operator"}
        ),
        **environment,
    )
    people = People(server)
    people.add("mallory")
    people.add("ann")
    people.add("oz", "operator")
    listed = server.get("/servicex").json()["code-gen-image"]
    assert set(listed) == {"python", "uproot-raw", "liar", "shell"}
    status, log = ended(people, "mallory", file_list=files, **attack(server))
    assert status == "Complete", log
    assert "OPEN" not in log, log
    assert log.count("shut") > 5
    assert f"read {files[0]} {Path(ZMUMU).stat().st_size}" in log
    assert ended(people, "ann", file_list=files)[0] == "Complete"
    # the shell is for operators, and sees as little
    where = "/servicex/transformation"
    shell = {"file_list": files, "codegen": "shell", "selection": "cat /etc/shadow >&2; ls /"}
    answer = people.ask("mallory", "POST", where, json=body(**shell))
    assert answer.status_code == 403
    assert "codegen: 'shell' needs the role operator here, and yours is user" in answer.text
    status, log = ended(people, "oz", **shell)
    assert status == "Fatal"
    assert "root:" not in log
    assert "No such file" in log
    for codegen, words in (("liar", "without declaring it"), ("uproot", "is not offered here")):
        answer = people.ask("oz", "POST", where, json=body(file_list=files, codegen=codegen))
        assert answer.status_code == 400
        assert f"codegen: '{codegen}'" in answer.text
        assert words in answer.text


@pytest.mark.usefixtures("sandboxed")
def test_user_code_cannot_reach_a_laptop(server: Server, tmp_path: Path) -> None:
    """The sandbox is on without sign-in, too. The worker fetches a remote file for the function."""
    files = inputs(tmp_path / "files")
    status = server.run(file_list=files, **attack(server))
    assert status["status"] == "Complete"
    query = "select log_tail from tasks where request_id = ?"
    ((log,),) = server.rows(query, status["request_id"])
    assert "OPEN" not in log, log
    with http() as door:
        put(door.folder, "x.root", Path(files[0]))
        status = server.run(file_list=[door.url("x.root")], **attack(server))
    assert status["status"] == "Complete", server.errors(status["request_id"])
    ((log,),) = server.rows(query, status["request_id"])
    assert "OPEN" not in log, log
    assert "read /" in log


def test_server_with_sign_in_rejects_user_code_without_a_sandbox(
    new_server: Callable[..., Server], tmp_path: Path, bare: dict[str, str]
) -> None:
    """The server does not list the language, and states the reason. Other languages work."""
    files = inputs(tmp_path / "files")
    server = new_server(
        *("--workers", "1"),
        SERVICEX_SERVER_SIGN_IN="true",
        SERVICEX_SERVER_READING__LOCAL_FOLDERS=json.dumps([str(tmp_path / "files")]),
        **bare,
    )
    assert "languages that run user code are not offered: there is no bubblew" in server.output
    assert server.says(r"query languages: (.*)\n") == "uproot, uproot-raw"
    people = People(server)
    people.add("ann", "administrator")
    for path in ("/servicex", "/multiple-codegen-list"):
        assert "uproot-raw" in server.get(path).text
        assert "python" not in server.get(path).text
    sent = body(file_list=files, **attack(server))
    answer = people.ask("ann", "POST", "/servicex/transformation", json=sent)
    assert answer.status_code == 400
    assert "codegen: 'python' runs user code" in answer.json()["message"]
    assert "there is no bubblewrap" in answer.json()["message"]
    assert ended(people, "ann", file_list=files)[0] == "Complete"


@pytest.mark.anyio
async def test_setting_for_no_sandbox_does_not_allow_user_code_with_sign_in(tmp_path: Path) -> None:
    """The server does not list languages that run user code."""
    settings = Settings(
        data_dir=tmp_path, sign_in=True, queries=QuerySettings(sandbox=SandboxChoice.NONE)
    )
    async with App(settings, engine=MemoryEngine(transform)) as app:
        web = web_app(app)
        transport = httpx.ASGITransport(app=web)
        async with (
            web.router.lifespan_context(web),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            listed = (await client.get("/servicex")).json()["code-gen-image"]
    assert "uproot-raw" in listed
    assert "python" not in listed


@pytest.mark.usefixtures("sandboxed")
def test_data_folder_that_user_code_can_read_stops_the_start(tmp_path: Path) -> None:
    """User code can read every folder of Python modules."""
    modules = tmp_path / "site"
    modules.mkdir()
    environment = {"SERVICEX_SERVER_QUERIES__SANDBOX": "bubblewrap", "PYTHONPATH": str(modules)}
    line = refused("--data-dir", str(modules / "data"), **environment)
    assert f"{tmp_path}/site/data is in {tmp_path}/site, which user code can read" in line


def test_missing_required_sandbox_stops_the_start(tmp_path: Path, bare: dict[str, str]) -> None:
    """The line says why. `doctor` says the same, see test_start_and_stop.py."""
    options = ("--data-dir", str(tmp_path / "data"))
    line = refused(*options, SERVICEX_SERVER_QUERIES__SANDBOX="bubblewrap", **bare)
    assert "setting queries.sandbox: the sandbox for user code does not work" in line
    assert "there is no bubblewrap" in line


@pytest.mark.long
@pytest.mark.usefixtures("sandboxed")
def test_worker_without_a_sandbox_runs_no_user_code(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Workers may be on other machines, so each checks its own sandbox.

    The next test calls the function of the worker, without a server.
    """
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "bwrap").symlink_to(str(shutil.which("bwrap")))
    server = new_server(
        *("--workers", "1"),
        SERVICEX_SERVER_QUERIES__SANDBOX="bubblewrap",
        SERVICEX_SERVER_LIMITS__ATTEMPTS="1",
        PATH=str(programs),
    )
    (programs / "bwrap").unlink()
    ran = tmp_path / "ran"
    source = f"def run_query(path):\n    open({str(ran)!r}, 'w').close()\n    return [1]\n"
    status = server.run(**code(source))
    assert status["status"] == "Fatal"
    (error,) = server.errors(status["request_id"])
    assert error["class"] == "Sandbox"
    assert "does not run code of users: there is no bubblewrap" in error["message"]
    assert not ran.exists()


def test_task_says_whether_the_sandbox_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the sandbox is neither required nor available, the function runs without it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    kinds = {}
    for choice in SandboxChoice:
        ran = tmp_path / f"ran-{choice}"
        source = f"def run_query(path):\n    open({str(ran)!r}, 'w').close()\n    return [1]\n"
        outcome = transform(
            TaskSpec(
                request_id="r",
                file_id=1,
                attempt=1,
                replicas=(Replica(ZMUMU),),
                language="python",
                selection=base64.b64encode(source.encode()).decode(),
                format=ResultFormat.PARQUET,
                object_name="x.parquet",
                upload_url=(tmp_path / f"{choice}.parquet").as_uri(),
                limits=Limits(),
                sandbox=choice,
            )
        )
        kinds[choice.value] = outcome.error and outcome.error.kind
        assert ran.exists() == (outcome.error is None)
        if outcome.error is not None:
            said = "does not run code of users: there is no bubblewrap"
            assert said in outcome.error.message
    assert kinds == {"auto": None, "bubblewrap": "Sandbox", "none": None}
