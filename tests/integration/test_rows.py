"""The database: counters of rows, a fair choice of files, and outcomes that count once."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from servicex_server.database import datasets as dataset_rows
from servicex_server.database import (
    finished_files,
    lost_results,
    request_completion,
    result_reuse,
)
from servicex_server.database import outcomes as outcome_rows
from servicex_server.database import requests as request_rows
from servicex_server.database import tasks as task_rows
from servicex_server.database.connection import Database
from servicex_server.database.result_objects import RequestBuckets
from servicex_server.errors import (
    CorruptError,
    NotFoundError,
    StateError,
    UnreachableError,
    UploadError,
)
from servicex_server.errors import UnknownNameError as NoBranch
from servicex_server.model import (
    LOCAL_USER,
    Entries,
    Outcome,
    Principal,
    RequestState,
    Role,
    Sharing,
    TaskState,
    now,
)
from servicex_server.scheduling.fair_share import Caps, fair_shares
from tests.services import store

ANN, BOB = Principal("ann"), Principal("bob")
OPERATOR = Principal("olga", Role.OPERATOR)


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio."""
    return "asyncio"


pytestmark = pytest.mark.anyio


async def ask(
    database: Database, owner: str, name: str, files: int, *, complete: bool = True
) -> str:
    """Store a running request on a new dataset of so many files."""
    return await database.write(store, owner, name, files, complete=complete)


async def claim(database: Database, slots: int) -> list[task_rows.Work]:
    """Begin so many tasks, as the dispatcher does."""
    demand = await database.read(task_rows.demand)
    running = Counter(work.request_id for work in await database.read(task_rows.running))
    begun = []
    for request_id, count in fair_shares(demand, running, slots, Caps()).items():
        works = await database.read(task_rows.waiting, request_id, count)
        begun += await database.write(task_rows.begin, works, {})
    return begun


def success(claimed: task_rows.Work) -> outcome_rows.Recorded:
    """Return a good end of a task."""
    outcome = Outcome(
        claimed.request_id,
        claimed.file_id,
        claimed.attempt,
        entries=claimed.entries,
        bytes_written=7,
        events_read=3,
    )
    name = f"{claimed.position}_{claimed.entries}.parquet"
    return outcome_rows.Recorded(claimed.task_id, outcome, name, f"{claimed.request_id}/{name}")


def failure(claimed: task_rows.Work, error: Exception) -> outcome_rows.Recorded:
    """Return a bad end of a task."""
    record = error.record()  # type: ignore[attr-defined]  # one of ours
    outcome = Outcome(claimed.request_id, claimed.file_id, claimed.attempt, claimed.entries)
    outcome = replace(outcome, url=claimed.file.replicas[0].url)
    return outcome_rows.Recorded(claimed.task_id, replace(outcome, error=record))


async def test_a_request_is_seen_by_its_owner_and_operators(database: Database) -> None:
    """For another user, the request looks like one that does not exist."""
    request_id = await ask(database, "ann", "a", 1)
    assert (await database.read(request_rows.get, ANN, request_id)).owner == "ann"
    assert (await database.read(request_rows.get, OPERATOR, request_id)).owner == "ann"
    with pytest.raises(NotFoundError) as hers:
        await database.read(request_rows.get, BOB, request_id)
    with pytest.raises(NotFoundError) as nobodys:
        await database.read(request_rows.get, BOB, "nobody's")
    assert hers.value.message.replace(request_id, "") == nobodys.value.message.replace(
        "nobody's", ""
    )
    for act in (request_rows.cancel, request_rows.mark_deleted):
        with pytest.raises(NotFoundError):
            await database.write(act, BOB, request_id)
    listed = [await database.read(request_rows.listed, who, owner="ann") for who in (ANN, BOB)]
    assert [len(found) for found in listed] == [1, 0]
    assert len(await database.read(request_rows.listed, OPERATOR, owner="ann")) == 1


