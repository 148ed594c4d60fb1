"""Opens files by XRootD: follows redirects itself, and checks each server before it connects."""

import math
from typing import Any

from servicex_server.columnar.reading.access import Access, checked_url
from servicex_server.columnar.reading.error_mapping import classify
from servicex_server.errors import DeniedError, UnreachableError
from servicex_server.network.urls import Url
from servicex_server.network.xrootd_client import (
    MOST_REDIRECTS,
    Identity,
    address,
    configure,
    redirect,
    server_address,
    without_redirects,
)
from servicex_server.text.hints import install

_TRY_ANOTHER = {
    3005,  # kXR_FSError
    3007,  # kXR_IOError
    3008,  # kXR_NoMemory
    3011,  # kXR_NotFound
    3012,  # kXR_ServerError
    3024,  # kXR_Overloaded
}
"""Error codes of a server after which its redirector is asked for another server, as in XrdCl
(XProtocol.hh, XRootDMsgHandler::HandleError)."""

_CONNECTION = range(101, 200)
"""Codes of XrdCl for a failed connection (XrdClStatus.hh)."""


class Opened:
    """An open file, the server that it is open on, and the access with the server's credentials."""

    def __init__(self, file: Any, place: Url, access: Access) -> None:
        self.file = file
        self._place = place
        self._access = access

    def system(self) -> Any:
        """Return a client of the server, over the connection of the file."""
        from XRootD.client.filesystem import FileSystem

        return without_redirects(FileSystem(server_address(self._place, _identity(self._access))))


def open_xrootd(url: str, access: Access) -> Opened:
    """Open a file; follow redirects to servers that this reader may connect to.

    Each server gets the credentials that are chosen for it, not those of the server before.

    Raises
    ------
    ReplicaError
        The URL is not safe for XrdCl, a redirect leads to a URL that may not be opened, or the
        client is not installed.
    OSError
        The file cannot be opened; the message is that of XrdCl.
    """
    place = checked_url(url)
    load_xrootd(url, access)
    from XRootD.client.file import File

    wait = seconds_of(access)
    at, shown = place, access
    redirector: tuple[Url, Access] | None = None
    failed: dict[str, str] = {}
    failure = ""
    for _ in range(MOST_REDIRECTS):
        shown.check_server(at)
        file = without_redirects(File())
        again = redirector is not None and at is redirector[0]
        tried = failed.values() if again else ()
        status, _ = file.open(address(at, _identity(shown), tried=tried), timeout=wait)
        if status.ok:
            return _checked(file, at, shown, wait)
        if (target := redirect(at, status)) is not None:
            if target.authority in failed:  # the redirector has no other server
                break
            redirector = at, shown
            at, shown = target, access.at_redirect(str(target))
        elif redirector is not None and at is not redirector[0] and _may_be_elsewhere(status):
            failure = failure or str(status.message)
            failed[at.authority] = at.host
            at, shown = redirector
        else:
            failure = failure or str(status.message)
            break
    raise _failure(url, failure, at if at.server != place.server else None)


def _failure(url: str, said: str, at: Url | None) -> Exception:
    """Return the error of a failed open; ``at`` is the server that was redirected to."""
    if not said:
        return UnreachableError(f"{url} leads through more than {MOST_REDIRECTS} servers")
    error = OSError(said)
    found = classify(error, url)
    if at is not None and isinstance(found, DeniedError):
        found.hint = f"it redirects to {at.server}, for which credentials may have no entry"
        return found
    return error


def seconds_of(access: Access) -> int:
    """Return the seconds that XrdCl waits for one response."""
    return max(1, int(min(access.silence, access.patience)))


def _checked(file: Any, at: Url, access: Access, wait: int) -> Opened:
    """Refuse a file that XrdCl opened on another server than the requested one.

    Raises
    ------
    UnreachableError
        XrdCl was redirected to another server.
    """
    last = str(file.get_property("LastURL"))
    if not last.startswith(f"{at.scheme}://") or file.get_property("DataServer") != _host_id(at):
        file.close(timeout=wait)
        raise UnreachableError(f"{at.server} led to another server, {last.partition('?')[0][:200]}")
    return Opened(file, at, access)


def _host_id(at: Url) -> str:
    *_, port = at.origin
    host = f"[{at.host}]" if ":" in at.host else at.host
    return f"{host}:{port}"


def _may_be_elsewhere(status: Any) -> bool:
    if status.code == status.errErrorResponse:
        return status.errno in _TRY_ANOTHER
    return status.code in _CONNECTION


def _identity(access: Access) -> Identity:
    return Identity(access.proxy, access.token_file, access.token)


def load_xrootd(url: str, access: Access) -> None:
    """Load XrdCl with its configuration, before any other import of XrdCl.

    Raises
    ------
    UnreachableError
        XrdCl is not installed.
    """
    try:
        configure(xrootd_settings(access.opening, access.silence))
    except ImportError:
        raise UnreachableError(
            f"{url} needs the XRootD client, which this worker does not have",
            hint=install("xrootd"),
        ) from None


def xrootd_settings(opening: float, silence: float) -> dict[str, str]:
    """Return environment variables for XrdCl; those that an administrator has set take precedence.

    With XrdCl's own defaults one dead server holds a worker for ten minutes (XrdClConstants.hh).
    After one refusal, they also let everything on that server fail for thirty minutes, while the
    files of a request pass by. So that window is set shorter than the time between the attempts on
    a file.
    """
    return {
        "XRD_CONNECTIONWINDOW": str(math.ceil(opening)),
        "XRD_CONNECTIONRETRY": "1",
        "XRD_REQUESTTIMEOUT": str(math.ceil(silence)),
        "XRD_STREAMTIMEOUT": str(math.ceil(silence)),
        "XRD_STREAMERRORWINDOW": "2",
        "XRD_TIMEOUTRESOLUTION": "1",
    }
