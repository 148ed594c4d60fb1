"""Protection against cross-site request forgery (CSRF), without a token.

A browser says where a state-changing request comes from: in ``Sec-Fetch-Site``, or in ``Origin`` if
the service has no TLS. A page cannot forge either header. So no CSRF token has to be stored and
signed, and a form works for as long as its page is open. Programs other than browsers send neither
header, and a page cannot make them send a request.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""HTTP methods that do not change state."""


def is_cross_origin(method: str, headers: Mapping[str, str], public_url: str | None = None) -> bool:
    """Whether a page of another origin sent a state-changing request.

    Parameters
    ----------
    method
        HTTP method of the request.
    headers
        Headers of the request, by lower-case names.
    public_url
        URL of the service for its users, if it is behind a proxy.

    Examples
    --------
    >>> is_cross_origin("POST", {"sec-fetch-site": "same-site"})
    True
    >>> is_cross_origin("POST", {"origin": "http://x.org", "host": "x.org"})
    False
    >>> is_cross_origin("POST", {"origin": "null", "host": "x.org"})
    True
    >>> is_cross_origin("POST", {"host": "x.org"})
    False
    """
    if method in SAFE:
        return False
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return False
    ours = {headers.get("host", ""), urlsplit(public_url).netloc if public_url else ""} - {""}
    try:
        return urlsplit(origin).netloc not in ours
    except ValueError:
        return True
