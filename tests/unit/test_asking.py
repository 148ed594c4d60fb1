"""The tables that the commands print."""

from typing import Any

import pytest

from servicex_server.cli.tables import show


def queue(**changes: Any) -> dict[str, Any]:
    one = {
        "request_id": "r1",
        "title": None,
        "user": "ann",
        "status": "Running",
        "waiting": 7,
        "running": 2,
        "done": 1,
        "failed": 0,
        "files-per-minute": 4.5,
        "seconds-left": 120.0,
    }
    return {"requests": [one | changes]}


def workers(age: float | None = None, **changes: Any) -> dict[str, Any]:
    one = {
        "name": "host/0",
        "address": "tls://1.2.3.4:5",
        "state": "idle",
        "problem": None,
        "request_id": None,
        "file": None,
        "since": None,
        "memory": 200_000_000,
        "memory-limit": 2_000_000_000,
        "files-done": 3,
        "last-error": None,
    }
    return {
        "workers": [one | changes],
        "workers-wanted": 2,
        "reason": "2 files",
        "scheduler": None,
        "age": age,
    }


def printed(capsys: pytest.CaptureFixture[str], found: dict[str, Any], table: str) -> list[str]:
    show(found, as_json=False, table=table)
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_queue_table_has_a_row_for_each_request(capsys: pytest.CaptureFixture[str]) -> None:
    told = {"title": "my columns", "events": 2304, "events-kept": 17}
    assert printed(capsys, queue(**told), "queue") == [
        "user request title state waiting running done failed events files/min left",
        "ann r1 my columns Running 7 2 1 0 2304 → 17 4.5 2 min 0 s",
    ]
    (_, row) = printed(capsys, queue(**{"seconds-left": None}), "queue")
    assert row.endswith(" unknown")


def test_empty_table_is_replaced_by_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, {"requests": []}, "queue") == [
        "The queue is empty: no request waits or runs."
    ]
    nobody = workers() | {"workers": []}
    assert printed(capsys, nobody, "workers") == ["There are no workers.", "2 wanted: 2 files"]


def test_title_is_printed_as_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    _, row = printed(capsys, queue(title="[red]\x1b]0;x\x07\n:smile:"), "queue")
    assert r" [red]\x1b]0;x\x07\n:smile: " in row


def test_long_path_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/data/" + 300 * "x" + ".root"
    rows = printed(capsys, workers(state="busy", file=path), "workers")
    assert sum(path in row for row in rows) == 1


def test_workers_table_shows_problems(capsys: pytest.CaptureFixture[str]) -> None:
    told = workers(100.0, state="unfit", problem="it has version 0", name="/")
    first, _, row, wanted = printed(capsys, told, "workers")
    assert first == "The service has no leader. This is its state 1 min 40 s ago."
    assert row == "tls://1.2.3.4:5 unfit: it has version 0 0.20 of 2.00 GB 3"
    assert wanted == "2 wanted: 2 files"
