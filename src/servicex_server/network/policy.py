"""The network policy: which servers may be connected to, by the addresses of their names.

Anyone can point a host name at ``127.0.0.1``, and at another address a moment later. So a caller
resolves a name once, checks every address, and connects to a checked address.
"""

import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TypeAlias
from urllib.parse import urlsplit

from servicex_server.errors import ForbiddenHostError, UnreachableError

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

_EVERYTHING = "*"


@dataclass(frozen=True, slots=True)
class _Networks:
    """Networks as their first bits, by version: a file list may name 100,000 addresses."""

    prefixes: Mapping[int, tuple[tuple[int, frozenset[int]], ...]]

    @classmethod
    def of(cls, *networks: Network) -> "_Networks":
        found: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for one in networks:
            shift = one.max_prefixlen - one.prefixlen
            first = int(one.network_address) >> shift
            found[one.version].setdefault(shift, set()).add(first)
        return cls(
            {
                version: tuple((shift, frozenset(firsts)) for shift, firsts in known.items())
                for version, known in found.items()
            }
        )

    def __contains__(self, address: Address) -> bool:
        value = int(address)
        return any(value >> shift in firsts for shift, firsts in self.prefixes[address.version])


_INTERNAL = _Networks.of(
    *map(
        ip_network,
        (
            "0.0.0.0/8",  # "this network": Linux connects 0.0.0.0 to loopback
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local; metadata of AWS, Azure, Google, OpenStack
            "100.100.100.200/32",  # metadata of Alibaba Cloud
            "168.63.129.16/32",  # the wire server of Azure
            "192.0.0.192/32",  # metadata of Oracle Cloud
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            "::/128",  # unspecified: as 0.0.0.0
            "::1/128",  # loopback
            "fe80::/10",  # link-local
            "ff00::/8",  # multicast
            "fd00:ec2::/32",  # metadata of AWS
            "fd20:ce::/32",  # metadata of Google Cloud
        ),
    )
)
"""Addresses of one machine or one link, and of the metadata services of clouds."""

_PRIVATE = _Networks.of(
    *map(
        ip_network,
        (
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared by the customers of a provider
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",  # for documentation, as are 198.51.100.0/24 and 203.0.113.0/24
            "192.168.0.0/16",
            "198.18.0.0/15",  # for benchmarks
            "198.51.100.0/24",
            "203.0.113.0/24",
            "64:ff9b:1::/48",  # local translation to IPv4
            "100::/64",  # discard
            "2001::/23",  # protocols of the IETF, Teredo among them
            "2001:db8::/32",  # for documentation, as is 3fff::/20
            "3fff::/20",
            "5f00::/16",  # segment routing
            "fc00::/7",
            "fec0::/10",  # site-local, deprecated
        ),
    )
)
"""The other addresses that are not globally reachable (IANA special-purpose registries)."""

_COMPATIBLE = _Networks.of(ip_network("::/96"))
"""IPv4-compatible addresses (RFC 4291): deprecated, and how XRootD still writes IPv4 addresses."""

_TRANSLATED = _Networks.of(*map(ip_network, ("64:ff9b::/96", "64:ff9b:1::/48")))
"""NAT64 (RFC 6052, RFC 8215): the last 32 bits are an IPv4 address."""

_ISATAP = (0x00005EFE, 0x02005EFE)
"""The bits before an IPv4 address in an ISATAP interface identifier (RFC 5214)."""


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """The servers that may be connected to; plain data that workers get with each task.

    The first matching rule decides: a server in ``forbidden`` is refused, a server in ``allowed``
    is allowed, and with ``public_only`` any other address that is not globally reachable is
    refused.

    Parameters
    ----------
    allowed, forbidden
        Host names, patterns such as ``*.cern.ch``, addresses and networks such as ``10.0.0.0/8``.
        A pattern in ``allowed`` does not cover loopback, link-local and metadata addresses, as many
        domains have a ``localhost.example.org``. ``*`` in ``forbidden`` is every server that is not
        in ``allowed``.
    public_only
        Whether other servers need a globally reachable address.
    """

    allowed: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    public_only: bool = False

    @property
    def restricts(self) -> bool:
        """Whether the policy refuses any server."""
        return self.public_only or bool(self.forbidden)

    def addresses(self, host: str, port: int | None = None) -> tuple[str, ...]:
        """Resolve and check a host; return its addresses in the order in which to connect.

        Raises
        ------
        ForbiddenHostError
            One of the addresses may not be connected to.
        UnreachableError
            The name is not known.
        """
        found = resolve(host, port)
        for address in found:
            self.check(host, address)
        return found

    def check(self, host: str, address: str) -> None:
        """Check an address of a host.

        Raises
        ------
        ForbiddenHostError
            The address may not be connected to; names the host, the address and the setting.
        """
        for reached in _reached(ip_address(address)):
            if setting := self._refusing(_normalized(host), reached):
                shown = host if host == address else f"{host} ({address})"
                raise _refusal(shown, setting)

    def check_url(self, url: str) -> None:
        """Resolve and check the hosts of a URL: its own, and that of a URL in its path.

        An XRootD proxy forwards to the URL in the path. This check is for readers that resolve
        names by themselves.

        Raises
        ------
        ForbiddenHostError, UnreachableError
            As in `addresses`.
        """
        if self.restricts:
            for host in hosts_of(url):
                self.addresses(host)

    def check_literal(self, host: str) -> None:
        """Check a host without resolving its name.

        Raises
        ------
        ForbiddenHostError
            The host is a forbidden name, or an address that may not be connected to.
        """
        name = _normalized(host)
        if addresses := _literal(name):
            for address in addresses:
                self.check(host, address)
        elif self._forbids(name):
            raise _refusal(host, "reading.forbidden_hosts")

    def _refusing(self, name: str, address: Address) -> str:
        """Return the setting that refuses an address; empty if the address is allowed."""
        if self._forbids(name) or address in _split(self.forbidden)[1]:
            return "reading.forbidden_hosts"
        patterns, networks = _split(self.allowed)
        if address in networks or name in self.allowed:
            return ""
        if _fits(name, patterns) and address not in _INTERNAL:
            return ""
        if _EVERYTHING in self.forbidden:
            return "reading.allowed_hosts"
        public = address not in _INTERNAL and address not in _PRIVATE
        return "reading.allowed_hosts" if self.public_only and not public else ""

    def _forbids(self, name: str) -> bool:
        patterns, _ = _split(self.forbidden)
        return _fits(name, (one for one in patterns if one != _EVERYTHING))


