"""Which connections are those of a trusted proxy."""

from ipaddress import ip_network

import pytest

from servicex_server.web.connections import Connections


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("192.0.3.7", False),
        ("2001:db8:1:2::9", True),
        ("2001:db8:1:3::9", False),
        ("", False),
        ("unknown", False),
    ],
)
def test_proxy_is_known_by_its_address(host: str, *, expected: bool) -> None:
    """Its IPv6 address is not taken for the network by which clients are counted."""
    proxies = (ip_network("192.0.2.0/24"), ip_network("2001:db8:1:2::/64"))
    assert Connections(100, proxies).is_proxy(host) == expected
