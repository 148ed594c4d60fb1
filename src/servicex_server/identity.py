"""What a piece of work is known by: equal identities make equal objects, so none is made twice."""

import hashlib
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from servicex_server import __version__, plugins
from servicex_server.database.tasks import Work
from servicex_server.languages.contract import Language, Program
from servicex_server.model import InputFile, ResultFormat


def identity(work: Work) -> str | None:
    """Return what the result of a task is known by: the file, the query, the format, the engine.

    None if it is not known whether it would be the same again: of a query that is code, and of a
    file without a checksum that is not on this machine.

    It may ask the file system, which may take its time.
    """
    query = _query(work.language, work.selection, work.format)
    file = _file(work.file)
    if query is None or file is None:
        return None
    parts = (file, query, str(work.entries), __version__)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@lru_cache(maxsize=256)
def _query(language: str, selection: str, result_format: ResultFormat) -> str | None:
    """Return the meaning of a query: its text may differ in what means nothing."""
    found: Language = plugins.load("languages", language, wire_name="codegen")()
    meaning = found.compile(selection, result_format)
    if isinstance(meaning, Program):
        return None
    return hashlib.sha256(f"{language} {result_format} {meaning!r}".encode()).hexdigest()


def _file(file: InputFile) -> str | None:
    if not file.replicas:
        return None
    url = file.replicas[0].url
    if file.adler32 and file.size:
        # 32 bits of checksum are few, where there are millions of files
        return f"{file.key.rsplit('/', 1)[-1]} {file.size} {file.adler32}"
    parts = urlsplit(url)
    if parts.scheme not in ("", "file"):
        return None
    try:
        about = Path(unquote(parts.path) if parts.scheme else url).stat()
    except OSError:
        return None  # the worker will say what is wrong with it
    return f"{url} {about.st_size} {about.st_mtime_ns}"
