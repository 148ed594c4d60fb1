"""Whether another site made a browser ask: such a request may read nothing, and change nothing.

Browsers say themselves where a request that changes something comes from, in ``Sec-Fetch-Site`` or,
where a service has no TLS, in ``Origin``; no page can make them say something else. So there is no
token to keep, to sign and to lose, and a form works as long as its page is open. Programs that are
no browsers send neither and cannot be made to ask by a page.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""


def of_another_site(method: str, headers: Mapping[str, str], public_url: str | None = None) -> bool:
    """Whether a page of another site is behind a request that would change something.

    Parameters
    ----------
    headers
        By lower-case names.
    public_url
        Where the service is for its users, if it is behind a proxy.

    Examples
    --------
    >>> of_another_site("POST", {"sec-fetch-site": "same-site"})
    True
    >>> of_another_site("POST", {"origin": "http://x.org", "host": "x.org"})
    False
    >>> of_another_site("POST", {"origin": "null", "host": "x.org"})
    True
    >>> of_another_site("POST", {"host": "x.org"})
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
