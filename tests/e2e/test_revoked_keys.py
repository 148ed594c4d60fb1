"""Bucket keys and links end with the token or account that they come from; lists are bounded."""

import json
import os
import sqlite3
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from servicex_server.accounts.signing_keys import signing_keys_in
from servicex_server.database.result_objects import VIEW_HOURS
from servicex_server.storage.bucket import Grant, bucket_keys
from servicex_server.web.api.servicex import LISTED_AT_ONCE
from servicex_server.web.s3.signatures import presigned_query
from tests.command_line import invoke
from tests.e2e.test_accounts import ZMUMU, People, command
from tests.support import Server

NewServer = Callable[..., Server]
LIST = "/servicex/transformation"
YEAR = 365 * 24 * 3600


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """Give a server that knows an owner, another user, and an operator."""
    folder = tmp_path_factory.mktemp("revoked") / "data"
    environment = {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_READING__LOCAL_FOLDERS": json.dumps([str(Path(ZMUMU).parent)]),
        "SERVICEX_SERVER_STORAGE__LINK_DAYS": "30",
    }
    server = Server(folder, ["--workers", "1"], environment).start()
    made = People(server)
    for who, role in (("owner", "user"), ("other", "user"), ("operator", "operator")):
        made.add(who, role)
    yield made
    server.stop()


@pytest.fixture(scope="module")
def done(people: People) -> str:
    """Give a request of the owner that is complete."""
    request_id: str = people.ended(people.submit())["request_id"]
    return request_id


class Given:
    """The keys of a request for one user, and links to its result of every kind."""

    def __init__(self, people: People, access: str, request_id: str) -> None:
        self._people = people
        self._id = request_id
        headers = {"Authorization": f"Bearer {access}"}
        get, post = people.server.client.get, people.server.client.post
        self.described = get(f"{LIST}/{request_id}", headers=headers).json()
        results = get(f"{LIST}/{request_id}/results", headers=headers).json()["results"]
        self.name = results[0]["s3-object-name"]
        body = {"request_id": request_id, "file_list": [self.name]}
        answer = post(f"{LIST}/file-urls", json=body, headers=headers)
        ((self.link, _, self.expires),) = answer.json()["uris"].values()

    def boto(self, **config: Any) -> Any:
        """Return a client of S3 with the keys."""
        return boto3.client(
            "s3",
            endpoint_url=self._people.server.url,
            aws_access_key_id=self.described["minio-access-key"],
            aws_secret_access_key=self.described["minio-secret-key"],
            config=Config(retries={"total_max_attempts": 1}),
            **config,
        )

    def links(self) -> list[str]:
        """Return links for a year by both versions of signatures, and that of the service."""
        names = {"Bucket": self._id, "Key": self.name}
        made = [
            self.boto(region_name=region).generate_presigned_url(
                "get_object", Params=names, ExpiresIn=YEAR
            )
            for region in ("us-east-1", "eu-central-1")
        ]
        return [self.link, *made]

    def works(self) -> set[bool]:
        """Return whether the keys and the links open anything, for each of them."""
        found = {httpx.get(link).status_code == 200 for link in self.links()}
        try:
            self.boto(region_name="us-east-1").list_objects_v2(Bucket=self._id)
        except ClientError:
            return {*found, False}
        return {*found, True}


def another_token(people: People, who: str, name: str) -> str:
    """Return an access token by another API token of somebody."""
    token = command(people.server, "token", people.email(who), "--name", name)
    access: str = people.exchange(token).json()["access_token"]
    return access


def test_bucket_keys_end_with_their_api_token(people: People, done: str) -> None:
    """Keys from another API token stay valid."""
    stolen = Given(people, another_token(people, "owner", "stolen"), done)
    kept = Given(people, people.access["owner"], done)
    assert stolen.works() == kept.works() == {True}
    assert stolen.described["minio-access-key"] != kept.described["minio-access-key"]
    command(people.server, "token", people.email("owner"), "--name", "stolen", "--revoke")
    assert stolen.works() == {False}
    assert kept.works() == {True}


def test_bucket_keys_end_when_the_user_signs_out_everywhere(people: People, done: str) -> None:
    """All of them end. Keys that the user gets after that work."""
    before = Given(people, people.access["owner"], done)
    page = people.browse("owner", "GET", f"/requests/{done}/results/{before.name}")
    assert httpx.get(page.headers["Location"]).status_code == 200
    assert people.browse("owner", "POST", "/profile/sign-out").status_code == 303
    assert before.works() == {False}
    assert httpx.get(page.headers["Location"]).status_code in (403, 404)
    assert Given(people, people.access["owner"], done).works() == {True}


def test_bucket_keys_of_an_operator_end_after_two_hours(people: People, done: str) -> None:
    """Links of every kind end with them. All end at once if the operator loses the role."""
    seen = Given(people, people.access["operator"], done)
    assert seen.works() == {True}
    assert seen.expires - time.time() < 3600 * VIEW_HOURS
    (key,) = signing_keys_in(people.server.data_dir).all
    number = people.number("operator")
    ((token,),) = people.server.rows("select id from api_tokens where user_id = ?", number)
    hour = int(time.time()) // 3600

    def status(grant: Grant) -> int:
        path = f"/{done}/{seen.name}"
        signed = presigned_query(path, bucket_keys(key, done, grant), int(time.time()) + YEAR)
        return httpx.get(f"{people.server.url}{path}?{signed}").status_code

    assert status(Grant(number, token, 0, hour - VIEW_HOURS + 1)) == 200
    assert status(Grant(number, token, 0, hour - VIEW_HOURS)) == 404
    assert status(Grant(people.number("other"), 0, 0, hour)) == 404
    command(people.server, "promote", people.email("operator"), "user")
    assert seen.works() == {False}


