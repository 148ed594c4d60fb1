"""The object store by obstore: a folder on one machine, or an S3 bucket for a facility.

One class implements both, as only the upload URL and the deletion differ.
"""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast
from urllib.parse import parse_qsl, quote, urlsplit
from urllib.request import url2pathname
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from servicex_server.errors import (
    InternalError,
    NotFoundError,
    StartupError,
    StoreUnavailableError,
)
from servicex_server.storage.contract import UNFINISHED, Disk, ObjectInfo, ObjectStore

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Config

PIECE = 1 << 20
"""Bytes of a piece that `ObstoreStore.stream` yields; the last one is shorter."""

# obstore rejects ASCII control characters, and names that end in "#" and digits, which it uses for
# its own unfinished writes
_REFUSED = re.compile(r"[\x00-\x1f\x7f]|#\d+(/|$)")

_READ_SECONDS = 60
# the library tries again by itself; callers have more patience than this, and can say why they wait
_RETRY: "RetryConfig" = {"max_retries": 10, "retry_timeout": timedelta(seconds=10)}
# a response of the store lasts as long as the slowest client downloads it
_REPLY_SECONDS = 24 * 3600


def open_folder(url: str, options: Mapping[str, str]) -> "ObstoreStore":
    """Open the folder of a ``file://`` URL; it is created if needed. It has no options.

    Raises
    ------
    StartupError
        The URL is not an absolute folder on this machine, or the folder cannot be created.
    """
    del options
    parts = urlsplit(url)
    folder = Path(url2pathname(parts.path))
    if parts.netloc not in ("", "localhost") or not folder.is_absolute():
        raise StartupError(
            f"file://{parts.netloc}{parts.path} is not an absolute folder on this machine",
            hint="write three slashes: file:///absolute/folder",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"the folder for results {folder} cannot be created: {error}") from None
    return ObstoreStore(LocalStore(folder), folder=folder)


def open_bucket(url: str, options: Mapping[str, str]) -> "ObstoreStore":
    """Open the bucket of an ``s3://`` URL, whose query has settings of ``obstore.store.S3Config``.

    Other settings are found as in every AWS program: by ``AWS_…`` variables, and by the role of the
    machine.

    Parameters
    ----------
    url
        ``s3://bucket/prefix?endpoint=https://…&region=…``.
    options
        More settings, which override those of the URL.

    Raises
    ------
    StartupError
        A setting does not exist.
    """
    parts = urlsplit(url)
    settings = dict(parse_qsl(parts.query, keep_blank_values=True)) | dict(options)
    client: ClientConfig = {
        "timeout": timedelta(seconds=_REPLY_SECONDS),
        "read_timeout": timedelta(seconds=_READ_SECONDS),
        # http:// in an endpoint is a choice of the operator
        "allow_http": settings.get("endpoint", "").startswith("http://"),
    }
    if not parts.netloc:
        raise StartupError("an s3 URL needs a bucket: s3://bucket/prefix")
    try:
        store = S3Store.from_url(
            f"s3://{parts.netloc}{parts.path}",
            config=cast("S3Config", settings),
            client_options=client,
            retry_config=_RETRY,
        )
    except (BaseError, ValueError) as error:
        # from the second line on, the text has internals of the library
        why = str(error).partition("\n")[0]
        raise StartupError(
            f"the bucket for results s3://{parts.netloc} cannot be used: {why}"
        ) from None
    return ObstoreStore(store)


