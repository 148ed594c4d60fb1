"""File lists as people and programs write them: the server accepts them, or states the fault."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import listed
from tests.integration.servers import put, xrootd
from tests.support import Server, copies, plug_in, sample

ZMUMU = sample("uproot-Zmumu.root")
QUERY = json.dumps([{"treename": "events", "filter_name": ["E1"]}])


@pytest.mark.parametrize("written", ["{}\n", "{}\r\n", "\n{}\n\n", "/{}", "///{}", "file:///{}"])
def test_file_is_read_by_an_odd_but_clear_name(
    server: Server, tmp_path: Path, written: str
) -> None:
    """The server removes line breaks around the name, and counts slashes in front of it as one."""
    (path,) = copies(tmp_path / "in", 1)
    status = server.run(file_list=[written.format(path)])
    assert (status["status"], status["files"]) == ("Complete", 1)


def test_file_that_is_listed_twice_is_read_once_with_a_message(
    server: Server, tmp_path: Path
) -> None:
    """The server recognises other names of the file. There are as many results as files."""
    first, second = copies(tmp_path / "in", 2)
    names = [
        first,
        second,
        first,
        f"file://{first}",
        f"/{first}",
        first.replace("/in/", "/./in/"),
    ]
    status = server.run(file_list=names)
    assert (status["status"], status["files"], status["files-completed"]) == ("Complete", 2, 2)
    paths = {one["file-path"] for one in server.results(status["request_id"])}
    assert paths == {first, second}
    dataset = server.get(f"/servicex/datasets/{status['did_id']}").json()
    assert (dataset["n_files"], len(dataset["files"])) == (2, 2)
    assert dataset["message"] == (
        "4 entries repeat a file of an earlier entry; each file is read once"
    )
    page = server.get(f"/datasets/{status['did_id']}", headers={"Accept": "text/html"}).text
    assert dataset["message"] in page


def test_remote_file_that_is_listed_twice_is_read_once(server: Server) -> None:
    """The case of the host, the default port and fields of XRootD do not make another file."""
    with xrootd() as door:
        put(door.folder, "x.root", ZMUMU)
        url = door.url("x.root")
        names = [url, f"{url}?svcClass=t", url.replace("root://", "ROOT://"), f"{url}?authz=abc"]
        status = server.run(file_list=names)
    assert (status["status"], status["files"]) == ("Complete", 1)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("/a\n/b", "has a line break (give each file its own entry)"),
        ("/data/../etc/passwd", "contains '..', which is not followed; write the path without it"),
        ("root://host/eos/x.root", "one slash after the host, so its path is relative"),
        ("root://host/eos/x.root", "(write two slashes: root://host//eos/x.root)"),
        (
            "root://cache//root://host/x.root",
            "write two slashes: root://cache//root://host//x.root",
        ),
        ("root://host:1094", "write two slashes: root://host:1094//path"),
    ],
)
def test_malformed_entry_is_rejected_with_the_reason(
    server: Server, entry: str, words: str
) -> None:
    """The message also says what to write instead."""
    answer = server.submit(file_list=["/good.root", entry])
    assert answer.status_code == 400
    assert answer.json()["message"].startswith("file-list: entry 2, ")
    assert words in answer.json()["message"]


def test_relative_path_of_a_catalogue_fails_with_the_reason(
    tmp_path: Path, new_server: Callable[..., Server]
) -> None:
    """An XRootD server rejects it with the code that also stands for missing rights."""
    environment = plug_in(tmp_path / "installed", "listed", "Listed", inspect.getsource(listed))
    server = new_server(**environment)
    catalogue = tmp_path / "catalogue.json"
    with xrootd() as door:
        put(door.folder, "x.root", ZMUMU)
        catalogue.write_text(json.dumps([[door.url("x.root").replace("//x", "/x")]]))
        status = server.run(file_list=None, did=f"listed://{catalogue}", selection=QUERY)
    assert status["status"] == "Fatal"
    (error,) = server.errors(status["request_id"])
    assert (error["class"], error["blame"]) == ("Missing", "replica")
    assert "one slash behind its host" in error["message"]
    assert error["hint"] == "write two slashes: root://host//path"
