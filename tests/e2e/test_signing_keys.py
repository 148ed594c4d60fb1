"""Rotation of the signing keys: a signature is valid until the operator drops its key."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import httpx
from botocore.config import Config
from botocore.exceptions import ClientError

from servicex_server.accounts.signing_keys import signing_keys_in
from tests.e2e.test_accounts import People
from tests.postgres import Postgres
from tests.support import Server, refused, sample

NewServer = Callable[..., Server]

SIGN_IN = {
    "SERVICEX_SERVER_SIGN_IN": "true",
    "SERVICEX_SERVER_READING__LOCAL_FOLDERS": f'["{sample("uproot-Zmumu.root").parent}"]',
}


def rotate(server: Server, *options: str) -> str:
    """Run ``servicex-server rotate-keys`` on the data of a server; return what it says."""
    program = str(Path(sys.executable).with_name("servicex-server"))
    ran = subprocess.run(
        [program, "rotate-keys", "--data-dir", str(server.data_dir), *options],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | server.environment,
    )
    return ran.stdout


@dataclass
class Given:
    """A token, the keys of a bucket and a link that a service gave out at one time."""

    access: str
    described: dict[str, Any]
    name: str
    link: str

    def codes(self, url: str) -> dict[str, Any]:
        """Try all of it at a service; return how each went."""
        return {
            "token": self.token(url).status_code,
            "bucket": self.bucket(url),
            "presigned": self.presigned(url),
            "link": self.fetched(url).status_code,
        }

    def token(self, url: str) -> httpx.Response:
        """Ask with the access token."""
        headers = {"Authorization": f"Bearer {self.access}"}
        return httpx.get(f"{url}/servicex/transformation", headers=headers)

    def fetched(self, url: str) -> httpx.Response:
        """Get what the link leads to; the service may be at another port by now."""
        at = urlsplit(self.link)
        return httpx.get(f"{url}{at.path}?{at.query}")

    def _client(self, url: str, **config: Any) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=self.described["minio-access-key"],
            aws_secret_access_key=self.described["minio-secret-key"],
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, **config),
        )

    def bucket(self, url: str) -> int | str:
        """Get the result by boto3, signed in a header."""
        client = self._client(url)
        try:
            got = client.get_object(Bucket=self.described["request_id"], Key=self.name)
            return int(got["ResponseMetadata"]["HTTPStatusCode"]) if got["Body"].read() else 0
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            return f"{status} {error.response['Error']['Code']}"

    def presigned(self, url: str) -> int:
        """Get the result by a URL that a client signs itself, as the published one does."""
        where = {"Bucket": self.described["request_id"], "Key": self.name}
        signed = self._client(url, signature_version="s3v4").generate_presigned_url(
            "get_object", Params=where, ExpiresIn=3600
        )
        return httpx.get(signed).status_code


def given_by(people: People, request_id: str) -> Given:
    """Return what the service gives out now."""
    people.access["owner"] = people.exchange(people.tokens["owner"]).json()["access_token"]
    path = f"/servicex/transformation/{request_id}"
    described = people.ask("owner", "GET", path).json()
    (result,) = people.ask("owner", "GET", f"{path}/results").json()["results"]
    name = result["s3-object-name"]
    body = {"request_id": request_id, "file_list": [name]}
    links = people.ask("owner", "POST", "/servicex/transformation/file-urls", json=body).json()
    return Given(people.access["owner"], described, name, links["uris"][name][0])


def restart(people: People) -> str:
    """Stop the service and start it again; return where it is."""
    people.server.stop()
    return people.server.start().url


ALL = {"token": 200, "bucket": 200, "presigned": 200, "link": 200}
VOID = {"token": 401, "bucket": "403 InvalidAccessKeyId", "presigned": 403, "link": 403}


def test_tokens_and_links_are_valid_as_long_as_their_signing_key(new_server: NewServer) -> None:
    """Tokens, bucket keys and links are valid after a rotation, and invalid after ``--keep 1``.

    A running service uses a new key only after a restart.
    """
    people = People(new_server(**SIGN_IN))
    people.add("owner")
    request_id = people.ended(people.submit(), "owner")["request_id"]
    old = given_by(people, request_id)
    # there is nothing more to work on, so workers need not start anew
    people.server.environment["SERVICEX_SERVER_SCALING__LEAST_WORKERS"] = "0"
    said = rotate(people.server)
    assert "a new key, and 1 older" in said
    assert "dropped" not in said
    assert old.codes(people.server.url) == ALL
    url = restart(people)
    assert old.codes(url) == ALL
    new = given_by(people, request_id)
    assert new.described["minio-access-key"] != old.described["minio-access-key"]
    assert new.codes(url) == ALL
    said = rotate(people.server, "--keep", "1")
    assert "dropped: 2" in said
    assert "API tokens stay valid" in said
    url = restart(people)
    assert old.codes(url) == new.codes(url) == VOID
    answer = old.token(url).json()["message"]
    assert "this service did not issue the access token" in answer
    assert "get one at POST /token/refresh" in answer
    assert "does not open this bucket" in old.fetched(url).text
    assert given_by(people, request_id).codes(url) == ALL
    for secret in signing_keys_in(people.server.data_dir).all:
        assert secret.hex() not in people.server.output


def test_processes_share_signing_keys_by_a_setting(
    new_server: NewServer, postgresql: Postgres, tmp_path: Path
) -> None:
    """They need no common folder. The operator gives a new key to one process after the other.

    Every process knows the new key before a process signs with it. Therefore, two processes have
    different settings at two moments.
    """
    postgresql.run("create database keys template template")
    first, second = ("a1" * 32, "b2" * 32)
    environment = SIGN_IN | {
        "SERVICEX_SERVER_STORAGE__DATABASE_URL": postgresql.url("keys"),
        "SERVICEX_SERVER_STORAGE__OBJECTS_URL": (tmp_path / "objects").as_uri(),
    }
    rings = [json.dumps(keys) for keys in ([first], [first, second], [second, first])]
    old, both, new = ({"SERVICEX_SERVER_STORAGE__SERVICE_KEYS": ring} for ring in rings)
    people = People(new_server("--workers", "1", name="one", **environment, **old))
    other = new_server("--no-dispatch", name="other", **environment, **both)
    people.add("owner")
    request_id = people.ended(people.submit(), "owner")["request_id"]
    given = given_by(people, request_id)
    elsewhere = given_by(replace(people, server=other), request_id)
    for url in (people.server.url, other.url):
        assert given.codes(url) == elsewhere.codes(url) == ALL
    people.server.stop()
    people.server.options = ["--no-dispatch"]  # there is nothing more to work on
    people.server.environment |= new
    people.server.start()
    latest = given_by(people, request_id)
    for url in (people.server.url, other.url):
        assert given.codes(url) == elsewhere.codes(url) == latest.codes(url) == ALL
    assert latest.described["minio-access-key"] != given.described["minio-access-key"]
    for server in (people.server, other):
        assert not (server.data_dir / "service.key").exists()


def test_a_damaged_key_stops_the_service(tmp_path: Path) -> None:
    """The service prints one line."""
    path = tmp_path / "service.key"
    path.touch(0o600)
    path.write_bytes(b"x" * 40)
    line = refused("--port", "0", "--data-dir", str(tmp_path))
    assert "service.key has 40 bytes" in line


def test_rotation_in_a_folder_without_keys_is_rejected(tmp_path: Path) -> None:
    """A mistyped folder gets no key."""
    line = refused("--data-dir", str(tmp_path), command="rotate-keys")
    assert "no service has been started" in line
    assert list(tmp_path.iterdir()) == []
