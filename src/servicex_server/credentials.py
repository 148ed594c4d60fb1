"""Grid credentials: which host is shown which, where they are, and when they end.

They are files that something else renews, so they are read anew each time one is needed.
"""

import base64
import binascii
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from servicex_server.errors import ExpiredError
from servicex_server.model import Credential, now


@dataclass(frozen=True, slots=True)
class Shown:
    """What a host is shown: the file of a proxy, a token and the file it is in; to most nothing."""

    proxy: Path | None = None
    token: str = field(default="", repr=False)
    token_file: Path | None = None


def chosen_for(url: str, credentials: Sequence[Credential]) -> Credential | None:
    """Return the first credential that is for the host of a URL.

    Examples
    --------
    >>> ours = (Credential(("*.cern.ch",), token=Path("/run/token")), Credential(("eos.org",)))
    >>> chosen_for("root://eos.cern.ch:1094//x", ours).token
    PosixPath('/run/token')
    >>> chosen_for("/data/x.root", ours) is None
    True
    """
    try:
        host = urlsplit(url).hostname or "" if "://" in url else ""
    except ValueError:  # it is no URL, which its reader will say
        return None
    if not host:
        return None
    for one in credentials:
        if any(fnmatchcase(host, pattern.lower()) for pattern in one.hosts):
            return one
    return None


def shown_to(url: str, credentials: Sequence[Credential]) -> Shown:
    """Return what the host of a URL is shown, read at this moment.

    Of two files one has to be good, for the host takes either.

    Raises
    ------
    ExpiredError
        What is chosen for this host is good no more, or cannot be read; says which and since when.
    """
    chosen = chosen_for(url, credentials)
    if chosen is None:
        return Shown()
    proxy, token_file, token = chosen.proxy, chosen.token, ""
    problems: list[ExpiredError] = []
    try:
        if proxy is None and token_file is None:
            proxy = found if (found := proxy_file()).exists() else None
            token, token_file = find_token()
        elif token_file is not None:
            token = read_token(token_file)
    except ExpiredError as error:
        problems.append(error)
        token_file = None
    if proxy is not None:
        try:
            check_proxy(proxy)
        except ExpiredError as error:
            problems.append(error)
            proxy = None
    if problems and proxy is None and not token:
        raise problems[-1]
    return Shown(proxy, token, token_file)


def what_was_shown(url: str, credentials: Sequence[Credential]) -> str:
    """Return a hint for who was refused."""
    chosen = chosen_for(url, credentials)
    if chosen is None:
        return "nobody in the setting credentials is for this host"
    files = [str(file) for file in (chosen.proxy, chosen.token) if file is not None]
    return f"it was shown {' and '.join(files) or 'what grid tools find'}"


def proxy_file() -> Path:
    """Return where the proxy is that nobody has named: as ``voms-proxy-init`` has it."""
    return Path(os.environ.get("X509_USER_PROXY", f"/tmp/x509up_u{os.getuid()}"))  # noqa: S108


def check_proxy(path: Path) -> None:
    """Refuse a proxy that cannot be read, or that has ended.

    Raises
    ------
    ExpiredError
        Says when it has ended, or why it cannot be read.
    """
    try:
        end = end_of(path)
    except (OSError, ValueError) as error:
        raise ExpiredError(f"the proxy {path} cannot be read: {_why(error)}") from None
    if end <= now():
        raise ExpiredError(
            f"the proxy {path} expired at {end:%Y-%m-%d %H:%M} UTC",
            hint="make a new one, as with voms-proxy-init",
        )


def end_of(path: Path) -> datetime:
    """Return when a file of certificates ends to be good: when the first of them does.

    Raises
    ------
    OSError, ValueError
        It cannot be read, or is none.
    """
    about = path.stat()
    return _end_of(path, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=16)
def _end_of(path: Path, *version: int) -> datetime:
    """Return when a version of a file ends to be good; it is asked for each file of a dataset."""
    del version
    from cryptography.x509 import load_pem_x509_certificates

    return min(one.not_valid_after_utc for one in load_pem_x509_certificates(path.read_bytes()))


def find_token() -> tuple[str, Path | None]:
    """Return the token that tools of the WLCG find, and the file that it is in.

    The order is that of WLCG Bearer Token Discovery: ``$BEARER_TOKEN``, ``$BEARER_TOKEN_FILE``,
    ``$XDG_RUNTIME_DIR/bt_u<uid>``, ``/tmp/bt_u<uid>``. It is empty if there is none.

    Raises
    ------
    ExpiredError
        The one that is there is good no more, or cannot be read.
    """
    if token := os.environ.get("BEARER_TOKEN", "").strip():
        return _checked(token, "the token in BEARER_TOKEN"), None
    if named := os.environ.get("BEARER_TOKEN_FILE"):
        return read_token(Path(named)), Path(named)
    file = f"bt_u{os.geteuid()}"
    folders = filter(None, (os.environ.get("XDG_RUNTIME_DIR"), "/tmp"))  # noqa: S108  # so it says
    found = next((path for folder in folders if (path := Path(folder, file)).is_file()), None)
    return (read_token(found), found) if found else ("", None)


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises
    ------
    ExpiredError
        It is good no more, or cannot be read.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ExpiredError(f"the token {path} cannot be read: {_why(error)}") from None
    if not token or not token.isprintable() or " " in token:
        raise ExpiredError(f"there is no token in {path}")
    return _checked(token, f"the token {path}")


def _checked(token: str, name: str) -> str:
    """Return a token, unless it says itself that it has expired."""
    end = end_of_token(token)
    if end is not None and end <= now():
        raise ExpiredError(f"{name} expired at {end:%Y-%m-%d %H:%M} UTC", hint="renew it")
    return token


def end_of_token(token: str) -> datetime | None:
    """Return when a token ends to be good; None if it does not say so, as one that is no JWT."""
    parts = token.split(".")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return datetime.fromtimestamp(claims["exp"], UTC)
    except (IndexError, binascii.Error, ValueError, LookupError, TypeError, OverflowError):
        return None


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__


def refused(urls: Sequence[str], credentials: Sequence[Credential]) -> ExpiredError | None:
    """Return why none of some URLs can be read, as far as the files of this machine tell.

    A file that is not here may be where the workers are.
    """
    error = None
    for url in urls:
        chosen = chosen_for(url, credentials)
        files = () if chosen is None else tuple(filter(None, (chosen.proxy, chosen.token)))
        if not files or not all(file.exists() for file in files):
            return None
        try:
            shown_to(url, credentials)
        except ExpiredError as found:
            error = found
        else:
            return None
    return error
