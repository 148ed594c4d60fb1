"""The states of a file inside the engine, and the transitions between them."""

import pytest

from servicex_server.database.tasks import Work
from servicex_server.errors import SlowError
from servicex_server.model import SPECULATIVE, Attempt, InputFile, Outcome, Replica, ResultFormat
from servicex_server.scheduling.in_flight import InFlight

SLOW = SlowError("it did not answer").record()
NAMED = (Replica("root://new//1"),)


def work(file_id: int = 1, request_id: str = "r") -> Work:
    """Return the work of a file."""
    file = InputFile((Replica(f"root://old//{file_id}"),), name=f"s:{file_id}")
    return Work(
        task_id=file_id,
        request_id=request_id,
        owner="o",
        file_id=file_id,
        attempt=1,
        position=0,
        file=file,
        entries=None,
        language="l",
        selection="s",
        format=ResultFormat.PARQUET,
        object_name="n",
    )


def outcome(
    file_id: int = 1, request_id: str = "r", *, copy: bool = False, bad: bool = False
) -> Outcome:
    """Return how a task on a file ended."""
    error = SLOW if bad else None
    tried = (Attempt(f"root://{'two' if copy else 'one'}//{file_id}", 1.0, error),)
    return Outcome(request_id, file_id, 1, speculative=copy, error=error, attempts=tried)


@pytest.fixture
def files() -> InFlight:
    """Give one file that runs."""
    made = InFlight()
    made.add(outcome().key, work())
    return made


def test_outcome_stays_until_it_is_stored(files: InFlight) -> None:
    """The leader repeats a failed transaction with the same outcome."""
    key = outcome().key
    assert files.ended() == []
    assert files.end(outcome()) == (outcome(), [])
    assert [one.outcome for one in files.ended()] == [outcome()]
    assert [one.key for one in files.ended()] == [key]
    assert (files.stored(key), files.stored(key)) == (True, False)
    assert files.ended() == []
    assert len(files) == 0


def test_second_outcome_of_a_file_changes_nothing(files: InFlight) -> None:
    """The outcome of an unknown file changes nothing either."""
    files.end(outcome())
    assert files.end(outcome(bad=True)) == (None, [])
    assert files.end(outcome(7)) == (None, [])
    assert [one.outcome for one in files.ended()] == [outcome()]


@pytest.mark.parametrize("copy", [False, True])
def test_first_successful_copy_decides(files: InFlight, *, copy: bool) -> None:
    """The leader has to stop the other copy."""
    key = outcome().key
    files.add_copy(key, key + SPECULATIVE)
    assert files.has_copy(key)
    ended, losers = files.end(outcome(copy=copy))
    assert ended == outcome(copy=copy)
    assert losers == [key if copy else key + SPECULATIVE]
    assert not files.has_copy(key)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_failed_copy_waits_for_the_other(files: InFlight, *, copy: bool, both: bool) -> None:
    """The outcome contains the attempts of the failed copy."""
    key = outcome().key
    files.add_copy(key, key + SPECULATIVE)
    assert files.end(outcome(copy=copy, bad=True)) == (None, [])
    assert files.ended() == []
    ended, losers = files.end(outcome(copy=not copy, bad=both))
    assert ended is not None
    assert losers == []
    assert [one.error is None for one in ended.attempts] == [False, not both]


def test_held_file_is_released_with_the_answer_of_its_catalogue(files: InFlight) -> None:
    """The answer stays with the file until its outcome is stored."""
    key = outcome().key
    files.end(outcome(bad=True))
    files.hold(key)
    files.hold(key)
    assert (files.held, files.ended(), files.held_files(5)) == (1, [], [work()])
    files.release([1], {1: NAMED})
    assert (files.held, files.held_files(5)) == (0, [])
    for _ in range(2):
        assert [one.named for one in files.ended()] == [NAMED]
    files.stored(key)
    assert files.ended() == []


def test_file_unknown_to_its_catalogue_has_no_replicas(files: InFlight) -> None:
    """The catalogue has answered, and is not asked again."""
    files.end(outcome(bad=True))
    files.hold(outcome().key)
    files.release([1], {})
    assert [one.named for one in files.ended()] == [()]


def test_dropped_request_leaves_nothing(files: InFlight) -> None:
    """Files of other requests stay."""
    key, other = outcome().key, outcome(2, "other")
    files.add_copy(key, key + SPECULATIVE)
    files.add(outcome(3).key, work(3))
    files.end(outcome(3, bad=True))
    files.hold(outcome(3).key)
    files.add(other.key, work(2, "other"))
    dropped = files.drop("r")
    assert dropped.works == [work(), work(3)]
    assert set(dropped.tasks) == {key, key + SPECULATIVE, outcome(3).key}
    assert (files.held, files.works(), files.by_request()) == (
        0,
        [work(2, "other")],
        {"other": 1},
    )
    assert files.end(outcome()) == (None, [])
    assert files.work_of(key) is None
