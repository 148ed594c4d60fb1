"""Protection against DNS rebinding: the allowed ``Host`` names of a service without sign-in.

Without sign-in, every client that reaches the service may do everything, and browsers of its users
reach it. The owner of another site can make that site's name point to this machine (DNS rebinding).
A browser then takes a page of that site for one of the service, so the page could do everything
too. But the browser sends the name of the site in ``Host``, and a page cannot change that. An IP
address cannot be rebound, so addresses are always allowed.

The check applies to every path. Results would not need it, because they need a key, but a rule
without exceptions is easier to maintain. With sign-in the check is not needed: a browser sends a
cookie only to the host that has set it.
"""

import socket
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from servicex_server.settings.service import Settings


def own_names(settings: Settings) -> frozenset[str]:
    """Return the names of this machine and of the settings ``host`` and ``public_url``."""
    public = urlsplit(settings.public_url or "").hostname or ""
    names = [settings.host, public, socket.gethostname()]
    if settings.allow_anonymous:  # other machines use the full name; this lookup can be slow
        names.append(socket.getfqdn())
    return frozenset(name.lower().rstrip(".") for name in names) - {""}


def host_check(settings: Settings) -> Callable[[str], str]:
    """Return a function that maps a ``Host`` header to a refusal message.

    The message is an empty string if the host is allowed.
    """
    if settings.sign_in:
        return lambda _: ""
    names = own_names(settings)
    return lambda host: "" if is_ours(host, names) else _why(host)


def is_ours(host: str, names: frozenset[str]) -> bool:
    """Whether a ``Host`` is an IP address, a name of localhost, or one of the given names.

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
    if not host:  # every browser sends the header
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
        f"the host {host[:100]!r} is not allowed, because sign-in is disabled: use an IP address, "
        "localhost or the hostname of the machine (or ask the operator to set public_url)"
    )
