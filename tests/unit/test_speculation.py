"""The choice of files for a speculative read."""

import pytest

from servicex_server.model import Outcome
from servicex_server.scheduling.speculation import LEAST, SHARE, SpeculativeReads


def outcome(file: int, *, seconds: float = 1.0) -> Outcome:
    """Return the outcome of a file that was delivered."""
    return Outcome("r", file, 1, seconds=seconds)


@pytest.fixture
def reads() -> SpeculativeReads:
    """Give a request of which a hundred files have ended, in 0.01 to 1 s."""
    made = SpeculativeReads()
    for number in range(100):
        made.ended(outcome(number, seconds=(number + 1) / 100))
    return made


def test_file_slower_than_nearly_all_is_worth_a_speculative_read(reads: SpeculativeReads) -> None:
    """The service compares it with files of its own request, once enough of them have ended."""
    assert reads.worth_it("r", 0.97)
    assert not reads.worth_it("r", 0.95)
    assert not reads.worth_it("other", 1e6)
    few = SpeculativeReads()
    for number in range(LEAST - 1):
        few.ended(outcome(number))
    assert not few.worth_it("r", 1e6)
    few.ended(outcome(LEAST))
    assert few.worth_it("r", 1e6)


def test_number_of_speculative_reads_is_bounded(reads: SpeculativeReads) -> None:
    """There is one speculative read for each twenty files that have ended, and not more."""
    for _ in range(int(100 * SHARE)):
        assert reads.worth_it("r", 2.0)
        reads.started("r")
    assert not reads.worth_it("r", 2.0)


def test_ended_request_is_forgotten(reads: SpeculativeReads) -> None:
    """The times of its files say nothing about other requests."""
    reads.forget("r")
    assert not reads.worth_it("r", 1e6)