async def test_a_file_list_belongs_to_its_user(database: Database) -> None:
    """Another user cannot list, read or reuse it."""
    await ask(database, "ann", "a", 1)
    (dataset,) = await database.read(dataset_rows.listed, ANN, finder=None, with_stale=False)
    assert await database.read(dataset_rows.listed, BOB, finder=None, with_stale=False) == []
    with pytest.raises(NotFoundError):
        await database.read(dataset_rows.files_of, BOB, dataset.id)
    assert await database.read(dataset_rows.find_fresh, "a", "ann") == dataset.id
    assert await database.read(dataset_rows.find_fresh, "a", "bob") is None


async def test_slots_go_to_the_user_with_the_fewest(database: Database) -> None:
    """A giant request leaves room for another user's, and shortest requests go first."""
    giant = await ask(database, "ann", "giant", 500)
    small = await ask(database, "ann", "small", 2)
    other = await ask(database, "bob", "other", 3)
    taken = Counter(c.request_id for c in await claim(database, 8))
    assert taken == {small: 2, other: 3, giant: 3}
    assert sum(Counter(c.request_id for c in await claim(database, 4)).values()) == 4


async def test_no_file_is_claimed_twice(database: Database) -> None:
    """Each file is claimed once, in the order of the dataset."""
    await ask(database, "ann", "a", 10)
    claimed = [c for _ in range(5) for c in await claim(database, 3)]
    assert [c.position for c in claimed] == list(range(10))
    assert {c.attempt for c in claimed} == {1}


async def test_counters_ignore_repeated_and_late_outcomes(database: Database) -> None:
    """Outcomes that come twice, late or after a cancel change no counter.

    The object of a repeated outcome is the result. The object of a late one is an orphan.
    """
    request_id = await ask(database, "ann", "a", 3)
    claimed = await claim(database, 3)
    results = [success(claimed[0]), success(claimed[0]), success(claimed[1])]
    touched, orphans = await database.write(outcome_rows.record, results, most_attempts=3)
    assert (touched, orphans) == ({request_id}, [])
    again = await database.write(outcome_rows.record, results[:1], most_attempts=3)
    assert again == ({request_id}, [])
    found = await database.read(request_rows.get, ANN, request_id)
    assert (found.files, found.completed, found.failed) == (3, 2, 0)
    await database.write(request_rows.cancel, ANN, request_id)
    late = await database.write(outcome_rows.record, [success(claimed[2])], most_attempts=3)
    assert late == ({request_id}, [success(claimed[2]).object_key])
    found = await database.read(request_rows.get, ANN, request_id)
    assert (found.state, found.completed) == (RequestState.CANCELED, 2)
    with pytest.raises(StateError):
        await database.write(request_rows.cancel, ANN, request_id)


async def test_only_temporary_errors_are_retried(database: Database) -> None:
    """The service retries an unreachable file after a pause, and does not retry a corrupt one."""
    await ask(database, "ann", "a", 2)
    flaky, corrupt = await claim(database, 2)
    results = [failure(flaky, UnreachableError("away")), failure(corrupt, CorruptError("bad"))]
    await database.write(outcome_rows.record, results, most_attempts=2)
    assert await claim(database, 2) == []
    due = await database.read(task_rows.next_due)
    assert due is not None
    assert now() < due < now() + timedelta(seconds=5)
    states = await database.read(_states)
    assert states == {TaskState.WAITING: 1, TaskState.FAILED: 1}
    await database.write(_make_due)
    (again,) = await claim(database, 2)
    assert again.attempt == 2
    await database.write(
        outcome_rows.record, [failure(again, UnreachableError("away"))], most_attempts=2
    )
    assert await database.read(_states) == {TaskState.FAILED: 2}


async def test_a_clock_that_is_set_back_delays_no_file(database: Database) -> None:
    """The service retries a file at once if its pause seems longer than any pause is."""
    await ask(database, "ann", "a", 1)
    (flaky,) = await claim(database, 1)
    await database.write(
        outcome_rows.record, [failure(flaky, UnreachableError("away"))], most_attempts=2
    )
    assert await claim(database, 1) == []
    await database.write(_make_due, timedelta(hours=1))
    due = await database.read(task_rows.next_due)
    assert due is not None
    assert due <= now()
    (again,) = await claim(database, 1)
    assert again.attempt == 2