def test_links_end_after_the_configured_days(people: People, done: str) -> None:
    """A longer time in the signature of the client does not matter."""
    (key,) = signing_keys_in(people.server.data_dir).all
    number = people.number("owner")
    ((epoch,),) = people.server.rows("select key_epoch from users where id = ?", number)
    hour = int(time.time()) // 3600
    given = Given(people, people.access["owner"], done)
    assert 29 * 86_400 < given.expires - time.time() <= 30 * 86_400
    for age, expected in ((0, 200), (30 * 24 - 1, 200), (30 * 24, 404), (YEAR // 3600, 404)):
        path = f"/{done}/{given.name}"
        keys = bucket_keys(key, done, Grant(number, 0, epoch, hour - age))
        signed = presigned_query(path, keys, int(time.time()) + YEAR)
        assert httpx.get(f"{people.server.url}{path}?{signed}").status_code == expected


def test_changed_bucket_keys_open_nothing(people: People, done: str) -> None:
    """The access key names its owner, and nobody can write another owner into it."""
    given = Given(people, people.access["owner"], done)
    old = given.described["minio-access-key"]
    for new in (old.replace("T", "T1", 1), f"{old}0", old[:-1], "SX", "AKIAIOSFODNN7EXAMPLE"):
        given.described["minio-access-key"] = new
        assert httpx.get(given.links()[1]).status_code == 403


def test_bucket_keys_end_with_the_account(people: People) -> None:
    """They stay invalid after an administrator approves a suspended account again."""
    people.add("leaves")
    request_id = people.ended(people.submit("leaves"), "leaves")["request_id"]
    given = Given(people, people.access["leaves"], request_id)
    assert given.works() == {True}
    command(people.server, "suspend", people.email("leaves"))
    assert given.works() == {False}
    command(people.server, "approve", people.email("leaves"))
    assert given.works() == {False}
    assert Given(people, people.access["leaves"], request_id).works() == {True}


def test_sign_in_of_a_program_replaces_no_token(people: People) -> None:
    """For any name of the program, the tokens of its user stay, and it gets one of its own."""
    post = people.server.client.post
    people.add("careful")
    token = people.tokens["careful"]
    ((name,),) = people.server.rows(
        "select name from api_tokens where user_id = ?", people.number("careful")
    )
    given = []
    for _ in range(2):
        begun = post("/device/code", data={"client_id": name}).json()
        answer = {"code": begun["user_code"], "answer": "yes"}
        assert people.browse("careful", "POST", "/device", data=answer).status_code == 200
        form = {
            "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
            "device_code": begun["device_code"],
        }
        given.append(post("/device/token", data=form).json()["access_token"])
    for one in (token, *given):
        assert people.exchange(one).status_code == 200
    names = people.server.rows(
        "select name from api_tokens where user_id = ? order by id", people.number("careful")
    )
    assert names == [(name,), (f"{name} (2)",), (f"{name} (3)",)]


def test_list_of_requests_can_be_paged(people: People) -> None:
    """The default is all requests. The list truncates large queries if there are very many."""
    people.add("busy")
    query = json.dumps([{"treename": "events", "filter_name": ["E1"]}]) + " " * 900_000
    ids = [people.submit("busy", selection=query)]
    people.ended(ids[0], "busy")
    columns = [one[1] for one in people.server.rows("pragma table_info(requests)")]
    given = ", ".join(name for name in columns if name not in ("id", "submitted_at"))
    copy = f"insert into requests (id, submitted_at, {given}) select ?, ?, {given} from requests"
    with sqlite3.connect(people.server.data_dir / "servicex.sqlite") as opened:
        for number in range(2 * LISTED_AT_ONCE):
            ids.append(str(uuid.uuid4()))
            moment = f"2020-01-01 00:00:{number // 2:02}.000000"  # two at a time are the same
            opened.execute(f"{copy} where id = ?", (ids[-1], moment, ids[0]))
    older = sorted(ids[1:], key=lambda one: (ids[1:].index(one) // 2, one), reverse=True)
    ids = [ids[0], *older]
    answer = people.ask("busy", "GET", LIST)
    assert "content-length" not in answer.headers
    listed = answer.json()["requests"]
    assert [one["request_id"] for one in listed] == ids
    assert len(answer.content) < 64 << 20
    whole = people.ask("busy", "GET", f"{LIST}/{ids[0]}").json()
    assert whole["selection"] == query
    assert any(len(one["selection"]) < len(query) for one in listed[-20:])
    page = people.ask("busy", "GET", f"{LIST}?limit=30&offset=10").json()["requests"]
    assert [one["request_id"] for one in page] == ids[10:40]
    assert people.ask("busy", "GET", f"{LIST}?offset=1000").json() == {"requests": []}
    for wrong in ("limit=0", "limit=10001", "offset=-1", "limit=x"):
        assert people.ask("busy", "GET", f"{LIST}?{wrong}").status_code == 400
    assert people.ask("other", "GET", LIST).json() == {"requests": []}


def test_start_closes_a_data_folder_that_others_can_read(
    new_server: NewServer, tmp_path: Path
) -> None:
    """The service logs a warning, and later creates no file that others can read."""
    folder = tmp_path / "data"
    assert invoke("user", "list", "--data-dir", str(folder))[0] == 0
    signing_keys_in(folder)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o755 if path.is_dir() else 0o644)
    old = os.umask(0o022)
    try:
        server = new_server()
    finally:
        os.umask(old)
    assert server.data_dir == folder
    assert "other accounts could get at" in server.output
    for name in ("servicex.sqlite", "service.key"):
        assert f"{name} (644)" in server.output
    assert server.run()["status"] == "Complete"
    for path in (folder, *folder.rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
