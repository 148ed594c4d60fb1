"""The service recognizes the connections of a trusted proxy."""

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
def test_proxy_is_recognized_by_its_address(host: str, *, expected: bool) -> None:
    """The service compares the IPv6 address itself, not the network by which it counts clients."""
    proxies = (ip_network("192.0.2.0/24"), ip_network("2001:db8:1:2::/64"))
    assert Connections(100, proxies).is_proxy(host) == expected
