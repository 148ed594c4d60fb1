"""The service keeps to its OpenAPI document, and ``schemathesis`` tries to break it.

It generates correct and wrong requests from the document, and checks each answer. It runs as a
process of its own, because as a pytest plug-in it would look at all tests.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.test_accounts import People
from tests.support import Server, sample

SEED = 1
EXAMPLES = pytest.mark.parametrize("examples", [5, pytest.param(20, marks=pytest.mark.long)])
"""Requests that are made up for each route, beside those that try each limit of the document.

The short lane makes up fewer of the same kinds.
"""

CONFIGURATION = """
# not all that is wrong with a query, or with a moment, can be said in a schema
[checks.positive_data_acceptance]
enabled = false

# wrong tokens are 429 after a while; that each route wants one is held by test_accounts.py
[checks.ignored_auth]
enabled = false

# this is the name of a request too, and has the methods of one
[[operations]]
include-path = "/servicex/transformation/file-urls"
checks.allow_header_conformance.enabled = false
"""

THERE = """
[[operations]]
include-method = "GET"
parameters = {{ "path.request_id" = "{request_id}", "path.dataset_id" = "{dataset_id}" }}
"""
"""What GET asks for, if there is to be something."""


def hold(
    server: Server, folder: Path, examples: int, *, configuration: str = "", token: str = ""
) -> None:
    """Hold a server against its document: no 5xx, and what is said of answers is so."""
    (folder / "schemathesis.toml").write_text(CONFIGURATION + configuration)
    command = [str(Path(sys.executable).with_name("st")), "run", f"{server.url}/openapi.json"]
    command += ["--seed", str(SEED), "--max-examples", str(examples)]
    command += ["--generation-database", "none", "--no-color", "--warnings", "off"]
    command += ["--header", f"Authorization: Bearer {token}"] if token else []
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-10_000:] + ran.stderr[-2000:]
    assert "generated, " in ran.stdout
    assert "Traceback" not in server.output


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """Give a server on which users sign in, and one of them."""
    folder = tmp_path_factory.mktemp("openapi") / "data"
    environment = {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_READING__LOCAL_FOLDERS": json.dumps(
            [str(sample("uproot-Zmumu.root").parent)]
        ),
    }
    made = People(Server(folder, ["--workers", "1"], environment).start())
    try:
        made.add("owner")
        yield made
    finally:
        made.server.stop()


@EXAMPLES
def test_server_without_sign_in_keeps_to_its_openapi_document(
    new_server: Callable[..., Server], tmp_path: Path, examples: int
) -> None:
    """Everybody is an administrator, as on a laptop."""
    hold(new_server(), tmp_path, examples)


@EXAMPLES
def test_answers_without_sign_in_keep_to_the_openapi_document(
    people: People, tmp_path: Path, examples: int
) -> None:
    """The server rejects the calls in the way that the document describes."""
    hold(people.server, tmp_path, examples)


@EXAMPLES
def test_answers_to_a_signed_in_user_keep_to_the_openapi_document(
    people: People, tmp_path: Path, examples: int
) -> None:
    """The user has a request, and sees it in the way that the document describes."""
    request_id = people.ended(people.submit())["request_id"]
    query = "select dataset_id from requests where id = ?"
    ((dataset_id,),) = people.server.rows(query, request_id)
    there = THERE.format(request_id=request_id, dataset_id=dataset_id)
    access = people.access["owner"]
    hold(people.server, tmp_path, examples, configuration=there, token=access)
