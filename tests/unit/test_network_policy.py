"""The network policy decides by the resolved address of a server."""

import pickle
import socket

import pytest

from servicex_server.errors import ForbiddenHostError, UnreachableError
from servicex_server.network.policy import ANYWHERE, NetworkPolicy, check_entry, hosts_of

PUBLIC = NetworkPolicy(public_only=True)

LOOPBACK = (
    "127.0.0.1",
    "127.1",
    "0x7f.1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "127.0.0.1.",
    "0",
    "0.0.0.0",  # an address of this machine
    "::1",
    "0:0:0:0:0:0:0:1",
    "::",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::127.0.0.1",
    "2002:7f00:1::",
    "fe80::1%1",
    "\uff11\uff12\uff17.0.0.1",
    "127\u30020\u30020\u30021",
)

OTHERS = (
    "10.1.2.3",
    "172.31.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "2852039166",
    "::ffff:169.254.169.254",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "fe80::a9fe:a9fe",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fd12::1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "255.255.255.255",
    "ff02::1",
    "2a00::5efe:7f00:1",
    "2a00::200:5efe:a00:1",
)


@pytest.mark.parametrize("host", [*LOOPBACK, *OTHERS])
def test_policy_refuses_every_notation_of_an_address_that_is_not_public(host: str) -> None:
    with pytest.raises(ForbiddenHostError) as caught:
        PUBLIC.check_literal(host)
    assert host in caught.value.message
    assert caught.value.hint == "its setting reading.allowed_hosts does not list it"
    with pytest.raises((ForbiddenHostError, UnreachableError)):
        PUBLIC.addresses(host)


@pytest.mark.parametrize(
    "host", ["188.184.1.1", "2001:1458:201::1", "64:ff9b::bcb8:101", "2002:bcb8:101::1"]
)
def test_policy_allows_public_addresses(host: str) -> None:
    assert PUBLIC.addresses(host) == (host,)


def test_policy_decides_by_the_address_of_a_name() -> None:
    with pytest.raises(ForbiddenHostError, match=r"LOCALHOST \((127\.0\.0\.1|::1)\)"):
        PUBLIC.addresses("LOCALHOST")
    PUBLIC.check_literal("localhost")  # a name is judged where it is resolved