def _states(connection: Any) -> dict[str, int]:
    from sqlalchemy import func, select

    from servicex_server.database.tables import tasks

    rows = connection.execute(select(tasks.c.state, func.count()).group_by(tasks.c.state))
    found: dict[str, int] = dict(iter(rows))
    return found


def _make_due(connection: Any, off: timedelta = timedelta(seconds=-1)) -> None:
    from sqlalchemy import update

    from servicex_server.database.tables import tasks

    connection.execute(update(tasks).values(not_before=now() + off))


@pytest.mark.parametrize(
    ("good", "bad", "error", "end"),
    [
        (2, 0, None, RequestState.COMPLETE),
        (1, 1, CorruptError("bad"), RequestState.COMPLETE),
        (0, 2, CorruptError("bad"), RequestState.FATAL),
        (0, 0, None, RequestState.COMPLETE),
    ],
)
async def test_last_file_ends_a_request(
    database: Database, good: int, bad: int, error: Exception | None, end: RequestState
) -> None:
    """A request without any result is fatal, unless it has no file."""
    request_id = await ask(database, "ann", "a", good + bad)
    claimed = await claim(database, 10)
    results = [success(c) for c in claimed[:good]]
    results += [failure(c, error) for c in claimed[good:] if error]
    await database.write(outcome_rows.record, results, most_attempts=1)
    ended = await database.write(request_completion.finish, [request_id], fatal_after=3)
    assert ended == {request_id: end}
    found = await database.read(request_rows.get, ANN, request_id)
    assert found.finished_at is not None
    assert bool(found.failure) == bool(bad)
    assert await database.write(request_completion.finish, [request_id], fatal_after=3) == {}


async def test_a_request_does_not_end_before_its_look_up(database: Database) -> None:
    """A request without open files continues while the look-up may find files."""
    request_id = await ask(database, "ann", "a", 1, complete=False)
    (claimed,) = await claim(database, 1)
    await database.write(outcome_rows.record, [success(claimed)], most_attempts=1)
    assert await database.write(request_completion.finish, [request_id], fatal_after=3) == {}


@pytest.mark.parametrize(
    ("errors", "fatal"),
    [
        ([NoBranch("no branch x")] * 3, True),
        ([NoBranch("no branch x")] * 2, False),
        ([NoBranch("no branch x")] * 2 + [NoBranch("no branch y")], False),
        ([CorruptError("bad")] * 3, False),
    ],
)
async def test_same_query_error_in_the_first_files_is_fatal(
    database: Database, errors: list[Exception], *, fatal: bool
) -> None:
    """Three files with the same query error end a request. Other errors do not."""
    request_id = await ask(database, "ann", "a", 50)
    claimed = await claim(database, len(errors))
    results = [failure(c, e) for c, e in zip(claimed, errors, strict=True)]
    await database.write(outcome_rows.record, results, most_attempts=1)
    ended = await database.write(request_completion.finish, [request_id], fatal_after=3)
    assert ended == ({request_id: RequestState.FATAL} if fatal else {})
    if fatal:
        found = await database.read(request_rows.get, LOCAL_USER, request_id)
        named = ", ".join(f"root://far//a/{n}.root" for n in range(3))
        assert f"no branch x [the first 3 files: {named}]" in found.failure
        states = await database.read(_states)
        assert states == {TaskState.FAILED: 3, TaskState.WAITING: 47}


async def test_restart_queues_running_files_again(database: Database) -> None:
    """The interrupted attempt does not count."""
    await ask(database, "ann", "a", 3)
    await claim(database, 2)
    assert await database.write(task_rows.recover) == 2
    again = await claim(database, 3)
    assert [(c.position, c.attempt) for c in again] == [(0, 1), (1, 1), (2, 1)]


