"""Permissions of each role by one table, and the life of accounts and tokens, with sign-in."""

import base64
import html
import json
import os
import re
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from servicex_server.accounts.access_tokens import digest
from servicex_server.settings.service import Settings
from tests.command_line import invoke
from tests.in_process import client_of
from tests.support import HALTS, PROGRAM, Server, copies, routes, sample, until

ZMUMU = str(sample("uproot-Zmumu.root"))

ROLES = ("nobody", "pending", "suspended", "other", "owner", "operator", "administrator")


def command(server: Server, *arguments: str, code: int = 0, given: str = "") -> str:
    """Run ``servicex-server user`` in this process on the data of a server; return what it says."""
    options = ("user", *arguments, "--data-dir", str(server.data_dir))
    ended, said = invoke(*options, environment=server.environment, given=given)
    assert ended == code, said
    return said.strip()


def program(server: Server, *arguments: str, code: int = 0, given: str = "") -> str:
    """Run ``servicex-server user`` in a process of its own; return what it says."""
    ran = subprocess.run(
        [str(PROGRAM), "user", *arguments, "--data-dir", str(server.data_dir)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        input=given,
        env=os.environ | server.environment,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return (ran.stdout + ran.stderr).strip()


@dataclass
class People:
    """A server with sign-in, and its users."""

    server: Server
    tokens: dict[str, str] = field(default_factory=dict)
    access: dict[str, str] = field(default_factory=dict)

    def email(self, who: str) -> str:
        """Return the e-mail of somebody."""
        return f"{who}@example.org"

    def add(self, who: str, role: str = "user") -> None:
        """Add an account with a token, and sign in."""
        command(self.server, "add", self.email(who), "--role", role)
        self.tokens[who] = command(self.server, "token", self.email(who))
        self.access[who] = self.exchange(self.tokens[who]).json()["access_token"]

    def exchange(self, token: str) -> httpx.Response:
        """Ask for an access token."""
        headers = {"Authorization": f"Bearer {token}"}
        return self.server.client.post("/token/refresh", headers=headers)

    def ask(self, who: str, method: str, path: str, **given: Any) -> httpx.Response:
        """Ask as somebody."""
        headers = {"Authorization": f"Bearer {self.access[who]}"} if who in self.access else {}
        return self.server.client.request(method, path, headers=headers, **given)

    def browse(self, who: str, method: str, path: str, **given: Any) -> httpx.Response:
        """Ask as the browser of somebody does, which has signed in: with a cookie."""
        headers = {"Cookie": f"servicex={self.signed_in(who)}"} if who in self.access else {}
        return self.server.client.request(method, path, headers=headers, **given)

    def signed_in(self, who: str) -> str:
        """Return the secret of a browser in which somebody has signed in, while they could."""
        secret = secrets.token_hex()
        values = (digest(secret), self.number(who), "2026-01-01", "2099-01-01")
        with sqlite3.connect(self.server.data_dir / "servicex.sqlite") as opened:
            row = "insert into sessions (hash, user_id, created_at, expires_at) values (?, ?, ?, ?)"
            opened.execute(row, values)
        return secret

    def number(self, who: str) -> int:
        """Return the number of somebody's account."""
        query = "select id from users where email = ?"
        return int(self.server.rows(query, self.email(who))[0][0])

    def submit(self, who: str = "owner", /, **changes: Any) -> str:
        """Have somebody ask for columns; return the id of the request."""
        body = {
            "file-list": [ZMUMU],
            "selection": json.dumps([{"treename": "events", "filter_name": ["E1"]}]),
            "codegen": "uproot-raw",
            "result-destination": "object-store",
            "result-format": "parquet",
        } | changes
        answer = self.ask(who, "POST", "/servicex/transformation", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["request_id"])

    @property
    def endless(self) -> dict[str, Any]:
        """What to ask for so that a request runs until somebody cancels it."""
        folder = self.server.data_dir.with_name("files")
        files = [str(folder / f"{n}.root") for n in range(3)]
        if not folder.exists():
            copies(folder, 3)
        source = base64.b64encode(HALTS.encode()).decode()
        return {"codegen": "python", "selection": source, "file-list": files}

    def ended(self, request_id: str, who: str = "owner") -> dict[str, Any]:
        """Wait until a request has ended; return what its owner sees of it."""
        found: dict[str, Any] = {}

        def seen() -> bool:
            found.update(self.ask(who, "GET", f"/servicex/transformation/{request_id}").json())
            return found["status"] in ("Complete", "Fatal", "Canceled")

        until(seen, "the request has ended")
        return found


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """Give a server, and one of each who may come."""
    folder = tmp_path_factory.mktemp("accounts") / "data"
    folders = [str(Path(ZMUMU).parent), str(folder.with_name("files"))]
    environment = {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_READING__LOCAL_FOLDERS": json.dumps(folders),
    }
    server = Server(folder, ["--workers", "1"], environment).start()
    try:
        made = People(server)
        for who in ROLES[1:]:
            made.add(who, who if who in ("operator", "administrator") else "user")
        path = folder / "servicex.sqlite"
        assert path.exists()
        command(server, "suspend", made.email("suspended"))
        command(server, "suspend", made.email("pending"))
        waits(server, made.email("pending"))
        yield made
    finally:
        server.stop()


def waits(server: Server, email: str) -> None:
    """Make an account one that nobody has approved yet, as it is after a sign-up."""
    with sqlite3.connect(server.data_dir / "servicex.sqlite") as opened:
        changed = opened.execute("update users set state = 'pending' where email = ?", [email])
        assert changed.rowcount == 1


IN = ("other", "owner", "operator", "administrator")
"""Whose accounts may be used."""

OPEN = dict.fromkeys(ROLES, 200)
"""Anybody may, and needs no account."""

KNOWN = OPEN | dict.fromkeys(("nobody", "pending", "suspended"), 401)
"""Who has an account that may be used; each sees their own."""

OWN = KNOWN | {"other": 404}
"""Of one request: who asked for it, and who sees all. To others it is not there."""

CHANGES = OWN | {"operator": 403}
"""As `OWN`, but operators only look."""

ALL = KNOWN | {"other": 404, "owner": 404}
"""Who sees all."""

TABLE: Mapping[str, Mapping[str, int]] = {
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /metrics": OPEN,
    "GET /servicex": OPEN,
    "GET /multiple-codegen-list": OPEN,
    "POST /device/code": OPEN,
    "POST /device/token": dict.fromkeys(ROLES, 400),  # no program waits
    "POST /token/refresh": dict.fromkeys(ROLES, 401),  # an access token is none to exchange
    "POST /servicex/transformation": KNOWN,
    "GET /servicex/transformation": KNOWN,
    "GET /servicex/transformation/{request_id}": OWN,
    "GET /servicex/transformation/{request_id}/status": OWN,
    "GET /servicex/transformation/{request_id}/results": OWN,
    "GET /servicex/transformation/{request_id}/errors": OWN,
    "GET /servicex/transformation/{request_id}/cancel": CHANGES,
    "POST /servicex/transformation/{request_id}/cancel": CHANGES,
    "DELETE /servicex/transformation/{request_id}": CHANGES,
    "PUT /servicex/transformation/{request_id}/pin": CHANGES,
    "DELETE /servicex/transformation/{request_id}/pin": CHANGES,
    "POST /servicex/transformation/file-urls": OWN,
    "GET /servicex/datasets": KNOWN,
    "GET /servicex/datasets/{dataset_id}": OWN,
    "DELETE /servicex/datasets/{dataset_id}": CHANGES,
    "GET /servicex/queue": KNOWN,
    "GET /servicex/workers": ALL,
    "GET /servicex/sites": ALL,
    "GET /servicex/storage": ALL,
    "POST /servicex/sites/probe": ALL,
    "GET /servicex/replicas/bad": ALL,
    "GET /transformation-request/{request_id}": OWN,
    "GET /transformation-request/{request_id}/results": OWN,
}
"""Who gets what, of a request and a dataset of ``owner``."""

PAGES: Mapping[str, Mapping[str, int]] = {
    "GET /": OPEN,
    "GET /docs": OPEN,
    "GET /static/{name}": OPEN,
    "GET /requests": KNOWN,
    "GET /requests/{request_id}": OWN,
    "GET /requests/{request_id}/results/{name}": dict.fromkeys(ROLES, 404)
    | {who: 401 for who, status in KNOWN.items() if status == 401},
    "POST /requests/{request_id}/cancel": CHANGES | {"owner": 303, "administrator": 303},
    "POST /requests/{request_id}/pin": CHANGES | {"owner": 303, "administrator": 303},
    "POST /requests/{request_id}/unpin": CHANGES | {"owner": 303, "administrator": 303},
    "POST /requests/{request_id}/delete": OWN,  # it is asked first whether that is meant
    "POST /requests/{request_id}/resubmit": OWN
    | dict.fromkeys(("owner", "operator", "administrator"), 303),
    "GET /datasets": KNOWN,
    "GET /datasets/{dataset_id}": OWN,
    "GET /sites": ALL,
    "GET /sites/bad-replicas.csv": ALL,
    "GET /workers": ALL,
    "GET /sign-in": OPEN,
    "POST /sign-in": dict.fromkeys(ROLES, 401),  # without a token
    "GET /sign-in/{name}": dict.fromkeys(ROLES, 404),  # no issuer of this name
    "GET /sign-in/{name}/callback": dict.fromkeys(ROLES, 404),
    "GET /sign-up": dict.fromkeys(ROLES, 303),  # nobody has vouched for them
    "POST /sign-up": dict.fromkeys(ROLES, 401),
    "GET /profile": KNOWN,
    "POST /profile": KNOWN | dict.fromkeys(IN, 303),
    "POST /profile/tokens": KNOWN,
    "POST /profile/tokens/revoke": KNOWN | dict.fromkeys(IN, 404),  # no token of this name
    "GET /device": KNOWN,
    "POST /device": KNOWN | dict.fromkeys(IN, 400),  # nothing waits with this code
    "GET /users": ALL,
    "POST /users/{number}/role": ALL | {"operator": 403, "administrator": 303},
    "POST /users/{number}/{deed}": ALL | {"operator": 403, "administrator": 303},
    "GET /open": dict.fromkeys(ROLES, 404),  # for services on which nobody signs in
    "GET /pending": dict.fromkeys(ROLES, 303),
    "POST /sign-out": dict.fromkeys(ROLES, 303),
    "POST /profile/sign-out": KNOWN | dict.fromkeys(IN, 303),
}
"""The same of the pages; 303 leads to another one. A result of this name there is not."""


BROWSERS: Mapping[str, Mapping[str, int]] = {
    "GET /pending": dict.fromkeys(ROLES, 303) | {"pending": 200, "suspended": 200},
    "GET /sign-in": OPEN | dict.fromkeys(IN, 303),
}
"""Pages that tell a browser more: to somebody who has signed in, and may not be here."""

FORMS: Mapping[str, dict[str, str]] = {
    "POST /device/code": {"client_id": "a program"},
    "POST /profile": {"name": "Jo", "institution": "CERN", "experiment": "CMS"},
    "POST /profile/tokens": {"name": "{unique}", "days": "30", "as": "text"},
    "POST /users/{number}/role": {"role": "user"},
}
"""What is sent along."""


def test_every_route_is_in_the_table(people: People) -> None:
    """A new route without an entry fails this test."""
    described = people.server.get("/openapi.json").json()["paths"]
    shown = {f"{method.upper()} {path}" for path, ways in described.items() for method in ways}
    assert shown == set(TABLE)
    for route, may in TABLE.items():
        method, path = route.split()
        needs_token = "security" in described[path][method.lower()]
        assert needs_token == (may["nobody"] == 401), route
    assert routes() == dict.fromkeys(TABLE, True) | dict.fromkeys(PAGES, False)


def _made(people: People, **asked: Any) -> dict[str, Any]:
    """Have the owner ask for something; return the numbers of the request and its dataset."""
    request_id = people.submit("owner", **asked)
    seen = people.ask("owner", "GET", f"/servicex/transformation/{request_id}").json()
    assert seen["request_id"] == request_id
    return {"request_id": request_id, "dataset_id": _dataset_of(people, request_id)}


@pytest.fixture(scope="module")
def there(people: People) -> dict[str, Any]:
    """Give a request of the owner that no test ends, and its dataset."""
    # a list that is longer than those of the datasets that tests remove
    return _made(people, **{"file-list": [ZMUMU] * 4})


@pytest.mark.parametrize("way", ["program", "browser"])
@pytest.mark.parametrize("route", [*TABLE, *PAGES])
def test_each_role_gets_the_status_of_the_table(
    people: People, there: dict[str, Any], route: str, way: str
) -> None:
    """A route that ends a request or a dataset gets a new one after each role that may end it.

    The cookie of a browser opens the pages, and nothing else.
    """
    method, path = route.split()
    ask = people.ask if way == "program" else people.browse
    number = people.number("other")
    found: dict[str, int] = {}
    changes = method == "DELETE" or path.endswith("cancel")
    made = {} if changes else there
    files = 0
    for who in ROLES:
        if not made:
            files += 1
            # a list of another length is another dataset
            asked: dict[str, Any] = {"file-list": [ZMUMU] * files}
            made = _made(people, **people.endless if path.endswith("cancel") else asked)
        body: dict[str, Any] = {}
        if path == "/servicex/transformation" and method == "POST":
            body = {"json": _order()}
        elif path.endswith("file-urls"):
            body = {"json": {"request_id": made["request_id"], "file_list": []}}
        elif route in FORMS:
            form = {k: v.format(unique=f"{who} {way}") for k, v in FORMS[route].items()}
            body = {"data": form}
        address = path.format(name="pages.css", number=number, deed="approve", **made)
        answer = ask(who, method, address, **body)
        found[who] = answer.status_code
        if answer.status_code in (401, 403, 404):
            assert answer.json()["message"]
            assert (answer.status_code == 401) == ("www-authenticate" in answer.headers)
        elif changes:
            made = {}
    if made and path.endswith("cancel"):  # it would keep the only worker
        people.ask("owner", "POST", f"/servicex/transformation/{made['request_id']}/cancel")
    expected = TABLE.get(route) or PAGES[route]
    if way == "browser" and route in TABLE and expected["nobody"] == 401:
        expected = dict.fromkeys(ROLES, 401)
    elif way == "browser":
        expected = BROWSERS.get(route, expected)
    assert found == expected


def _order() -> dict[str, Any]:
    return {
        "file-list": [ZMUMU],
        "selection": '[{"treename": "events"}]',
        "codegen": "uproot-raw",
        "result-destination": "object-store",
        "result-format": "parquet",
    }


def _dataset_of(people: People, request_id: str) -> int:
    query = "select dataset_id from requests where id = ?"
    return int(people.server.rows(query, request_id)[0][0])


def test_user_lists_only_their_own_requests_and_datasets(people: People) -> None:
    """The same holds for the queue. Operators and administrators can list those of other users."""
    request_id = people.submit()
    dataset = _dataset_of(people, request_id)

    def listed(who: str, of: str = "") -> set[str]:
        query = f"?submitted_by={people.email(of)}" if of else ""
        found = people.ask(who, "GET", f"/servicex/transformation{query}").json()["requests"]
        return {one["request_id"] for one in found}

    def known(who: str) -> set[int]:
        found = people.ask(who, "GET", "/servicex/datasets?show-deleted=true").json()["datasets"]
        return {one["id"] for one in found}

    assert request_id in listed("owner")
    assert request_id not in listed("other") | listed("other", "owner") | listed("operator")
    assert request_id in listed("operator", "owner") & listed("administrator", "owner")
    assert people.ask("operator", "GET", f"/servicex/transformation/{request_id}").is_success
    people.server.says(
        rf"(user {people.email('operator')} \(role operator\) viewed a request owned by "
        rf"{people.email('owner')})"
    )
    assert dataset in known("owner") & known("operator")
    assert dataset not in known("other")
    users = {
        one["user"] for one in people.ask("other", "GET", "/servicex/queue").json()["requests"]
    }
    assert users <= {people.email("other")}


def test_link_opens_results_of_its_own_request_only(people: People) -> None:
    """Its signature is not valid for another request. It ends when the request is deleted."""
    mine, theirs = (people.ended(people.submit(who), who) for who in ("owner", "other"))
    path = "/servicex/transformation/file-urls"
    for request, who, stranger in ((mine, "owner", "other"), (theirs, "other", "owner")):
        results = people.ask(
            who, "GET", f"/servicex/transformation/{request['request_id']}/results"
        )
        names = [one["s3-object-name"] for one in results.json()["results"]]
        body = {"request_id": request["request_id"], "file_list": names}
        assert people.ask(stranger, "POST", path, json=body).status_code == 404
        links = people.ask(who, "POST", path, json=body).json()["uris"]
        ((url, _, _),) = links.values()
        assert httpx.get(url).status_code == 200
        other = theirs if request is mine else mine
        swapped = url.replace(request["request_id"], other["request_id"])
        assert httpx.get(swapped).status_code == 403
        assert people.ask(
            who, "DELETE", f"/servicex/transformation/{request['request_id']}"
        ).is_success
        assert httpx.get(url).status_code == 404


def bearer(token: str) -> dict[str, str]:
    """Return the header for a token."""
    return {"Authorization": f"Bearer {token}"}


def test_invalid_token_is_rejected_with_a_hint(people: People) -> None:
    """The server answers 401, and never 500, to each kind of invalid token."""
    good = people.access["owner"]
    head, said, signature = good.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    get = people.server.client.get
    ways: list[tuple[Any, str]] = [
        ({}, "Missing Authorization Header"),
        ({"Authorization": "Bearer"}, "not `Bearer <token>`"),
        ({"Authorization": f"Basic {good}"}, "not `Bearer <token>`"),
        (bearer("nonsense"), "this service did not issue the access token"),
        (bearer(f"{head}.{said}.{signature[::-1]}"), "this service did not issue the access token"),
        (bearer(f"{none}.{said}."), "this service did not issue the access token"),
        (bearer(f"{head}.{head}.{signature}"), "this service did not issue the access token"),
        ({"Authorization": b"Bearer \xc3\xbc"}, "this service did not issue the access token"),
        (bearer(people.tokens["owner"]), "exchange it at POST /token/refresh"),
    ]
    for header, words in ways:
        answer = get("/servicex/transformation", headers=header)
        assert (answer.status_code, words in answer.json()["message"]) == (401, True), answer.text
    for token in ("nonsense", good, people.tokens["owner"] + "x", "sxt_"):
        answer = people.exchange(token)
        assert answer.status_code == 401
        assert answer.json()["message"].startswith("Invalid or outdated refresh token")
    for who, words in (("pending", "still pending"), ("suspended", "is suspended")):
        assert words in people.exchange(people.tokens[who]).json()["message"]


def test_revoked_or_expired_token_is_rejected(people: People) -> None:
    """Access tokens that the user got for it end at once, too."""
    people.add("brief")
    email = people.email("brief")
    path = "/servicex/transformation"
    assert people.ask("brief", "GET", path).status_code == 200
    assert "has a token" in command(people.server, "token", email, code=1)
    other = command(people.server, "token", email, "--name", "another")
    command(people.server, "token", email, "--revoke")
    assert people.ask("brief", "GET", path).status_code == 401
    assert people.exchange(people.tokens["brief"]).status_code == 401
    answer = people.exchange(other)
    people.access["brief"] = answer.json()["access_token"]
    assert (answer.json()["auth_disabled"], people.ask("brief", "GET", path).status_code) == (
        False,
        200,
    )
    command(people.server, "token", email, "--name", "short", "--days", "1e-6")
    assert "no token" in command(people.server, "token", email, "--name", "x", "--revoke", code=1)
    short = command(people.server, "token", email, "--name", "shorter", "--days", "1e-6")
    until(lambda: "expired at" in people.exchange(short).text, "the token has expired")


def test_command_line_manages_accounts(people: People) -> None:
    """The list shows each step, and each mistake gives a message."""
    server = people.server
    program(server, "add", "Al@Example.org")
    assert "is not an e-mail address" in program(server, "add", "al", code=1)
    assert "al@example.org is removed" in program(server, "delete", "al@example.org", given="y\n")
    command(server, "add", "Jo@Example.org", "--name", "Jo Müller", "--experiment", "CMS")
    assert "jo@example.org already has an account" in command(
        server, "add", "JO@example.org", code=1
    )
    assert "is not an e-mail address" in command(server, "add", "jo", code=1)
    assert "has no account" in command(server, "suspend", "nobody@example.org", code=1)

    def line() -> str:
        (found,) = re.findall(r"^jo@example.org .*$", command(server, "list"), re.MULTILINE)
        return str(found)

    assert re.search(r"active +user +Jo Müller +CMS +never *$", line())
    command(server, "suspend", "jo@example.org")
    assert "suspended" in line()
    command(server, "approve", "jo@example.org")
    command(server, "promote", "jo@example.org", "operator")
    assert re.search(r"active +operator", line())
    assert "Aborted" in command(server, "delete", "jo@example.org", code=1, given="n\n")
    command(server, "delete", "jo@example.org", "--yes")
    assert "jo@example.org" not in command(server, "list")


def test_suspended_or_deleted_user_leaves_no_work(people: People) -> None:
    """A suspension cancels their requests. A deletion also deletes their requests and results."""
    people.add("gone")
    done = people.ended(people.submit("gone"), "gone")["request_id"]
    running = people.submit("gone", **people.endless)
    said = command(people.server, "suspend", people.email("gone"))
    assert "1 of their requests were cancelled" in said
    state = "select state from requests where id = ?"
    assert people.server.rows(state, running) == [("Canceled",)]
    assert people.ask("gone", "GET", "/servicex/transformation").status_code == 401
    query = "select count(*) from tasks where request_id = ? and state = 'running'"
    until(lambda: people.server.rows(query, running) == [(0,)], "nothing runs")
    assert people.server.stored(done)
    said = command(people.server, "delete", people.email("gone"), "--yes")
    assert "with 2 requests" in said
    for request_id in (done, running):
        assert people.server.rows(state, request_id) == []
        until(lambda at=request_id: not people.server.stored(at), "no result is left")  # type: ignore[misc]


def test_suspended_user_cannot_download_results(people: People) -> None:
    """Their old links and bucket keys open nothing, even after the account is approved again.

    The user then gets new ones.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError

    people.add("shut")
    email = people.email("shut")
    request = people.ended(people.submit("shut"), "shut")
    path = f"/servicex/transformation/{request['request_id']}/results"
    (result,) = people.ask("shut", "GET", path).json()["results"]
    name = result["s3-object-name"]
    body = {"request_id": request["request_id"], "file_list": [name]}
    found = people.ask("shut", "POST", "/servicex/transformation/file-urls", json=body).json()
    ((link, _, _),) = found["uris"].values()
    s3 = boto3.client(
        "s3",
        endpoint_url=people.server.url,
        aws_access_key_id=request["minio-access-key"],
        aws_secret_access_key=request["minio-secret-key"],
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    bucket = request["request_id"]
    ways: list[Callable[[], Any]] = [
        lambda: s3.get_object(Bucket=bucket, Key=name),
        lambda: s3.head_object(Bucket=bucket, Key=name),
        lambda: s3.list_objects_v2(Bucket=bucket),
        lambda: s3.list_objects(Bucket=bucket),
        lambda: s3.head_bucket(Bucket=bucket),
        lambda: s3.get_bucket_location(Bucket=bucket),
    ]

    def is_open(*, expected: bool) -> None:
        assert httpx.get(link).status_code == (200 if expected else 404)
        for way in ways:
            if expected:
                assert way()["ResponseMetadata"]["HTTPStatusCode"] == 200
                continue
            with pytest.raises(ClientError) as refused:
                way()
            assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404

    is_open(expected=True)
    command(people.server, "suspend", email)
    is_open(expected=False)
    command(people.server, "approve", email)
    is_open(expected=False)
    again = people.ask("shut", "POST", "/servicex/transformation/file-urls", json=body).json()
    ((link, _, _),) = again["uris"].values()
    assert httpx.get(link).status_code == 200
    command(people.server, "delete", email, "--yes")
    is_open(expected=False)
    people.add("shut")  # an account of the same e-mail later has nothing of it
    is_open(expected=False)


def test_the_published_client_signs_in(people: People, tmp_path: Path) -> None:
    """It uses the token in its configuration, and reports a wrong one."""
    program = Path(__file__).with_name("client_program.py")

    def deliver(token: str) -> subprocess.CompletedProcess[str]:
        config = tmp_path / "servicex.yaml"
        config.write_text(
            f"api_endpoints:\n  - name: test\n    endpoint: {people.server.url}\n"
            f"    token: {token}\ncache_path: {tmp_path / 'cache'}\n"
        )
        samples = {"a": ([ZMUMU], [{"treename": "events", "filter_name": ["E1"]}])}
        order = {"config": str(config), "general": {}, "samples": samples}
        command = [sys.executable, str(program), json.dumps(order)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    ran = deliver("wrong")
    assert "token request rejected [401 Unauthorized]" in ran.stdout + ran.stderr
    found = re.search(r"^DELIVERED (.*)$", deliver(people.tokens["other"]).stdout, re.MULTILINE)
    assert found
    (path,) = json.loads(found[1])["a"]
    assert Path(path).is_file()


def test_program_on_the_request_page_signs_in(people: People, tmp_path: Path) -> None:
    """It reads a token from the environment, and downloads the results."""
    request_id = people.ended(people.submit())["request_id"]
    text = people.browse("owner", "GET", f"/requests/{request_id}").text
    (program,) = re.findall(r'<pre[^>]*id="fetch"[^>]*>(.*?)</pre>', text, re.DOTALL)
    command = [sys.executable, "-c", html.unescape(program)]
    for token, code in ((people.tokens["owner"], 0), (people.tokens["other"], 1)):
        ran = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"SERVICEX_TOKEN": token},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == code, ran.stderr
    (result,) = tmp_path.iterdir()
    assert result.read_bytes()[:4] == b"PAR1"


def test_log_and_data_folder_contain_no_tokens(people: People) -> None:
    """Only its user knows a token."""
    everything = b"".join(
        path.read_bytes() for path in people.server.data_dir.rglob("*") if path.is_file()
    )
    for secret in (*people.tokens.values(), *people.access.values()):
        assert secret not in people.server.output
        assert secret.encode() not in everything


@pytest.mark.anyio
async def test_server_with_sign_in_rejects_local_files(tmp_path: Path) -> None:
    """Nobody can request them unless the operator allows folders."""
    user = ("one@example.org", "--data-dir", str(tmp_path / "data"))
    async with client_of(Settings(data_dir=tmp_path / "data", sign_in=True)) as client:
        assert invoke("user", "add", *user)[0] == 0
        code, token = invoke("user", "token", *user)
        assert code == 0
        given = (await client.post("/token/refresh", headers=bearer(token.strip()))).json()
        answer = await client.post(
            "/servicex/transformation", json=_order(), headers=bearer(given["access_token"])
        )
    assert answer.status_code == 400
    assert "this service does not read local files" in answer.json()["message"]
