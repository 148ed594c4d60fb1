"""Maps exceptions of the reading libraries to errors of this service, which name the cause."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from servicex_server.errors import (
    CorruptError,
    DeniedError,
    MissingError,
    OutOfMemoryError,
    ServiceXError,
    SlowError,
    TruncatedError,
    UnreachableError,
)

_STATUS: dict[int, type[ServiceXError]] = {
    401: DeniedError,
    403: DeniedError,
    404: MissingError,
    407: DeniedError,
    408: SlowError,
    410: MissingError,
    416: TruncatedError,
    504: SlowError,
}
"""Errors by HTTP status code; any other refusal means that the site has a problem."""

_XROOTD_CODES: dict[int, type[ServiceXError]] = {
    3010: DeniedError,  # kXR_NotAuthorized
    3011: MissingError,  # kXR_NotFound
    3015: MissingError,  # kXR_NotFile
    3016: MissingError,  # kXR_isDirectory
    3019: CorruptError,  # kXR_ChkSumErr
    3030: DeniedError,  # kXR_AuthFailed
    3034: SlowError,  # kXR_ReqTimedOut
    3035: SlowError,  # kXR_TimerExpired
}
"""Errors by the code of an XRootD server (XProtocol.hh); any other error means that the site
has a problem."""

_SENTENCES: dict[type[ServiceXError], str] = {
    MissingError: "{url} does not exist",
    DeniedError: "{url} may not be read: {text}",
    SlowError: "{url} did not answer in time: {text}",
    TruncatedError: "{url} ends before its content does",
    UnreachableError: "{url} cannot be reached: {text}",
}


def classify(error: BaseException, url: str) -> ServiceXError:
    """Return the error of this service for an exception of a reading library."""
    if isinstance(error, ServiceXError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemoryError(f"not enough memory to read {url}")
    if isinstance(error, IsADirectoryError):
        return MissingError(f"{url} is a folder, not a file")
    # the name of a file may contain any of the words that are searched for
    said = re.sub(rf"{re.escape(url)}([?&]xrdcl\.intent=\S*)?", "", str(error))
    text = next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)
    if xrootd := re.search(r"\[(?:ERROR|FATAL)\] (.*?)(?: in file *)?\)?$", said, re.MULTILINE):
        text = xrootd[1]
        if "relative path" in text.lower():
            return MissingError(
                f"{url} has one slash behind its host, which makes its path a relative one",
                hint="write two slashes: root://host//path",
            )
        kind = _xrootd_kind(text)
    elif type(error).__module__.partition(".")[0] == "httpx":
        text = text.partition(" for url")[0]
        kind = _http_kind(error)
    else:
        kind = _kind(error, said.lower())
    if sentence := _SENTENCES.get(kind):
        return kind(sentence.format(url=url, text=text))
    return kind(f"{url} cannot be read: {type(error).__name__}: {text}")


def _kind(error: BaseException, low: str) -> type[ServiceXError]:
    if isinstance(error, FileNotFoundError):
        return MissingError
    if isinstance(error, PermissionError):
        return DeniedError
    if isinstance(error, TimeoutError):
        return SlowError
    if re.search(r"expected chunk of length|unexpected end|\beof\b", low):
        return TruncatedError
    if isinstance(error, OSError) and not isinstance(error, ValueError):
        return UnreachableError
    return CorruptError


def _xrootd_kind(text: str) -> type[ServiceXError]:
    """Classify a line of XrdCl: only its text tells apart denied, missing and slow files."""
    low = text.lower()
    if answer := re.match(r"server responded with an error: \[(\d+)\]", low):
        # the last alternative is how a cache reports it
        if re.search(r"readv? .*(illegal seek|past eof|invalid argument)", low):
            return TruncatedError
        return _XROOTD_CODES.get(int(answer[1]), UnreachableError)
    if "auth failed" in low:
        return DeniedError
    if "expired" in low or "timeout" in low:
        return SlowError
    return MissingError if "file not found" in low else UnreachableError


def _http_kind(error: BaseException) -> type[ServiceXError]:
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return _STATUS.get(error.response.status_code, UnreachableError)
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return SlowError
    return UnreachableError


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Raise errors of this service in place of exceptions of the reading libraries."""
    try:
        yield
    except ServiceXError:
        raise
    except Exception as error:
        raise classify(error, url) from error
