"""Two users of the published client on one service: neither sees or changes data of the other.

Each has one completed and one running request. They use the classes of the client, plain HTTP
with the token of the client, and S3 with the keys of their own results.
"""

import json
import re
import subprocess
import sys
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.e2e.test_accounts import ZMUMU, People
from tests.support import Server, until

SLEEPS = b"def run_query(file):\n    import time\n    time.sleep(3000)\n"
PROGRAM = Path(__file__).with_name("user_program.py")


@dataclass
class User:
    """A user of the published client, and their two requests."""

    name: str
    people: People
    done: dict[str, Any]
    runs: str = ""

    def answers(self, *steps: list[Any]) -> list[dict[str, Any]]:
        """Have the client do something; return what it gave, or how it failed."""
        order = {
            "url": self.people.server.url,
            "token": self.people.tokens[self.name],
            "steps": steps,
        }
        command = [sys.executable, str(PROGRAM), json.dumps(order)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        found = re.search(r"^ANSWERS (.*)$", ran.stdout, re.MULTILINE)
        assert found, ran.stdout + ran.stderr
        answers: list[dict[str, Any]] = json.loads(found[1])
        return answers

    def gets(self, *step: Any) -> Any:
        """Have the client do one thing that works."""
        (answer,) = self.answers(list(step))
        return answer["gave"]

    def order(self, **changes: str) -> dict[str, Any]:
        """Return what to ask for: a column of a file."""
        return {
            "title": f"of {self.name}",
            "file_list": [ZMUMU],
            "selection": json.dumps([{"treename": "events", "filter_name": ["E1"]}]),
            "codegen": "uproot-raw",
            "result_destination": "object-store",
            "result_format": "parquet",
        } | changes

    @property
    def id(self) -> str:
        """The request that is done."""
        return str(self.done["request_id"])

    @property
    def result(self) -> str:
        """The name of its result."""
        path = f"/servicex/transformation/{self.id}/results"
        (found,) = self.ask("GET", path).json()["results"]
        return str(found["s3-object-name"])

    def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        """Ask with the access token of the client's."""
        return self.people.ask(self.name, method, path, **given)

    def keys(self, bucket: str) -> dict[str, Any]:
        """Return what opens the bucket of the own request, for a bucket."""
        return {
            "endpoint_host": self.done["minio_endpoint"],
            "secure": self.done["minio_secured"],
            "access_key": self.done["minio_access_key"],
            "secret_key": self.done["minio_secret_key"],
            "bucket": bucket,
        }

    def s3(self) -> Any:
        """Return an S3 client with the keys of the own request."""
        return boto3.client(
            "s3",
            endpoint_url=self.people.server.url,
            aws_access_key_id=self.done["minio_access_key"],
            aws_secret_access_key=self.done["minio_secret_key"],
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )


def user(people: People, name: str) -> User:
    """Give somebody an account and two requests."""
    people.add(name)
    made = User(name, people, {})
    halts = made.order(codegen="python", selection=b64encode(SLEEPS).decode())
    done, runs = made.answers(["submit_transform", made.order()], ["submit_transform", halts])
    made.runs = runs["gave"]
    people.ended(done["gave"], name)
    made.done = made.gets("get_transform_status", done["gave"])
    query = "select state from requests where id = ?"
    until(lambda: people.server.rows(query, made.runs) == [("Running",)], "it runs")
    return made


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[User, User]]:
    """Give two users of one service."""
    environment = {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_READING__LOCAL_FOLDERS": json.dumps([str(Path(ZMUMU).parent)]),
        "SERVICEX_SERVER_STORAGE__SHARE_RESULTS": "all",  # their files are the same ones
    }
    folder = tmp_path_factory.mktemp("two") / "data"
    server = Server(folder, ["--workers", "3"], environment).start()
    try:
        people = People(server)
        yield user(people, "ann"), user(people, "bob")
    finally:
        server.stop()


@pytest.fixture(
    params=[False, pytest.param(True, marks=pytest.mark.long)], ids=["ann-at-bob", "bob-at-ann"]
)
def pair(request: pytest.FixtureRequest, two: tuple[User, User]) -> tuple[User, User]:
    """Give who tries, and whose the things are."""
    one, other = two
    return (other, one) if request.param else (one, other)


def kept(owner: User) -> Any:
    """Return all that the service has of somebody, of which a running request changes by itself."""
    server = owner.people.server
    email = owner.people.email(owner.name)
    requests = "select id, title, selection, deleted from requests where owner = ? order by id"
    datasets = "select id, stale from datasets where owner = ? order by id"
    ((state,),) = server.rows("select state from requests where id = ?", owner.runs)
    assert state == "Running"
    return server.rows(requests, email), server.rows(datasets, email), server.stored(owner.id)


