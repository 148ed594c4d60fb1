"""How often something is tried from one address: so that nobody can guess, or ask without end."""

import math
import time
from ipaddress import IPv6Address, IPv6Network, ip_address

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from starlette.requests import Request

from servicex_server.errors import TooManyError

A_MINUTE = 30
"""Attempts of a kind that one address has in a minute."""

ADDRESSES = 10_000
"""Addresses that are kept in mind. Who has more of them is stopped by no limit of each."""

_LIMIT = RateLimitItemPerMinute(A_MINUTE)


class Attempts:
    """Counts attempts by kind and address for a minute, in the memory of this process.

    A route gets it as `TheAttempts`, and has each call counted, or only what went wrong::

        @router.post("/sign-up")
        async def sign_up(request: Request, attempts: TheAttempts) -> Response:
            await attempts.allow(request, "sign-ups")
            ...

    A kind is what it counts, in the plural, as a message says it.
    """

    def __init__(self) -> None:
        self._counts = MemoryStorage()
        self._limiter = FixedWindowRateLimiter(self._counts)

    async def allow(self, request: Request, kind: str) -> None:
        """Count an attempt.

        Raises
        ------
        TooManyError
            It is one too many; says when to try again.
        """
        if len(self._counts.storage) >= ADDRESSES:
            await self._counts.reset()
        address = address_of(request)
        if not await self._limiter.hit(_LIMIT, kind, address):
            await self._refuse(kind, address)

    async def check(self, request: Request, kind: str) -> None:
        """Refuse what `allow` would refuse, and count nothing.

        Raises
        ------
        TooManyError
            There were too many attempts before; says when to try again.
        """
        address = address_of(request)
        if not await self._limiter.test(_LIMIT, kind, address):
            await self._refuse(kind, address)

    async def _refuse(self, kind: str, address: str) -> None:
        ends, _ = await self._limiter.get_window_stats(_LIMIT, kind, address)
        seconds = max(1, math.ceil(ends - time.time()))
        error = TooManyError(
            f"{A_MINUTE} {kind} in a minute are as many as may come from one address, here "
            f"{address}",
            hint=f"try again in {seconds} s",
        )
        error.seconds = seconds
        raise error


def address_of(request: Request) -> str:
    """Return where a client is; of a proxy that is trusted, what that says."""
    return counted(request.client.host if request.client else "")


def counted(host: str) -> str:
    """Return the address that a host counts by: of IPv6 its network, of which one client has all.

    Examples
    --------
    >>> counted("192.0.2.7"), counted("::ffff:192.0.2.7")
    ('192.0.2.7', '192.0.2.7')
    >>> counted("2001:db8:1:2:3:4:5:6")
    '2001:db8:1:2::/64'
    >>> counted("unknown")
    'an unknown address'
    """
    try:
        address = ip_address(host)
    except ValueError:
        return "an unknown address"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return str(IPv6Network((int(address), 64), strict=False))
        address = address.ipv4_mapped
    return str(address)
