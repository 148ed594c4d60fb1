"""The plots of a real service show its rows soon, for very many files and for none."""

import asyncio
import base64
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from servicex_server.app import App
from servicex_server.model import Outcome, TaskSpec
from servicex_server.settings.service import Settings
from servicex_server.testing.memory_engine import MemoryEngine
from servicex_server.web.application import web_app
from tests.many_files import FILES, REQUEST_ID, SECONDS, many_files
from tests.services import submit
from tests.support import HALTS, Server, copies, let_go, until

HTML = {"Accept": "text/html"}


def page(server: Server, path: str) -> str:
    """Return a page."""
    return shown(server.get(path, headers=HTML))


def shown(answer: httpx.Response) -> str:
    """Return the text of a page that came."""
    assert answer.status_code == 200, answer.text
    assert "style=" not in answer.text
    return answer.text


def numbers(text: str) -> list[list[float]]:
    """Return the table of the numbers of the plots of a page."""
    (table,) = re.findall(r'aria-label="The numbers of the plots">(.*?)</table>', text, re.DOTALL)
    rows = [re.findall(r'<data value="([^"]*)"', row) for row in table.split("<tr>")[2:]]
    return [[float(value) for value in row] for row in rows]


def done(spec: TaskSpec) -> Outcome:
    """End a file well."""
    return Outcome(spec.request_id, spec.file_id, spec.attempt)


def moment(text: str) -> datetime:
    """Return a time that SQLite keeps."""
    return datetime.fromisoformat(text)


def test_plots_of_a_request_equal_its_rows(server: Server, tmp_path: Path) -> None:
    """Files, bytes and events add up to those of the request. Workers are those of each moment."""
    files = [*copies(tmp_path / "files", 12), "/no/such/file.root"]
    request_id = server.run(file_list=files)["request_id"]
    query = "select submitted_at, finished_at from requests where id = ?"
    ((came, ended),) = server.rows(query, request_id)
    query = "select finished_at, seconds, bytes, events, state from tasks where request_id = ?"
    tasks = server.rows(query, request_id)
    assert len(tasks) == 13
    found = numbers(page(server, f"/requests/{request_id}"))
    length = (moment(ended) - moment(came)).total_seconds()
    assert [row[0] for row in found] == pytest.approx(
        [length * n / 12 for n in range(1, 13)], rel=1e-3
    )
    done = [one for one in tasks if one[-1] == "done"]
    results = server.results(request_id)
    size = sum(one["total-bytes"] for one in results if one["s3-object-name"])
    assert found[-1][1] == 13
    assert found[-1][3] == sum(one[2] for one in done) == size > 0
    assert found[-1][4] == sum(one[3] for one in done) == 12 * 2304
    spans = [((moment(at) - moment(came)).total_seconds(), took) for at, took, *_ in tasks]
    span = length / 12
    for number, row in enumerate(found):
        began, end = number * span, (number + 1) * span
        work = sum(max(0.0, min(end, at) - max(began, at - took)) for at, took in spans)
        # times are told apart by a millisecond, and so is the length of what overlaps
        assert row[2] == pytest.approx(work / span, abs=13 * 0.002 / span)
        assert row[1] == pytest.approx(sum(at <= end for at, _ in spans), abs=1)
    worked = sum(row[2] for row in found) * span
    assert worked == pytest.approx(sum(took for _, took in spans), abs=0.03)


def test_new_request_has_empty_plots(server: Server, tmp_path: Path) -> None:
    """No file has ended, and the page does not divide by zero."""
    last = copies(tmp_path / "files", 3)[2:]
    code = base64.b64encode(HALTS.encode()).decode()
    answer = server.submit(file_list=last, codegen="python", selection=code)
    request_id = answer.json()["request_id"]
    assert "Files finished" in page(server, f"/requests/{request_id}")
    let_go(tmp_path / "files")
    server.wait(request_id)
    assert numbers(page(server, f"/requests/{request_id}"))[-1][1] == 1


@pytest.mark.anyio
async def test_many_files_are_plotted(tmp_path: Path) -> None:
    """The plots contain a hundred thousand files, and the page is not longer than for a few."""
    async with App(Settings(data_dir=tmp_path), engine=MemoryEngine(done)) as app:
        await submit(app, 1)
        await asyncio.to_thread(many_files, Server(tmp_path))
        web = web_app(app)
        transport = httpx.ASGITransport(app=web)
        async with (
            web.router.lifespan_context(web),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            text = shown(await client.get(f"/requests/{REQUEST_ID}", headers=HTML))
    found = numbers(text)
    assert [row[3:] for row in found[-1:]] == [[7 * FILES, 3 * FILES]]
    assert [row[1] for row in found] == pytest.approx([FILES * n / 12 for n in range(1, 13)], abs=2)
    # each worker of 5 seconds on average, and about 14 files in a second
    assert found[5][2] == pytest.approx(5 * FILES / SECONDS, rel=0.01)
    assert len(text) < 100_000


def test_leader_writes_history_from_its_start(new_server: Callable[..., Server]) -> None:
    """It writes a row at once, and the page shows it. Without rows, the page gives the reason."""
    server = new_server("--workers", "1")
    until(lambda: bool(server.rows("select * from history")), "a row is written")
    assert server.run()["status"] == "Complete"
    ((_, wanted, there, busy, waiting, stored, free),) = server.rows("select * from history")
    (row,) = numbers(page(server, "/workers"))
    assert row[1:] == [wanted, there, busy, waiting, stored, free]
    assert (wanted, waiting, stored) == (1, 0, 0)
    assert there in (0, 1)
    text = page(server, "/workers")
    assert "at most 1 wanted" in text
    size = sum(path.stat().st_size for path in (server.data_dir / "objects").rglob("*.parquet"))
    assert server.rows("select bytes from requests") == [(size,)]
    assert "local</td>" in text
    assert "Disk free" in text
    path = server.data_dir / "servicex.sqlite"
    with closing(sqlite3.connect(path, timeout=30)) as connection, connection:
        connection.execute("delete from history")
    text = page(server, "/workers")
    assert "Nothing is known of the last 24 hours" in text
    assert "Queue by user" in text
