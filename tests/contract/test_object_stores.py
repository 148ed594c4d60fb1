"""The contract of object stores, on a folder and on a real S3 server."""

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from servicex_server.errors import (
    DownloadError,
    InternalError,
    StartupError,
    StoreUnavailableError,
)
from servicex_server.storage.choose import open_store
from servicex_server.storage.contract import ObjectStore
from servicex_server.testing.storage_suite import ObjectStoreSuite, Run, upload
from servicex_server.worker.download import downloaded
from servicex_server.worker.upload import upload as put
from tests.integration.servers import free_port
from tests.seaweed import ACCESS_KEY, SECRET_KEY, Seaweed


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run SeaweedFS with a bucket ``results``."""
    server = Seaweed(tmp_path_factory.mktemp("seaweed")).start()
    yield server.endpoint
    server.kill()


def _s3_store(endpoint: str, prefix: str) -> ObjectStore:
    url = f"s3://results/{prefix}?endpoint={endpoint}&region=us-east-1&access_key_id={ACCESS_KEY}"
    return open_store(url, options={"secret_access_key": SECRET_KEY})


@pytest.fixture(params=["folder", "s3"])
def empty_store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """Give a store with nothing in it."""
    if request.param == "folder":
        # a folder that is not there yet, whose name has to be encoded in a URL
        return open_store((tmp_path / "a b%25#?é" / "objects").as_uri())
    endpoint = request.getfixturevalue("s3_endpoint")
    return _s3_store(endpoint, f"tests/{uuid.uuid4()}")


@pytest.fixture
def run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Give a function that waits for a coroutine, all of a test in one event loop."""
    with asyncio.Runner() as runner:
        yield runner.run


class TestEveryStore(ObjectStoreSuite):
    """A store in a folder, and one in a bucket."""

    @pytest.fixture
    def store(self, empty_store: ObjectStore) -> ObjectStore:
        """Return an empty store."""
        return empty_store


class TestFolder:
    """The behaviour of a store in a folder only."""

    def test_upload_url_is_the_final_path(self, tmp_path: Path) -> None:
        """An upload goes straight to the final path."""
        store = open_store(tmp_path.as_uri())
        url = store.upload_url("f/a b", seconds=1)
        assert url == (tmp_path / "f" / "a b").as_uri()

    @pytest.mark.parametrize("how", ["moved", "linked", "second name", "other disk"])
    def test_stored_result_is_a_separate_file(self, tmp_path: Path, how: str) -> None:
        """The worker moves it if that is enough, and copies it otherwise. No link leads to it."""
        store = open_store((tmp_path / "store").as_uri())
        path = tmp_path / "result"
        if how == "other disk":
            path = Path("/dev/shm") / f"result-{uuid.uuid4()}"
        path.write_bytes(b"content")
        if how == "linked":
            path = path.rename(tmp_path / "elsewhere")
            (tmp_path / "result").symlink_to(path)
            path = tmp_path / "result"
        elif how == "second name":
            (tmp_path / "second").hardlink_to(path)
        before = path.stat().st_ino
        put(path, store.upload_url("f/a", seconds=1))
        stored = tmp_path / "store" / "f" / "a"
        assert stored.read_bytes() == b"content"
        assert not stored.is_symlink()
        assert stored.stat().st_mode & 0o777 == 0o600
        assert (stored.stat().st_ino == before) == (how == "moved")
        assert [one.name for one in stored.parent.iterdir()] == ["a"]
        path.unlink(missing_ok=True)

    def test_file_url_may_name_localhost(self, tmp_path: Path, run: Run) -> None:
        """A file URL may name this machine."""
        store = open_store(f"file://localhost{tmp_path}")
        upload(store, "a", b"content")
        assert (tmp_path / "a").read_bytes() == b"content"
        assert run(store.head("a")).size == 7

    def test_key_of_an_unfinished_write_is_rejected(self, tmp_path: Path) -> None:
        """The store rejects names that obstore gives to unfinished writes."""
        store = open_store(tmp_path.as_uri())
        for key in ("a#1", "a#12/b"):
            with pytest.raises(InternalError):
                store.upload_url(key, seconds=1)


