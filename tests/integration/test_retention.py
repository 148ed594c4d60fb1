"""How long results are kept: use, eviction, budget, pins and quotas; on rows and a real folder."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from sqlalchemy import select

from servicex_server.app import App
from servicex_server.database import lost_results, stored_objects
from servicex_server.database import requests as request_rows
from servicex_server.database.tables import objects
from servicex_server.errors import ForbiddenError, TooLargeError
from servicex_server.model import LOCAL_USER, Outcome, Principal, Role, TaskSpec, now
from servicex_server.retention import last_used
from servicex_server.retention.budget import RetentionPolicy, StoreBudget
from servicex_server.retention.reconciliation import reconcile
from servicex_server.scheduling import leader
from servicex_server.settings.groups import LimitSettings, StorageSettings
from servicex_server.settings.service import Settings
from servicex_server.storage.contract import Disk
from servicex_server.testing.memory_engine import MemoryEngine
from tests.services import ended, submit

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("database_url")]

ANN, BEN = Principal("ann"), Principal("ben")
SIZE = 1000
"""Bytes of each result."""

LATER = timedelta(days=40)


def delivered(spec: TaskSpec) -> Outcome:
    """Upload an object, as a worker would."""
    target = Path(unquote(urlsplit(spec.upload_url).path))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"x" * SIZE)
    return Outcome(spec.request_id, spec.file_id, spec.attempt, bytes_written=SIZE, events_read=1)


@asynccontextmanager
async def service(folder: Path, **settings: Any) -> AsyncIterator[App]:
    """Run the service without its web server."""
    made = Settings(data_dir=folder, workers=2, **settings)
    async with App(made, engine=MemoryEngine(delivered)) as app:
        yield app


async def stored(app: App, request_id: str) -> list[str]:
    """Return the keys of the objects of a request that are in the store."""
    return [info.key for info in await app.objects.list(request_id)]


async def run(app: App, count: int, **options: Any) -> str:
    """Have a request done."""
    request_id = await submit(app, count, **options)
    await ended(app, request_id)
    return request_id


def inputs(folder: Path, count: int) -> str:
    """Make input files, whose results are known again by their size and time; return the folder."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.root").write_bytes(b"input")
    return str(folder)


async def read_every(app: App, request_id: str) -> None:
    """Read all results as the gateway does: what is gone is made again first."""
    async with asyncio.timeout(30):
        while True:
            found = await app.buckets.objects(request_id) or []
            gone = [one.key for one in found if await app.objects.head(one.key) is None]
            for key in gone:
                await app.requests.make_again(request_id, key)
            request = await app.database.read(request_rows.get, LOCAL_USER, request_id)
            if not gone and len(found) == request.files and request.state.terminal:
                return
            await asyncio.sleep(0.01)


async def test_shared_object_counts_once_and_outlives_its_maker(tmp_path: Path) -> None:
    """Its bytes count to the maker, then to another user of it, and then to nobody."""
    shared = StorageSettings.model_validate({"share_results": "all"})
    async with service(tmp_path, storage=shared) as app:
        at = inputs(tmp_path / "in", 3)
        made = await run(app, 3, who=ANN, at=at)
        reused = await run(app, 3, who=BEN, at=at)
        assert await stored(app, reused) == []
        read = app.database.read
        assert await read(stored_objects.largest_owners, most=9) == [("ann", 3 * SIZE)]
        await app.requests.delete(ANN, made)
        assert await read(stored_objects.largest_owners, most=9) == [("ben", 3 * SIZE)]
        assert len(await stored(app, made)) == 3
        await app.requests.delete(BEN, reused)
        assert await read(stored_objects.size) == 0
        assert await stored(app, made) == []
        assert (await read(lambda connection: connection.execute(select(objects)).all())) == []