ANYWHERE = NetworkPolicy()
"""The policy that allows every server."""


def resolve(host: str, port: int | None = None) -> tuple[str, ...]:
    """Return the addresses of a host in the order of the system's resolver.

    Raises
    ------
    UnreachableError
        The name is not known.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # UnicodeError: an invalid label
        why = getattr(error, "strerror", None) or "it is not a host name"
        raise UnreachableError(f"{host} cannot be resolved: {why}") from None
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


_URL = re.compile(r"[a-z][a-z0-9+.-]*://([^/]*)/*(.*)", re.IGNORECASE | re.DOTALL)

_DEEPEST = 4
"""Levels of nested URLs that are read: a proxy, the server that it forwards to, and two more."""


def hosts_of(url: str) -> Iterator[str]:
    """Yield the host of a URL, and the hosts of the URLs that are nested in its path.

    Readers differ: for XrdCl only a slash ends the part with the host, and neither ``?`` nor ``#``.
    If that makes a difference, both hosts are yielded.

    Examples
    --------
    >>> list(hosts_of("root://cache.org:1094//root://eos.cern.ch//eos/x.root"))
    ['cache.org', 'eos.cern.ch']
    >>> list(hosts_of("root://good.org#@127.0.0.1//x.root"))
    ['good.org', '127.0.0.1']
    >>> list(hosts_of("/data/x.root"))
    []
    """
    for _ in range(_DEEPEST):
        if not (found := _URL.fullmatch(url)):
            return
        authority, url = found.groups()
        readings = re.split("[?#]", authority)[0], re.sub("[?#]", "", authority)
        yield from dict.fromkeys(filter(None, map(_host_of, readings)))


def _host_of(authority: str) -> str:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:  # not a URL, which its reader reports
        return ""


def check_entry(entry: str) -> str:
    """Return the normal form of an entry of a list of hosts.

    Raises
    ------
    ValueError
        The entry is not a host name, a pattern, an address or a network.
    """
    name = entry.strip().lower().rstrip(".")
    if re.fullmatch(r"[0-9a-f:.]*[:/][0-9a-f:./]*|[0-9.]+", name):
        return str(ip_network(name))
    if not re.fullmatch(r"[a-z0-9*?_.-]+", name):
        raise ValueError(f"{entry!r} is neither a host name, a pattern, nor a network")
    return name


def _refusal(shown: str, setting: str) -> ForbiddenHostError:
    why = "lists it" if setting == "reading.forbidden_hosts" else "does not list it"
    return ForbiddenHostError(
        f"this service may not connect to {shown}", hint=f"its setting {setting} {why}"
    )


def _normalized(host: str) -> str:
    if not host.isascii():
        with suppress(UnicodeError):
            host = host.encode("idna").decode("ascii")
    return host.lower().rstrip(".")


def _literal(name: str) -> tuple[str, ...]:
    """Return the address that a host denotes in any notation, as ``0x7f.1``; empty for a name."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, ValueError):
        return ()
    return tuple(str(address[0]) for *_, address in found)


def _reached(address: Address) -> Iterator[Address]:
    """Yield the addresses that a connection can reach: this one, and an IPv4 address in it."""
    if isinstance(address, IPv4Address):
        yield address
        return
    if address.ipv4_mapped is not None:  # the system connects by IPv4
        yield address.ipv4_mapped
        return
    last = int(address) & 0xFFFFFFFF
    if address in _COMPATIBLE and last > 1:
        yield IPv4Address(last)
        return
    yield address
    if address.sixtofour is not None:
        yield address.sixtofour
    elif address.teredo is not None:
        yield from address.teredo
    elif address in _TRANSLATED or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        yield IPv4Address(last)


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@lru_cache(maxsize=16)
def _split(entries: tuple[str, ...]) -> tuple[tuple[str, ...], _Networks]:
    """Return the names and patterns of a list, and its networks."""
    names, networks = [], []
    for entry in entries:
        try:
            networks.append(ip_network(entry))
        except ValueError:
            names.append(entry)
    return tuple(names), _Networks.of(*networks)
