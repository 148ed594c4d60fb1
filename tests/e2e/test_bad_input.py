"""Wrong input of a user: the answer names the fault, and the stored state stays sound."""

import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uproot

from tests.e2e.test_bad_days import results_on
from tests.support import FORK_SERVER, Server, command_of, copies, fill, sample, small_disk, until

ZMUMU = sample("uproot-Zmumu.root")
HZZ = sample("uproot-HZZ.root")
PLAIN = json.dumps([{"treename": "events", "filter_name": ["E1"]}])


def query(**subquery: Any) -> str:
    """Return a selection of one subquery on the tree ``events``."""
    return json.dumps([{"treename": "events", **subquery}])


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"title": 5}, 400, "^title: .*string"),
        ({"did": 5}, 400, "^did: .*string"),
        ({"file_list": "a.root"}, 400, "^file-list: .*list"),
        ({"file_list": [1]}, 400, "^file-list.0: .*string"),
        ({"file_list": None}, 400, "did, file-list: give exactly one .* none"),
        ({"did": "rucio://a:b"}, 400, "did, file-list: give exactly one .* both"),
        ({"file_list": []}, 400, "^file-list: the list is empty"),
        ({"file_list": ["/a.root"] * 100_001}, 400, "^file-list: 100001 entries .* 100000"),
        ({"file_list": ["a.root"]}, 400, "^file-list: entry 1, 'a.root', is neither"),
        ({"file_list": ["/a.root", ""]}, 400, "^file-list: entry 2 is empty"),
        ({"file_list": ["gopher://a/b.root"]}, 400, "^file-list: .*scheme"),
        ({"file_list": ["http:///b.root"]}, 400, "^file-list: .*names no host"),
        ({"file_list": ["/a\0.root"]}, 400, "^file-list.*character"),
        ({"file_list": None, "did": "gopher://x"}, 400, "^did: the scheme 'gopher'"),
        ({"file_list": None, "did": "no-scheme"}, 400, "^did: 'no-scheme' has no scheme"),
        ({"codegen": "fortran"}, 400, "^codegen: 'fortran' .*supported are"),
        ({"codegen": "uprootraw"}, 400, "^codegen: .*did you mean uproot-raw"),
        ({"codegen": None}, 400, "^codegen: this field is needed"),
        ({"result_format": "arrow"}, 400, "^result-format: .*parquet"),
        ({"result_destination": "volume"}, 400, "^result-destination: .*object-store"),
        ({"result_destination": None}, 400, "^result-destination: this field is needed"),
        ({"selection": None}, 400, "^selection: this field is needed"),
        ({"selection": "not json"}, 400, "selection is not JSON"),
        ({"selection": "{}"}, 400, "selection is not a list"),
        ({"selection": '[{"cut": "x"}]'}, 400, "names neither treename nor copy_histograms"),
        ({"selection": query(expressions=["foo(E1)"])}, 400, "no function foo"),
        ({"selection": query(cut="E1 > > 1")}, 400, r"cut has a syntax error .*character 6"),
        ({"selection": query(cut="__import__('os')")}, 400, "__import__ is not allowed"),
        ({"selection": query(cut="E1.__class__")}, 400, "__class__ is not allowed"),
        ({"selection": query(cut="1" * 10_000_000)}, 413, "^selection: 10000.* bytes"),
        ({"selection": '[{"copy_histograms": "h"}]'}, 400, "needs ROOT output"),
        ({"title": "t" * 10_241}, 400, "^title: 10241 characters"),
        ({"title": "t\0"}, 400, "^title: .*NUL"),
        ({"file_seconds": "1"}, 400, "^file-seconds: .*number"),
        ({"file_seconds": 0}, 400, "^file-seconds: .*greater than 0"),
        ({"file_seconds": 3601}, 400, "^file-seconds: 3601 are too many; at most 3600"),
        ({"selection": PLAIN + "\0"}, 400, "^selection: .*NUL"),
        ({"file_list": None, "did": "a://\0"}, 400, "^did: .*NUL"),
        ({"codegen": "python", "selection": "%%%"}, 400, "base64"),
        ({"codegen": "python", "selection": "ZGVmIHB5KCk6IHBhc3M="}, 400, "run_query"),
    ],
)
def test_a_wrong_body_is_refused_and_nothing_is_stored(
    server: Server, changes: dict[str, Any], status: int, words: str
) -> None:
    """The answer is one sentence that begins with the field. The server stores no row."""
    before = server.counts()
    answer = server.submit(**changes)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["message"]
    assert re.search(words, answer.json()["message"], re.DOTALL), answer.json()["message"]
    assert server.counts() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is no JSON", "not JSON"),
        (b"", "the body: this field is needed"),
        (b"[1, 2]", "the body: .*object"),
        (b"null", "the body"),
        (b'{"title": "\xff\xfe"}', "not JSON"),
        (b'{"a":' * 5000, "not JSON|nested|body"),
    ],
)
def test_body_that_is_not_a_json_object_is_rejected(
    server: Server, content: bytes, words: str
) -> None:
    """The server answers 400 with a sentence to any bytes."""
    before = server.counts()
    answer = httpx.post(
        f"{server.url}/servicex/transformation",
        content=content,
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400, answer.text
    assert re.search(words, answer.json()["message"]), answer.json()
    assert server.counts() == before


def test_unknown_keys_are_ignored(server: Server) -> None:
    """Newer clients may send keys that this server does not know."""
    answer = server.submit(client_version="9.9", some_future_key={"a": 1})
    assert answer.status_code == 200
    assert server.wait(answer.json()["request_id"])["status"] == "Complete"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/servicex/transformation/{id}"),
        ("GET", "/servicex/transformation/{id}/status"),
        ("GET", "/servicex/transformation/{id}/results"),
        ("GET", "/servicex/transformation/{id}/errors"),
        ("GET", "/servicex/transformation/{id}/cancel"),
        ("POST", "/servicex/transformation/{id}/cancel"),
        ("DELETE", "/servicex/transformation/{id}"),
        ("GET", "/transformation-request/{id}/results"),
    ],
)
@pytest.mark.parametrize(
    "request_id", [str(uuid.UUID(int=7)), "no-uuid", "7", "%00", "é' or 1=1 --"]
)
def test_an_unknown_request_is_not_found(
    server: Server, method: str, path: str, request_id: str
) -> None:
    """Every route answers 404 to an id that is unknown or is not a UUID."""
    answer = server.client.request(method, path.format(id=request_id))
    assert answer.status_code == 404
    assert list(answer.json()) == ["message"]


