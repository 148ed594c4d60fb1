"""Start, stop and crash: one clear line, a few seconds, and nothing lost or left behind."""

import asyncio
import json
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from servicex_server.app import App
from servicex_server.errors import StartupError
from servicex_server.settings.loading import load
from servicex_server.worker.sandbox import sandbox_problem
from tests.integration.servers import free_port
from tests.postgres import Postgres
from tests.support import Server, copies, doctor, refused, sample

ZMUMU = sample("uproot-Zmumu.root")
COMMAND = str(Path(sys.executable).with_name("servicex-server"))


def does_not_start(folder: Path, content: str = "", *, at: Path | None = None) -> str:
    """Start a service in this process with settings that are wrong; return what it says.

    A command would print that as one line, see `test_a_wrong_setting_stops_the_command`.
    """
    config = folder / "config.yaml"
    config.write_text(content, encoding="utf-8")

    async def start() -> None:
        async with App(load(config, data_dir=at or folder / "d", port=0)):
            pass

    with pytest.raises(StartupError) as said:
        asyncio.run(start())
    return str(said.value)


def test_taken_port_is_reported_in_one_line(tmp_path: Path) -> None:
    """The line names the port and the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refused("--port", port, "--data-dir", str(tmp_path / "d"))
    assert f"port {port} on 127.0.0.1 is taken" in line
    assert "--port 0" in line


def test_data_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    """The data folder is below a file. The message states the fault and the remedy."""
    (tmp_path / "file").touch()
    line = does_not_start(tmp_path, at=tmp_path / "file" / "d")
    assert "cannot be written" in line
    assert "--data-dir" in line


def test_settings_come_from_file_environment_and_flag(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """A flag overrides the environment. The service does not change files of a newer version."""
    server = new_server("--workers", "1", SERVICEX_SERVER_WORKERS="2")
    assert server.get("/readyz").json() == {"status": "ready", "leads": True, "workers": 1}
    assert "1 workers" in server.output
    assert f"endpoint: {server.url}" in server.output
    server.stop()
    database = server.data_dir / "servicex.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    connection.close()
    line = does_not_start(tmp_path, at=server.data_dir)
    assert "newer version of servicex-server" in line


def test_a_folder_in_use_is_refused(server: Server, tmp_path: Path) -> None:
    """Two servers never share a data folder."""
    line = does_not_start(tmp_path, at=server.data_dir)
    assert server.process is not None
    assert f"is used by another server (process {server.process.pid})" in line


def test_public_address_without_sign_in_stops_the_start(tmp_path: Path) -> None:
    """An address that others reach needs sign-in or an explicit option, and the line says why."""
    line = refused("--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path))
    assert "sign-in is off" in line
    assert "--allow-anonymous" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prot: 5000\n", "there is no setting prot (did you mean port?)"),
        ("workers: many\n", "setting workers (or SERVICEX_SERVER_WORKERS)"),
        ("a: [\n", "is no YAML"),
        (
            "queries: {languages: {python3: user}}\n",
            "setting queries.languages: 'python3' is not installed",
        ),
        ("queries: {languages: {python3: user}}\n", "did you mean python?"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, content: str, words: str) -> None:
    """The message names the setting, and the places where the operator can set it."""
    assert words in does_not_start(tmp_path, content)


def test_a_wrong_setting_stops_the_command(tmp_path: Path) -> None:
    """The command prints one line, as for every error at the start."""
    config = tmp_path / "config.yaml"
    config.write_text("prot: 5000\n", encoding="utf-8")
    assert "there is no setting prot (did you mean port?)" in refused("--config", str(config))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("storage: {database_url: [hunter2]}\n", "setting storage.database_url"),
        ("storage:\n  database_url: 'hunter2\n", "is no YAML: line 3"),
        ("storage:\n  database_url: oracle://me:hunter2@host/d\n", "oracle is not supported"),
        ("storage:\n  database_url: sqlite:////hunter2.sqlite\n", "only PostgreSQL is supported"),
        ("storage:\n  objects_url: ftp://me:hunter2@host/d\n", "results cannot be stored at ftp"),
        (
            "storage:\n  objects_url: 's3://?secret_access_key=hunter2'\n",
            "an s3 URL needs a bucket",
        ),
    ],
)
def test_wrong_setting_with_a_secret_is_not_quoted(
    tmp_path: Path, content: str, words: str
) -> None:
    """The message about a setting that may contain a password does not repeat it."""
    line = does_not_start(tmp_path, content)
    assert words in line
    assert "hunter2" not in line


def test_command_does_not_print_a_wrong_setting_with_a_secret(tmp_path: Path) -> None:
    """The output of the process does not contain it either."""
    config = tmp_path / "config.yaml"
    config.write_text("storage:\n  objects_url: ftp://me:hunter2@host/d\n", encoding="utf-8")
    data = str(tmp_path / "d")
    line = refused("--config", str(config), "--port", "0", "--data-dir", data)
    assert "results cannot be stored at ftp" in line
    assert "hunter2" not in line


def test_single_role_processes_need_postgresql(tmp_path: Path) -> None:
    """With SQLite, the line says what to set, or to start instead; see also test_leadership.py."""
    line = refused("--data-dir", str(tmp_path), command="dispatch")
    assert "need PostgreSQL" in line
    assert "database_url" in line


def test_a_database_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """The line names the database, and contains no secret."""
    url = f"postgresql://me:secret@127.0.0.1:{free_port()}/d"
    line = does_not_start(tmp_path, f"storage: {{database_url: {url}}}\n")
    assert "database d cannot be opened" in line
    assert "secret" not in line


def test_a_stopped_request_goes_on_at_the_next_start(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """A server that is stopped in the middle of work loses no file and delivers none twice.

    It ends with all its processes within 5 seconds. For a killed server, see test_bad_days.py.
    """
    server = new_server("--workers", "2")
    query = json.dumps([{"treename": "events", "filter_name": ["E1"]}])
    answer = server.submit(file_list=copies(tmp_path / "files", 60), selection=query)
    request_id = answer.json()["request_id"]
    while not server.results(request_id):
        time.sleep(0.01)
    below = server.descendants()
    assert len(below) >= 2
    assert server.stop() < 5
    assert server.process is not None
    assert server.process.returncode == 0
    gone, alive = psutil.wait_procs(below, timeout=5)
    assert alive == []
    assert len(gone) == len(below)
    done = server.rows("select count(*) from tasks where state = 'done'")[0][0]
    assert 0 < done < 60
    server.start()
    status = server.wait(request_id)
    assert (status["status"], status["files-completed"]) == ("Complete", 60)
    names = {result["s3-object-name"] for result in server.results(request_id)}
    assert len(names) == 60
    assert len({path.name for path in server.stored(request_id)}) == 60


def test_keys_and_folder_are_private(server: Server) -> None:
    """The first start creates the key of the service, and only its user may read it."""
    key = server.data_dir / "service.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(key.read_bytes()) == 32
    assert server.data_dir.stat().st_mode & 0o077 == 0


def test_no_secret_is_logged(server: Server) -> None:
    """The output of the server contains neither bucket keys nor tokens."""
    status = server.run()
    import httpx

    token = httpx.post(f"{server.url}/token/refresh").json()["access_token"]
    for secret in (status["minio-secret-key"], status["minio-access-key"], token):
        assert secret not in server.output


def test_doctor_reports_a_working_installation(tmp_path: Path, postgresql: Postgres) -> None:
    """``doctor`` checks libraries, parts, credentials, folder, database, sandbox and a worker.

    It says where the database is and that it is empty, shows no password, and changes nothing. No
    log of a library is between its lines.
    """
    postgresql.run("create database patient")
    url = postgresql.url("patient")
    ran = doctor("--data-dir", str(tmp_path / "d"), SERVICEX_SERVER_STORAGE__DATABASE_URL=url)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    for words in ("uproot", "language uproot-raw", "delivered a column", "The service can work"):
        assert words in ran.stdout
    assert ("user code runs in a sandbox" in ran.stdout) == (not sandbox_problem()), ran.stdout
    assert "database patient: empty; the first start makes the tables" in ran.stdout
    assert postgresql.password not in ran.stdout + ran.stderr
    assert postgresql.run("select * from pg_tables where schemaname = 'public'") == []
    postgresql.run("drop database patient")


def test_doctor_reports_faults(tmp_path: Path) -> None:
    """Its exit code is 1."""
    (tmp_path / "file").touch()
    environment = {"SERVICEX_SERVER_QUERIES__SANDBOX": "bubblewrap", "PATH": str(tmp_path)}
    ran = doctor("--data-dir", str(tmp_path / "file" / "d"), **environment)
    assert ran.returncode == 1
    assert "cannot be written" in ran.stdout
    assert "no sandbox: there is no bubblewrap" in ran.stdout


def test_help_and_wrong_commands(tmp_path: Path) -> None:
    """Help lists the commands; a wrong one is an error that names it."""
    del tmp_path
    shown = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert "serve" in shown.stdout
    wrong = subprocess.run([COMMAND, "sevre"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "sevre" in wrong.stderr
