"""Downloads the result of a split to a worker, from the URL that it was given."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO
from urllib.parse import unquote, urlsplit

from servicex_server.errors import DownloadError

_SECONDS = 120
"""Read timeout of the object store, in seconds."""


@contextmanager
def downloaded(url: str, folder: Path) -> Iterator[Path]:
    """Provide an object at a ``file:`` or ``http:`` URL as a local file within this context.

    Parameters
    ----------
    url
        The URL of the object.
    folder
        Folder for the copy of an object that is not on this machine.

    Raises
    ------
    DownloadError
        The object store refuses the download, or does not answer.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
        if not path.is_file():
            raise DownloadError(f"the result of a part is not there: {path.name}")
        yield path
        return
    with NamedTemporaryFile(dir=folder, prefix="part-") as copy:
        _copy(url, copy)
        copy.flush()
        yield Path(copy.name)


def _copy(url: str, file: IO[bytes]) -> None:
    import httpx

    try:
        with httpx.stream("GET", url, timeout=_SECONDS) as response:
            if response.is_error:
                raise DownloadError(
                    f"the object store refused the result of a part: {response.status_code} "
                    f"{response.read()[:200].decode(errors='replace')}"
                )
            for piece in response.iter_bytes(1 << 20):
                file.write(piece)
    except httpx.TransportError as error:
        why = str(error) or type(error).__name__
        raise DownloadError(f"the object store cannot be reached: {why}") from error