@pytest.mark.parametrize("dataset_id", ["999999", "x", "-1", "9" * 40, "1.5"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_dataset_is_not_found(server: Server, method: str, dataset_id: str) -> None:
    """The server answers 404 to an id that is unknown or is not a number."""
    answer = httpx.request(method, f"{server.url}/servicex/datasets/{dataset_id}")
    assert answer.status_code == 404
    assert f"Dataset {dataset_id} not found" in answer.json()["message"]


@pytest.mark.parametrize("later_than", ["yesterday", "2024-13-01", "", "9" * 50])
def test_cursor_that_is_not_a_time_is_rejected(server: Server, later_than: str) -> None:
    """The server answers 400, and quotes the cursor."""
    request_id = server.run()["request_id"]
    path = f"/servicex/transformation/{request_id}/results"
    answer = server.get(path, params={"later_than": later_than})
    assert answer.status_code == 400
    assert "is not an ISO 8601 compliant datetime" in answer.json()["message"]


@pytest.fixture(scope="module")
def calm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give a server on which no request is broken off, which would restart its worker."""
    running = Server(tmp_path_factory.mktemp("calm") / "data", ["--workers", "1"]).start()
    yield running
    running.stop()


# --- files ---------------------------------------------------------------------------------


def _truncated(path: Path) -> None:
    path.write_bytes(HZZ.read_bytes()[: HZZ.stat().st_size // 2])


def _corrupt(path: Path) -> None:
    content = bytearray(HZZ.read_bytes())
    with uproot.open(HZZ) as file:
        branch = file["events"]["Jet_Px"]
        start, size = int(branch.member("fBasketSeek")[0]), int(branch.member("fBasketBytes")[0])
    for place in range(start + 100, start + size):
        content[place] ^= 0x5A
    path.write_bytes(bytes(content))


def _other_tree(path: Path) -> None:
    with uproot.recreate(path) as file:
        file.mktree("evts", {"Jet_Px": "f4"}).extend({"Jet_Px": np.arange(3, dtype="f4")})


def _other_branch(path: Path) -> None:
    with uproot.recreate(path) as file:
        file.mktree("events", {"Jet_Pxx": "f4"}).extend({"Jet_Pxx": np.arange(3, dtype="f4")})


def _folder(path: Path) -> None:
    with uproot.recreate(path) as file:
        file.mkdir("events").mktree("t", {"Jet_Px": "f4"}).extend({"Jet_Px": np.zeros(1, "f4")})


BAD_FILES: dict[str, tuple[Callable[[Path], Any], str, str, str]] = {
    "missing": (lambda path: None, "Missing", "replica", "does not exist"),
    "a folder": (lambda path: path.mkdir(), "Missing", "replica", "is a folder"),
    "a pipe": (os.mkfifo, "Missing", "replica", "is not a file but a pipe"),
    "empty": (lambda path: path.touch(), "Truncated", "replica", "is empty"),
    "no ROOT": (lambda path: path.write_text("x" * 999), "Corrupt", "replica", "not a ROOT file"),
    "truncated": (_truncated, "Truncated", "replica", "ends before"),
    "corrupt": (_corrupt, "Corrupt", "replica", "branch Jet_Px of .* is corrupt"),
    "no tree": (_other_tree, "UnknownName", "query", "no tree events in this file"),
    "no branch": (_other_branch, "UnknownName", "query", "no branch Jet_Px"),
    "directory": (_folder, "UnknownName", "query", "events is not a tree but a folder"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_fails_alone(server: Server, tmp_path: Path, case: str) -> None:
    """Its error names the fault, the blame and the remedy. The service delivers the other files."""
    make, kind, blame, words = BAD_FILES[case]
    bad = tmp_path / "bad.root"
    make(bad)
    first, last = copies(tmp_path / "good", 2, HZZ.name)
    status = server.run(file_list=[first, str(bad), last], selection=query(expressions=["Jet_Px"]))
    counts = (status["files"], status["files-completed"], status["files-failed"])
    assert (status["status"], counts) == ("Complete", (3, 2, 1))
    assert re.search(words, status["failure-info"])
    (error,) = server.errors(status["request_id"])
    assert (error["class"], error["blame"], error["file"]) == (kind, blame, str(bad))
    assert re.search(words, error["message"])
    assert error["info"] == error["message"]
    assert error["replicas"] == [str(bad)]
    assert [a["class"] for a in error["attempts"]] == [kind]
    assert error["worker"]
    assert len(server.stored(status["request_id"])) == 2
    states = server.rows(
        "select state from tasks where request_id = ? order by file_id", status["request_id"]
    )
    assert states == [("done",), ("failed",), ("done",)]
    page = server.get(f"/transformation-request/{status['request_id']}").text
    assert f"1 x {kind}" in page


def test_misspelt_name_is_rejected_with_the_nearest_names(server: Server, tmp_path: Path) -> None:
    """The names are those of the trees and branches of the file."""
    said = server.refused(selection='[{"treename": "evnts"}]')
    assert re.match(r"selection: there is no tree evnts .*\(did you mean events\?", said)
    said = server.refused(selection=query(expressions=["pt11"]))
    assert re.match(r"selection: tree events has no branch pt11 \(did you mean pt1\?", said)
    assert said.endswith(f"seen in {ZMUMU})")
    said = server.refused(selection=query(filter_name="Muon_*"))
    assert "no branch of tree events matches Muon_*" in said
    bad = tmp_path / "d.root"
    _folder(bad)
    assert "did you mean events/t?" in server.refused(file_list=[str(bad)])


def test_request_whose_files_all_failed_is_fatal(server: Server) -> None:
    """Its `failure-info` states the reason."""
    status = server.run(file_list=["/no/such/a.root", "/no/such/b.root"])
    assert status["status"] == "Fatal"
    assert status["files-failed"] == 2
    assert "2 files failed" in status["failure-info"]


def test_the_same_query_error_ends_the_request_early(server: Server, tmp_path: Path) -> None:
    """The third file with the same query error ends a long request.

    The server accepts the request because the last file has the branch.
    """
    files = [*copies(tmp_path / "without", 200), str(HZZ)]
    status = server.run(file_list=files, selection=query(expressions=["NJet"]))
    assert status["status"] == "Fatal"
    assert "no branch NJet" in status["failure-info"]
    assert status["files-failed"] < 20
    named = re.search(r"\[the first (\d+) files: (.*?)( and \d+ more)?\]", status["failure-info"])
    assert named is not None
    assert int(named[1]) == status["files-failed"]
    assert set(named[2].split(", ")) < set(files)
    states = dict(
        server.rows(
            "select state, count(*) from tasks where request_id = ? group by state",
            status["request_id"],
        )
    )
    assert set(states) == {"failed", "canceled", "waiting"}
    assert (states["failed"], sum(states.values())) == (status["files-failed"], 201)


@pytest.mark.parametrize("flag", [None, False, True])
def test_flag_decides_whether_a_missing_tree_is_an_error(
    server: Server, *, flag: bool | None
) -> None:
    """The worker skips one missing tree of two, unless the query requires all trees."""
    subqueries = [{"treename": name, "fail_on_missing_trees": flag} for name in ("events", "nope")]
    order = {"selection": json.dumps(subqueries), "result_format": "root-file"}
    if flag:
        assert "there is no tree nope in this file" in server.refused(**order)
        return
    status = server.run(**order)
    assert (status["status"], status["files-completed"]) == ("Complete", 1)


def test_a_file_without_any_tree_can_be_accepted(server: Server) -> None:
    """With the flag set to false, a file without the tree gives a valid file without trees."""
    selection = json.dumps([{"treename": "nope", "fail_on_missing_trees": False}])
    for result_format in ("parquet", "root-file", "root-rntuple"):
        assert server.run(selection=selection, result_format=result_format)["status"] == "Complete"


def test_zero_entries_give_typed_columns(server: Server, tmp_path: Path) -> None:
    """A tree without entries, and without baskets, gives the columns and no row."""
    empty = tmp_path / "empty.root"
    with uproot.recreate(empty) as file:
        file.mktree("events", {"x": "f4", "jets": "var * float64"})
    for result_format in ("parquet", "root-file", "root-rntuple"):
        status = server.run(file_list=[str(empty)], selection=query(), result_format=result_format)
        assert status["status"] == "Complete", server.errors(status["request_id"])
        (path,) = server.stored(status["request_id"])
        if result_format == "parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            assert (table.num_rows, table.column_names[:1]) == (0, ["x"])
        else:
            with uproot.open(path) as file:
                assert file["events"].num_entries == 0
                assert "jets" in file["events"].keys()  # noqa: SIM118  # trees are no dicts


def test_branch_of_an_unreadable_type_is_rejected(server: Server) -> None:
    """The message names the branch that no reader supports, and the remedy."""
    bad = sample("uproot-issue371.root")
    with uproot.open(bad) as file:
        tree = next(key for key, kind in file.classnames(cycle=False).items() if kind == "TTree")
        unknown = next(
            name
            for name, branch in file[tree].items()
            if "Unknown" in type(branch.interpretation).__name__
        )
    selection = json.dumps([{"treename": tree, "filter_name": unknown}])
    said = server.refused(file_list=[str(bad)], selection=selection)
    assert unknown.rsplit("/", 1)[-1] in said
    assert "leave it out" in said


@pytest.mark.parametrize("result_format", ["root-file", "root-rntuple"])
def test_ttree_rejects_missing_values_and_rntuple_accepts_them(
    server: Server, result_format: str
) -> None:
    """The message names the column, its type and the remedy."""
    order = {
        "file_list": [str(HZZ)],
        "selection": query(expressions=["max(Jet_Px)"]),
        "result_format": result_format,
    }
    if result_format == "root-rntuple":
        assert server.run(**order)["status"] == "Complete"
        return
    said = server.refused(**order)
    assert "a TTree cannot hold column max(Jet_Px) of type ?float32" in said
    assert "fill_none" in said


# --- several requests, long titles, odd moments --------------------------------------------


def test_requests_may_have_the_same_title(server: Server) -> None:
    """Titles need not be unique, even at the same moment."""
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.submit(title="twins")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = {answer.json()["request_id"] for answer in answers}
    assert len(ids) == 8
    assert {server.wait(one)["status"] for one in ids} == {"Complete"}


def test_a_very_long_title_is_kept(server: Server) -> None:
    """The server returns a title of 10,240 characters unchanged."""
    title = "µ" * 10_240
    assert server.run(title=title)["title"] == title
    listed = server.get("/servicex/transformation").json()["requests"]
    assert any(one["title"] == title for one in listed)


def test_cancellation_of_an_ended_request_is_rejected(server: Server) -> None:
    """The server answers 400, and names the final state."""
    request_id = server.run()["request_id"]
    answer = httpx.post(f"{server.url}/servicex/transformation/{request_id}/cancel")
    assert answer.status_code == 400
    assert "has ended already: Complete" in answer.json()["message"]


def test_dataset_can_be_deleted_only_once(server: Server) -> None:
    """A stale dataset stays readable, lists omit it, and the server rejects a second deletion."""
    dataset_id = server.run()["did_id"]
    url = f"{server.url}/servicex/datasets/{dataset_id}"
    assert httpx.delete(url).json() == {"dataset-id": dataset_id, "stale": True}
    assert httpx.delete(url).status_code == 400
    assert httpx.get(url).json()["is_stale"] is True
    listed = server.get("/servicex/datasets").json()["datasets"]
    assert dataset_id not in [one["id"] for one in listed]
    again = server.get("/servicex/datasets?show-deleted=true").json()["datasets"]
    assert dataset_id in [one["id"] for one in again]
    assert server.run()["did_id"] != dataset_id


# --- functions of the user -----------------------------------------------------------------


def python(body: str) -> dict[str, Any]:
    """Return the changes that submit a function with this body."""
    import base64
    import textwrap

    source = "def run_query(path):\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return {"codegen": "python", "selection": base64.b64encode(source.encode()).decode()}


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("print('so far')\nraise ValueError('bad cut')", "Function", "ValueError.*bad cut"),
        ("import sys; sys.exit(3)", "Function", "exit"),
        ("import os; os._exit(3)", "Function", "exit|ended"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "Function", "SIGSEGV"),
        ("return 3", "Function", "returned the number 3"),
        ("return None", "Function", "None"),
        ("import numpy as np\nreturn {'a': np.zeros((3, 4, 5), dtype='c16')}", "Format", "a"),
        ("x = []\nwhile True: x.append(bytearray(1 << 24))", "OutOfMemory", "memory"),
    ],
)
def test_failing_function_fails_its_file_with_its_own_error(
    calm_server: Server, body: str, kind: str, words: str
) -> None:
    """The error shows how the user's function failed, and no worker dies."""
    server = calm_server
    workers = {process.pid for process in server.descendants(helpers=False)}
    status = server.run(**python(body), result_format="root-file")
    assert status["status"] == "Fatal"
    (error,) = server.errors(status["request_id"])
    assert error["class"] == kind, error
    assert re.search(words, error["message"]), error["message"]
    if "so far" in body:
        assert "so far" in error["log-tail"]
    assert workers == {process.pid for process in server.descendants(helpers=False)}


def test_long_output_of_a_function_is_truncated(server: Server) -> None:
    """The service stores a short tail of a hundred megabytes of output, and the result."""
    body = "import awkward as ak\nfor n in range(100): print('y' * 1000000)\nreturn ak.Array([1.5])"
    status = server.run(**python(body))
    assert status["status"] == "Complete", server.errors(status["request_id"])
    (tail,) = server.rows(
        "select length(log_tail) from tasks where request_id = ?", status["request_id"]
    )
    assert tail[0] < 64_000


def beside_workers(server: Server) -> int:
    """Return how many processes there are below a server that are no workers."""
    found = [command_of(process) for process in server.descendants(helpers=False)]
    return sum(FORK_SERVER not in command for command in found)


def test_endless_function_ends_at_the_time_limit(server: Server) -> None:
    """All processes that the function started end, too."""
    before = beside_workers(server)
    body = "import os\nos.fork()\nos.fork()\nwhile True: pass"
    status = server.run(**python(body), file_seconds=2)
    (error,) = server.errors(status["request_id"])
    assert error["class"] == "OutOfTime"
    assert "2 s" in error["message"]
    assert beside_workers(server) == before


def test_worker_waits_while_the_result_disk_is_full(server: Server, tmp_path: Path) -> None:
    """It keeps the result until the disk has space."""
    with small_disk(tmp_path / "disk") as disk, results_on(server, disk):
        fill(disk / "filler")
        request_id = server.submit(file_list=[str(HZZ)], selection=query()).json()["request_id"]
        until((disk / request_id).exists, "the worker tries to store the result")
        assert server.stored(request_id) == []
        (disk / "filler").unlink()
        assert server.wait(request_id)["status"] == "Complete"
        assert server.rows("select attempts from tasks where request_id = ?", request_id) == [(1,)]
