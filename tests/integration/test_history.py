"""History of the service: the rows that the leader writes, and how long they are kept."""

import asyncio
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from servicex_server.app import App
from servicex_server.database import service_history, stored_objects
from servicex_server.database.connection import Database
from servicex_server.model import LOCAL_USER, Outcome, Principal, TaskSpec, now
from servicex_server.scheduling import status_writer
from servicex_server.settings.service import Settings
from servicex_server.testing.memory_engine import MemoryEngine
from tests.services import ended, submit

pytestmark = pytest.mark.anyio

ANN, BEN = Principal("ann"), Principal("ben")


def moment(**changes: Any) -> service_history.Moment:
    """Return a possible state of the service."""
    seen = service_history.Moment(at=now(), wanted=2, there=2, busy=1, waiting=0, stored=7, free=9)
    return replace(seen, **changes)


def done(spec: TaskSpec) -> Outcome:
    """End a file successfully, with a result of 7 bytes."""
    return Outcome(spec.request_id, spec.file_id, spec.attempt, bytes_written=7)


async def everything(database: Database) -> list[service_history.Moment]:
    """Return all rows."""
    return list(await database.read(service_history.since, now() - timedelta(days=9999)))


async def test_history_keeps_one_week(database: Database) -> None:
    """Of the rows of two weeks, the second week stays, to the minute."""
    latest = now().replace(second=30, microsecond=0)
    week = 7 * 24 * 60
    ages = {*range(0, 2 * week, 60), week - 1, week + 1}
    rows = [moment(at=latest - timedelta(minutes=n)) for n in sorted(ages, reverse=True)]
    for row in rows:
        await database.write(service_history.put, row)
    left = await everything(database)
    assert left == [row for row in rows if row.at >= latest - timedelta(days=7, seconds=30)]
    assert left[-1].at == latest
    assert await database.read(service_history.since, latest) == [rows[-1]]


async def test_history_has_one_row_a_minute_and_none_in_the_future(database: Database) -> None:
    """A leader that starts again and again, or a clock that is set back, adds no rows."""
    start = now().replace(second=0, microsecond=0)
    for seconds, stored in ((-60, 1), (0, 2), (20, 3), (59, 4), (86400, 5), (10, 6)):
        await database.write(
            service_history.put, moment(at=start + timedelta(seconds=seconds), stored=stored)
        )
    assert [row.stored for row in await everything(database)] == [1, 6]


async def test_free_space_of_a_bucket_is_unknown(database: Database) -> None:
    """The row has no number, rather than zero."""
    await database.write(service_history.put, moment(free=None))
    assert [row.free for row in await everything(database)] == [None]


async def test_leader_writes_history_at_once_and_then_again(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row has the current workers, waiting files, bytes of results and free space of the disk."""
    del database_url
    monkeypatch.setattr(status_writer, "HISTORY_SECONDS", 0.02)
    async with App(Settings(data_dir=tmp_path, workers=2), engine=MemoryEngine(done)) as app:
        await ended(app, await submit(app, 3, who=LOCAL_USER))
        async with asyncio.timeout(20):
            while not (found := await everything(app.database)) or found[-1].stored != 21:
                await asyncio.sleep(0.01)
        (row, *_) = reversed(found)
        assert (row.wanted, row.there, row.busy, row.waiting) == (2, 2, 0, 0)
        assert now() - row.at < timedelta(seconds=20)
        free = shutil.disk_usage(tmp_path).free
        assert row.free == pytest.approx(free, rel=0.2)


async def test_leader_tries_a_failed_history_write_again(
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The failure leaves a gap, and ends neither the history nor the leader."""
    del database_url
    put = service_history.put
    failed: list[service_history.Moment] = []

    def fail_twice(connection: Any, seen: service_history.Moment) -> None:
        if len(failed) < 2:
            failed.append(seen)
            raise ValueError("made up")
        put(connection, seen)

    monkeypatch.setattr(status_writer, "HISTORY_SECONDS", 0.02)
    monkeypatch.setattr(service_history, "put", fail_twice)
    async with App(Settings(data_dir=tmp_path, workers=2), engine=MemoryEngine(done)) as app:
        async with asyncio.timeout(20):
            while not await everything(app.database):
                await asyncio.sleep(0.01)
        assert app.leader is not None
        await ended(app, await submit(app, 1))
    assert len(failed) == 2
    said = [one.getMessage() for one in caplog.records if one.name == status_writer.__name__]
    assert said == ["the history cannot be written"] * 2


async def test_stored_bytes_of_each_day_give_the_growth(database: Database) -> None:
    """The last value of a day counts. Days are kept for a year; the last 30 give the growth."""
    first = now().replace(hour=9) - timedelta(days=400)
    for number in range(400):
        at = first + timedelta(days=number)
        for hour, stored in ((0, 1), (5, 1000 if number < 360 else 1000 + 50 * (number - 359))):
            seen = moment(at=at + timedelta(hours=hour), stored=stored)
            await database.write(service_history.put, seen)
    found = await database.read(service_history.days)
    assert len(found) == 367
    assert [stored for _, stored in found[-2:]] == [2950, 3000]
    assert service_history.growth(found) == pytest.approx(50)
    assert service_history.growth(found[:1]) is None


async def test_usage_is_listed_by_user(tmp_path: Path, database_url: str) -> None:
    """Users with the most bytes come first. A deleted request counts for nobody."""
    del database_url
    async with App(Settings(data_dir=tmp_path, workers=2), engine=MemoryEngine(done)) as app:
        gone = await submit(app, 5, who=ANN)
        for request_id in (gone, await submit(app, 2, who=ANN), await submit(app, 3, who=BEN)):
            await ended(app, request_id)
        assert await app.database.read(stored_objects.largest_owners, most=10) == [
            ("ann", 49),
            ("ben", 21),
        ]
        await app.requests.delete(ANN, gone)
        assert await app.database.read(stored_objects.largest_owners, most=10) == [
            ("ben", 21),
            ("ann", 14),
        ]
        assert await app.database.read(stored_objects.largest_owners, most=1) == [("ben", 21)]
        assert await app.database.read(stored_objects.size) == 35