def test_policy_refuses_a_name_with_one_forbidden_address(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolves(monkeypatch, "188.184.1.1", "10.0.0.1")
    with pytest.raises(ForbiddenHostError, match=r"mixed\.example\.org \(10\.0\.0\.1\)"):
        PUBLIC.addresses("mixed.example.org")


def test_policy_without_rules_refuses_nothing() -> None:
    assert not ANYWHERE.restricts
    assert ANYWHERE.addresses("0x7f.1") == ("127.0.0.1",)
    ANYWHERE.check_literal("169.254.169.254")


def test_allowed_pattern_covers_private_addresses_and_not_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = NetworkPolicy(allowed=("*.example.org",), public_only=True)
    _resolves(monkeypatch, "10.0.0.1")
    assert policy.addresses("EOS.example.org.") == ("10.0.0.1",)
    for address in ("127.0.0.1", "169.254.169.254", "fd00:ec2::254"):
        _resolves(monkeypatch, address)
        with pytest.raises(ForbiddenHostError):
            policy.addresses("localhost.example.org")


def test_allowed_name_and_allowed_network_cover_every_address() -> None:
    for entry in ("localhost", "127.0.0.0/8"):
        policy = NetworkPolicy(allowed=(entry, "::1"), public_only=True)
        assert "127.0.0.1" in policy.addresses("localhost")


def test_allowed_star_covers_private_addresses_and_not_loopback() -> None:
    policy = NetworkPolicy(allowed=("*",), public_only=True)
    assert policy.addresses("10.0.0.1") == ("10.0.0.1",)
    with pytest.raises(ForbiddenHostError):
        policy.addresses("127.0.0.1")


def test_forbidden_hosts_take_precedence() -> None:
    policy = NetworkPolicy(allowed=("10.0.0.0/8", "a.org"), forbidden=("10.0.0.5/32", "*.org"))
    assert policy.addresses("10.0.0.4") == ("10.0.0.4",)
    for host in ("10.0.0.5", "::ffff:10.0.0.5", "A.org.", "b.org"):
        with pytest.raises(ForbiddenHostError) as caught:
            policy.check_literal(host)
        assert caught.value.hint == "its setting reading.forbidden_hosts lists it"


def test_forbidden_star_leaves_only_allowed_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = NetworkPolicy(allowed=("*.cern.ch", "188.184.0.0/15"), forbidden=("*",))
    _resolves(monkeypatch, "1.2.3.4")
    assert policy.addresses("eos.cern.ch") == ("1.2.3.4",)
    with pytest.raises(ForbiddenHostError, match=r"evil\.org \(1\.2\.3\.4\)"):
        policy.addresses("evil.org")
    _resolves(monkeypatch, "188.185.0.1")
    assert policy.addresses("any.org") == ("188.185.0.1",)


def test_ipv4_address_in_the_notation_of_xrootd_is_recognized() -> None:
    policy = NetworkPolicy(allowed=("10.0.0.0/8",), forbidden=("*",))
    assert policy.addresses("::10.0.0.5") == ("::10.0.0.5",)
    with pytest.raises(ForbiddenHostError):
        policy.addresses("::11.0.0.5")


def test_policy_checks_the_host_behind_an_xrootd_proxy() -> None:
    with pytest.raises(ForbiddenHostError, match=r"127\.0\.0\.1"):
        PUBLIC.check_url("root://188.184.1.1:1094//root://127.0.0.1:1094//x.root")


@pytest.mark.parametrize(
    "url",
    [
        "root://good.org#@127.0.0.1//x",
        "root://good.org?@127.0.0.1//x",
        "root://good.org\\@127.0.0.1//x",
        "root://good.org:1094?a=@127.0.0.1/x",
        "root://good.org%2f@127.0.0.1//x",
        "root://u:p@127.0.0.1:1094//x",
        "root://[::1]:1094//x",
        "ROOT://127.0.0.1//x",
        "root://127.0.0.1?x=//good.org",
        "root://good.org//root://127.0.0.1//x",
        "root://good.org//http://good.org#@127.0.0.1/x",
    ],
)
def test_hosts_of_a_url_include_the_host_that_xrdcl_connects_to(url: str) -> None:
    """The test asks XrdCl's own parser."""
    from XRootD.client.url import URL

    hosts = list(hosts_of(url))
    assert {"127.0.0.1", "::1"} & set(hosts)
    connected = URL(url).hostname.strip("[]")
    assert connected in hosts or connected == "127.0.0.1?x="


def test_hosts_of_nested_urls_are_found_in_linear_time() -> None:
    assert list(hosts_of("root://a/" * 1_000_000)) == ["a"] * 4
    assert list(hosts_of("root://" * 1_000_000)) == ["root"] * 4


@pytest.mark.parametrize("host", ["no..host", "x" * 64, "a\0b", "no-such-host.invalid"])
def test_unknown_name_is_unreachable(host: str) -> None:
    with pytest.raises(UnreachableError, match="cannot be resolved"):
        PUBLIC.addresses(host)


def test_policy_can_be_pickled() -> None:
    policy = NetworkPolicy(("10.0.0.0/8",), ("a.org",), public_only=True)
    assert pickle.loads(pickle.dumps(policy)) == policy  # of our own


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        (" *.CERN.ch. ", "*.cern.ch"),
        ("10.0.0.1", "10.0.0.1/32"),
        ("FD00::/8", "fd00::/8"),
        ("*", "*"),
    ],
)
def test_entries_are_normalized(entry: str, meant: str) -> None:
    assert check_entry(entry) == meant


@pytest.mark.parametrize(
    "entry", ["", "10.0.0.0/33", "10.0.0.1/8", "http://x", "a b", "1.2", "[::1]"]
)
def test_entry_that_can_match_nothing_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"not|neither|host bits"):
        check_entry(entry)


def _resolves(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def resolver(*given: object, **named: object) -> list[object]:
        del given, named
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
