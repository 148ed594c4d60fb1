"""Attempts are counted by kind and address, for a minute, and in a memory that does not grow."""

import pytest
from starlette.requests import Request

from servicex_server.errors import TooManyError
from servicex_server.web.attempts import A_MINUTE, ADDRESSES, Attempts

pytestmark = pytest.mark.anyio


def call(host: str | None) -> Request:
    """Return a call from an address."""
    return Request({"type": "http", "client": None if host is None else (host, 1)})


async def use_up(attempts: Attempts, host: str | None, kind: str = "sign-ups") -> None:
    """Make as many attempts as there may be."""
    for _ in range(A_MINUTE):
        await attempts.check(call(host), kind)
        await attempts.allow(call(host), kind)


async def test_one_too_many_is_refused_until_the_minute_is_over() -> None:
    """It is said what of, where from, and for how long; the next minute begins anew."""
    attempts = Attempts()
    await use_up(attempts, "192.0.2.7")
    for refuse in (attempts.allow, attempts.check):
        with pytest.raises(TooManyError, match=r"30 sign-ups in a minute.*192\.0\.2\.7") as error:
            await refuse(call("192.0.2.7"), "sign-ups")
        assert error.value.seconds is not None
        assert 58 <= error.value.seconds <= 60
        assert error.value.hint == f"try again in {error.value.seconds} s"
    await attempts.allow(call("192.0.2.8"), "sign-ups")
    await attempts.allow(call("192.0.2.7"), "device codes")
    ends = attempts._counts.expirations
    ends |= {key: end - 60 for key, end in ends.items()}
    await use_up(attempts, "192.0.2.7")


async def test_to_check_counts_nothing() -> None:
    """However often it is done."""
    attempts = Attempts()
    for _ in range(3 * A_MINUTE):
        await attempts.check(call("192.0.2.7"), "sign-ups")
    await use_up(attempts, "192.0.2.7")


@pytest.mark.parametrize(
    ("one", "same", "another"),
    [
        ("192.0.2.7", "::ffff:192.0.2.7", "192.0.2.8"),
        ("2001:db8:1:2::1", "2001:0db8:1:2:ffff::", "2001:db8:1:3::1"),
        ("fe80::1", "fe80::2%eth0", "::1"),
        ("unknown", None, "0.0.0.0"),
    ],
)
async def test_who_counts_as_one(one: str, same: str | None, another: str) -> None:
    """Addresses that one client has at will, and all that are none."""
    attempts = Attempts()
    await use_up(attempts, one)
    with pytest.raises(TooManyError):
        await attempts.allow(call(same), "sign-ups")
    await use_up(attempts, another)


async def test_memory_has_an_end() -> None:
    """Also if every attempt is from another network; and who has one address is still counted."""
    attempts = Attempts()
    most = 0
    for number in range(2 * ADDRESSES + 10):
        await attempts.allow(call(f"2001:db8:{number:x}::1"), "sign-ups")
        most = max(most, len(attempts._counts.storage))
    assert most == ADDRESSES
    counts = attempts._counts
    assert len(counts.locks) + len(counts.expirations) <= 2 * ADDRESSES
    await use_up(attempts, "192.0.2.7")
    with pytest.raises(TooManyError):
        await attempts.allow(call("192.0.2.7"), "sign-ups")
