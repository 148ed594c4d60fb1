"""Rate limits by address or user, against guessing of tokens and floods of sign-ups."""

import math
import time
from ipaddress import IPv6Address, IPv6Network, ip_address

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from starlette.requests import Request

from servicex_server.errors import TooManyError

A_MINUTE = 30
"""Events of one kind that one address, or one user, may have in a minute."""

ADDRESSES = 10_000
"""Counters that are held in memory. At this number, those below the limit are forgotten first."""

_LIMIT = RateLimitItemPerMinute(A_MINUTE)


class RateLimiter:
    """Counts events by kind and address for a minute, in the memory of this process.

    A route gets it as `TheRateLimiter`, and counts every call, or only failed ones::

        @router.post("/sign-up")
        async def sign_up(request: Request, limiter: TheRateLimiter) -> Response:
            await limiter.hit(request, "sign-ups")
            ...

    A kind is a plural noun for what is counted, because the error message contains it.
    """

    def __init__(self) -> None:
        self._counts = MemoryStorage()
        self._limiter = FixedWindowRateLimiter(self._counts)

    async def hit(self, request: Request, kind: str, *, user: str = "") -> None:
        """Count an event.

        Parameters
        ----------
        request
            The request, which has the address.
        kind
            What is counted, in the plural.
        user
            The authenticated user, if any. The event is then counted by user, because other users
            may share the address.

        Raises
        ------
        TooManyError
            The limit is exceeded. The hint says when to try again.
        """
        if len(self._counts.storage) >= ADDRESSES:
            await self._make_room()
        who = user or address_of(request)
        if await self._limiter.hit(_LIMIT, kind, who):
            return
        ends, _ = await self._limiter.get_window_stats(_LIMIT, kind, who)
        seconds = max(1, math.ceil(ends - time.time()))
        error = TooManyError(
            f"at most {A_MINUTE} {kind} in a minute are allowed from one "
            f"{'user' if user else 'address'}, here {who}",
            hint=f"try again in {seconds} s",
        )
        error.seconds = seconds
        raise error

    async def _make_room(self) -> None:
        """Forget counters, but no limited address before all others.

        A client with very many addresses can so restart the counters of clients that are not
        limited. It cannot lift a limit, unless it has half as many limited addresses itself.
        """
        counts = self._counts.storage
        for key in [key for key, count in counts.items() if count < A_MINUTE]:
            await self._counts.clear(key)
        for key in list(counts)[: max(0, len(counts) - ADDRESSES // 2)]:
            await self._counts.clear(key)


def address_of(request: Request) -> str:
    """Return the address by which a client is counted; a trusted proxy names its client's."""
    return counted(request.client.host if request.client else "")


def counted(host: str) -> str:
    """Return the address by which a host is counted: for IPv6, the /64 network of one client.

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