async def test_times_never_go_back(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the clock is set back, a client that asks for later results still gets them."""
    request_id = await ask(database, "ann", "a", 3)
    claimed = await claim(database, 3)
    for one in claimed:
        await database.write(outcome_rows.record, [success(one)], most_attempts=1)
        back = now() - timedelta(hours=1)
        monkeypatch.setattr(outcome_rows, "now", lambda back=back: back)
    found = await database.read(finished_files.listed, ANN, request_id)
    times = [one.finished_at for one in found]
    assert times == sorted(times)
    later = await database.read(finished_files.listed, ANN, request_id, later_than=times[1])
    assert [one.finished_at for one in later] == times[1:]
    first = datetime(1, 1, 1, tzinfo=UTC)
    everything = await database.read(finished_files.listed, ANN, request_id, later_than=first)
    assert len(everything) == 3


async def test_statistics_wait_for_a_result(database: Database) -> None:
    """There are no statistics before the first result."""
    request_id = await ask(database, "ann", "a", 1)
    assert await database.read(finished_files.statistics, ANN, request_id) is None
    (claimed,) = await claim(database, 1)
    await database.write(outcome_rows.record, [success(claimed)], most_attempts=1)
    found = await database.read(finished_files.statistics, ANN, request_id)
    assert found is not None
    assert (found["bytes"], found["events"]) == (7, 3)


async def test_bucket_is_listed_in_byte_order(database: Database) -> None:
    """The pages have the order that S3 needs, whatever the language of the database is."""
    names = ["a-1", "B", "_x", "a_1", "A", "a1", "b", "ab"]
    request_id = await ask(database, "ann", "names", len(names))
    claimed = await claim(database, len(names))
    results = [
        replace(success(one), object_name=name) for one, name in zip(claimed, names, strict=True)
    ]
    await database.write(outcome_rows.record, results, most_attempts=1)
    buckets = RequestBuckets(database)

    async def listed(**options: Any) -> list[str]:
        found = await buckets.objects(request_id, **options)
        assert found is not None
        return [one.name for one in found]

    assert await listed() == sorted(names)
    assert await listed(after="B", limit=2) == ["_x", "a-1"]
    assert await listed(prefix="a", after="a1") == ["a_1", "ab"]
    assert await listed(after="a1\0b") == ["a_1", "ab", "b"]
    assert await listed(prefix="a\0") == []
    assert await buckets.objects("7") is None


async def test_failed_transaction_changes_no_row(database: Database) -> None:
    """The function raises in the middle of a write."""

    def half(connection: Any) -> None:
        dataset_rows.create(connection, name="x", finder="f", owner=None, reference={})
        raise RuntimeError("in the middle")

    act: Callable[..., Any] = half
    with pytest.raises(RuntimeError):
        await database.write(act)
    assert await database.read(dataset_rows.listed, ANN, finder=None, with_stale=True) == []


async def split(
    database: Database, large: task_rows.Work, *parts: Entries
) -> tuple[set[str], list[str]]:
    """Record that a file is better done in parts."""
    outcome = Outcome(large.request_id, large.file_id, large.attempt, parts=parts)
    recorded = outcome_rows.Recorded(large.task_id, outcome)
    return await database.write(outcome_rows.record, [recorded], most_attempts=1)


async def test_splits_of_a_large_file_become_one_result(database: Database) -> None:
    """Each split is a task. A last task joins the results in order. The service removes them."""
    request_id = await ask(database, "ann", "large", 2)
    large, small = await claim(database, 2)
    parts = ((0, 40), (40, 70), (70, 100))
    assert await split(database, large, *parts) == (set(), [])
    (demand,) = await database.read(task_rows.demand)
    assert demand.left == 4
    claimed = await claim(database, 9)
    assert [(one.file_id, one.entries, one.attempt) for one in claimed] == [
        (large.file_id, part, 1) for part in parts
    ]
    ends = [success(one) for one in (claimed[2], claimed[0], small)]
    await database.write(outcome_rows.record, ends, most_attempts=1)
    found = await database.read(request_rows.get, ANN, request_id)
    assert (found.files, found.completed, found.failed, found.events) == (2, 1, 0, 3)
    assert await claim(database, 9) == []
    await database.write(outcome_rows.record, [success(claimed[1])], most_attempts=1)
    keys = tuple(success(one).object_key for one in claimed)
    for attempt in (2, 3):
        (demand,) = await database.read(task_rows.demand)
        assert demand.left == 1
        (joining,) = await claim(database, 9)
        assert (joining.entries, joining.attempt, joining.joins) == (None, attempt, keys)
        if attempt == 2:  # the attempt that found out how large the file is does not count
            away = failure(joining, UploadError("it is away"))
            await database.write(outcome_rows.record, [away], most_attempts=2)
            await database.write(_make_due)
    _, orphans = await database.write(outcome_rows.record, [success(joining)], most_attempts=2)
    assert sorted(orphans) == sorted(keys)
    found = await database.read(request_rows.get, ANN, request_id)
    assert (found.files, found.completed, found.failed, found.events) == (2, 2, 0, 12)
    listed = await database.read(finished_files.listed, ANN, request_id)
    assert [(one.file_id, one.events) for one in listed] == [
        (small.file_id, 3),
        (large.file_id, 9),
    ]
    assert await database.read(task_rows.demand) == []


async def test_file_fails_with_one_of_its_splits(database: Database) -> None:
    """It has the error of the split. The service drops the others, and removes their objects."""
    request_id = await ask(database, "ann", "large", 1)
    (large,) = await claim(database, 1)
    await split(database, large, (0, 40), (40, 70), (70, 100))
    first, second, third = await claim(database, 9)
    await database.write(outcome_rows.record, [success(first)], most_attempts=1)
    lost = failure(second, NoBranch("no branch x"))
    _, orphans = await database.write(outcome_rows.record, [lost], most_attempts=1)
    assert orphans == [success(first).object_key]
    found = await database.read(request_rows.get, ANN, request_id)
    assert (found.files, found.completed, found.failed, found.events) == (1, 0, 1, 0)
    (failed,) = await database.read(finished_files.failed, ANN, request_id)
    assert failed.error is not None
    assert failed.error.message == "no branch x"
    # what another worker has done meanwhile is nobody's
    _, orphans = await database.write(outcome_rows.record, [success(third)], most_attempts=1)
    assert orphans == [success(third).object_key]
    assert await claim(database, 9) == []


async def test_repeated_outcome_does_not_create_splits_twice(database: Database) -> None:
    """The second outcome of a file that has been split changes nothing."""
    await ask(database, "ann", "twice", 1)
    (large,) = await claim(database, 1)
    for _ in range(2):
        await split(database, large, (0, 5), (5, 9))
    assert len(await claim(database, 9)) == 2


async def sums(database: Database, request_id: str) -> tuple[int, int, int | None]:
    """Return the bytes, events read and events kept of a request, as its row has them."""

    def read(connection: Any) -> tuple[int, int, int | None]:
        from sqlalchemy import select

        from servicex_server.database.tables import requests

        columns = requests.c.bytes, requests.c.events, requests.c.events_kept
        row = connection.execute(select(*columns).where(requests.c.id == request_id)).one()
        return tuple(row)

    return await database.read(read)


async def test_lost_result_is_queued_again(database: Database) -> None:
    """Its request runs until the file is done again. Then the counters are as before."""
    request_id = await ask(database, "ann", "a", 3)
    done = [success(one) for one in await claim(database, 3)]
    await database.write(outcome_rows.record, done, most_attempts=1)
    await database.write(request_completion.finish, [request_id], fatal_after=3)
    before = await database.read(request_rows.get, ANN, request_id)
    buckets, lost = RequestBuckets(database), done[1]
    assert await database.write(lost_results.make_again, request_id, lost.object_key)
    assert not await database.write(lost_results.make_again, request_id, lost.object_key)
    found = await database.read(request_rows.get, ANN, request_id)
    assert (found.state, found.finished_at) == (RequestState.RUNNING, None)
    assert (found.completed, found.failed) == (2, 0)
    assert await sums(database, request_id) == (14, 6, 0)
    assert await buckets.object(request_id, lost.object_name) is None
    assert await buckets.made_again(request_id, lost.object_name)
    assert not await buckets.made_again(request_id, done[0].object_name)
    (again,) = await claim(database, 3)
    assert (again.task_id, again.attempt) == (lost.task_id, 1)
    # the name is kept while the file is tried again
    away = failure(again, UnreachableError("away"))
    await database.write(outcome_rows.record, [away], most_attempts=2)
    assert await buckets.made_again(request_id, lost.object_name)
    await database.write(_make_due)
    (again,) = await claim(database, 3)
    await database.write(outcome_rows.record, [success(again)], most_attempts=2)
    ended = await database.write(request_completion.finish, [request_id], fatal_after=3)
    assert ended == {request_id: RequestState.COMPLETE}
    found = await database.read(request_rows.get, ANN, request_id)
    assert (found.completed, found.failed) == (before.completed, before.failed)
    assert await sums(database, request_id) == (21, 9, 0)
    assert await buckets.object(request_id, lost.object_name) is not None
    assert not await buckets.made_again(request_id, lost.object_name)


@pytest.mark.parametrize("end", [request_rows.cancel, request_rows.mark_deleted])
async def test_lost_result_of_a_stopped_request_stays_lost(database: Database, end: Any) -> None:
    """The service does not redo the work of a cancelled or deleted request."""
    request_id = await ask(database, "ann", "a", 2)
    done = success((await claim(database, 1))[0])
    await database.write(outcome_rows.record, [done], most_attempts=1)
    await database.write(end, ANN, request_id)
    assert not await database.write(lost_results.make_again, request_id, done.object_key)
    assert not await RequestBuckets(database).made_again(request_id, done.object_name)


async def test_lost_result_that_cannot_be_made_is_a_failed_file(database: Database) -> None:
    """The input file may be gone. Then its result is lost, and a reader does not wait longer."""
    request_id = await ask(database, "ann", "a", 2)
    done = [success(one) for one in await claim(database, 2)]
    await database.write(outcome_rows.record, done, most_attempts=1)
    await database.write(request_completion.finish, [request_id], fatal_after=3)
    assert await database.write(lost_results.make_again, request_id, done[0].object_key)
    (again,) = await claim(database, 2)
    gone = failure(again, CorruptError("bad"))
    await database.write(outcome_rows.record, [gone], most_attempts=1)
    ended = await database.write(request_completion.finish, [request_id], fatal_after=3)
    assert ended == {request_id: RequestState.COMPLETE}
    found = await database.read(request_rows.get, ANN, request_id)
    assert (found.completed, found.failed) == (1, 1)
    assert await sums(database, request_id) == (7, 3, 0)
    assert not await RequestBuckets(database).made_again(request_id, done[0].object_name)


async def test_very_many_lost_objects_are_forgotten(database: Database) -> None:
    """There are more than a statement may have parameters, in both databases."""
    request_id = await ask(database, "ann", "a", 1)
    (work,) = await claim(database, 1)
    done = success(work)
    await database.write(outcome_rows.record, [done], most_attempts=1)
    await database.write(_identify, "known")
    keys = [*(f"{request_id}/{number}" for number in range(70_000)), done.object_key]

    async def known() -> dict[str, str]:
        return await database.read(
            result_reuse.known_objects, {"known"}, owner="ann", of=Sharing.OWN
        )

    assert await known() == {"known": done.object_key}
    await database.write(lost_results.forget, keys)
    assert await known() == {}


def _identify(connection: Any, known: str) -> None:
    from sqlalchemy import update

    from servicex_server.database.tables import tasks

    connection.execute(update(tasks).values(identity=known))
