"""The server rejects a wrong query at submission if a dry run finds the fault in time."""

import base64
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import awkward as ak
import httpx
import numpy as np
import pytest
import uproot

from servicex_server.engine.contract import CHECK_SECONDS
from tests.integration.servers import http
from tests.support import Server, sample, until

ZMUMU = sample("uproot-Zmumu.root")
HZZ = sample("uproot-HZZ.root")
ENDLESS = base64.b64encode(
    b"import time\ndef run_query(path):\n    while True: time.sleep(1)\n"
).decode()
"""It keeps its worker for ever, and no core, so that the answers depend on places alone."""


def query(**subquery: Any) -> str:
    """Return a selection of one subquery on the tree ``events``."""
    return json.dumps([{"treename": "events", **subquery}])


FUNC_ADL = "(call Select (call EventDataset 'bogus.root' 'events') (lambda (list e) {}))"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"selection": query(expressions=["sum(E1)"])}, "sum needs a list in each event"),
        ({"selection": query(cut="E1 + 'a' > 2")}, r"cannot compute this.*E1 \+ 'a' > 2"),
        (
            {"file_list": [str(HZZ)], "selection": query(expressions=["Jet_Px"], cut="NJet[0]")},
            r"a position takes one event, or the same events for all(.|\n)*firsts\(x\) takes",
        ),
        (
            {"codegen": "uproot", "selection": FUNC_ADL.format("(attr e 'pt11')")},
            r"no branch pt11, at character 73: \(attr e 'pt11'\) \(did you mean pt1\?",
        ),
        (
            {"codegen": "uproot", "selection": FUNC_ADL.format("(call First (attr e 'E1'))")},
            "First needs a list, and this is of type float64, at character 73",
        ),
        (
            {
                "codegen": "uproot",
                "selection": FUNC_ADL.format("(+ (attr e 'E1') (if (> (attr e 'Q1') 0) 'a' 'b'))"),
            },
            "texts can only be compared.*at character 73",
        ),
    ],
)
def test_wrong_names_shapes_and_types_are_rejected_at_once(
    server: Server, changes: dict[str, Any], words: str
) -> None:
    """The answer is the error of the dry run, and the server stores nothing."""
    assert re.search(words, server.refused(**changes), re.DOTALL)


def test_one_bad_file_of_two_does_not_reject_the_request(server: Server, tmp_path: Path) -> None:
    """The service delivers the good file, and the error of the other one names the fault."""
    bad = tmp_path / "bad.root"
    with uproot.recreate(bad) as file:
        file.mktree("events", {"Jet_Pxx": "f4"}).extend({"Jet_Pxx": np.arange(3, dtype="f4")})
    for files in ([str(HZZ), str(bad)], [str(bad), str(HZZ)]):
        status = server.run(file_list=files, selection=query(expressions=["Jet_Px"]))
        counts = (status["files-completed"], status["files-failed"])
        assert (status["status"], counts) == ("Complete", (1, 1))
        (error,) = server.errors(status["request_id"])
        assert (error["class"], error["file"]) == ("UnknownName", str(bad))


def test_fault_in_the_values_fails_the_file_and_not_the_submission(
    server: Server, tmp_path: Path
) -> None:
    """The server accepts a query with correct types. Its values fail the file later."""
    lists = tmp_path / "lists.root"
    with uproot.recreate(lists) as file:
        tree = file.mktree("events", {"x": "var * float32", "y": "var * float32"})
        same, other = [[1.0, 2.0]] * 50, [[1.0]] * 50
        tree.extend({"x": ak.Array(same), "y": ak.Array(same)})
        tree.extend({"x": ak.Array(same), "y": ak.Array(other)})
    status = server.run(file_list=[str(lists)], selection=query(expressions=["x + y"]))
    assert status["status"] == "Fatal"
    (error,) = server.errors(status["request_id"])
    assert (error["class"], error["blame"]) == ("QueryType", "query")


def ended(server: Server, *requests: str) -> None:
    """Cancel requests, and wait until they have ended."""
    for one in requests:
        server.client.post(f"/servicex/transformation/{one}/cancel")
        server.wait(one)


def test_silent_file_server_delays_the_answer_by_the_deadline_only(server: Server) -> None:
    """The server then accepts the request, and other users do not wait."""
    server.refused(selection=query(expressions=["nope"]))
    answers: list[httpx.Response] = []
    with http("silent") as door:
        began = time.monotonic()
        submitting = threading.Thread(
            target=lambda: answers.append(server.submit(file_list=[door.url("x.root")]))
        )
        submitting.start()
        while not door.asked:
            time.sleep(0.01)
        assert server.get("/servicex/transformation").status_code == 200
        wrong = query(expressions=["nope"])
        until(lambda: server.submit(selection=wrong).status_code == 400, "others are answered")
        submitting.join(60)
        assert time.monotonic() - began < CHECK_SECONDS + 10
        assert answers[0].status_code == 200, answers[0].text
        assert server.run()["status"] == "Complete"
        ended(server, answers[0].json()["request_id"])


def test_dry_runs_are_answered_while_workers_are_busy(server: Server) -> None:
    """Twenty users at once get their answers from workers that run other tasks."""
    server.refused(selection=query(expressions=["nope"]))
    long = [server.submit(codegen="python", selection=ENDLESS) for _ in range(2)]
    keys = [answer.json()["request_id"] for answer in long]
    running = "select count(*) from tasks where state = 'running' and request_id in (?, ?)"
    until(lambda: server.rows(running, *keys) == [(2,)], "both workers are busy")
    answers: list[httpx.Response] = []
    orders = [query(expressions=["E1" if n % 2 else "nope"]) for n in range(20)]
    threads = [
        threading.Thread(target=lambda one=one: answers.append(server.submit(selection=one)))
        for one in orders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 20
    told = [answer for answer in answers if answer.status_code == 400]
    assert {answer.status_code for answer in answers} <= {200, 400}
    assert told
    assert all("no branch nope" in answer.json()["message"] for answer in told)
    accepted = [one.json()["request_id"] for one in answers if one.status_code == 200]
    ended(server, *keys, *accepted)
