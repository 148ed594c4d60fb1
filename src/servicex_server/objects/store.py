"""The object store: a folder, or a bucket of any S3, by obstore.

One machine uses the folder, a facility the bucket. Both are one class: only the URL to upload to,
and the way to delete, are different.
"""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qsl, urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from servicex_server.errors import InternalError, NotFoundError, StartupError
from servicex_server.objects.contract import Disk, ObjectInfo, ObjectStore

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, S3Config

PIECE = 1 << 20
"""Bytes of a piece that `ObstoreStore.stream` yields; the last one is shorter."""

# obstore refuses ASCII control characters, and a folder "#" with digits at the end of a name,
# because its own unfinished writes are called so
_REFUSED = re.compile(r"[\x00-\x1f\x7f]|#\d+(/|$)")

_READ_SECONDS = 60
# a reply of the store lasts as long as the slowest client takes to download it
_REPLY_SECONDS = 24 * 3600


def open_store(url: str, *, options: Mapping[str, str] | None = None) -> ObjectStore:
    """Open the store at a URL.

    Parameters
    ----------
    url
        ``file:///absolute/folder``, which is made if it is not there, or
        ``s3://bucket/prefix?endpoint=https://…&region=…``; the query names settings of
        ``obstore.store.S3Config``. Those that are not given are looked up where every AWS
        program does: ``AWS_…`` variables, and the role of the machine.
    options
        More settings of an S3 store, so that a secret need not be part of a URL. They win.

    Raises
    ------
    StartupError
        The URL means no store, a setting does not exist, or the folder cannot be made.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise StartupError(
            f"results cannot be kept at {parts.scheme}://…@…: a store has no user in its URL",
            hint="give its keys by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if parts.scheme == "file":
        return _open_folder(parts.netloc, parts.path)
    if parts.scheme == "s3":
        settings = dict(parse_qsl(parts.query, keep_blank_values=True))
        return _open_bucket(parts.netloc, parts.path, settings | dict(options or {}))
    raise StartupError(
        # the query may hold a secret
        f"results cannot be kept at {url.partition('?')[0]}",
        hint="give file:///absolute/folder or s3://bucket",
    )


def _open_folder(host: str, path: str) -> "ObstoreStore":
    folder = Path(url2pathname(path))
    if host not in ("", "localhost") or not folder.is_absolute():
        raise StartupError(
            f"file://{host}{path} names no folder of this machine",
            hint="a file URL has three slashes: file:///absolute/folder",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"the folder for results {folder} cannot be made: {error}") from None
    return ObstoreStore(LocalStore(folder), folder=folder)


def _open_bucket(bucket: str, prefix: str, settings: dict[str, str]) -> "ObstoreStore":
    client: ClientConfig = {
        "timeout": timedelta(seconds=_REPLY_SECONDS),
        "read_timeout": timedelta(seconds=_READ_SECONDS),
        # who writes http:// in an endpoint has decided on it
        "allow_http": settings.get("endpoint", "").startswith("http://"),
    }
    if not bucket:
        raise StartupError("an s3 URL names its bucket: s3://bucket/prefix")
    try:
        store = S3Store.from_url(
            f"s3://{bucket}{prefix}", config=cast("S3Config", settings), client_options=client
        )
    except (BaseError, ValueError) as error:
        # the text goes on with the library's insides from the second line on
        why = str(error).partition("\n")[0]
        raise StartupError(f"the bucket for results s3://{bucket} is not usable: {why}") from None
    return ObstoreStore(store)


class ObstoreStore(ObjectStore):
    """Objects below a folder or below a prefix in a bucket; use `open_store`.

    Parameters
    ----------
    store
        Does the work.
    folder
        Where ``store`` keeps its files; None for a bucket.
    """

    def __init__(self, store: LocalStore | S3Store, *, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder

    def upload_url(self, key: str, *, seconds: float) -> str:
        """Return the ``file://`` URL of the final path, or a presigned PUT.

        Folders above a path may be missing; whoever uploads makes them.
        """
        _check(key)
        if self._folder is not None:
            return (self._folder / key).as_uri()
        store = cast("S3Store", self._store)
        return obstore.sign(store, "PUT", key, timedelta(seconds=seconds))

    async def head(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object; None if there is none."""
        _check(key)
        try:
            return _info(await obstore.head_async(self._store, key))
        except FileNotFoundError:
            return None

    async def stream(self, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes ``start`` to ``stop`` (exclusive) in pieces of about 1 MiB.

        ``stop`` may be beyond the end of the object, ``start`` may not.
        """
        _check(key)
        if start >= stop:
            # no store can be asked for a range without bytes
            if await self.head(key) is None:
                raise _no_object(key)
            return
        try:
            result = await obstore.get_async(self._store, key, options={"range": (start, stop)})
        except FileNotFoundError:
            raise _no_object(key) from None
        async for piece in result.stream(min_chunk_size=PIECE):
            yield piece

    async def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""
        doomed = list(keys)
        for key in doomed:
            _check(key)
        if self._folder is None:
            await obstore.delete_async(self._store, doomed)
            return
        # a bulk delete in a folder ends at the first file that is not there
        for key in doomed:
            with suppress(FileNotFoundError):
                await obstore.delete_async(self._store, key)

    async def disk(self) -> Disk | None:
        """Return how full the disk of the folder is; None for a bucket."""
        if self._folder is None:
            return None
        found = await asyncio.to_thread(shutil.disk_usage, self._folder)
        return Disk(used=found.used, free=found.free)

    async def list(self, prefix: str) -> list[ObjectInfo]:
        """Return the objects below a folder, by key; ``""`` is the whole store."""
        if prefix := prefix.removesuffix("/"):
            _check(prefix)
        found = [
            _info(meta)
            async for batch in obstore.list(self._store, prefix or None)
            for meta in batch
        ]
        return sorted(found, key=lambda info: info.key)


def _check(key: str) -> None:
    """Refuse a key that leaves the store, or that not every store can hold."""
    if (
        not {"", ".", ".."}.isdisjoint(key.split("/"))
        or _REFUSED.search(key)
        or key != key.encode(errors="replace").decode()
    ):
        raise InternalError(f"{key!r} is no key of an object")


def _no_object(key: str) -> NotFoundError:
    return NotFoundError(f"there is no object {key}")


def _info(meta: "ObjectMeta") -> ObjectInfo:
    modified = meta["last_modified"]
    tag = (meta["e_tag"] or "").removeprefix("W/").strip('"')
    return ObjectInfo(
        key=meta["path"],
        size=meta["size"],
        modified=modified,
        # every S3 gives a tag; where one does not, a new write has another time
        etag=tag or f"{modified.timestamp():.6f}-{meta['size']}",
    )
