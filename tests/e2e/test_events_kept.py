"""Events read and events kept: the service does not count events that a cut drops as kept."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import uproot
from typer.testing import CliRunner

from servicex_server.cli.main import cli
from tests.support import Server, copies, sample

ZMUMU = sample("uproot-Zmumu.root")
EVENTS = 2304


def kept(least: float) -> int:
    """Return how many events pass a cut, counted on the whole file."""
    with uproot.open(f"{ZMUMU}:events") as tree:
        return int((tree["E1"].array(library="np") > least).sum())


def cut(least: float) -> str:
    """Return a query with a cut."""
    return json.dumps([{"treename": "events", "filter_name": ["E1"], "cut": f"E1 > {least}"}])


@pytest.mark.parametrize("least", [-1.0, 50.0, 1e9])
def test_events_read_and_kept_are_shown(server: Server, tmp_path: Path, least: float) -> None:
    """The results, the request, the statistics and the page show both numbers."""
    expected = kept(least)
    assert (expected == 0) == (least == 1e9)
    files = [*copies(tmp_path / "in", 3), "/no/such/file.root"]
    status = server.run(file_list=files, selection=cut(least))
    request_id = status["request_id"]
    assert (status["files-completed"], status["files-failed"]) == (3, 1)
    assert (status["events"], status["events-kept"]) == (3 * EVENTS, 3 * expected)
    told = [
        (one["total-events"], one["total-events-kept"])
        for one in server.results(request_id)
        if one["transform_status"] == "success"
    ]
    assert told == [(EVENTS, expected)] * 3
    stats = server.get(f"/servicex/transformation/{request_id}/status").json()["stats"]
    assert (stats["total-events"], stats["total-events-kept"]) == (3 * EVENTS, 3 * expected)
    page = server.get(f"/requests/{request_id}", headers={"Accept": "text/html"}).text
    text = page.replace("\u202f", "")
    assert f"{3 * EVENTS} events read → {3 * expected} kept" in text
    assert f"{EVENTS} → {expected}</td>" in text
    assert re.findall(r'<data value="([^"]*)">', text)[-1] == str(3 * expected)


def test_reused_result_keeps_its_numbers_of_events(server: Server, tmp_path: Path) -> None:
    """The second request reads no file, and reports the same numbers."""
    files = copies(tmp_path / "in", 1)
    for _ in range(2):
        status = server.run(file_list=files, selection=cut(50.0))
        assert (status["events"], status["events-kept"]) == (EVENTS, kept(50.0))


def change(server: Server, *statements: tuple[str, str]) -> None:
    """Change the rows of a request behind the back of a server, which uses SQLite."""
    program = (
        "import json, sqlite3, sys; made = sqlite3.connect(sys.argv[1], timeout=30); "
        "[made.execute(*one) for one in json.loads(sys.argv[2])]; made.commit()"
    )
    orders = json.dumps([(statement, [of]) for statement, of in statements])
    path = str(server.data_dir / "servicex.sqlite")
    subprocess.run([sys.executable, "-c", program, path, orders], check=True)


def test_unknown_number_of_events_kept_is_null(server: Server, tmp_path: Path) -> None:
    """Results of older versions lack this number, and the page does not mention it."""
    request_id = server.run(file_list=copies(tmp_path / "in", 2), selection=cut(50.0))["request_id"]
    one = "select min(id) from tasks where request_id = ?"
    change(
        server,
        (f"update tasks set events_kept = null where id = ({one})", request_id),
        ("update requests set events_kept = null where id = ?", request_id),
    )
    status = server.get(f"/servicex/transformation/{request_id}").json()
    assert (status["events"], status["events-kept"]) == (2 * EVENTS, None)
    stats = server.get(f"/servicex/transformation/{request_id}/status").json()["stats"]
    assert (stats["total-events"], stats["total-events-kept"]) == (2 * EVENTS, None)
    page = server.get(f"/requests/{request_id}", headers={"Accept": "text/html"}).text
    assert "4\u202f608 events read</dd>" in page


def test_queue_shows_events_read_and_kept(server: Server, tmp_path: Path) -> None:
    """The command prints both numbers."""
    files = copies(tmp_path / "in", 2)
    request_id = server.run(file_list=files, selection=cut(50.0))["request_id"]
    set_to = "update requests set state = '{}', files = {} where id = ?"
    change(server, (set_to.format("Running", 3), request_id))
    told = CliRunner(env={"COLUMNS": "200"}).invoke(cli, ["queue", "--url", server.url]).stdout
    change(server, (set_to.format("Complete", 2), request_id))
    assert request_id in told
    assert f"{2 * EVENTS} → {2 * kept(50.0)}" in told
