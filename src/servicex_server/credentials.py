"""Grid credentials: which host is shown which credential, its file, and when it expires.

The files are renewed by another program, so they are read again for each use.
"""

import base64
import binascii
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from servicex_server.errors import ExpiredError
from servicex_server.model import Credential, now, split_host
from servicex_server.network.urls import HTTP, Url, UrlError, parse


@dataclass(frozen=True, slots=True)
class Shown:
    """The credential that a host is shown: a proxy file, a token and its file; usually empty."""

    proxy: Path | None = None
    token: str = field(default="", repr=False)
    token_file: Path | None = None


HTTPS_PORTS = frozenset({443, 1094, 2880, 8443})
"""HTTPS ports that an entry of ``hosts`` without a port covers: the default, and the ports of
XRootD, dCache and StoRM. A ``root://`` server proves its name by a certificate on any port."""

_FOUND_BY_TOOLS = (
    "BEARER_TOKEN",
    "BEARER_TOKEN_FILE",
    "XDG_RUNTIME_DIR",
    "X509_USER_PROXY",
    "X509_USER_CERT",
    "X509_USER_KEY",
    "KRB5CCNAME",
    "KRB5_CLIENT_KTNAME",
)
"""Variables by which XRootD and other libraries find a credential and show it to any server."""

_TRUST = frozenset(
    {
        "XrdSecGSICADIR",
        "XrdSecGSICACHECK",
        "XrdSecGSICRLDIR",
        "XrdSecGSICRLEXT",
        "XrdSecGSICRLCHECK",
        "XrdSecGSICRLRefresh",
        "XrdSecGSISRVNAMES",
        "XrdSecGSITRUSTDNS",
    }
)
"""XRootD variables that say which servers are trusted. All other ``XrdSec`` variables choose the
credential that is shown."""

_taken: dict[str, str] = {}
"""The variables that `take_from_environment` removed, for `proxy_file` and `find_token`."""


def take_from_environment() -> None:
    """Remove credentials from the environment, as XRootD would show them to every server.

    `proxy_file` and `find_token` still find them, for the hosts of an entry without files.
    """
    for name in list(os.environ):
        of_xrootd = name.startswith("XrdSec") and name not in _TRUST
        if name in _FOUND_BY_TOOLS or (of_xrootd and name != "XrdSecPROTOCOL"):
            _taken[name] = os.environ.pop(name)


def taken() -> dict[str, str]:
    """Return the variables that `take_from_environment` removed, to start workers with them."""
    return dict(_taken)


def forget(names: Iterable[str]) -> None:
    """Forget variables that `take_from_environment` removed."""
    for name in names:
        _taken.pop(name, None)


def _variable(name: str) -> str:
    return os.environ.get(name) or _taken.get(name, "")


def chosen_for(url: str, credentials: Sequence[Credential]) -> Credential | None:
    """Return the first credential whose hosts include the host and port of a URL, or None.

    A server that cannot prove its identity, as with ``http://``, is shown no credential.

    Examples
    --------
    >>> ours = (Credential(("*.cern.ch",), token=Path("/run/token")), Credential(("eos.org",)))
    >>> chosen_for("root://eos.cern.ch:1094//x", ours).token
    PosixPath('/run/token')
    >>> chosen_for("https://eos.cern.ch:9999/x", ours) is None
    True
    >>> chosen_for("/data/x.root", ours) is None
    True
    """
    try:
        place = parse(url)
    except UrlError:  # the reader of the file reports it
        return None
    if place.scheme == "http":
        return None
    for one in credentials:
        if any(_is_for(pattern, place) for pattern in one.hosts):
            return one
    return None


def _is_for(pattern: str, place: Url) -> bool:
    name, port = split_host(pattern)
    if not fnmatchcase(place.host, name):
        return False
    *_, used = place.origin
    if port is None:
        return place.scheme not in HTTP or used in HTTPS_PORTS
    return used == port


def wide_patterns(credentials: Sequence[Credential]) -> list[str]:
    """Return the entries of ``hosts`` that match more than one host."""
    return [host for one in credentials for host in one.hosts if re.search(r"[*?[]", host)]


WIDE = (
    "credentials: %s matches every host of that name, also one that a user of the site runs;"
    " name the hosts that need a credential"
)
"""The warning about an entry of ``hosts`` that is a pattern."""


