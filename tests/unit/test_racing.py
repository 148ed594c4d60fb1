"""When a file is raced, and what becomes of the two who do it."""

import pytest

from servicex_server.errors import SlowError
from servicex_server.model import RACED, Attempt, Outcome
from servicex_server.racing import LEAST, SHARE, Races

ERROR = SlowError("it did not answer").record()


def outcome(file: int, *, seconds: float = 1.0, raced: bool = False, bad: bool = False) -> Outcome:
    """Return how a file ended."""
    error = ERROR if bad else None
    url = f"root://{'two' if raced else 'one'}//{file}"
    tried = (Attempt(url, seconds, error),)
    return Outcome("r", file, 1, seconds=seconds, raced=raced, error=error, attempts=tried)


@pytest.fixture
def races() -> Races:
    """Give races of a request of which a hundred files have ended, in 0.01 to 1 s."""
    made = Races()
    for number in range(100):
        made.ended(outcome(number, seconds=(number + 1) / 100))
    return made


def race(races: Races, file: int) -> tuple[str, str]:
    """Begin one; return the keys of both."""
    keys = outcome(file).key, outcome(file, raced=True).key
    races.begin("r", *keys)
    return keys


def test_what_is_slower_than_nearly_all_is_raced(races: Races) -> None:
    """By the files of its own request, once enough of them have ended."""
    assert races.worth_it("r", 0.97)
    assert not races.worth_it("r", 0.95)
    assert not races.worth_it("other", 1e6)
    few = Races()
    for number in range(LEAST - 1):
        few.ended(outcome(number))
    assert not few.worth_it("r", 1e6)
    few.ended(outcome(LEAST))
    assert few.worth_it("r", 1e6)


def test_the_load_is_bounded(races: Races) -> None:
    """Of the files that have ended, so many may be raced."""
    for number in range(int(100 * SHARE)):
        assert races.worth_it("r", 2.0)
        race(races, 200 + number)
    assert not races.worth_it("r", 2.0)


@pytest.mark.parametrize("raced", [False, True])
def test_the_first_that_works_counts(races: Races, *, raced: bool) -> None:
    """And the other one is to be stopped."""
    keys = race(races, 200)
    assert keys[1] == keys[0] + RACED
    ended, loser = races.ended(outcome(200, raced=raced))
    assert ended is not None
    assert (ended.raced, ended.of, loser) == (raced, keys[0], keys[not raced])
    assert not any(map(races.is_raced, keys))


@pytest.mark.parametrize("raced", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_one_that_fails_waits_for_the_other(races: Races, *, raced: bool, both: bool) -> None:
    """And what it has tried is not forgotten."""
    race(races, 200)
    assert races.ended(outcome(200, raced=raced, bad=True)) == (None, "")
    ended, loser = races.ended(outcome(200, raced=not raced, bad=both))
    assert ended is not None
    assert (len(ended.attempts), loser) == (2, "")
    assert [one.error is None for one in ended.attempts] == [False, not both]


def test_a_task_that_is_stopped_takes_its_rival_along(races: Races) -> None:
    keys = race(races, 200)
    assert list(races.dropped(keys[0])) == list(keys)
    assert list(races.dropped("another")) == ["another"]
    races.forget("r")
    assert not races.worth_it("r", 1e6)
