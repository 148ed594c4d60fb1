"""Conformance tests of object stores."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx
import numpy as np
import pytest

from servicex_server.errors import DownloadError, InternalError, NotFoundError
from servicex_server.storage.contract import ObjectStore
from servicex_server.worker.download import downloaded

PIECE = 1 << 20
"""Bytes of a piece of a stream; no piece is more than twice as long."""

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


def upload(store: ObjectStore, key: str, content: bytes) -> None:
    """Write an object as a worker does, which has nothing but a URL."""
    url = store.upload_url(key, seconds=60)
    if url.startswith("file://"):
        path = Path(url2pathname(urlsplit(url).path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    else:
        httpx.put(url, content=content, timeout=60).raise_for_status()


async def joined(pieces: AsyncIterator[bytes]) -> bytes:
    """Return all pieces of a stream as one."""
    return b"".join([piece async for piece in pieces])


Run = Callable[[Coroutine[Any, Any, Any]], Any]


class ObjectStoreSuite:
    """Derive a class whose name begins with ``Test``, with a fixture ``store``.

    The store has to be empty at the beginning of each test.
    """

    @pytest.fixture
    def store(self) -> ObjectStore:
        """Return an empty store."""
        raise NotImplementedError("return an empty store in a fixture of this name")

    @pytest.fixture
    def run(self) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
        """Give a function that waits for a coroutine, all of a test in one event loop."""
        with asyncio.Runner() as runner:
            yield runner.run

    def test_head_returns_size_time_and_tag(self, store: ObjectStore, run: Run) -> None:
        """The time of writing has a time zone."""
        upload(store, "folder/a.root", b"content")
        info = run(store.head("folder/a.root"))
        assert (info.key, info.size) == ("folder/a.root", 7)
        assert info.modified.utcoffset() == timedelta()
        assert abs(datetime.now(UTC) - info.modified) < timedelta(minutes=1)
        assert info.etag
        assert '"' not in info.etag

    def test_head_of_missing_object_is_none(self, store: ObjectStore, run: Run) -> None:
        """A folder is not an object."""
        upload(store, "folder/a", b"content")
        assert run(store.head("folder/b")) is None
        assert run(store.head("folder")) is None

    def test_disk_returns_the_space_of_a_folder(self, store: ObjectStore, run: Run) -> None:
        """Other programs also fill the disk of a folder. The space of a bucket is not known."""
        found = run(store.disk())
        if store.upload_url("a", seconds=1).startswith("file://"):
            assert found.used > 0
            assert found.free > 0
        else:
            assert found is None

    def test_probe_leaves_nothing(self, store: ObjectStore, run: Run) -> None:
        """A probe writes an object, and deletes it."""
        run(store.probe())
        assert run(store.list("")) == []

    def test_worker_downloads_an_object_by_its_url(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        """It has the object as a file for as long as necessary. A missing object is an error."""
        content = os.urandom(3 << 20)
        upload(store, "f/a", content)
        url = store.download_url("f/a", seconds=60)
        folder = tmp_path / "scratch"
        folder.mkdir()
        with downloaded(url, folder) as path:
            assert path.read_bytes() == content
        assert not list(folder.iterdir())
        gone = store.download_url("f/b", seconds=60)
        with pytest.raises(DownloadError, match="result of a part"), downloaded(gone, folder):
            pass

    def test_new_content_has_a_new_tag(self, store: ObjectStore, run: Run) -> None:
        """The tag changes when the object is written again."""
        upload(store, "a", b"content")
        before = run(store.head("a"))
        upload(store, "a", b"other content")
        after = run(store.head("a"))
        assert after.etag != before.etag
        assert after.size == 13
        assert run(joined(store.stream("a", 0, 13))) == b"other content"

    def test_stream_returns_the_content_in_small_pieces(self, store: ObjectStore, run: Run) -> None:
        """The pieces of an object, or of a range of it, give its bytes."""
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

    def test_stream_of_an_empty_range_has_no_bytes(self, store: ObjectStore, run: Run) -> None:
        """An empty object has no bytes either."""
        upload(store, "empty", b"")
        upload(store, "a", b"content")
        assert run(store.head("empty")).size == 0
        assert run(joined(store.stream("empty", 0, 0))) == b""
        assert run(joined(store.stream("a", 3, 3))) == b""

    @pytest.mark.parametrize("stop", [0, 10])
    def test_stream_of_missing_object_is_an_error(
        self, store: ObjectStore, run: Run, stop: int
    ) -> None:
        """The first piece raises the error."""
        pieces = store.stream("a", 0, stop)
        with pytest.raises(NotFoundError):
            run(joined(pieces))

    def test_delete_removes_objects(self, store: ObjectStore, run: Run) -> None:
        """A missing object is not an error."""
        for key in ("a", "folder/b", "folder/c"):
            upload(store, key, b"content")
        run(store.delete(["nowhere", "folder/b", "nowhere/at/all", "a"]))
        assert [info.key for info in run(store.list(""))] == ["folder/c"]
        run(store.delete(iter(["folder/c", "folder/c"])))
        run(store.delete([]))
        assert run(store.list("")) == []

    def test_delete_accepts_many_keys(self, store: ObjectStore, run: Run) -> None:
        """The keys are more than one call of S3 takes."""
        upload(store, "zzz", b"content")
        run(store.delete([*(f"nowhere/{number}" for number in range(1500)), "zzz"]))
        assert run(store.head("zzz")) is None

    def test_list_returns_the_objects_below_a_folder(self, store: ObjectStore, run: Run) -> None:
        """They have the order of their keys. A folder whose name begins alike is not included."""
        for key in ("f/b", "f/a/c", "f/a-", "fg/a", "a", "f/B", "f/é"):
            upload(store, key, b"content")
        below = ["f/B", "f/a-", "f/a/c", "f/b", "f/é"]
        assert [info.key for info in run(store.list("f"))] == below
        assert [info.key for info in run(store.list("f/"))] == below
        assert [info.key for info in run(store.list(""))] == ["a", *below, "fg/a"]
        assert run(store.list("nowhere")) == []
        (listed,) = run(store.list("fg"))
        assert (listed.size, listed.etag) == (7, run(store.head("fg/a")).etag)

    def test_put_replaces_an_object(self, store: ObjectStore, run: Run) -> None:
        """The service writes a small object itself. A second write replaces the first."""
        for content in (b"content", b"other"):
            run(store.put("folder/a", content))
            assert run(joined(store.stream("folder/a", 0, 100))) == content

    def test_folders_returns_the_folders_at_the_top(self, store: ObjectStore, run: Run) -> None:
        """They have the order of their names. Objects beside them are not included."""
        assert run(store.folders()) == []
        for key in ("f/b", "f/a/c", "fg/a", "a", "é/a"):
            upload(store, key, b"content")
        assert run(store.folders()) == ["f", "fg", "é"]

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_odd_key_is_accepted(self, store: ObjectStore, run: Run, key: str) -> None:
        """A key may be any text that is a relative path."""
        upload(store, key, key.encode())
        assert run(store.head(key)).key == key
        assert run(joined(store.stream(key, 0, 100))) == key.encode()
        assert [info.key for info in run(store.list(""))] == [key]
        run(store.delete([key]))
        assert run(store.head(key)) is None

    @pytest.mark.parametrize("key", NO_KEYS)
    def test_invalid_key_is_rejected(self, store: ObjectStore, run: Run, key: str) -> None:
        """It leaves the store, or some kind of store cannot hold it."""
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
