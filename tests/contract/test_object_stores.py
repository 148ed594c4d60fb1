"""Every object store keeps the contract: a folder, and a real S3 server."""

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
    """A folder, and a bucket."""

    @pytest.fixture
    def store(self, empty_store: ObjectStore) -> ObjectStore:
        """Return an empty store."""
        return empty_store


class TestFolder:
    """What is special about a folder."""

    def test_upload_url(self, tmp_path: Path) -> None:
        """An upload goes straight to the final path."""
        store = open_store(tmp_path.as_uri())
        url = store.upload_url("f/a b", seconds=1)
        assert url == (tmp_path / "f" / "a b").as_uri()

    @pytest.mark.parametrize("how", ["moved", "linked", "second name", "other disk"])
    def test_a_result_is_a_file_of_its_own(self, tmp_path: Path, how: str) -> None:
        """It is moved where that is the same; a link, or a name that is left, leads nowhere."""
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

    def test_an_url_is_for_one_download(self, s3_endpoint: str) -> None:
        """A URL reads the object it was made for, and writes nothing."""
        store = _s3_store(s3_endpoint, "downloads")
        upload(store, "mine", b"content")
        upload(store, "yours", b"content")
        url = store.download_url("mine", seconds=60)
        assert httpx.get(url).content == b"content"
        assert httpx.put(url, content=b"x").status_code == 403
        assert httpx.get(url.replace("/mine?", "/yours?")).status_code == 403
        assert SECRET_KEY not in url

    def test_a_store_that_is_away_is_an_error(self, tmp_path: Path) -> None:
        """A worker that cannot reach it may try again."""
        nobody = f"http://127.0.0.1:{free_port()}/bucket/a"
        with (
            pytest.raises(DownloadError, match="cannot be reached") as raised,
            downloaded(nobody, tmp_path),
        ):
            pass
        assert raised.value.record().retryable

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
        with pytest.raises(StoreUnavailableError, match="SignatureDoesNotMatch"):
            run(store.probe())


class TestOpening:
    """What a URL of a store may be."""

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
        with pytest.raises(StartupError, match="cannot be created"):
            open_store((tmp_path / "a" / "b").as_uri())

    def test_options_win(self) -> None:
        """An option wins over the same setting in the URL."""
        keys = {"access_key_id": "a", "secret_access_key": "b"}
        url = "s3://bucket/p?endpoint=https://one.example.org&region=us-east-1"
        store = open_store(url, options=keys | {"endpoint": "http://two.example.org"})
        assert store.upload_url("k", seconds=1).startswith("http://two.example.org/bucket/p/k?")
