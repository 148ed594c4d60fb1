"""A real service shows its work by its routes, its commands and its metrics for Prometheus."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from servicex_server.cli.main import cli
from servicex_server.errors import ServiceXError
from tests.integration.servers import free_port
from tests.support import HALTS, Server, copies, let_go, refused, until


def command(*words: str) -> str:
    """Run a command that asks the service, in this process; return what it prints."""
    ran = CliRunner().invoke(cli, words)
    assert (ran.exit_code, ran.stderr) == (0, "")
    return ran.stdout


def process(*words: str) -> str:
    """Run a command that asks the service; return what it prints."""
    program = str(Path(sys.executable).with_name("servicex-server"))
    ran = subprocess.run([program, *words], capture_output=True, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def fails(*words: str) -> str:
    """Run a command that cannot work, in this process; return what it says."""
    ran = CliRunner().invoke(cli, words)
    assert isinstance(ran.exception, ServiceXError)
    assert ran.output == ""
    return str(ran.exception)


def metrics(server: Server) -> dict[tuple[str, ...], float]:
    """Return the samples that Prometheus would read."""
    answer = server.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def workers(server: Server) -> list[dict[str, Any]]:
    """Return the workers, those that work first."""
    found = server.get("/servicex/workers").json()["workers"]
    return sorted(found, key=lambda worker: str(worker["state"]))


def test_long_task_is_visible_while_it_runs(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """One worker is busy with the last file, and the other one is idle. Then both are idle."""
    server = new_server("--workers", "2")
    files = copies(tmp_path / "files", 3)
    selection = base64.b64encode(HALTS.encode()).decode()
    answer = server.submit(codegen="python", selection=selection, file_list=files, title="slow")
    request_id = answer.json()["request_id"]

    def one_is_left() -> bool:
        states = [(worker["state"], worker["file"]) for worker in workers(server)]
        ended = sum(worker["files-done"] for worker in workers(server))
        return states == [("busy", files[2]), ("idle", None)] and ended == 2

    until(one_is_left, "the last file is the only one")
    busy, idle = workers(server)
    assert (busy["request_id"], idle["request_id"]) == (request_id, None)
    began = datetime.fromisoformat(busy["since"])
    assert 0 <= (datetime.now(UTC) - began).total_seconds() < 60
    assert 50e6 < busy["memory"] < busy["memory-limit"]
    assert busy["problem"] is None
    assert server.get("/servicex/workers").json()["scheduler"].startswith("tls://127.0.0.1:")

    (queued,) = server.get("/servicex/queue").json()["requests"]
    assert (queued["title"], queued["user"], queued["status"]) == ("slow", "local", "Running")
    assert [queued[k] for k in ("waiting", "running", "done", "failed")] == [0, 1, 2, 0]
    # two files in the time since it came, and one that is left: half of that time
    age = (datetime.now(UTC) - datetime.fromisoformat(queued["submit-time"])).total_seconds()
    assert 0 < queued["seconds-left"] <= age
    assert queued["files-per-minute"] == pytest.approx(60 / queued["seconds-left"], rel=0.1)

    shown = process("workers", "--url", server.url)
    (line,) = [line for line in shown.splitlines() if files[2] in line]
    assert busy["name"] in line
    assert "busy" in line
    assert request_id in line
    assert sum("idle" in line for line in shown.splitlines()) == 1
    assert "2 wanted: " in shown
    (line,) = [one for one in command("queue", "--url", server.url).splitlines() if "slow" in one]
    assert line.split()[:2] == ["local", request_id]
    found = json.loads(command("queue", "--json", "--url", server.url))
    assert found["requests"][0]["request_id"] == request_id

    numbers = metrics(server)
    assert numbers["servicex_files", "running"] == 1
    assert numbers["servicex_files", "done"] == 2
    assert (numbers["servicex_workers", "busy"], numbers["servicex_workers", "idle"]) == (1, 1)
    assert request_id not in server.get("/metrics").text

    let_go(tmp_path / "files")
    assert server.wait(request_id)["files-completed"] == 3
    until(lambda: [w["state"] for w in workers(server)] == ["idle", "idle"], "all are idle")
    assert (
        command("queue", "--url", server.url) == "The queue is empty: no request waits or runs.\n"
    )
    numbers = metrics(server)
    assert numbers["servicex_task_seconds_count", "done"] == 3
    assert numbers["servicex_task_seconds_bucket", "+Inf", "done"] == 3
    assert numbers["servicex_requests_ended_total", "Complete"] == 1
    assert numbers["servicex_attempts_total", "none"] == 3
    assert numbers["servicex_written_bytes_total",] > 0


def test_command_reports_that_there_are_no_workers(new_server: Callable[..., Server]) -> None:
    """A service that has ended all its workers gives a sentence, and not an empty table."""
    environment = {"SERVICEX_SERVER_SCALING__LEAST_WORKERS": "0"}
    server = new_server("--workers", "1", **environment)
    assert command("workers", "--url", server.url).splitlines()[:2] == [
        "There are no workers.",
        "0 wanted: the floor is 0",
    ]


def test_command_names_a_service_that_does_not_answer(server: Server) -> None:
    """No server listens, the address is malformed, or another server answers."""
    nobody = f"http://127.0.0.1:{free_port()}"
    for name in ("workers", "queue"):
        line = fails(name, "--url", nobody)
        assert f"no service answers at {nobody}" in line
        assert "--url" in line
    assert "no service answers at nonsense" in fails("queue", "--url", "nonsense")
    assert "answers 404" in fails("queue", "--url", f"{server.url}/servicex")


def test_command_takes_the_address_from_the_settings() -> None:
    """Without an address, it calls the address at which these settings would listen.

    If no service answers there, the command says so in one line.
    """
    port = str(free_port())
    line = refused(command="queue", SERVICEX_SERVER_PORT=port, SERVICEX_SERVER_HOST="0.0.0.0")
    assert f"no service answers at http://127.0.0.1:{port}" in line
