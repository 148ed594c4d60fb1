"""Strict parsing of file URLs, so that every library reads a URL in the same way.

XrdCl, httpx and `urllib.parse` parse an odd URL in different ways: for ``root://a?@b//x``, the host
is ``a`` for one library and ``b`` for another. So only URLs that all of them parse alike are
accepted, and libraries get a URL that is built from the checked parts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import unquote

XROOTD = ("root", "roots", "xroot", "xroots")
"""Schemes that XrdCl reads."""

HTTP = ("http", "https")

DEFAULT_PORTS = {**dict.fromkeys(XROOTD, 1094), "http": 80, "https": 443}

ALLOWED_FIELDS = ("authz", "eos.app", "scitag.flow", "svcClass")
"""Fields after the ``?`` of a ``root://`` URL that a user or a catalogue may set, for the server.
XrdCl reads fields of its own there, and some of them name files that XrdCl then sends."""

_CLIENT_FIELDS = ("xrd.", "xrdcl.", "xrootd.")
"""Prefixes of fields that configure XrdCl (XrdClURL.cc, XrdClXRootDTransport.cc)."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][A-Za-z0-9._-]*)(?::([0-9]{1,5}))?")
_NESTED = re.compile(r"/*([A-Za-z][A-Za-z0-9+.-]*):/+(.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_VALUE = re.compile(r"[A-Za-z0-9._~%:/+,=@|-]*")
_SLASHES = re.compile(r"^//+")
_UNQUOTED = re.compile(r"[\s\"<>]")
_ENCODE = "write other characters as %20 and the like"
_MOST_NESTED = 2
_HIGHEST_PORT = 65535


class UrlError(ValueError):
    """A URL cannot be read safely; ``hint`` says how to write it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Url:
    """The checked parts of a remote URL; ``str()`` joins them.

    ``path`` begins with the slash after the host, and ``query`` follows the ``?``. ``through`` is
    the URL in the path, for a URL that reads through a cache.
    """

    scheme: str
    host: str
    port: int | None
    path: str
    query: str = ""
    through: "Url | None" = None

    @property
    def authority(self) -> str:
        """The host, and the port if there is one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def server(self) -> str:
        """The URL without its path."""
        return f"{self.scheme}://{self.authority}"

    @property
    def is_relative(self) -> bool:
        """Whether XRootD servers read the path as relative: one slash follows the host."""
        if self.through is not None:
            return self.through.is_relative
        return self.scheme in XROOTD and not self.path.startswith("//")

    @property
    def hosts(self) -> tuple[str, ...]:
        """The host, and the hosts that are read through it."""
        return (self.host, *(self.through.hosts if self.through else ()))

    @property
    def origin(self) -> tuple[str, str, int | None]:
        """Scheme, host and port, by which credentials are chosen."""
        return self.scheme, self.host, self.port or DEFAULT_PORTS.get(self.scheme)

    def __str__(self) -> str:
        """Return the URL as libraries get it."""
        return f"{self.server}{self.path}" + (f"?{self.query}" if self.query else "")


def scheme_of(url: str) -> str:
    """Return the scheme of a URL in lower case; empty for a path.

    Examples
    --------
    >>> scheme_of("ROOT://eos.cern.ch//x"), scheme_of("/data/a://b.root")
    ('root', '')
    """
    found = _SCHEME.fullmatch(url)
    return found[1].lower() if found else ""


def local_path(url: str) -> str:
    """Return the path that a path or a ``file://`` URL names; it begins with one slash.

    Raises
    ------
    UrlError
        The URL names another machine, or has a query or a fragment.

    Examples
    --------
    >>> local_path("file:///data/a%20b.root"), local_path("/data/a%20b.root")
    ('/data/a b.root', '/data/a%20b.root')
    """
    found = _SCHEME.fullmatch(url)
    path = url
    if found is not None:
        host, slash, rest = found[2].partition("/")
        if host.lower() not in ("", "localhost"):
            raise UrlError("names a file on another machine", hint="write file:///path")
        if "?" in rest or "#" in rest:
            raise UrlError("has a query", hint="write ? as %3F and # as %23")
        path = unquote(f"{slash}{rest}")
    path = _SLASHES.sub("/", path)
    if _CONTROL.search(path):
        raise UrlError("holds a control character")
    return path


def parse(url: str, *, schemes: Sequence[str] = XROOTD + HTTP) -> Url:
    """Parse a remote URL of a user, a catalogue or a listing.

    Raises
    ------
    UrlError
        The scheme is not allowed, the form is not ``scheme://host[:port]/path[?query]``, or a field
        is not allowed.

    Examples
    --------
    >>> str(parse("ROOT://EOS.cern.ch:1095//eos/x.root?authz=abc&&svcClass=t"))
    'root://eos.cern.ch:1095//eos/x.root?authz=abc&svcClass=t'
    >>> parse("root://eos.cern.ch//x?xrd.ztn=/etc/shadow")
    Traceback (most recent call last):
    servicex_server.network.urls.UrlError: has the field xrd.ztn, which is not allowed
    """
    return _parse(url, schemes, of_server=False)


def parse_redirect(url: str) -> Url:
    """Parse a URL to which an XRootD server redirects.

    A server may set any field for the next server; fields that configure XrdCl are dropped.

    Raises
    ------
    UrlError
        The scheme is not one of XRootD, or the form is not ``scheme://host[:port]/path[?query]``.

    Examples
    --------
    >>> str(parse_redirect("root://fst.cern.ch:1095//x?cap.sym=1&xrd.ztn=/etc/shadow"))
    'root://fst.cern.ch:1095//x?cap.sym=1'
    """
    return _parse(url, XROOTD, of_server=True)


def _parse(url: str, schemes: Sequence[str], *, of_server: bool, depth: int = 0) -> Url:
    if _CONTROL.search(url):
        raise UrlError("holds a control character")
    found = _SCHEME.fullmatch(url)
    scheme = found[1].lower() if found else ""
    if found is None or scheme not in schemes:
        raise UrlError("has a scheme that is not read here", hint=f"use one of {_names(schemes)}")
    end = re.search(r"[/?#]|\Z", found[2])
    cut = end.start() if end else len(found[2])
    host, port = _authority(found[2][:cut])
    rest = found[2][cut:]
    if rest and not rest.startswith("/"):
        slashes = "/" if scheme in HTTP else "//"
        hint = f"write {scheme}://{host}{slashes}path"
        raise UrlError("has no path behind its host", hint=hint)
    if scheme in HTTP:
        path, _, query = rest.partition("#")[0].partition("?")
        if query and _UNQUOTED.search(rest):
            raise UrlError("has a query and a blank or a quotation mark", hint=_ENCODE)
        return Url(scheme, host, port, path, query)
    path, _, query = rest.partition("?")
    fields = _fields(query, of_server=of_server)
    through = _through(path, of_server=of_server, depth=depth)
    if through is not None:
        path = f"//{through}"
    return Url(scheme, host, port, path, fields, through)


def _authority(text: str) -> tuple[str, int | None]:
    if "@" in text:
        raise UrlError("names a user", hint="leave out what is before the @")
    found = _AUTHORITY.fullmatch(text)
    if not text or text.startswith(":"):
        raise UrlError("names no host")
    if found is None or (found[2] and int(found[2]) not in range(1, _HIGHEST_PORT + 1)):
        raise UrlError("has something else where a host and a port belong", hint="as in host:1094")
    host = found[1].lower()
    if host.startswith("["):
        try:
            host = _address(host[1:-1])
        except ValueError as error:
            raise UrlError(f"names no host: {error}") from None
    return host, int(found[2]) if found[2] else None


def _address(text: str) -> str:
    """Return an IPv6 address in its normal form, or the IPv4 address that XrdCl reads in it."""
    found = IPv6Address(text)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    if "." in text and int(found) >> 32 == 0:  # XRootD servers write IPv4 so
        return str(IPv4Address(int(found)))
    return str(found)


def _through(path: str, *, of_server: bool, depth: int) -> Url | None:
    """Return the URL in a path, which a cache reads; None if the path has none."""
    if (nested := _NESTED.fullmatch(path)) is None:
        return None
    if depth == _MOST_NESTED or nested[1].lower() not in XROOTD:
        raise UrlError(f"reads {nested[1]}:// through another server", hint="name the file itself")
    inner = f"{nested[1]}://{nested[2]}"
    return _parse(inner, XROOTD, of_server=of_server, depth=depth + 1)


def _fields(query: str, *, of_server: bool) -> str:
    """Return the allowed fields of a ``root://`` URL.

    Raises
    ------
    UrlError
        A field is not allowed, or there is a second ``?``, after which XrdCl reads a login token.
    """
    query, more, _ = query.partition("?")
    if more and not of_server:
        raise UrlError("has two question marks", hint="write one ? and & between the fields")
    kept = []
    for one in filter(None, query.split("&")):
        name, _, value = one.partition("=")
        if of_server:
            if not name.lower().startswith(_CLIENT_FIELDS):
                kept.append(one)
        elif name not in ALLOWED_FIELDS:
            allowed = ", ".join(ALLOWED_FIELDS)
            raise UrlError(
                f"has the field {name[:100]}, which is not allowed", hint=f"allowed: {allowed}"
            )
        elif not _VALUE.fullmatch(value):
            raise UrlError(f"has a value of {name} that is not understood", hint=_ENCODE)
        else:
            kept.append(one)
    return "&".join(kept)


def _names(schemes: Sequence[str]) -> str:
    return ", ".join(f"{one}://" for one in schemes)
