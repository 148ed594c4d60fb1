"""Uploads a finished file from a worker, to the URL that it was given."""

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import uniform
from urllib.parse import unquote, urlsplit

from servicex_server.errors import ResultTooLargeError, StoreUnavailableError, UploadError
from servicex_server.storage.contract import UNFINISHED

_MODE = 0o600
"""File mode of a result in a folder: only the service may read it."""


_WAITS = "files wait until it works again; if that takes long, tell the operator"

_LARGE = 413
_SMALLER = "select fewer columns, or keep fewer events; Amazon S3 accepts 5 GiB in one upload"

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between two tries of an upload; each failure doubles the pause."""

_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504, 507})
"""Answers of a store that is in trouble, or full. Some stores answer a full disk by 500."""

_TROUBLE = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.ENOTCONN,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
    }
)
"""Errors of a folder that is full, read-only, or on a file system that is away."""


def upload(
    path: Path, url: str, *, patience: float = 0.0, step: Callable[[], None] = lambda: None
) -> None:
    """Upload a file to a ``file:`` or ``http:`` URL, completely or not at all.

    A file on the same disk is moved. While the store is in trouble, the file is kept and its upload
    is tried again.

    Parameters
    ----------
    path
        The file.
    url
        Where it goes.
    patience
        Seconds after which no further try begins.
    step
        Called before each try, as a sign of life.

    Raises
    ------
    StoreUnavailableError
        The object store cannot be reached, or has no room, for all this time.
    UploadError
        The object store refuses the upload.
    ResultTooLargeError
        The file is larger than the object store accepts.
    """
    until, pause = time.monotonic() + patience, FIRST_PAUSE
    while True:
        step()
        try:
            _upload(path, url)
        except StoreUnavailableError:
            if time.monotonic() + pause > until:
                raise
            # at random times, because all workers have met the same trouble
            time.sleep(pause * uniform(0.5, 1.0))  # noqa: S311  # no secret
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            return


def _upload(path: Path, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "file":
        try:
            _store(path, Path(unquote(parts.path)))
        except OSError as error:
            if error.errno in _TROUBLE:
                raise StoreUnavailableError(
                    f"the folder of results: {error.strerror}", hint=_WAITS
                ) from error
            raise
        return
    _put(path, url)


def _store(path: Path, target: Path) -> None:
    """Put a file into a folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if _may_be_moved(path, target.parent):
        path.chmod(_MODE)
        with path.open("rb") as source:
            os.fsync(source.fileno())
        path.replace(target)
        return
    # in the folder of the target, so that the last step is a rename in one file system
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=UNFINISHED, delete=False) as part:
        try:
            with path.open("rb") as source:
                shutil.copyfileobj(source, part, 1 << 20)
            part.flush()
            os.fsync(part.fileno())
            Path(part.name).replace(target)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise


def _put(path: Path, url: str) -> None:
    """Put a file to a presigned URL of a bucket."""
    import httpx

    length = {"Content-Length": str(path.stat().st_size)}
    try:
        with path.open("rb") as source:
            response = httpx.put(url, content=source, timeout=120, headers=length)
    except httpx.TransportError as error:
        why = str(error) or type(error).__name__
        raise StoreUnavailableError(
            f"the object store cannot be reached: {why}", hint=_WAITS
        ) from error
    if response.is_error:
        said = f"{response.status_code} {response.text[:200]}".strip()
        if response.status_code in _TEMPORARY:
            raise StoreUnavailableError(
                f"the object store takes no result now: {said}", hint=_WAITS
            )
        refused = f"the object store refused the result: {said}"
        if response.status_code == _LARGE or "EntityTooLarge" in said:
            raise ResultTooLargeError(refused, hint=_SMALLER)
        raise UploadError(refused)


def _may_be_moved(path: Path, folder: Path) -> bool:
    """Whether a file is a regular file of this account, without other links, on a folder's disk.

    Code of a user may have written it, or may have put a link there.
    """
    found = path.lstat()
    ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
    return ours and found.st_dev == folder.stat().st_dev
