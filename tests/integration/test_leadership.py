"""Leader election: one process leads at a time, and a former leader cannot write."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, text

from servicex_server.app import App, Duty, lock_folder
from servicex_server.database import finished_files, leader_lock
from servicex_server.database import requests as request_rows
from servicex_server.database.advisory_locks import SPACE, Lock
from servicex_server.database.connection import Database
from servicex_server.database.leader_lock import AdvisoryLock, NotLeadingError, Undisputed
from servicex_server.errors import StartupError, UnknownNameError
from servicex_server.model import (
    LOCAL_USER,
    Outcome,
    RequestState,
    TaskSpec,
)
from servicex_server.settings.groups import StorageSettings
from servicex_server.settings.service import Settings
from servicex_server.testing.memory_engine import MemoryEngine
from tests.postgres import Postgres
from tests.services import ended, submit

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(postgresql: Postgres) -> Iterator[str]:
    """Give a database on PostgreSQL."""
    postgresql.run("create database candidates template template")
    yield postgresql.url("candidates")
    postgresql.run("drop database candidates with (force)")


@pytest.fixture
def shared(url: str) -> Iterator[Database]:
    """Give the same database, opened."""
    with closing(Database(url)) as database:
        yield database


def holders(postgresql: Postgres, lock: Lock = Lock.LEAD, *, granted: bool = True) -> list[int]:
    """Return the sessions that hold a lock, or wait for it."""
    found = postgresql.run(
        "select pid from pg_locks join pg_database d on d.oid = database where granted = %s and "
        "locktype = 'advisory' and datname = 'candidates' and classid = %s and objid = %s",
        granted,
        SPACE,
        int(lock),
    )
    return [pid for (pid,) in found]


def end_leader(postgresql: Postgres) -> None:
    """End the session that leads, as a network or a server that dies does."""
    (pid,) = holders(postgresql)
    assert postgresql.run("select pg_terminate_backend(%s, 10000)", pid) == [(True,)]


@asynccontextmanager
async def locks(database: Database, count: int = 2) -> AsyncIterator[list[AdvisoryLock]]:
    """Give candidates, each as a process of its own would have it."""
    made = [AdvisoryLock(database) for _ in range(count)]
    try:
        yield made
    finally:
        for one in made:
            await one.release()


async def taken(lock: AdvisoryLock) -> None:
    """Stand for the lead until it is there: a server ends a session when it gets round to it."""
    async with asyncio.timeout(10):
        while not await lock.take():
            await asyncio.sleep(0.01)


def nothing(message: str) -> None:
    """Ignore a message."""


async def test_one_process_leads_until_it_releases_the_lock(
    shared: Database, postgresql: Postgres
) -> None:
    """The second process does not get the lock while the first one leads."""
    async with locks(shared) as (one, other):
        assert [await one.take(), await other.take(), await other.take()] == [True, False, False]
        assert len(holders(postgresql)) == 1
        await one.release()
        await taken(other)
        assert not await one.take()
        assert len(holders(postgresql)) == 1


async def test_leader_notices_the_end_of_its_session(
    shared: Database, postgresql: Postgres
) -> None:
    """Its watch returns at once. The next process leads, and the first one can try again."""
    async with locks(shared) as (one, other):
        assert await one.take()
        watching = asyncio.create_task(one.watch(nothing))
        end_leader(postgresql)
        await asyncio.wait_for(watching, 5)
        assert await other.take()
        await one.release()
        assert not await one.take()


async def test_former_leader_cannot_write(shared: Database, postgresql: Postgres) -> None:
    """It has not noticed the end of its session. The writes of the next leader succeed."""
    async with locks(shared) as (one, other):
        assert await one.take()
        old = shared.guarded(one.guard)
        await old.write(leader_lock.ping)
        end_leader(postgresql)
        assert await other.take()
        with closing(Database(str(shared.url.render_as_string(hide_password=False)))) as second:
            writes = [db.guarded(one.guard).write(leader_lock.ping) for db in (shared, second) * 3]
            for answer in await asyncio.gather(*writes, return_exceptions=True):
                assert isinstance(answer, NotLeadingError)
        await shared.guarded(other.guard).write(leader_lock.ping)


async def test_next_leader_waits_for_the_last_write_of_the_former_one(
    shared: Database, postgresql: Postgres
) -> None:
    """A write that began under the former leader ends before the next one leads."""
    inside, go_on = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        connection.execute(text("create table late (x int)"))
        inside.set()
        assert go_on.wait(20)

    async with locks(shared) as (one, other):
        assert await one.take()
        writing = asyncio.create_task(shared.guarded(one.guard).write(slow))
        await asyncio.to_thread(inside.wait, 10)
        end_leader(postgresql)
        taking = asyncio.create_task(other.take())
        async with asyncio.timeout(10):
            while not holders(postgresql, Lock.WRITE, granted=False):
                await asyncio.sleep(0.01)
        assert len(holders(postgresql)) == 1
        assert not taking.done()
        go_on.set()
        assert await taking
        assert writing.done() or await shared.read(
            lambda c: c.scalar(text("select count(*) + 1 from late"))
        )
        await writing


async def test_leader_receives_messages_after_the_commit(shared: Database) -> None:
    """Messages arrive in their order. A failed transaction sends none."""
    heard: list[str] = []

    def failing(connection: Connection) -> None:
        leader_lock.notify_leader(connection, "never")
        raise KeyError

    async with locks(shared, 1) as (one,):
        assert await one.take()
        await shared.write(leader_lock.notify_leader, "before the watch")
        watching = asyncio.create_task(one.watch(heard.append))
        with pytest.raises(KeyError):
            await shared.write(failing)
        await shared.write(leader_lock.notify_leader, "stopped 7")
        async with asyncio.timeout(10):
            while len(heard) < 2:
                await asyncio.sleep(0.01)
        assert heard == ["before the watch", "stopped 7"]
        watching.cancel()


async def test_process_on_sqlite_always_leads(tmp_path: Path) -> None:
    """It gets the lead at once, and cannot lose it."""
    with closing(Database(f"sqlite:///{tmp_path / 'x.sqlite'}")) as database:
        alone = leader_lock.of(database)
        assert isinstance(alone, Undisputed)
        assert await alone.take()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(alone.watch(nothing), 0.05)
        await database.guarded(alone.guard).write(leader_lock.ping)


# --- whole services, several on one database -----------------------------------------------


def delivered(spec: TaskSpec) -> Outcome:
    """End a task."""
    return Outcome(spec.request_id, spec.file_id, spec.attempt, bytes_written=7)


@pytest.fixture
def settings(url: str, tmp_path: Path) -> Settings:
    """Give the settings that all processes share."""
    return Settings(
        data_dir=tmp_path / "data", storage=StorageSettings(database_url=SecretStr(url))
    )


class Holding(MemoryEngine):
    """An engine that does not start its tasks while ``holds`` is true."""

    def __init__(self, **options: Any) -> None:
        super().__init__(delivered, **options)
        self.holds = True

    def submit(self, spec: TaskSpec, *, avoid: str = "") -> None:
        """Queue a task."""
        if self.holds:
            self._waiting.append(spec)
        else:
            super().submit(spec, avoid=avoid)

    async def has(self, request_id: str, *, inside: bool) -> None:
        """Wait until files of a request are inside the engine, or none is."""
        async with asyncio.timeout(10):
            while any(spec.request_id == request_id for spec in self._waiting) is not inside:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("end", [request_rows.cancel, request_rows.mark_deleted])
async def test_leader_runs_requests_of_a_process_without_workers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, end: Callable[..., Any], *, told: bool
) -> None:
    """The leader looks files up and runs them. It drops cancelled and deleted requests.

    It does so even if it receives no message.
    """
    if not told:
        monkeypatch.setattr(leader_lock, "notify_leader", lambda connection, message: None)
    wrong = UnknownNameError("no branch x").record()
    engine = Holding(check=lambda spec: wrong)
    async with (
        App(settings, duty=Duty.DISPATCH, engine=engine) as working,
        App(settings, duty=Duty.API) as api,
    ):
        assert (working.leader is not None, api.leader) == (True, None)
        broken_off = await submit(api, 20)
        assert engine.checked == []  # nobody could look at the files, so it was accepted unseen
        await engine.has(broken_off, inside=True)
        await api.database.write(end, LOCAL_USER, broken_off)
        await api.stopped(broken_off)
        await engine.has(broken_off, inside=False)
        engine.holds = False
        found = await ended(api, await submit(api, 20))
        assert (found.state, found.completed) == (RequestState.COMPLETE, 20)
    assert {spec.request_id for spec in engine.seen} == {found.id}


async def test_process_that_serves_and_leads_dry_runs_a_query(settings: Settings) -> None:
    """A process with workers rejects a query that its files contradict, on PostgreSQL too."""
    wrong = UnknownNameError("no branch x").record()
    async with App(settings, engine=MemoryEngine(delivered, check=lambda spec: wrong)) as app:
        with pytest.raises(UnknownNameError):
            await submit(app, 1)


class Outside(MemoryEngine):
    """An engine that counts how often it had to leave workers that others may have taken over."""

    disowned = 0

    def disown(self) -> None:
        """Count."""
        self.disowned += 1


async def test_changes_of_the_leader_lose_and_repeat_no_file(
    settings: Settings, postgresql: Postgres
) -> None:
    """The sessions of the leaders end again and again. The service records each file once."""
    engines = [Outside(delivered, slots=2) for _ in range(2)]
    async with App(settings, engine=engines[0]) as one, App(settings, engine=engines[1]) as other:
        apps = (one, other)
        assert [app.leader is not None for app in apps] == [True, False]
        request_id = await submit(other, 400)
        for _ in range(3):
            async with asyncio.timeout(10):
                before = await done(other, request_id)
                while await done(other, request_id) <= before + 20:
                    assert len([app for app in apps if app.leader is not None]) <= 1
                    await asyncio.sleep(0.01)
            end_leader(postgresql)
        found = await ended(one, request_id)
        assert (found.state, found.completed) == (RequestState.COMPLETE, 400)
        files = await one.database.read(finished_files.listed, LOCAL_USER, request_id)
    assert len({file.file_id for file in files}) == len(files) == 400
    assert all(engine.seen for engine in engines)
    assert sum(engine.disowned for engine in engines) == 3  # and not when they stopped in order


async def done(app: App, request_id: str) -> int:
    """Return how many files of a request have ended well."""
    return (await app.database.read(request_rows.get, LOCAL_USER, request_id)).completed


async def test_next_process_leads_after_an_orderly_stop(settings: Settings) -> None:
    """It takes up the files that ran under the former leader."""
    engine = MemoryEngine(delivered)
    async with App(settings, engine=Holding()) as one:
        request_id = await submit(one, 5)
        other = await App(settings, engine=engine).__aenter__()
        assert other.leader is None
    found = await ended(other, request_id)
    await other.__aexit__(None, None, None)
    assert (found.state, found.completed) == (RequestState.COMPLETE, 5)
    assert {spec.attempt for spec in engine.seen} == {1}


async def test_a_process_whose_workers_cannot_start_does_not_keep_the_lead(
    settings: Settings,
) -> None:
    """It reports the reason and ends, and the next process leads."""

    class Broken(MemoryEngine):
        async def start(self, *told: Callable[..., Any]) -> None:
            raise StartupError("the workers cannot be started: no")

    with pytest.raises(StartupError, match="no"):
        async with App(settings, engine=Broken(delivered)):
            pass
    async with App(settings, engine=MemoryEngine(delivered)) as app:
        assert app.leader is not None


@pytest.mark.parametrize("duty", [Duty.API, Duty.DISPATCH])
async def test_several_processes_need_postgresql(tmp_path: Path, duty: Duty) -> None:
    """With SQLite, a process of several does not start, and creates nothing."""
    with pytest.raises(StartupError, match="need PostgreSQL"):
        async with App(Settings(data_dir=tmp_path / "d"), duty=duty):
            pass
    assert not (tmp_path / "d").exists()


def test_shared_and_exclusive_folder_locks_exclude_each_other(tmp_path: Path) -> None:
    """A process that shares its folder excludes one that does not, and the other way round."""
    refused = pytest.raises(StartupError, match="is used by another server")
    with lock_folder(tmp_path, shared=True), lock_folder(tmp_path, shared=True), refused:
        lock_folder(tmp_path, shared=False)
    with lock_folder(tmp_path, shared=False):
        for shared in (True, False):
            with pytest.raises(StartupError, match="is used by another server"):
                lock_folder(tmp_path, shared=shared)
