"""Starting, stopping and dying: one clear line, a few seconds, and nothing lost or left."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.integration.servers import free_port
from tests.postgres import Postgres
from tests.support import Server, doctor, refused, sample

ZMUMU = sample("uproot-Zmumu.root")
COMMAND = str(Path(sys.executable).with_name("servicex-server"))


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    """A port that somebody else has is named, with the way out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refused("--port", port, "--data-dir", str(tmp_path / "d"))
    assert f"port {port} on 127.0.0.1 is taken" in line
    assert "--port 0" in line


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A data folder that is a file is named, with the way out."""
    (tmp_path / "file").touch()
    line = refused("--port", "0", "--data-dir", str(tmp_path / "file" / "d"))
    assert "cannot be written" in line
    assert "--data-dir" in line


def test_a_folder_of_a_newer_version_is_one_line(new_server: Callable[..., Server]) -> None:
    """A database that a newer version wrote is not touched."""
    server = new_server()
    server.stop()
    database = server.data_dir / "servicex.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    connection.close()
    line = refused("--port", "0", "--data-dir", str(server.data_dir))
    assert "newer version of servicex-server" in line


def test_a_folder_in_use_is_one_line(server: Server) -> None:
    """Two servers never share a data folder."""
    line = refused("--port", "0", "--data-dir", str(server.data_dir))
    assert server.process is not None
    assert f"is used by another server (process {server.process.pid})" in line


def test_other_machines_are_refused_without_sign_in(tmp_path: Path) -> None:
    """An address that others reach needs sign-in or an explicit word, and the line says why."""
    line = refused("--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path))
    assert "sign-in is off" in line
    assert "--allow-anonymous" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prot: 5000\n", "there is no setting prot (did you mean port?)"),
        ("workers: many\n", "setting workers (or SERVICEX_SERVER_WORKERS)"),
        ("a: [\n", "is no YAML"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, content: str, words: str) -> None:
    """A setting that is wrong is named, with where it may be given."""
    config = tmp_path / "config.yaml"
    config.write_text(content, encoding="utf-8")
    ran = subprocess.run(
        [COMMAND, "serve", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 1
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("database_url: [hunter2]\n", "setting database_url"),
        ("database_url: 'hunter2\n", "is no YAML: line 2"),
        ("database_url: oracle://me:hunter2@host/d\n", "oracle is not supported"),
        ("database_url: sqlite:////hunter2.sqlite\n", "only a PostgreSQL database"),
        ("objects_url: ftp://me:hunter2@host/d\n", "results cannot be kept at ftp"),
        ("objects_url: 's3://?secret_access_key=hunter2'\n", "an s3 URL names its bucket"),
    ],
)
def test_a_wrong_secret_is_not_shown(tmp_path: Path, content: str, words: str) -> None:
    """What is said of a setting that may hold a password does not repeat it."""
    config = tmp_path / "config.yaml"
    config.write_text(content, encoding="utf-8")
    data = str(tmp_path / "d")
    line = refused("--config", str(config), "--port", "0", "--data-dir", data)
    assert words in line
    assert "hunter2" not in line


def test_processes_of_one_kind_need_postgresql(tmp_path: Path) -> None:
    """With SQLite the line says what to set, or to start instead."""
    options = ("--data-dir", str(tmp_path))
    for line in (
        refused("--no-dispatch", "--port", "0", *options),
        refused(*options, command="dispatch"),
    ):
        assert "need PostgreSQL" in line
        assert "database_url" in line


def test_a_database_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    """The line names the place and nothing that is secret."""
    url = f"postgresql://me:secret@127.0.0.1:{free_port()}/d"
    line = refused("--port", "0", "--data-dir", str(tmp_path), SERVICEX_SERVER_DATABASE_URL=url)
    assert "database d cannot be opened" in line
    assert "secret" not in line


def test_settings_come_from_file_environment_and_flag(new_server: Callable[..., Server]) -> None:
    """A flag wins over the environment."""
    server = new_server("--workers", "1", SERVICEX_SERVER_WORKERS="2")
    assert server.get("/readyz").json() == {"status": "ready", "leads": True, "workers": 1}
    assert "1 workers" in server.output
    assert f"endpoint: {server.url}" in server.output


def test_a_signal_stops_everything(new_server: Callable[..., Server]) -> None:
    """SIGTERM in the middle of work ends the server and all its processes within 5 seconds."""
    server = new_server("--workers", "2")
    server.submit(file_list=[str(ZMUMU)] * 200, selection='[{"treename": "events"}]')
    below = server.descendants()
    assert len(below) >= 2
    assert server.stop() < 5
    assert server.process is not None
    assert server.process.returncode == 0
    gone, alive = psutil.wait_procs(below, timeout=5)
    assert alive == []
    assert len(gone) == len(below)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_request_goes_on_at_the_next_start(
    new_server: Callable[..., Server], how: signal.Signals
) -> None:
    """A server that is stopped or killed in the middle loses no file and makes none twice."""
    server = new_server("--workers", "2")
    query = json.dumps([{"treename": "events", "filter_name": ["E1"]}])
    answer = server.submit(file_list=[str(ZMUMU)] * 60, selection=query)
    request_id = answer.json()["request_id"]
    while not server.results(request_id):
        time.sleep(0.01)
    below = server.descendants()
    server.stop(how)
    psutil.wait_procs(below, timeout=10)
    assert not any(process.is_running() for process in below)
    done = server.rows("select count(*) from tasks where state = 'done'")[0][0]
    assert 0 < done < 60
    # a worker that is killed while it uploads leaves this
    (server.stored(request_id)[0].parent / ".part-left").write_bytes(b"half")
    server.start()
    status = server.wait(request_id)
    assert (status["status"], status["files-completed"]) == ("Complete", 60)
    names = {result["s3-object-name"] for result in server.results(request_id)}
    assert len(names) == 60
    assert len({path.name for path in server.stored(request_id)}) == 60


def test_keys_and_folder_are_private(server: Server) -> None:
    """The service's key is made at the first start, and only its user may read it."""
    key = server.data_dir / "service.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(key.read_bytes()) == 32
    assert server.data_dir.stat().st_mode & 0o077 == 0