class ObstoreStore(ObjectStore):
    """Stores objects below a folder, or below a prefix in a bucket.

    `open_folder` and `open_bucket` create it.

    Parameters
    ----------
    store
        The store of obstore.
    folder
        The folder of ``store``; None for a bucket.
    """

    def __init__(self, store: LocalStore | S3Store, *, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder
        self._folder_url = "" if folder is None else f"{folder.as_uri()}/"

    def upload_url(self, key: str, *, seconds: float) -> str:
        """Return the ``file://`` URL of the final path, or a presigned PUT.

        Folders in the path may be missing; the uploader creates them.
        """
        return self._url("PUT", key, seconds)

    def download_url(self, key: str, *, seconds: float) -> str:
        """Return the ``file://`` URL of an object, or a presigned GET."""
        return self._url("GET", key, seconds)

    def _url(self, method: Literal["GET", "PUT"], key: str, seconds: float) -> str:
        _check(key)
        if self._folder is not None:
            return self._folder_url + quote(key)
        return obstore.sign(cast("S3Store", self._store), method, key, timedelta(seconds=seconds))

    async def put(self, key: str, content: bytes) -> None:
        """Write a small object."""
        _check(key)
        with _available():
            await obstore.put_async(self._store, key, content)

    async def head(self, key: str) -> ObjectInfo | None:
        """Return the metadata of an object; None if it does not exist."""
        _check(key)
        try:
            with _available():
                return _info(await obstore.head_async(self._store, key))
        except FileNotFoundError:
            return None

    async def stream(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes ``start`` to ``stop`` (exclusive) in pieces of about 1 MiB.

        ``stop`` may be beyond the end of the object; ``start`` may not.
        """
        _check(key)
        if start >= stop:
            # a store cannot return an empty range
            if await self.head(key) is None:
                raise _no_object(key)
            return
        try:
            with _available():
                result = await obstore.get_async(self._store, key, options={"range": (start, stop)})
        except FileNotFoundError:
            raise _no_object(key) from None
        with _available():
            async for piece in result.stream(min_chunk_size=PIECE):
                yield piece

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; keys that do not exist are ignored."""
        doomed = list(keys)
        for key in doomed:
            _check(key)
        with _available():
            if self._folder is None:
                await obstore.delete_async(self._store, doomed)
                return
            # a bulk delete in a folder stops at the first file that does not exist
            for key in doomed:
                with suppress(FileNotFoundError):
                    await obstore.delete_async(self._store, key)

    async def probe(self) -> None:
        """Write, read and delete a small object, whose name is that of an unfinished upload."""
        key, content = f"{UNFINISHED}probe-{uuid4().hex}", b"servicex-server writes and reads this"
        with _available():
            await obstore.put_async(self._store, key, content)
            found = await (await obstore.get_async(self._store, key)).bytes_async()
            await obstore.delete_async(self._store, [key])
        if bytes(found) != content:
            raise StoreUnavailableError("the object store returns other bytes than it was given")

    async def disk(self) -> Disk | None:
        """Return the usage of the disk of the folder; None for a bucket."""
        if self._folder is None:
            return None
        found = await asyncio.to_thread(shutil.disk_usage, self._folder)
        return Disk(used=found.used, free=found.free)

    async def folders(self) -> list[str]:
        """Return the names of the folders at the top, sorted."""
        with _available():
            found = await obstore.list_with_delimiter_async(self._store)
        return sorted(found["common_prefixes"])

    async def list(self, prefix: str) -> list[ObjectInfo]:
        """Return the objects below a folder, sorted by key; ``""`` is the whole store."""
        if prefix := prefix.removesuffix("/"):
            _check(prefix)
        with _available():
            found = [
                _info(meta)
                async for batch in obstore.list(self._store, prefix or None)
                for meta in batch
            ]
        return sorted(found, key=lambda info: info.key)


def _check(key: str) -> None:
    """Reject a key that leaves the store, or that some stores cannot store.

    Raises
    ------
    InternalError
        The key is invalid.
    """
    if (
        not {"", ".", ".."}.isdisjoint(key.split("/"))
        or _REFUSED.search(key)
        or key != key.encode(errors="replace").decode()
    ):
        raise InternalError(f"{key!r} is not a valid key of an object")


@contextmanager
def _available() -> Iterator[None]:
    """Raise `StoreUnavailableError` for every error of the store but a missing object."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (BaseError, OSError) as error:
        raise StoreUnavailableError(f"the object store {_why(error)}") from error


def _why(error: Exception) -> str:
    """Say what a store answered: by its status and its code, where it is an S3 server."""
    if isinstance(error, OSError):
        return f"cannot be used: {error.strerror or type(error).__name__}"
    text = str(error)
    status = re.search(r"status code: (\d{3}[A-Za-z ]*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if status is None:
        # from the second line on, the text has internals of the library
        why = text.partition("\n")[0].rpartition(" - ")[2]
        return f"cannot be reached: {why or type(error).__name__}"
    return f"answers {status[1].strip()}" + (f" ({code[1]})" if code else "")


def _no_object(key: str) -> NotFoundError:
    return NotFoundError(f"the object {key} does not exist")


def _info(meta: "ObjectMeta") -> ObjectInfo:
    modified = meta["last_modified"]
    tag = (meta["e_tag"] or "").removeprefix("W/").strip('"')
    return ObjectInfo(
        key=meta["path"],
        size=meta["size"],
        modified=modified,
        # every S3 returns a tag; without one, the time of the write distinguishes versions
        etag=tag or f"{modified.timestamp():.6f}-{meta['size']}",
    )
