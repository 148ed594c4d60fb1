"""When an issuer is asked for its keys, by a clock that is moved by hand."""

import asyncio
from typing import Any

import pytest

from servicex_server.accounts import oidc_keys
from servicex_server.accounts.oidc_keys import ANEW_SECONDS, KEYS_SECONDS, JwksCache

pytestmark = pytest.mark.anyio


class Issuer:
    """What an issuer would say, and how often it was asked."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.asked = 0
        self.away = False

    async def fetch(self) -> dict[str, Any]:
        """Answer, or do not."""
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise ConnectionError
        return {"keys": [{"kid": name} for name in self.names]}


class Clock:
    """A clock that stands still until it is moved."""

    seconds = 1000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock that the keys go by."""
    made = Clock()
    monkeypatch.setattr(oidc_keys, "time", made)
    return made


async def test_known_keys_are_fetched_once_an_hour(clock: Clock) -> None:
    """However many ask, also at the same time."""
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


async def test_an_unknown_key_is_asked_for_but_not_all_the_time(clock: Clock) -> None:
    """One that is new is known at the next question."""
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


async def test_while_the_issuer_is_away_what_is_known_is_used(clock: Clock) -> None:
    """What is not known cannot be judged, until it is back."""
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