class TestBucket:
    """The behaviour of a store in S3 only."""

    def test_upload_url_writes_one_object_only(self, s3_endpoint: str, run: Run) -> None:
        """It does not write another object, and does not read."""
        store = _s3_store(s3_endpoint, "special")
        url = store.upload_url("mine", seconds=60)
        assert httpx.put(url, content=b"content").is_success
        assert httpx.get(url).status_code == 403
        assert httpx.put(url.replace("/mine?", "/yours?"), content=b"x").status_code == 403
        assert SECRET_KEY not in url
        assert run(store.head("yours")) is None

    def test_download_url_reads_one_object_only(self, s3_endpoint: str) -> None:
        """It does not read another object, and does not write."""
        store = _s3_store(s3_endpoint, "downloads")
        upload(store, "mine", b"content")
        upload(store, "yours", b"content")
        url = store.download_url("mine", seconds=60)
        assert httpx.get(url).content == b"content"
        assert httpx.put(url, content=b"x").status_code == 403
        assert httpx.get(url.replace("/mine?", "/yours?")).status_code == 403
        assert SECRET_KEY not in url

    def test_store_that_cannot_be_reached_is_a_retryable_error(self, tmp_path: Path) -> None:
        """The worker may try again."""
        nobody = f"http://127.0.0.1:{free_port()}/bucket/a"
        with (
            pytest.raises(DownloadError, match="cannot be reached") as raised,
            downloaded(nobody, tmp_path),
        ):
            pass
        assert raised.value.record().retryable

    def test_url_expires(self, s3_endpoint: str, run: Run) -> None:
        """A URL works for the time that the caller asked for."""
        store = _s3_store(s3_endpoint, "expiring")
        url = store.upload_url("a", seconds=1)
        deadline = time.monotonic() + 10
        while (reply := httpx.put(url, content=b"x")).is_success:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert reply.status_code == 403
        assert "X-Amz-Expires=3600" in store.upload_url("a", seconds=3600)

    def test_store_sees_only_keys_below_its_prefix(self, s3_endpoint: str, run: Run) -> None:
        """Its keys do not contain the prefix."""
        outer, inner = _s3_store(s3_endpoint, "outer"), _s3_store(s3_endpoint, "outer/in ner")
        upload(inner, "a", b"content")
        assert [info.key for info in run(inner.list(""))] == ["a"]
        assert [info.key for info in run(outer.list(""))] == ["in ner/a"]

    def test_wrong_secret_is_an_error(self, s3_endpoint: str, run: Run) -> None:
        """The store does not answer that the object is missing."""
        url = f"s3://results/x?endpoint={s3_endpoint}&region=us-east-1&access_key_id={ACCESS_KEY}"
        store = open_store(url, options={"secret_access_key": "wrong"})
        with pytest.raises(Exception, match="403"):
            run(store.head("a"))
        with pytest.raises(StoreUnavailableError, match="SignatureDoesNotMatch"):
            run(store.probe())


class TestOpening:
    """The URL of a store, and its options."""

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("/a/folder", "file:///absolute/folder"),
            ("https://example.org/x", "cannot be stored"),
            ("", "cannot be stored"),
            ("file:folder", "three slashes"),
            ("file://folder/x", "three slashes"),
            ("s3:///prefix", "needs a bucket"),
            ("s3://bucket?nonsense=1", "nonsense"),
            ("s3://bucket?virtual_hosted_style_request=perhaps", "perhaps"),
        ],
    )
    def test_invalid_url_is_rejected(self, url: str, words: str) -> None:
        """The error is one line that says why."""
        with pytest.raises(StartupError, match=words) as caught:
            open_store(url)
        assert "\n" not in str(caught.value)

    def test_error_shows_no_secret(self) -> None:
        """The query of a URL, which may contain a secret, is not in the error."""
        for url in ("s4://bucket?secret_access_key=hidden", "s3://?secret_access_key=hidden"):
            with pytest.raises(StartupError) as caught:
                open_store(url)
            assert "hidden" not in str(caught.value)

    def test_folder_that_cannot_be_created_stops_the_start(self, tmp_path: Path) -> None:
        """A part of its path is a file."""
        (tmp_path / "a").write_text("a file")
        with pytest.raises(StartupError, match="cannot be created"):
            open_store((tmp_path / "a" / "b").as_uri())

    def test_option_overrides_the_url(self) -> None:
        """An option has precedence over the same setting in the URL."""
        keys = {"access_key_id": "a", "secret_access_key": "b"}
        url = "s3://bucket/p?endpoint=https://one.example.org&region=us-east-1"
        store = open_store(url, options=keys | {"endpoint": "http://two.example.org"})
        assert store.upload_url("k", seconds=1).startswith("http://two.example.org/bucket/p/k?")