async def test_result_that_is_unused_for_long_is_evicted_and_made_again(tmp_path: Path) -> None:
    """The request keeps its rows. Its next reader gets the results, and the counters stay."""
    async with service(tmp_path) as app:
        request_id = await run(app, 4)
        before = await app.database.read(request_rows.get, LOCAL_USER, request_id)
        policy = RetentionPolicy(unused=timedelta(days=30))
        budget = StoreBudget(app.database, app.objects, policy)
        assert await budget.look(now() + timedelta(days=29)) == 0
        assert await budget.look(now() + timedelta(days=31)) == 4
        assert await stored(app, request_id) == []
        kept = await app.database.read(stored_objects.kept_of, request_id)
        assert (kept.bytes, kept.evicted, kept.oldest) == (0, 4, None)
        assert await app.database.read(stored_objects.size) == 0
        # it is neither an object that got lost, nor one to evict again
        assert await app.database.read(lost_results.own_objects, request_id) == set()
        assert (await reconcile(app.database, app.objects, at=now() + LATER)).lost == 0
        assert await budget.look(now() + timedelta(days=99)) == 0
        await read_every(app, request_id)
        after = await app.database.read(request_rows.get, LOCAL_USER, request_id)
        assert (after.completed, after.failed, after.events) == (4, 0, 4)
        assert (before.completed, before.events) == (after.completed, after.events)
        kept = await app.database.read(stored_objects.kept_of, request_id)
        assert (kept.bytes, kept.evicted) == (4 * SIZE, 0)


async def test_evicted_result_is_not_reused(tmp_path: Path) -> None:
    """The same request later makes its results anew."""
    async with service(tmp_path) as app:
        at = inputs(tmp_path / "in", 2)
        first = await run(app, 2, at=at)
        assert await stored(app, await run(app, 2, at=at)) == []  # reused
        budget = StoreBudget(app.database, app.objects, RetentionPolicy(unused=timedelta(days=1)))
        assert await budget.look(now() + LATER) == 2
        second = await run(app, 2, at=at)
        assert len(await stored(app, second)) == 2
        assert await stored(app, first) == []


async def test_least_recently_used_results_make_room(tmp_path: Path) -> None:
    """As many go as needed: not those of a pinned request, nor what was used a short time ago."""
    async with service(tmp_path) as app:
        requests = [await run(app, 2, at=f"/{name}") for name in ("old", "pinned", "used", "new")]
        old, pinned, used, new = requests
        ages = {old: 9, pinned: 8, used: 7, new: 0}
        for request_id, days in ages.items():
            await age(app, request_id, timedelta(days=days))
        await app.requests.pin(LOCAL_USER, pinned, pinned=True)
        await app.database.write(stored_objects.use, await stored(app, used))
        # 8,000 bytes are stored: 90 % of the budget is exceeded by 2,000
        policy = RetentionPolicy(budget=6667, least=timedelta(days=1))
        budget = StoreBudget(app.database, app.objects, policy)
        assert await budget.look(now()) == 2
        left = {request_id: len(await stored(app, request_id)) for request_id in requests}
        assert left == {old: 0, pinned: 2, used: 2, new: 2}
        # more would have to go, and nothing else may
        tight = StoreBudget(app.database, app.objects, RetentionPolicy(budget=3000))
        assert await tight.look(now()) == 0
        assert "no file starts: the results take" in tight.problem


async def age(app: App, request_id: str, by: timedelta) -> None:
    """Have the results of a request be last used so long ago."""
    keys = await stored(app, request_id)
    statement = objects.update().where(objects.c.key.in_(keys)).values(last_used=now() - by)
    await app.database.write(lambda connection: connection.execute(statement))


async def test_disk_that_must_keep_room_is_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free above the floor, and what the results take, is what they may have."""
    async with service(tmp_path) as app:
        request_id = await run(app, 4)
        await age(app, request_id, timedelta(days=2))

        async def disk() -> Disk:
            return Disk(used=9000, free=1500)

        monkeypatch.setattr(app.objects, "disk", disk)
        budget = StoreBudget(app.database, app.objects, RetentionPolicy(free=1300))
        assert await budget.look(now()) == 1
        assert budget.use.capacity == 3000 + 1500 - 1300
        assert len(await stored(app, request_id)) == 3


async def test_full_store_starts_no_file_and_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request waits, nothing of it fails, and it ends by itself after a deletion."""
    monkeypatch.setattr(leader, "BUDGET_SECONDS", 0.02)
    storage = StorageSettings.model_validate({"budget_bytes": 1 << 20, "least_days": 1})
    monkeypatch.setattr(__name__ + ".SIZE", 200_000)
    async with service(tmp_path, storage=storage) as app:
        first = await run(app, 4, at="/first")
        assert app.leader is not None
        dispatcher = app.leader.dispatcher
        second = await submit(app, 4, at="/second")
        async with asyncio.timeout(30):
            while second not in dispatcher.budget.as_dict()["without_room"]:
                await asyncio.sleep(0.01)
        request = await app.database.read(request_rows.get, LOCAL_USER, second)
        assert not request.state.terminal
        assert await app.database.read(stored_objects.size) <= 1 << 20
        await app.requests.delete(LOCAL_USER, first)
        request = await ended(app, second)
        assert (request.completed, request.failed) == (4, 0)
        assert dispatcher.absence == ""


