"""How a file is read: with which credentials, from which folders and servers, in what time."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from servicex_server.errors import MissingError
from servicex_server.network.policy import ANYWHERE, NetworkPolicy, resolve
from servicex_server.network.urls import Url, UrlError, parse


@dataclass(frozen=True, slots=True)
class Access:
    """How a file is read, and with which credentials.

    Parameters
    ----------
    opening
        Connection timeout for a remote server, in seconds. XrdCl reads this value and ``silence``
        once in the life of a process.
    silence
        Read timeout, in seconds: the longest time without a byte from the server.
    patience
        Upper limit for both timeouts, in seconds, for a reader that cannot wait that long.
    size
        Bytes of the file according to its catalogue; 0 if unknown.
    proxy
        File with the X.509 proxy certificate that is sent to the server.
    token, token_file
        The token that is sent to the server, and the file that holds it, if there is one.
    folders
        Folders below which local files may be read.
    network
        Servers that may be connected to.
    redirected
        Returns the access for a URL that an XRootD server redirects to. Without it, that server
        gets no credentials.
    """

    opening: float = 20.0
    silence: float = 30.0
    patience: float = math.inf
    size: int = 0
    proxy: Path | None = None
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    folders: tuple[Path, ...] = (Path("/"),)
    network: NetworkPolicy = ANYWHERE
    redirected: "Callable[[str], Access] | None" = None

    def check_server(self, place: Url) -> None:
        """Refuse a server that may not be connected to, before XrdCl connects.

        The host of a file behind a cache is resolved here first. XCache 5.5.3 with ``pss.permit``
        does not refuse a host that it cannot resolve: it opens the file that it opened before.

        Raises
        ------
        ForbiddenHostError, UnreachableError
            `NetworkPolicy.check_url` refuses the server, or the host of a file behind a cache
            cannot be resolved.
        """
        for host in place.hosts[1:]:
            resolve(host)
        self.network.check_url(str(place))

    def at_redirect(self, url: str) -> "Access":
        """Return the access for a URL that a server redirects to."""
        return self.anonymous() if self.redirected is None else self.redirected(url)

    def anonymous(self) -> "Access":
        """Return the same access without credentials."""
        return Access(
            opening=self.opening,
            silence=self.silence,
            patience=self.patience,
            size=self.size,
            folders=self.folders,
            network=self.network,
        )


PLAIN = Access()


def checked_url(url: str) -> Url:
    """Return the parts of a URL, if it is safe to pass to the reading libraries.

    Raises
    ------
    MissingError
        The URL is not valid; the message says why.
    """
    try:
        return parse(url)
    except UrlError as error:
        raise MissingError(f"{url} {error}", hint=error.hint) from None
