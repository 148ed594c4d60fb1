"""Reads files by HTTP; redirects to another server do not receive credentials."""

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

from servicex_server.columnar.reading.access import Access, checked_url
from servicex_server.errors import UnreachableError
from servicex_server.network.urls import HTTP, Url, UrlError, parse

if TYPE_CHECKING:
    import httpx

MOST_REDIRECTS = 20


class HttpReader:
    """Gets a file from its server, or from the server that it redirects to.

    Credentials are sent to the server of the URL only. Another host, port or scheme gets none, and
    neither does the first server once a redirect has led away from it.

    Parameters
    ----------
    url
        The file.
    access
        How the file is read; credentials are used over ``https`` only.
    """

    def __init__(self, url: str, access: Access) -> None:
        self._place = checked_url(url)
        self._access = access
        secure = self._place.scheme == "https"
        self._own = http_client(access if secure else access.anonymous())
        self._plain: httpx.Client | None = None

    @contextmanager
    def get(self, headers: Mapping[str, str] | None = None) -> "Iterator[httpx.Response]":
        """Send a request and yield the response; its content is not read yet.

        Raises
        ------
        ReplicaError
            A redirect leads to a URL that may not be opened.
        httpx.HTTPError
            The server does not answer, or refuses.
        """
        at, client = self._place, self._own
        for _ in range(MOST_REDIRECTS):
            with client.stream("GET", str(at), headers=headers) as reply:
                if not reply.has_redirect_location:
                    reply.raise_for_status()
                    yield reply
                    return
                at = _target(at, reply)
            if at.origin != self._place.origin:
                client = self._anonymous()
        raise UnreachableError(f"{self._place} redirects more than {MOST_REDIRECTS} times")

    def _anonymous(self) -> "httpx.Client":
        if self._plain is None:
            self._plain = http_client(self._access.anonymous())
        return self._plain

    @property
    def is_closed(self) -> bool:
        """Whether the reader was closed."""
        return bool(self._own.is_closed)

    def close(self) -> None:
        """Close all connections."""
        self._own.close()
        if self._plain is not None:
            self._plain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _target(at: Url, reply: "httpx.Response") -> Url:
    """Return the URL that a response redirects to.

    Raises
    ------
    UnreachableError
        The URL may not be followed.
    """
    import httpx

    location = reply.headers["Location"]
    try:
        return parse(str(reply.request.url.join(location)), schemes=HTTP)
    except (UrlError, httpx.InvalidURL) as error:
        shown = location.partition("?")[0][:200]
        raise UnreachableError(
            f"{at.server} redirects to {shown!r}, which is not followed: it {error}"
        ) from None


def http_client(access: Access) -> "httpx.Client":
    """Return a client that sends the credentials to every server; it does not follow redirects."""
    import httpx

    headers = {"Accept-Encoding": "identity"}
    if access.token:
        headers["Authorization"] = f"Bearer {access.token}"
    changed = access.proxy.stat().st_mtime_ns if access.proxy else 0
    context = _trust(access.proxy, changed)
    transport = None
    if access.network.restricts:
        from servicex_server.columnar.reading.http_transport import CheckedTransport

        transport = CheckedTransport(access.network, context)
    return httpx.Client(
        headers=headers,
        timeout=httpx.Timeout(
            min(access.silence, access.patience), connect=min(access.opening, access.patience)
        ),
        follow_redirects=False,
        verify=context,
        transport=transport,
    )


@lru_cache(maxsize=8)
def _trust(proxy: Path | None, changed: int) -> ssl.SSLContext:
    """Return a TLS context: Python's and the grid's certificate authorities, and our proxy."""
    del changed  # part of the cache key: a renewed proxy is read again
    context = ssl.create_default_context()
    folder = Path(os.environ.get("X509_CERT_DIR", "/etc/grid-security/certificates"))
    if folder.is_dir():
        context.load_verify_locations(capath=folder)
    if proxy is not None:
        context.load_cert_chain(proxy)
    return context