def datasets_of(owner: User) -> list[int]:
    """Return the lists of files that somebody has sent."""
    query = "select id from datasets where owner = ? order by id"
    rows = owner.people.server.rows(query, owner.people.email(owner.name))
    return [number for (number,) in rows]


def test_client_reaches_only_data_of_its_user(pair: tuple[User, User], tmp_path: Path) -> None:
    """No method of the client finds, changes or opens data of another user.

    One process of the client makes all calls.
    """
    one, other = pair
    before = kept(other)
    lists: list[list[Any]] = [["get_transforms"], ["get_datasets"], ["get_datasets", None, True]]
    strange: list[list[Any]] = [
        [method, request]
        for request in (other.id, other.runs)
        for method in (
            "get_transform_status",
            "get_transformation_results",
            "cancel_transform",
            "delete_transform",
        )
    ]
    strange += [
        [method, dataset]
        for dataset in datasets_of(other)
        for method in ("get_dataset", "delete_dataset")
    ]
    buckets: list[list[Any]] = [
        ["bucket.list_bucket", one.keys(one.id)],
        ["bucket.list_bucket", one.keys(other.id)],
        ["bucket.download_file", one.keys(other.id), other.result, str(tmp_path)],
        ["bucket.get_signed_url", one.keys(other.id), other.result],
    ]
    answers = one.answers(*lists, *strange, *buckets)
    transforms, datasets, more = answers[: len(lists)]
    assert {found["request_id"] for found in transforms["gave"]} == {one.id, one.runs}
    for found in (datasets, more):
        assert {dataset["id"] for dataset in found["gave"]} == set(datasets_of(one))
    assert not set(datasets_of(one)) & set(datasets_of(other))
    for step, answer in zip(strange, answers[len(lists) : -len(buckets)], strict=True):
        assert answer["failed"].startswith("ValueError: "), step
        assert answer["failed"].endswith("not found"), step
    own, listed, fetched, signed = answers[-len(buckets) :]
    assert [file["filename"] for file in own["gave"]] == [one.result]
    assert "InvalidAccessKeyId" in listed["failed"]
    assert "403" in fetched["failed"]
    assert list(tmp_path.iterdir()) == []
    assert httpx.get(signed["gave"]).status_code == 403
    assert kept(other) == before


def ways(owner: User) -> list[tuple[str, str, Any]]:
    """Return every way to ask for what is somebody's: method, path and body."""
    found: list[tuple[str, str, Any]] = []
    for request in (owner.id, owner.runs):
        at = f"/servicex/transformation/{request}"
        found += [("GET", at + end, None) for end in ("", "/status", "/results", "/errors")]
        found += [("GET", f"{at}/status?details=true", None), ("GET", f"{at}/cancel", None)]
        found += [("POST", f"{at}/cancel", None), ("DELETE", at, None)]
        page = f"/transformation-request/{request}"
        found += [("GET", page, None), ("GET", f"{page}/results", None)]
        found += [("GET", f"/requests/{request}", None)]
        found += [("GET", f"/requests/{request}/results/{owner.result}", None)]
        deeds = ("cancel", "delete", "resubmit")
        found += [("POST", f"/requests/{request}/{deed}", None) for deed in deeds]
        for names in ([], [owner.result]):
            body = {"request_id": request, "file_list": names}
            found += [("POST", "/servicex/transformation/file-urls", body)]
    return found


def test_data_of_another_user_looks_nonexistent(pair: tuple[User, User]) -> None:
    """Every route gives the same answer as for an id that nobody has."""
    one, other = pair
    before = kept(other)
    nothing = str(uuid.uuid4())

    def none(text: str) -> str:
        return text.replace(other.id, nothing).replace(other.runs, nothing)

    for method, path, body in ways(other):
        given = one.ask(method, path, json=body)
        like = one.ask(method, none(path), json=json.loads(none(json.dumps(body))))
        assert (given.status_code, none(given.text)) == (404, like.text), (method, path)
        assert like.status_code == 404
    assert kept(other) == before


