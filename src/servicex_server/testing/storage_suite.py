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

    def test_probe_leaves_nothing(self, store: ObjectStore, run: Run) -> None:
        """A probe writes an object, and deletes it."""
        run(store.probe())
        assert run(store.list("")) == []

    def test_a_worker_reads_what_it_has_a_url_for(self, store: ObjectStore, tmp_path: Path) -> None:
        """It has the object as a file, for as long as it needs it; one that is gone is an error."""
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

    def test_put(self, store: ObjectStore, run: Run) -> None:
        """The service writes a small object itself; a second write replaces the first."""
        for content in (b"content", b"other"):
            run(store.put("folder/a", content))
            assert run(joined(store.stream("folder/a", 0, 100))) == content

    def test_folders(self, store: ObjectStore, run: Run) -> None:
        """The folders at the top are listed by name, and not the objects beside them."""
        assert run(store.folders()) == []
        for key in ("f/b", "f/a/c", "fg/a", "a", "é/a"):
            upload(store, key, b"content")
        assert run(store.folders()) == ["f", "fg", "é"]

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