def test_no_secret_is_logged(server: Server) -> None:
    """Neither keys of buckets nor tokens are in what the server prints."""
    status = server.run()
    import httpx

    token = httpx.post(f"{server.url}/token/refresh").json()["access_token"]
    for secret in (status["minio-secret-key"], status["minio-access-key"], token):
        assert secret not in server.output


def test_doctor_says_what_there_is(tmp_path: Path) -> None:
    """``doctor`` checks libraries, parts, credentials, folder and a worker, and what to do."""
    ran = doctor("--data-dir", str(tmp_path / "d"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for words in ("uproot", "language uproot-raw", "delivered a column", "The service can work"):
        assert words in ran.stdout
    (tmp_path / "file").touch()
    ran = doctor("--data-dir", str(tmp_path / "file" / "d"))
    assert ran.returncode == 1
    assert "cannot be written" in ran.stdout


def test_doctor_looks_at_postgresql_and_changes_nothing(
    tmp_path: Path, postgresql: Postgres
) -> None:
    """``doctor`` says where the database is and that it is empty, and shows no password."""
    postgresql.run("create database patient")
    ran = subprocess.run(
        [COMMAND, "doctor", "--data-dir", str(tmp_path / "d")],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env=os.environ | {"SERVICEX_SERVER_DATABASE_URL": postgresql.url("patient")},
    )
    assert "database patient: empty; the first start makes the tables" in ran.stdout
    assert postgresql.password not in ran.stdout + ran.stderr
    assert postgresql.run("select * from pg_tables where schemaname = 'public'") == []
    postgresql.run("drop database patient")


def test_help_and_wrong_commands(tmp_path: Path) -> None:
    """Help lists the commands; a wrong one is an error that names it."""
    del tmp_path
    shown = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert "serve" in shown.stdout
    wrong = subprocess.run([COMMAND, "sevre"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "sevre" in wrong.stderr