def shown_to(url: str, credentials: Sequence[Credential]) -> Shown:
    """Return the credential that the host of a URL is shown, read from its files now.

    If a proxy and a token are configured, one valid file is enough, as the host accepts either.

    Raises
    ------
    ExpiredError
        The credential for this host has expired or cannot be read; the message names the file.
    """
    take_from_environment()
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
    """Return a hint for a refused read: which credential the host was shown."""
    chosen = chosen_for(url, credentials)
    if chosen is None:
        return "the setting reading.credentials has no entry for this host and port"
    files = [str(file) for file in (chosen.proxy, chosen.token) if file is not None]
    return f"it was shown {' and '.join(files) or 'the credential that grid tools find'}"


def proxy_file() -> Path:
    """Return the default path of the proxy, as ``voms-proxy-init`` chooses it."""
    return Path(_variable("X509_USER_PROXY") or f"/tmp/x509up_u{os.getuid()}")  # noqa: S108


def check_proxy(path: Path) -> None:
    """Check that a proxy can be read and has not expired.

    Raises
    ------
    ExpiredError
        The message says when it expired, or why it cannot be read.
    """
    try:
        end = end_of(path)
    except (OSError, ValueError) as error:
        raise ExpiredError(f"the proxy {path} cannot be read: {_why(error)}") from None
    if end <= now():
        raise ExpiredError(
            f"the proxy {path} expired at {end:%Y-%m-%d %H:%M} UTC",
            hint="create a new one, for instance with voms-proxy-init",
        )


def end_of(path: Path) -> datetime:
    """Return when the first of the certificates in a file expires.

    Raises
    ------
    OSError, ValueError
        The file cannot be read, or has no certificates.
    """
    about = path.stat()
    return _end_of(path, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=16)
def _end_of(path: Path, *version: int) -> datetime:
    """Return when a version of a file expires; cached, as each file of a dataset asks for it."""
    del version
    from cryptography.x509 import load_pem_x509_certificates

    return min(one.not_valid_after_utc for one in load_pem_x509_certificates(path.read_bytes()))


def find_token() -> tuple[str, Path | None]:
    """Return the token that WLCG tools find, and its file; an empty text if there is none.

    The order is that of WLCG Bearer Token Discovery: ``$BEARER_TOKEN``, ``$BEARER_TOKEN_FILE``,
    ``$XDG_RUNTIME_DIR/bt_u<uid>``, ``/tmp/bt_u<uid>``.

    Raises
    ------
    ExpiredError
        The token has expired, or cannot be read.
    """
    if token := _variable("BEARER_TOKEN").strip():
        return _checked(token, "the token in BEARER_TOKEN"), None
    if named := _variable("BEARER_TOKEN_FILE"):
        return read_token(Path(named)), Path(named)
    file = f"bt_u{os.geteuid()}"
    folders = filter(None, (_variable("XDG_RUNTIME_DIR"), "/tmp"))  # noqa: S108  # the standard
    found = next((path for folder in folders if (path := Path(folder, file)).is_file()), None)
    return (read_token(found), found) if found else ("", None)


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises
    ------
    ExpiredError
        The token has expired, or the file cannot be read.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ExpiredError(f"the token {path} cannot be read: {_why(error)}") from None
    if not token or not token.isprintable() or " " in token:
        raise ExpiredError(f"there is no token in {path}")
    return _checked(token, f"the token {path}")


def _checked(token: str, name: str) -> str:
    """Return a token, unless its own claims say that it has expired."""
    end = end_of_token(token)
    if end is not None and end <= now():
        raise ExpiredError(f"{name} expired at {end:%Y-%m-%d %H:%M} UTC", hint="renew it")
    return token


def end_of_token(token: str) -> datetime | None:
    """Return when a token expires; None if it does not say so, as a token that is not a JWT."""
    parts = token.split(".")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return datetime.fromtimestamp(claims["exp"], UTC)
    except (IndexError, binascii.Error, ValueError, LookupError, TypeError, OverflowError):
        return None


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__


def refused(urls: Sequence[str], credentials: Sequence[Credential]) -> ExpiredError | None:
    """Return why none of the URLs can be read, as far as the credential files here show.

    A file that does not exist on this machine may exist on the machines of the workers.
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
