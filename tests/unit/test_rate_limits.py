"""The rate limiter counts attempts by kind and address, for a minute, and in bounded memory."""

import pytest
from starlette.requests import Request

from servicex_server.errors import TooManyError
from servicex_server.web import rate_limits
from servicex_server.web.rate_limits import A_MINUTE, ADDRESSES, RateLimiter

pytestmark = pytest.mark.anyio


def call(host: str | None) -> Request:
    """Return a request from an address."""
    return Request({"type": "http", "client": None if host is None else (host, 1)})


async def use_up(limiter: RateLimiter, host: str | None, kind: str = "sign-ups") -> None:
    """Make as many attempts as the limit allows."""
    for _ in range(A_MINUTE):
        await limiter.hit(call(host), kind)


async def test_attempt_over_the_limit_is_refused_until_the_minute_ends() -> None:
    """The error names the kind, the address and the time to wait; the next minute begins anew."""
    limiter = RateLimiter()
    await use_up(limiter, "192.0.2.7")
    with pytest.raises(TooManyError, match=r"30 sign-ups in a minute.*192\.0\.2\.7") as error:
        await limiter.hit(call("192.0.2.7"), "sign-ups")
    assert error.value.seconds is not None
    assert 58 <= error.value.seconds <= 60
    assert error.value.hint == f"try again in {error.value.seconds} s"
    await limiter.hit(call("192.0.2.8"), "sign-ups")
    await limiter.hit(call("192.0.2.7"), "device codes")
    ends = limiter._counts.expirations
    ends |= {key: end - 60 for key, end in ends.items()}
    await use_up(limiter, "192.0.2.7")


async def test_known_user_is_counted_by_name() -> None:
    """Other users at the same address have attempts of their own."""
    limiter = RateLimiter()
    for _ in range(A_MINUTE):
        await limiter.hit(call("192.0.2.7"), "sign-ups", user="ann@example.org")
    with pytest.raises(TooManyError, match=r"one user, here ann@example\.org"):
        await limiter.hit(call("192.0.2.8"), "sign-ups", user="ann@example.org")
    await limiter.hit(call("192.0.2.7"), "sign-ups", user="bob@example.org")
    await use_up(limiter, "192.0.2.7")


@pytest.mark.parametrize(
    ("one", "same", "another"),
    [
        ("192.0.2.7", "::ffff:192.0.2.7", "192.0.2.8"),
        ("2001:db8:1:2::1", "2001:0db8:1:2:ffff::", "2001:db8:1:3::1"),
        ("fe80::1", "fe80::2%eth0", "::1"),
        ("unknown", None, "0.0.0.0"),
    ],
)
async def test_addresses_of_one_client_share_a_limit(
    one: str, same: str | None, another: str
) -> None:
    """A client may use all of its network; texts that are not addresses count as one client."""
    limiter = RateLimiter()
    await use_up(limiter, one)
    with pytest.raises(TooManyError):
        await limiter.hit(call(same), "sign-ups")
    await use_up(limiter, another)


async def test_memory_is_bounded() -> None:
    """Every attempt comes from another network; a client with one address is still counted."""
    limiter = RateLimiter()
    most = 0
    for number in range(2 * ADDRESSES + 10):
        await limiter.hit(call(f"2001:db8:{number:x}::1"), "sign-ups")
        most = max(most, len(limiter._counts.storage))
    assert most == ADDRESSES
    counts = limiter._counts
    assert len(counts.locks) + len(counts.expirations) <= 2 * ADDRESSES
    await use_up(limiter, "192.0.2.7")
    with pytest.raises(TooManyError):
        await limiter.hit(call("192.0.2.7"), "sign-ups")


async def test_many_addresses_do_not_lift_the_limit_of_another() -> None:
    """A client with a large IPv6 network cannot make the service forget the limit of another."""
    limiter = RateLimiter()
    await use_up(limiter, "192.0.2.7")
    for number in range(2 * ADDRESSES + 10):
        await limiter.hit(call(f"2001:db8:{number:x}::1"), "sign-ups")
    with pytest.raises(TooManyError):
        await limiter.hit(call("192.0.2.7"), "sign-ups")


async def test_memory_is_bounded_if_all_addresses_are_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limiter then forgets the oldest half."""
    monkeypatch.setattr(rate_limits, "ADDRESSES", 20)
    limiter = RateLimiter()
    for number in range(30):
        await use_up(limiter, f"192.0.2.{number}")
        assert len(limiter._counts.storage) <= 20
    with pytest.raises(TooManyError):
        await limiter.hit(call("192.0.2.29"), "sign-ups")