async def test_user_above_the_quota_waits_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quota is checked at submission, and again for every file that would start."""
    monkeypatch.setattr(leader, "BUDGET_SECONDS", 0.02)
    limits = LimitSettings(bytes_per_user=3 * SIZE)
    async with service(tmp_path, limits=limits) as app:
        long = await submit(app, 2, who=ANN, at="/a")
        rest = await submit(app, 40, who=ANN, at="/b")  # accepted, since nothing is stored yet
        await ended(app, long)
        assert app.leader is not None
        budget = app.leader.dispatcher.budget
        async with asyncio.timeout(30):
            while "ann" not in budget.as_dict()["above_quota"]:
                await asyncio.sleep(0.01)
        await run(app, 1, who=BEN, at="/c")
        with pytest.raises(TooLargeError, match="one user may have"):
            await submit(app, 1, who=ANN, at="/d")
        waiting = await app.database.read(request_rows.get, LOCAL_USER, rest)
        assert waiting.failed == 0
        assert not waiting.state.terminal


async def test_pins_are_of_the_owner_and_within_the_quota(tmp_path: Path) -> None:
    """Another user cannot pin a request. The quota of its owner limits the pinned results."""
    limits = LimitSettings(bytes_per_user=5 * SIZE)
    async with service(tmp_path, limits=limits) as app:
        one = await run(app, 3, who=ANN, at="/one")
        two = await run(app, 4, who=ANN, at="/two")
        await app.requests.pin(ANN, one, pinned=True)
        with pytest.raises(TooLargeError, match="the pinned results would take"):
            await app.requests.pin(ANN, two, pinned=True)
        read = app.database.read
        assert not (await read(request_rows.get, ANN, two)).pinned
        assert (await read(request_rows.get, ANN, one)).pinned
        with pytest.raises(ForbiddenError):
            await app.requests.pin(Principal("olga", Role.OPERATOR), one, pinned=False)
        await app.requests.pin(ANN, one, pinned=False)
        await app.requests.pin(ANN, two, pinned=True)


async def test_use_of_a_result_is_noted_once_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uses are collected, and written together; the end of a process writes the rest."""
    monkeypatch.setattr(last_used, "TOGETHER_SECONDS", 0.01)
    async with service(tmp_path) as app:
        request_id = await run(app, 2)
        await age(app, request_id, timedelta(days=20))
        first, second = await stored(app, request_id)
        uses = last_used.LastUsed(app.database)
        uses.note(first)

        async def used(key: str) -> timedelta:
            row = select(objects.c.last_used).where(objects.c.key == key)
            found = await app.database.read(lambda connection: connection.execute(row).one())
            moment: datetime = found.last_used
            return now() - moment

        async with asyncio.timeout(30):
            while await used(first) > timedelta(days=1):
                await asyncio.sleep(0.01)
        assert await used(second) > timedelta(days=19)
        await age(app, request_id, timedelta(days=20))
        uses.note(first)  # it was noted in this hour
        uses.note(second)
        await uses.close()
        assert await used(first) > timedelta(days=19)
        assert await used(second) < timedelta(days=1)


async def test_inventory_has_users_ages_and_what_goes_next(tmp_path: Path) -> None:
    """The oldest results come first; each result is in one class of age."""
    async with service(tmp_path) as app:
        for days, who in ((0, ANN), (3, ANN), (20, BEN), (200, BEN)):
            request_id = await run(app, 1, who=who, at=f"/{days}")
            await age(app, request_id, timedelta(days=days))
        found = await app.database.read(stored_objects.inventory)
        assert found.bytes == 4 * SIZE
        assert found.owners == [("ann", 2 * SIZE), ("ben", 2 * SIZE)]
        assert found.ages == [(1, SIZE), (1, SIZE), (1, SIZE), (0, 0), (1, SIZE)]
        assert [one.owner for one in found.oldest] == ["ben", "ben", "ann", "ann"]
