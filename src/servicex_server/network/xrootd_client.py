"""Safe use of XrdCl: its configuration, the URLs that it gets, and the redirects that it reports.

By default, XrdCl follows redirects to any server and to local files, reads configuration from URLs,
and shows any credential that it finds to any server. This module turns all of that off: a caller
opens one server at a time, and chooses the credential that this server is shown.
"""

import os
import re
from collections.abc import Iterable, Mapping
from ctypes import py_object, pythonapi
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any

from servicex_server.errors import DeniedError, InternalError, UnreachableError
from servicex_server.network.urls import Url, UrlError, parse_redirect

MOST_REDIRECTS = 16
"""Redirects that are followed for one file; XrdCl has the same limit."""

_WITHOUT_SECRET = ("unix", "host")
"""Authentication protocols by which a client shows its account name or address only."""

_ALWAYS = {
    "XRD_METALINKPROCESSING": "0",
    "XRD_LOCALMETALINKFILE": "0",
    "XrdSecPROTOCOL": ",".join(_WITHOUT_SECRET),
}
"""Variables for XrdCl that override those of an administrator: a file cannot name other files to
read instead (metalinks), and a server is shown only a credential that its URL names."""

_AS_IT_IS = ("MetalinkProcessing", "LocalMetalinkFile")

_NUMBERS = (
    "ConnectionRetry",
    "ConnectionWindow",
    "RequestTimeout",
    "StreamErrorWindow",
    "StreamTimeout",
    "TimeoutResolution",
)
"""Numeric settings of XrdCl; the variable of each is ``XRD_`` and its name in capitals."""


def configure(settings: Mapping[str, str]) -> None:
    """Configure XrdCl in this process, before its first connection.

    XrdCl reads its variables when it is loaded. As another library may have loaded it before, the
    numeric settings are also set by its API.

    Parameters
    ----------
    settings
        Environment variables, which are set unless an administrator has set them.

    Raises
    ------
    ImportError
        XrdCl is not installed.
    InternalError
        XrdCl was loaded before with a configuration that can no longer be changed.
    """
    os.environ.update(_ALWAYS)
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    from XRootD.client.env import EnvGetInt, EnvPutInt

    for name in _NUMBERS:
        if number := os.environ.get(f"XRD_{name.upper()}"):
            EnvPutInt(name, int(number))
    for name in _AS_IT_IS:
        EnvPutInt(name, 0)
        if EnvGetInt(name):
            raise InternalError(
                f"XRootD was loaded with XRD_{name.upper()} set", hint="unset that variable"
            )


def without_redirects(client: Any) -> Any:
    """Have a ``File`` or ``FileSystem`` report redirects instead of following them; return it."""
    answer = client.set_property("FollowRedirects", "false")
    # the binding returns True without a reference of its own (PyXRootDFile.cc), which would
    # end the process after some thousand files before Python 3.12
    pythonapi.Py_IncRef(py_object(answer))
    if client.get_property("FollowRedirects") != "false":
        raise InternalError("this XRootD client cannot be kept from following redirects")
    return client


@dataclass(frozen=True, slots=True)
class Identity:
    """The credential that a server is shown: a proxy file, and a token in a file or as a text."""

    proxy: Path | None = None
    token_file: Path | None = None
    token: str = ""

    def fields(self, through: str = "") -> list[str]:
        """Return the URL fields by which XrdCl shows this credential and no other.

        The field ``xrdcl.intent`` separates connections: a read does not share a connection with
        another credential, or with a read ``through`` a cache from another server.

        Raises
        ------
        DeniedError
            XRootD would show another token, which it prefers.
        """
        token = self.token_file or (_in_file(self.token) if self.token else None)
        chosen, protocols = [], list(_WITHOUT_SECRET)
        if self.proxy is not None:
            # XRootD tries the last two if the first is not valid, and they have defaults
            names = ("xrd.gsiusrpxy", "xrd.gsiusrcrt", "xrd.gsiusrkey")
            chosen += [f"{name}={_plain(self.proxy)}" for name in names]
            protocols.append("gsi")
        if token is not None:
            _check_no_other(token)
            chosen.append(f"xrd.ztn={_plain(token)}")
            protocols.append("ztn")
        if not chosen and not through:
            return []
        if chosen:
            chosen.append(f"xrd.wantprot={','.join(protocols)}")
        intent = sha256(" ".join([through, *chosen]).encode()).hexdigest()[:16]
        return [f"xrdcl.intent={intent}", *chosen]


