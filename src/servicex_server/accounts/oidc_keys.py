"""The public keys of an OIDC provider (JWKS), cached.

They are fetched once an hour, and again when a token names an unknown key. While the provider does
not answer, the cached keys stay in use. So an outage of the provider does not lock out programs
whose tokens were signed with a cached key.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

KEYS_SECONDS = 3600.0
"""Seconds for which cached keys are used without asking the provider. A key that the provider
withdraws is accepted for as long."""

ANEW_SECONDS = 5.0
"""Least number of seconds between two fetches, whatever tokens arrive."""

Fetch = Callable[[], Awaitable[dict[str, Any]]]
"""Fetches the keys (JWKS) of a provider."""


class JwksCache:
    """The cached keys of one provider.

    Parameters
    ----------
    fetch
        Fetches the keys.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._known: dict[str, Any] = {"keys": []}
        self._fetched = self._asked = -KEYS_SECONDS
        self._failure: Exception | None = None
        self._one = asyncio.Lock()

    async def having(self, kid: Any) -> dict[str, Any]:
        """Return the keys, with the one of this key id if the provider has it.

        Raises
        ------
        Exception
            The exception of `fetch`, if the key is not cached and the last fetch failed.
        """
        if self._wanting(kid):
            async with self._one:
                # the first caller has fetched for all that wait
                if self._wanting(kid) and time.monotonic() - self._asked >= ANEW_SECONDS:
                    await self._ask()
        if self._failure is not None and not self._has(kid):
            raise self._failure
        return self._known

    def _wanting(self, kid: Any) -> bool:
        return not self._has(kid) or time.monotonic() - self._fetched >= KEYS_SECONDS

    def _has(self, kid: Any) -> bool:
        return any(one.get("kid") == kid for one in self._known["keys"])

    async def _ask(self) -> None:
        try:
            found = await self._fetch()
            found["keys"] = [one for one in found["keys"] if isinstance(one, dict)]
        except Exception as error:  # noqa: BLE001  # `having` raises it if the key is missing
            self._failure = error
        else:
            self._known, self._failure = found, None
            self._fetched = time.monotonic()
        self._asked = time.monotonic()
