"""Secrets in URLs of files: workers use them, and no log, answer, page or table shows them."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import listed
from tests.integration.servers import http, put, xrootd
from tests.support import Server, plug_in, sample, until

ZMUMU = sample("uproot-Zmumu.root")
QUERY = json.dumps([{"treename": "events", "filter_name": ["E1"]}])
SIGNATURE = "5c6f3a09e1d24b7791c8d0a3f2b64e88"
TOKEN = "aGVsbG8tdGhpcy1pcy1hLXRva2Vu"
PASSWORD = "correct-horse-battery"
SECRETS = (SIGNATURE, TOKEN, PASSWORD)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give a server of two workers with the catalogue of the tests."""
    folder = tmp_path_factory.mktemp("secrets-in-urls")
    environment = plug_in(folder / "installed", "listed", "Listed", inspect.getsource(listed))
    running = Server(folder / "data", ["--workers", "2"], environment).start()
    yield running
    running.stop()


def ask(server: Server, catalogue: Path, places: list[list[str]]) -> str:
    """Ask for files that are in these places."""
    catalogue.write_text(json.dumps(places))
    answer = server.submit(file_list=None, did=f"listed://{catalogue}", selection=QUERY)
    assert answer.status_code == 200, answer.text
    request_id: str = answer.json()["request_id"]
    return request_id


def shown(server: Server, request_id: str) -> str:
    """Return all that the service says about a request and its files."""
    at = f"/servicex/transformation/{request_id}"
    dataset = server.get(at).json()["did_id"]
    page = {"Accept": "text/html"}
    answers = [
        server.get(at),
        server.get(f"{at}/status?details=true"),
        server.get(f"{at}/results"),
        server.get(f"{at}/errors"),
        server.get(f"/transformation-request/{request_id}"),
        server.get("/servicex/transformation"),
        server.get("/servicex/datasets"),
        server.get(f"/servicex/datasets/{dataset}"),
        server.get("/servicex/workers"),
        server.get("/servicex/sites"),
        server.get("/servicex/replicas/bad"),
        server.get("/servicex/replicas/bad?format=csv"),
        *(
            server.get(path, headers=page)
            for path in (
                "/requests",
                f"/requests/{request_id}",
                "/datasets",
                f"/datasets/{dataset}",
                "/sites",
                "/workers",
            )
        ),
    ]
    assert [one.status_code for one in answers] == [200] * len(answers)
    return "\n".join(one.text for one in answers)


def leaked(text: str) -> list[str]:
    """Return the secrets that are in a text."""
    return [secret for secret in SECRETS if secret in text]


def test_secrets_in_urls_of_files_are_used_and_never_shown(server: Server, tmp_path: Path) -> None:
    """The files succeed, fail or have a bad replica, with each kind of URL."""
    with http() as site, xrootd() as door:
        put(site.folder, "good.root", ZMUMU)
        put(door.folder, "good.root", ZMUMU)
        signed = f"?X-Amz-Signature={SIGNATURE}&X-Amz-Expires=900"
        places = [
            [f"{site.url('good.root')}{signed}"],
            [f"{site.url('none.root')}{signed}"],
            [f"{door.url('good.root')}?authz={TOKEN}"],
            [f"{door.url('none.root')}?authz={TOKEN}", door.url("good.root")],
            [site.url("good.root").replace("://", f"://jane:{PASSWORD}@")],
            [door.url("good.root").replace("://", f"://jane:{PASSWORD}@")],
        ]
        request_id = ask(server, tmp_path / "catalogue.json", places)
        status = server.wait(request_id)
        assert (status["files-completed"], status["files-failed"]) == (3, 3)
        assert any(SIGNATURE in asked for asked in site.asked)
        text = shown(server, request_id)
    assert "X-Amz-Signature=***" in text
    assert "authz=***" in text
    assert f"http://***@{site.address}:{site.port}/good.root" in text
    assert leaked(text) == []
    assert leaked(server.output) == []


def test_worker_that_reads_a_signed_url_is_shown_without_the_signature(
    server: Server, tmp_path: Path
) -> None:
    """The API and the page hide it during the read, and the log hides it after a cancellation."""
    with http() as site:
        put(site.folder, "slow.root", ZMUMU)
        site.manner = "silent"
        url = f"{site.url('slow.root')}?sig={SIGNATURE}"
        request_id = ask(server, tmp_path / "catalogue.json", [[url]])

        def files() -> set[str | None]:
            answer = server.get("/servicex/workers")
            assert leaked(answer.text) == []
            return {one["file"] for one in answer.json()["workers"]} - {None}

        # at first the answer may have files of the test before
        redacted = {f"{site.url('slow.root')}?sig=***"}
        until(lambda: files() == redacted, "a worker reads the file, and its URL is redacted")
        assert leaked(shown(server, request_id)) == []
        server.client.post(f"/servicex/transformation/{request_id}/cancel")
    assert leaked(server.output) == []


@pytest.mark.parametrize(
    "entry",
    [
        f"root://jane:{PASSWORD}@host//x.root",
        f"https://jane:{PASSWORD}@host/x.root",
        f"https://{PASSWORD}@host/x.root",
        f"https://jane:a/{PASSWORD}@host/x.root",
        f"https://jane:a b{PASSWORD}@host/x.root",
        f"https://jane:{PASSWORD}{'x' * 300}@host/x.root",
        f"root://host//root://jane:{PASSWORD}@other//x.root",
        f"root://host//x.root?xrd.ztn={TOKEN}",
        f"root://host//x.root?authz={TOKEN}?authz={TOKEN}",
        f"root://host//x.root?authz='{TOKEN}'",
        f"https://host/x y.root?sig={SIGNATURE}",
        f"https://host/x.root?sig=a {SIGNATURE}",
        f"https://host:{PASSWORD}/x.root",
        f"gopher://jane:{PASSWORD}@host/x.root",
        f"x.root?https://jane:{PASSWORD}@host",
        f"root://host/x.root?authz={TOKEN}",
    ],
)
def test_refused_entry_is_quoted_without_its_secrets(server: Server, entry: str) -> None:
    """The entry is in a list of files, or is a dataset."""
    for changes in ({"file_list": [entry]}, {"file_list": None, "did": entry}):
        answer = server.submit(**changes)
        assert answer.status_code == 400, answer.text
        assert leaked(answer.text) == []
