"""The times at which the service fetches the keys of an OIDC provider, by a clock of the test."""

import asyncio
from typing import Any

import pytest

from servicex_server.accounts import oidc_keys
from servicex_server.accounts.oidc_keys import ANEW_SECONDS, KEYS_SECONDS, JwksCache

pytestmark = pytest.mark.anyio


class Issuer:
    """An OIDC provider that counts the requests for its keys."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.asked = 0
        self.away = False

    async def fetch(self) -> dict[str, Any]:
        """Return the keys, or fail."""
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise ConnectionError
        return {"keys": [{"kid": name} for name in self.names]}


class Clock:
    """A clock that stands still until the test moves it."""

    seconds = 1000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock that the cache uses."""
    made = Clock()
    monkeypatch.setattr(oidc_keys, "time", made)
    return made


async def test_known_keys_are_fetched_once_an_hour(clock: Clock) -> None:
    """Any number of callers share the keys, also at the same time."""
    issuer = Issuer("a")
    keys = JwksCache(issuer.fetch)
    found = await asyncio.gather(*(keys.having("a") for _ in range(10)))
    assert found == [{"keys": [{"kid": "a"}]}] * 10
    clock.seconds += KEYS_SECONDS - 1
    await keys.having("a")
    assert issuer.asked == 1
    issuer.names = ("b",)
    clock.seconds += 1
    assert await keys.having("a") == {"keys": [{"kid": "b"}]}
    assert issuer.asked == 2


async def test_unknown_key_is_fetched_only_after_a_pause(clock: Clock) -> None:
    """The next fetch finds a new key."""
    issuer = Issuer("a")
    keys = JwksCache(issuer.fetch)
    await keys.having("a")
    issuer.names = ("a", "b")
    for _ in range(5):
        assert await keys.having("b") == {"keys": [{"kid": "a"}]}
    assert issuer.asked == 1
    clock.seconds += ANEW_SECONDS
    assert {"kid": "b"} in (await keys.having("b"))["keys"]
    assert issuer.asked == 2


async def test_cached_keys_are_used_while_the_provider_does_not_answer(clock: Clock) -> None:
    """The service cannot check a token of an unknown key until the provider answers again."""
    issuer = Issuer("a")
    keys = JwksCache(issuer.fetch)
    await keys.having("a")
    issuer.away = True
    clock.seconds += KEYS_SECONDS
    for _ in range(5):
        assert await keys.having("a") == {"keys": [{"kid": "a"}]}
    for _ in range(5):
        with pytest.raises(ConnectionError):
            await keys.having("b")
    assert issuer.asked == 2
    issuer.away = False
    clock.seconds += ANEW_SECONDS
    assert await keys.having("b") == {"keys": [{"kid": "a"}]}
