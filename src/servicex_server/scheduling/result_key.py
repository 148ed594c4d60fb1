"""Result keys: work with the same key gives the same result, so the result can be reused."""

import hashlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

from servicex_server import __version__
from servicex_server.database.tasks import Work
from servicex_server.model import InputFile


def result_key(work: Work, query: str) -> str | None:
    """Return the result key of a task: a digest of file, query, format and version.

    None if the file may change unseen: a remote file without a checksum. The function may ask the
    file system, which may block.

    Parameters
    ----------
    work
        The task.
    query
        The digest of its query and format (`servicex_server.query_processes.jobs.Compiled`).
    """
    file = _file(work.file)
    if file is None:
        return None
    parts = (file, query, str(work.entries), __version__)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _file(file: InputFile) -> str | None:
    if not file.replicas:
        return None
    url = file.replicas[0].url
    if file.adler32 and file.size:
        # 32 bits of checksum are not enough to tell millions of files apart
        return f"{file.key.rsplit('/', 1)[-1]} {file.size} {file.adler32}"
    parts = urlsplit(url)
    if parts.scheme not in ("", "file"):
        return None
    try:
        about = Path(unquote(parts.path) if parts.scheme else url).stat()
    except OSError:
        return None  # the worker reports what is wrong with it
    return f"{url} {about.st_size} {about.st_mtime_ns}"
