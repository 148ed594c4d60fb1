"""The order of replicas: by the health of their doors, and a dead door is asked seldom."""

import pytest

from servicex_server import replicas
from servicex_server.errors import (
    CorruptError,
    DeniedError,
    InternalError,
    MissingError,
    ServiceXError,
    SlowError,
    UnknownNameError,
    UnreachableError,
)
from servicex_server.model import Attempt, Replica
from servicex_server.replicas import PAUSE, SHUT_AFTER, Doors, door_of

A, B = Replica("root://a.org//x.root", "A"), Replica("https://b.org/x.root", "B")
LOCAL = Replica("/data/x.root")


class Clock:
    """A clock in the hands of the test."""

    moment = 1000.0

    def monotonic(self) -> float:
        """Return the time that the test has set."""
        return self.moment


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock by which doors are shut."""
    made = Clock()
    monkeypatch.setattr(replicas, "time", made)
    return made


def hear(doors: Doors, *attempts: tuple[Replica, ServiceXError | None], read: int = 0) -> None:
    """Tell of a file."""
    tried = [Attempt(one.url, 2.0, error.record() if error else None) for one, error in attempts]
    doors.heard(tried, read=read)


def test_replicas_come_as_given_while_nothing_is_known() -> None:
    assert Doors().ranked((B, LOCAL, A), probe=True) == (B, LOCAL, A)


def test_a_door_that_fails_comes_last_and_is_tried_once_in_a_while(clock: Clock) -> None:
    """With a pause that doubles, for one file each time; and is as good as before once it works."""
    doors = Doors()
    gone = UnreachableError("it is gone")
    for count in range(SHUT_AFTER):
        assert doors.ranked((A, B), probe=True) == (A, B), count
        hear(doors, (A, gone), (B, None))
    assert doors.as_dict()["root://a.org"]["state"] == "shut"
    clock.moment += PAUSE + 1
    assert doors.ranked((A, B), probe=False) == (B, A)  # who does not tell how it went is no probe
    clock.moment -= PAUSE + 1
    for pause in (PAUSE, 2 * PAUSE, 4 * PAUSE):
        assert doors.ranked((A, B), probe=True) == (B, A)
        clock.moment += pause - 1
        assert doors.ranked((A, B), probe=True) == (B, A)
        clock.moment += 2
        assert doors.ranked((A, B), probe=True) == (A, B)
        assert doors.ranked((A, B), probe=True) == (B, A)  # one is enough
        hear(doors, (A, gone), (B, None))
    clock.moment += 8 * PAUSE + 1
    assert doors.ranked((A, B), probe=True) == (A, B)
    hear(doors, (A, None))
    assert doors.ranked((A, B), probe=True) == doors.ranked((A, B), probe=True) == (A, B)
    about = doors.as_dict()["root://a.org"]
    assert (about["state"], about["attempts"], about["worked"]) == ("well", 7, 1)
    assert about["failed"] == {"Unreachable": 6}


def test_a_door_that_was_waited_for_in_vain_is_shut_at_once(clock: Clock) -> None:
    """Each more of them would cost a deadline."""
    doors = Doors()
    hear(doors, (A, SlowError("it hangs")), (B, None))
    assert doors.ranked((A, B), probe=True) == (B, A)
    clock.moment += PAUSE + 1
    assert doors.ranked((A, B), probe=True) == (A, B)


def test_the_pause_has_an_end(clock: Clock) -> None:
    doors = Doors()
    for _ in range(SHUT_AFTER + 20):
        hear(doors, (A, SlowError("it hangs")))
    clock.moment += replicas.LONGEST_PAUSE + 1
    assert doors.ranked((A, B), probe=True) == (A, B)


@pytest.mark.parametrize(
    "error",
    [MissingError(""), CorruptError(""), DeniedError(""), UnknownNameError(""), InternalError("")],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_fault_of_the_door_does_not_shut_it(error: ServiceXError) -> None:
    """It has answered; least of all is it blamed for a query or for us."""
    doors = Doors()
    for _ in range(3 * SHUT_AFTER):
        hear(doors, (A, error))
    assert doors.ranked((A, B), probe=True) == (A, B)


def test_a_door_that_often_fails_comes_after_one_that_does_not(clock: Clock) -> None:
    """Though it is not shut: it works now and then."""
    del clock
    doors = Doors()
    for _ in range(12):
        hear(doors, (A, UnreachableError("")), (B, None))
        hear(doors, (A, UnreachableError("")), (B, None))
        hear(doors, (A, None))
    assert doors.as_dict()["root://a.org"]["state"] == "weak"
    assert doors.ranked((A, LOCAL, B), probe=True) == (LOCAL, B, A)


def test_what_is_known_outlives_the_process(clock: Clock) -> None:
    """A door that was shut is tried at once: nobody knows for how long nobody looked."""
    doors = Doors()
    for _ in range(SHUT_AFTER):
        hear(doors, (A, UnreachableError("it is gone")))
    hear(doors, (B, None), read=600)
    written = doors.as_dict()
    clock.moment = 5.0  # as after a reboot
    again = Doors({**written, "root://c.org": {"of": "another release"}})
    assert again.as_dict() | written == again.as_dict()
    assert again.ranked((A, B), probe=True) == (A, B)
    assert again.ranked((A, B), probe=True) == (B, A)
    assert again.as_dict()["https://b.org"]["speed"] == 300.0
    assert Doors().as_dict() == {}


@pytest.mark.parametrize(
    ("url", "door"),
    [
        ("root://h:1095//x", "root://h:1095"),
        ("https://user:secret@h/x?token=y", "https://h"),
        ("root://[::1]:1094//x", "root://[::1]"),
        ("http://h:80000/x", ""),
        ("http:///x", ""),
        ("no url", ""),
    ],
)
def test_a_door_is_a_protocol_and_a_host(url: str, door: str) -> None:
    """Nothing else of a URL, which may hold a secret."""
    assert door_of(url) == door


def test_a_replica_that_was_bad_comes_after_those_that_were_not(clock: Clock) -> None:
    """For a day, or until it works; before a door that is shut, which costs more."""
    doors = Doors()
    gone, away = MissingError("it is not there"), UnreachableError("nobody answers")
    other = Replica("root://a.org//y.root", "A")
    hear(doors, (A, gone), (B, None))
    assert doors.ranked((A, B), probe=True) == (B, A)
    assert doors.ranked((other, B), probe=True) == (other, B)  # of the same door, which is well
    for _ in range(SHUT_AFTER):
        hear(doors, (B, away))
    assert doors.ranked((B, A), probe=True) == (A, B)
    clock.moment += replicas.BAD_FOR
    assert doors.ranked((A, LOCAL), probe=True) == (A, LOCAL)
    again = Doors(None, [A.url])
    assert again.ranked((A, B), probe=True) == (B, A)
    hear(again, (A, None))
    assert again.ranked((A, B), probe=True) == (A, B)


def test_what_fails_everywhere_is_no_bad_replica() -> None:
    """It may be the file."""
    doors = Doors()
    hear(doors, (A, MissingError("it is not there")), (B, MissingError("nor here")))
    assert doors.ranked((A, LOCAL), probe=True) == (A, LOCAL)
