"""Every library reads the same host in a URL that the service accepts, whatever its characters."""

import re
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from servicex_server.network.urls import (
    ALLOWED_FIELDS,
    XROOTD,
    UrlError,
    parse,
    parse_redirect,
    scheme_of,
)

XrdUrl = pytest.importorskip("XRootD.client.url").URL

PARTS = (
    "root://", "ROOT://", "roots:/", "http://", "https://", "file://", "good.org", "bad.org",
    "[::1]", "127.0.0.1", ":", "1094", "@", "/", "//", "?", "&", "=", ";", "#", "\\", "%40", "%2F",
    "xrd.ztn=/etc/shadow", "XRD.ztn", "xrd%2eztn", "xrdcl.intent", "authz=a", "tried=b", " ", ".",
    "user", "\u00fc", "\uff0f", "\u2100", "-", "_",
)  # fmt: skip

URLS = st.builds(
    lambda scheme, rest: scheme + "".join(rest),
    st.sampled_from(["root://", "ROOTS://", "https://", "root://cache.org//root://"]),
    st.lists(st.sampled_from(PARTS), max_size=8),
)


def accepted(read: Callable[[str], object], url: str) -> str | None:
    """Return the URL that a library would get, or None if the service refuses it."""
    try:
        return str(read(url))
    except UrlError:
        return None


@settings(max_examples=200, deadline=None)
@given(URLS)
@example("root://good.org?@bad.org//x")
@example("root://good.org#@bad.org//x")
@example("https://good.org\\@bad.org/x")
@example("root://good.org:1@bad.org//x")
def test_accepted_url_has_one_host_for_every_library(url: str) -> None:
    for read in (parse, parse_redirect):
        if (given_to := accepted(read, url)) is None:
            continue
        host = read(url).host
        assert urlsplit(given_to).hostname == host
        assert read(given_to) == read(url)
        if scheme_of(given_to) in XROOTD:
            theirs = XrdUrl(given_to)
            assert theirs.hostname.strip("[]") == host
            assert (theirs.username, theirs.password) == ("", "")
            fields = re.split("[?&]", theirs.path_with_params)[1:]
            names = [one.partition("=")[0] for one in fields]
            assert not [name for name in names if name.lower().startswith(("xrd.", "xrdcl."))]
            assert read is parse_redirect or set(names) <= set(ALLOWED_FIELDS)
        else:
            assert httpx.URL(given_to).host == host