def test_lists_contain_no_data_of_another_user(pair: tuple[User, User]) -> None:
    """The API and the pages omit it, even if the user asks for lists of the other user."""
    one, other = pair
    email = other.people.email(other.name)
    for path in (
        f"/servicex/transformation?submitted_by={email}",
        "/servicex/queue",
        "/",
        "/requests?of=all",
        f"/requests?of=all&q={other.name}",
        "/datasets?q=file",
        "/servicex/datasets?show-deleted=true",
    ):
        text = one.ask("GET", path).text
        for secret in (other.id, other.runs, email, f"of {other.name}"):
            assert secret not in text, path


def attempts(s3: Any, bucket: str, name: str) -> list[Callable[[], Any]]:
    """Return what one can do with a bucket and a result."""
    return [
        lambda: s3.list_objects_v2(Bucket=bucket),
        lambda: s3.list_objects(Bucket=bucket),
        lambda: s3.head_bucket(Bucket=bucket),
        lambda: s3.get_bucket_location(Bucket=bucket),
        lambda: s3.get_object(Bucket=bucket, Key=name),
        lambda: s3.get_object(Bucket=bucket, Key=name, Range="bytes=0-3"),
        lambda: s3.head_object(Bucket=bucket, Key=name),
        lambda: s3.get_object_acl(Bucket=bucket, Key=name),
        lambda: s3.put_object(Bucket=bucket, Key=name, Body=b"x"),
        lambda: s3.delete_object(Bucket=bucket, Key=name),
        lambda: s3.delete_bucket(Bucket=bucket),
    ]


def status_of(way: Callable[[], Any]) -> int:
    """Return the status with which S3 refuses something."""
    with pytest.raises(ClientError) as refused:
        way()
    return int(refused.value.response["ResponseMetadata"]["HTTPStatusCode"])


def test_no_key_opens_a_bucket_of_another_user(pair: tuple[User, User]) -> None:
    """A call without a key opens none either. The server rejects copies, and lists no buckets."""
    one, other = pair
    before = kept(other)
    anonymous = boto3.client(
        "s3",
        endpoint_url=other.people.server.url,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, signature_version=UNSIGNED),
    )
    for s3 in (one.s3(), anonymous):
        for bucket in (other.id, str(uuid.uuid4())):  # it is not said whether there is one
            assert {status_of(way) for way in attempts(s3, bucket, other.result)} == {403}
        with pytest.raises(ClientError):  # what is there is a page, which names no bucket
            s3.list_buckets()
    copy = {"Bucket": other.id, "Key": other.result}
    assert status_of(lambda: one.s3().copy_object(Bucket=one.id, Key="x", CopySource=copy)) == 405
    beside = {"Bucket": one.id, "Key": f"../{other.id}/{other.result}"}
    assert status_of(lambda: one.s3().get_object(**beside)) in (403, 404)
    assert kept(other) == before


def test_a_link_opens_one_result_only(pair: tuple[User, User]) -> None:
    """It is valid for one request, one name and GET."""
    one, other = pair
    body = {"request_id": one.id, "file_list": [one.result]}
    found = one.ask("POST", "/servicex/transformation/file-urls", json=body).json()["uris"]
    ((link, _, _),) = found.values()
    assert httpx.get(link).status_code == 200
    assert httpx.get(link.replace(one.id, other.id)).status_code == 403
    assert httpx.get(link.replace(one.result, other.result + "x")).status_code == 403
    assert httpx.delete(link).status_code == 403


def test_keys_of_a_deleted_request_open_nothing(two: tuple[User, User], tmp_path: Path) -> None:
    """A request of another user on the same file stays as it was."""
    one, other = two
    fresh = User(one.name, one.people, {})
    request = one.people.submit(one.name)
    one.people.ended(request, one.name)
    fresh.done = fresh.gets("get_transform_status", request)
    name, before = fresh.result, kept(other)
    listed, link, gone, shut, unseen = fresh.answers(
        ["bucket.list_bucket", fresh.keys(request)],
        ["bucket.get_signed_url", fresh.keys(request), name],
        ["delete_transform", request],
        ["bucket.list_bucket", fresh.keys(request)],
        ["get_transform_status", request],
    )
    assert [file["filename"] for file in listed["gave"]] == [name]
    assert gone == {"gave": None}
    assert "NoSuchBucket" in shut["failed"]
    assert "not found" in unseen["failed"]
    assert httpx.get(link["gave"]).status_code == 404
    assert {status_of(way) for way in attempts(fresh.s3(), request, name)[:7]} == {404}
    until(lambda: not one.people.server.stored(request), "its objects are gone")
    assert kept(other) == before
    path = other.gets("bucket.download_file", other.keys(other.id), other.result, str(tmp_path))
    assert Path(path).stat().st_size > 0
