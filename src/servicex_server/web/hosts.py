"""By which names the service may be called where nobody signs in.

Then whoever reaches it may do everything, and the browsers of its users do reach it. A page of
another site whose name is made to point to this machine (DNS rebinding) is of the same origin as
the service, for a browser: it could read and do all. But its browser says the name of that site in
``Host``, and no page can make it say something else. Addresses are no names and cannot be made to
point elsewhere, so they are always good.

This holds for every path, those of results too: these want a key, but one rule without exceptions
is easier to keep than to remember why there is one. Where users sign in it is not needed: a cookie
is sent to the host only that has set it.
"""

import socket
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from servicex_server.settings import Settings


def own_names(settings: Settings) -> frozenset[str]:
    """Return the names of this machine, and those that the operator has given."""
    public = urlsplit(settings.public_url or "").hostname or ""
    names = [settings.host, public, socket.gethostname()]
    if settings.allow_anonymous:  # others reach it; and only then may asking DNS take its time
        names.append(socket.getfqdn())
    return frozenset(name.lower().rstrip(".") for name in names) - {""}


def judge(settings: Settings) -> Callable[[str], str]:
    """Return what says why a ``Host`` is refused; of one that is good it says nothing."""
    if settings.sign_in:
        return lambda _: ""
    names = own_names(settings)
    return lambda host: "" if is_ours(host, names) else _why(host)


def is_ours(host: str, names: frozenset[str]) -> bool:
    """Whether a ``Host`` is an address, a name that is always of this machine, or one of these.

    Examples
    --------
    >>> ours = frozenset({"physics.example.org"})
    >>> good = ("127.0.0.1:5000", "[::1]:5000", "LocalHost", "x.localhost:1", "Physics.example.org")
    >>> all(is_ours(host, ours) for host in good)
    True
    >>> bad = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[::1", "a@::1")
    >>> any(is_ours(host, ours) for host in bad)
    False
    """
    if not host:  # of no browser
        return True
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if "@" in host or "/" in host:
        return False
    if name in names or name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _why(host: str) -> str:
    return (
        f"the name {host[:100]!r} is none of this service, on which nobody signs in: use its "
        "address, localhost, or the name of its machine (or have the operator set public_url)"
    )