def address(place: Url, identity: Identity, *, tried: Iterable[str] = ()) -> str:
    """Return the URL that XrdCl gets.

    Parameters
    ----------
    place
        The file to open.
    identity
        The credential that its server is shown.
    tried
        Hosts that a redirector named and that did not have the file.

    Raises
    ------
    DeniedError
        As in `Identity.fields`.
    """
    fields = identity.fields(place.through.authority if place.through else "")
    if names := ",".join(dict.fromkeys(tried)):
        fields.insert(0, f"tried={names}")
    query = "&".join(filter(None, [place.query, *fields]))
    return str(replace(place, query=query))


def server_address(place: Url, identity: Identity) -> str:
    """Return the URL by which XrdCl calls the server of a file, over the connection of the file."""
    fields = identity.fields(place.through.authority if place.through else "")
    return f"{place.server}/" + (f"?{'&'.join(fields)}" if fields else "")


def redirect(place: Url, status: Any) -> Url | None:
    """Return the URL to which a server redirects; None if it does not redirect.

    As in XrdCl, the path is kept unless the redirect names one, and so are fields that the redirect
    does not set.

    Raises
    ------
    UnreachableError
        The target is not a file on an XRootD server, for instance a local file.
    """
    if status.ok or status.code != status.errRedirect:
        return None
    said = re.sub(r"^(\[\w+\] )?Unhandled redirect:? *", "", str(status.message)).strip()
    try:
        target = parse_redirect(said)
    except UrlError as error:
        shown = said.partition("?")[0][:200]
        raise UnreachableError(
            f"{place.server} redirects to {shown!r}, which is not followed: it {error}",
            hint="only redirects from root:// to root:// are followed",
        ) from None
    if place.scheme in ("roots", "xroots"):  # keep the encryption
        target = replace(target, scheme="roots")
    if target.path in ("", "/"):
        target = replace(target, path=place.path, through=place.through)
    set_anew = {one.partition("=")[0] for one in target.query.split("&")}
    kept = [one for one in place.query.split("&") if one.partition("=")[0] not in set_anew]
    return replace(target, query="&".join(filter(None, [*kept, target.query])))


def _plain(path: Path) -> str:
    """Return a path as the value of a URL field.

    Raises
    ------
    DeniedError
        The path has a character that would end the field.
    """
    text = str(path)
    if re.search(r"[&?#\s]", text):
        raise DeniedError(
            f"XRootD cannot use the credential {text}",
            hint="use a path without & ? # and spaces",
        )
    return text


def _check_no_other(token: Path) -> None:
    """Reject a token if XRootD would show the one in ``/tmp`` instead, which it prefers.

    Raises
    ------
    DeniedError
        XRootD would show another token.
    """
    other = Path(f"/tmp/bt_u{os.geteuid()}")  # noqa: S108  # XrdSecProtocolztn.cc
    try:
        same = other.samefile(token)
    except OSError:
        same = not other.exists()
    if not same:
        raise DeniedError(
            f"XRootD would show the token {other} instead of the configured one",
            hint="delete it where the workers run, or name it in credentials",
        )


@lru_cache(maxsize=8)
def _held(token: str) -> IO[str]:
    file = NamedTemporaryFile("w", prefix="servicex-token-", encoding="ascii")  # noqa: SIM115  # it is removed with this process
    file.write(token)
    file.flush()
    return file


def _in_file(token: str) -> Path:
    """Return a file, readable for this account only, with a token from the environment."""
    return Path(_held(token).name)
