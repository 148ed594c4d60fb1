"""Putting a finished file where it belongs, from a worker that has one URL for it."""

import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from servicex_server.errors import UploadError
from servicex_server.objects.contract import UNFINISHED


def upload(path: Path, url: str) -> None:
    """Put a file at a ``file:`` or ``http:`` URL; it is there whole or not at all.

    Raises
    ------
    UploadError
        The object store refuses it, or does not answer.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        target = Path(unquote(parts.path))
        target.parent.mkdir(parents=True, exist_ok=True)
        # beside the target, so that the last step is a rename on one file system
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=UNFINISHED, delete=False
        ) as part:
            try:
                with path.open("rb") as source:
                    shutil.copyfileobj(source, part, 1 << 20)
                part.flush()
                os.fsync(part.fileno())
                Path(part.name).replace(target)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
        return
    import httpx

    length = {"Content-Length": str(path.stat().st_size)}
    try:
        with path.open("rb") as source:
            response = httpx.put(url, content=source, timeout=120, headers=length)
    except httpx.TransportError as error:
        why = str(error) or type(error).__name__
        raise UploadError(f"the object store cannot be reached: {why}") from error
    if response.is_error:
        raise UploadError(
            f"the object store refused the result: {response.status_code} {response.text[:200]}"
        )
