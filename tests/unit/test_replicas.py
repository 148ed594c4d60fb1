"""The order of replicas: by the health of their endpoints, and a dead endpoint is asked seldom."""

import pytest

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
from servicex_server.replicas import health
from servicex_server.replicas.health import OPEN_AFTER, PAUSE, StorageEndpoints, endpoint_of

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
    """Give the clock by which endpoints are shut."""
    made = Clock()
    monkeypatch.setattr(health, "time", made)
    return made


def hear(
    endpoints: StorageEndpoints, *attempts: tuple[Replica, ServiceXError | None], read: int = 0
) -> None:
    """Tell of a file."""
    tried = [Attempt(one.url, 2.0, error.record() if error else None) for one, error in attempts]
    endpoints.observe(tried, read=read)


def test_replicas_come_as_given_while_nothing_is_known() -> None:
    assert StorageEndpoints().ranked((B, LOCAL, A), probe=True) == (B, LOCAL, A)


def test_a_door_that_fails_comes_last_and_is_tried_once_in_a_while(clock: Clock) -> None:
    """With a pause that doubles, for one file each time; and is as good as before once it works."""
    endpoints = StorageEndpoints()
    gone = UnreachableError("it is gone")
    for count in range(OPEN_AFTER):
        assert endpoints.ranked((A, B), probe=True) == (A, B), count
        hear(endpoints, (A, gone), (B, None))
    assert endpoints.as_dict()["root://a.org"]["state"] == "open"
    clock.moment += PAUSE + 1
    assert endpoints.ranked((A, B), probe=False) == (
        B,
        A,
    )  # not a probe
    clock.moment -= PAUSE + 1
    for pause in (PAUSE, 2 * PAUSE, 4 * PAUSE):
        assert endpoints.ranked((A, B), probe=True) == (B, A)
        clock.moment += pause - 1
        assert endpoints.ranked((A, B), probe=True) == (B, A)
        clock.moment += 2
        assert endpoints.ranked((A, B), probe=True) == (A, B)
        assert endpoints.ranked((A, B), probe=True) == (B, A)  # one is enough
        hear(endpoints, (A, gone), (B, None))
    clock.moment += 8 * PAUSE + 1
    assert endpoints.ranked((A, B), probe=True) == (A, B)
    hear(endpoints, (A, None))
    assert endpoints.ranked((A, B), probe=True) == endpoints.ranked((A, B), probe=True) == (A, B)
    about = endpoints.as_dict()["root://a.org"]
    assert (about["state"], about["attempts"], about["worked"]) == ("healthy", 7, 1)
    assert about["failed"] == {"Unreachable": 6}


def test_a_door_that_was_waited_for_in_vain_is_shut_at_once(clock: Clock) -> None:
    """Each more of them would cost a deadline."""
    endpoints = StorageEndpoints()
    hear(endpoints, (A, SlowError("it hangs")), (B, None))
    assert endpoints.ranked((A, B), probe=True) == (B, A)
    clock.moment += PAUSE + 1
    assert endpoints.ranked((A, B), probe=True) == (A, B)


def test_the_pause_has_an_end(clock: Clock) -> None:
    endpoints = StorageEndpoints()
    for _ in range(OPEN_AFTER + 20):
        hear(endpoints, (A, SlowError("it hangs")))
    clock.moment += health.LONGEST_PAUSE + 1
    assert endpoints.ranked((A, B), probe=True) == (A, B)


@pytest.mark.parametrize(
    "error",
    [MissingError(""), CorruptError(""), DeniedError(""), UnknownNameError(""), InternalError("")],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_fault_of_the_door_does_not_shut_it(error: ServiceXError) -> None:
    """It has answered; least of all is it blamed for a query or for us."""
    endpoints = StorageEndpoints()
    for _ in range(3 * OPEN_AFTER):
        hear(endpoints, (A, error))
    assert endpoints.ranked((A, B), probe=True) == (A, B)


def test_a_door_that_often_fails_comes_after_one_that_does_not(clock: Clock) -> None:
    """Though it is not shut: it works now and then."""
    del clock
    endpoints = StorageEndpoints()
    for _ in range(12):
        hear(endpoints, (A, UnreachableError("")), (B, None))
        hear(endpoints, (A, UnreachableError("")), (B, None))
        hear(endpoints, (A, None))
    assert endpoints.as_dict()["root://a.org"]["state"] == "degraded"
    assert endpoints.ranked((A, LOCAL, B), probe=True) == (LOCAL, B, A)


def test_what_is_known_outlives_the_process(clock: Clock) -> None:
    """A endpoint that was shut is tried at once: nobody knows for how long nobody looked."""
    endpoints = StorageEndpoints()
    for _ in range(OPEN_AFTER):
        hear(endpoints, (A, UnreachableError("it is gone")))
    hear(endpoints, (B, None), read=600)
    written = endpoints.as_dict()
    clock.moment = 5.0  # as after a reboot
    again = StorageEndpoints({**written, "root://c.org": {"of": "another release"}})
    assert again.as_dict() | written == again.as_dict()
    assert again.ranked((A, B), probe=True) == (A, B)
    assert again.ranked((A, B), probe=True) == (B, A)
    assert again.as_dict()["https://b.org"]["speed"] == 300.0
    assert StorageEndpoints().as_dict() == {}


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("root://h:1095//x", "root://h:1095"),
        ("https://user:secret@h/x?token=y", "https://h"),
        ("root://[::1]:1094//x", "root://[::1]"),
        ("http://h:80000/x", ""),
        ("http:///x", ""),
        ("no url", ""),
    ],
)
def test_a_door_is_a_protocol_and_a_host(url: str, endpoint: str) -> None:
    """Nothing else of a URL, which may hold a secret."""
    assert endpoint_of(url) == endpoint


def test_a_replica_that_was_bad_comes_after_those_that_were_not(clock: Clock) -> None:
    """For a day, or until it works; before a endpoint that is shut, which costs more."""
    endpoints = StorageEndpoints()
    gone, away = MissingError("it is not there"), UnreachableError("nobody answers")
    other = Replica("root://a.org//y.root", "A")
    hear(endpoints, (A, gone), (B, None))
    assert endpoints.ranked((A, B), probe=True) == (B, A)
    assert endpoints.ranked((other, B), probe=True) == (
        other,
        B,
    )  # a healthy endpoint
    for _ in range(OPEN_AFTER):
        hear(endpoints, (B, away))
    assert endpoints.ranked((B, A), probe=True) == (A, B)
    clock.moment += health.BAD_FOR
    assert endpoints.ranked((A, LOCAL), probe=True) == (A, LOCAL)
    again = StorageEndpoints(None, [A.url])
    assert again.ranked((A, B), probe=True) == (B, A)
    hear(again, (A, None))
    assert again.ranked((A, B), probe=True) == (A, B)


def test_what_fails_everywhere_is_no_bad_replica() -> None:
    """It may be the file."""
    endpoints = StorageEndpoints()
    hear(endpoints, (A, MissingError("it is not there")), (B, MissingError("nor here")))
    assert endpoints.ranked((A, LOCAL), probe=True) == (A, LOCAL)
