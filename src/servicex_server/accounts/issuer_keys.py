"""The public keys of an issuer: fetched once an hour, and anew when a token names an unknown one.

While the issuer is away those that are known go on to be used: who is signed in at a program's own
issuer is not to be kept out because that one cannot be asked.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

KEYS_SECONDS = 3600.0
"""For how long the keys of an issuer are used as they are, and one is good that it withdraws."""

ANEW_SECONDS = 5.0
"""How often they are fetched at most, whatever tokens come."""

Fetch = Callable[[], Awaitable[dict[str, Any]]]
"""Asks the issuer for its keys (JWKS)."""


class IssuerKeys:
    """What is known of the keys of one issuer.

    Parameters
    ----------
    fetch
        Asks for them.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._known: dict[str, Any] = {"keys": []}
        self._fetched = self._asked = -KEYS_SECONDS
        self._failure: Exception | None = None
        self._one = asyncio.Lock()

    async def having(self, kid: Any) -> dict[str, Any]:
        """Return the keys, with the one of this name if the issuer has it.

        Raises
        ------
        Exception
            What `fetch` raised, if without an answer it is not known whether there is such a key.
        """
        if self._wanting(kid):
            async with self._one:
                # whoever was first has asked for all who wait
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
        except Exception as error:  # noqa: BLE001  # it is raised where it matters
            self._failure = error
        else:
            self._known, self._failure = found, None
            self._fetched = time.monotonic()
        self._asked = time.monotonic()
