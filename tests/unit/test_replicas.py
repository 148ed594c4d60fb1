"""The health of endpoints decides the order of replicas; an open endpoint is tried seldom."""

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
    """A clock that the test sets."""

    moment = 1000.0

    def monotonic(self) -> float:
        """Return the time that the test has set."""
        return self.moment


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock by which circuit breakers open and close."""
    made = Clock()
    monkeypatch.setattr(health, "time", made)
    return made


def hear(
    endpoints: StorageEndpoints, *attempts: tuple[Replica, ServiceXError | None], read: int = 0
) -> None:
    """Report the attempts on a file."""
    tried = [Attempt(one.url, 2.0, error.record() if error else None) for one, error in attempts]
    endpoints.observe(tried, read=read)


def test_replicas_keep_their_order_without_reports() -> None:
    assert StorageEndpoints().ranked((B, LOCAL, A), probe=True) == (B, LOCAL, A)


def test_failing_endpoint_comes_last_and_is_probed_after_a_pause(clock: Clock) -> None:
    """The pause doubles, and one file probes each time; after a success the endpoint is healthy."""
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


def test_endpoint_that_hangs_opens_its_breaker_at_once(clock: Clock) -> None:
    """Each further attempt would cost a deadline."""
    endpoints = StorageEndpoints()
    hear(endpoints, (A, SlowError("it hangs")), (B, None))
    assert endpoints.ranked((A, B), probe=True) == (B, A)
    clock.moment += PAUSE + 1
    assert endpoints.ranked((A, B), probe=True) == (A, B)


def test_pause_of_an_open_endpoint_is_bounded(clock: Clock) -> None:
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
def test_error_that_is_not_of_the_endpoint_does_not_open_its_breaker(error: ServiceXError) -> None:
    """The endpoint has answered, and does not cause errors of a query or of the service."""
    endpoints = StorageEndpoints()
    for _ in range(3 * OPEN_AFTER):
        hear(endpoints, (A, error))
    assert endpoints.ranked((A, B), probe=True) == (A, B)


def test_degraded_endpoint_comes_after_healthy_ones(clock: Clock) -> None:
    """Its breaker is not open, because it works now and then."""
    del clock
    endpoints = StorageEndpoints()
    for _ in range(12):
        hear(endpoints, (A, UnreachableError("")), (B, None))
        hear(endpoints, (A, UnreachableError("")), (B, None))
        hear(endpoints, (A, None))
    assert endpoints.as_dict()["root://a.org"]["state"] == "degraded"
    assert endpoints.ranked((A, LOCAL, B), probe=True) == (LOCAL, B, A)


def test_health_of_endpoints_survives_a_restart(clock: Clock) -> None:
    """The service tries an open endpoint at once, as it does not know how long it was stopped."""
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
def test_endpoint_is_a_protocol_and_a_host(url: str, endpoint: str) -> None:
    """It has nothing else of the URL, which may hold a secret."""
    assert endpoint_of(url) == endpoint


def test_bad_replica_comes_after_good_ones(clock: Clock) -> None:
    """It stays there for a day, or until it works. An open endpoint costs more, and comes later."""
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


def test_file_that_fails_everywhere_has_no_bad_replica() -> None:
    """The file itself may be at fault."""
    endpoints = StorageEndpoints()
    hear(endpoints, (A, MissingError("it is not there")), (B, MissingError("nor here")))
    assert endpoints.ranked((A, LOCAL), probe=True) == (A, LOCAL)
