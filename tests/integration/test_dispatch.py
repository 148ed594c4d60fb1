"""The dispatcher between the database and an engine whose tasks end as the test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from sqlalchemy import func, select

from servicex_server.app import App
from servicex_server.database import finished_files
from servicex_server.database import outcomes as outcome_rows
from servicex_server.database import requests as request_rows
from servicex_server.database import tasks as task_rows
from servicex_server.database.tables import tasks
from servicex_server.errors import (
    CorruptError,
    NotFoundError,
    RequestError,
    UnknownNameError,
    WorkerDiedError,
)
from servicex_server.model import (
    LOCAL_USER,
    Outcome,
    Principal,
    RequestState,
    ResultFormat,
    Sharing,
    TaskSpec,
)
from servicex_server.requests.deletion import clear
from servicex_server.requests.submission import Order
from servicex_server.settings.groups import LimitSettings, ScalingSettings, StorageSettings
from servicex_server.settings.service import Settings
from servicex_server.storage.contract import UNFINISHED
from servicex_server.testing.memory_engine import MemoryEngine
from tests.services import SELECTION, ended, lose_an_answer, submit

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("compiled_here")]

on_both_databases = pytest.mark.usefixtures("database_url")
"""For tests whose statements PostgreSQL may answer otherwise; the others run on SQLite alone."""


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio."""
    return "asyncio"


def delivered(spec: TaskSpec) -> Outcome:
    """Upload an object of seven bytes, as a worker would."""
    target = Path(unquote(urlsplit(spec.upload_url).path))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"content")
    return Outcome(spec.request_id, spec.file_id, spec.attempt, bytes_written=7, events_read=1)


def failing(error: Exception) -> Callable[[TaskSpec], Outcome]:
    """Return work that fails with an error."""
    record = error.record()  # type: ignore[attr-defined]  # one of ours
    return lambda spec: replace(Outcome(spec.request_id, spec.file_id, spec.attempt), error=record)


@asynccontextmanager
async def service(folder: Path, engine: MemoryEngine, **settings: Any) -> AsyncIterator[App]:
    """Run the service without its web server."""
    async with App(Settings(data_dir=folder, **settings), engine=engine) as app:
        yield app


def made(folder: Path, count: int) -> str:
    """Make a number of files in a folder, and return its name."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.root").write_bytes(b"root" * (number + 1))
    return str(folder)


@on_both_databases
async def test_every_file_ends_once(tmp_path: Path) -> None:
    """A request of many files completes. Each file runs once, and each has an object."""
    engine = MemoryEngine(delivered, slots=4)
    async with service(tmp_path, engine) as app:
        request_id = await submit(app, 100)
        found = await ended(app, request_id)
        objects = await app.objects.list(request_id)
    assert (found.state, found.files, found.completed) == (RequestState.COMPLETE, 100, 100)
    assert len({spec.file_id for spec in engine.seen}) == len(engine.seen) == 100
    assert len(objects) == 100


async def test_engine_has_a_bounded_number_of_tasks(tmp_path: Path) -> None:
    """It never has more than two tasks for each slot, however many files wait."""
    most = 0

    def work(spec: TaskSpec) -> Outcome:
        nonlocal most
        most = max(most, len(engine._waiting) + len(engine._running))
        return delivered(spec)

    engine = MemoryEngine(work, slots=3)
    async with service(tmp_path, engine) as app:
        await ended(app, await submit(app, 60))
    assert most <= 6


@on_both_databases
async def test_worker_death_costs_an_attempt(tmp_path: Path) -> None:
    """The service tries the file once more, as the second attempt."""
    tries: dict[int, int] = {}

    def work(spec: TaskSpec) -> Outcome:
        tries[spec.file_id] = spec.attempt
        if spec.attempt == 1:
            return failing(WorkerDiedError("killed"))(spec)
        return delivered(spec)

    async with service(tmp_path, MemoryEngine(work)) as app:
        found = await ended(app, await submit(app, 2))
    assert (found.state, found.completed, found.failed) == (RequestState.COMPLETE, 2, 0)
    assert set(tries.values()) == {2}


async def test_attempts_are_limited(tmp_path: Path) -> None:
    """After the third death of a worker, the file fails with the known error."""
    engine = MemoryEngine(failing(WorkerDiedError("killed by signal 9")))
    async with service(tmp_path, engine) as app:
        request_id = await submit(app, 1)
        found = await ended(app, request_id)
        (report,) = await app.database.read(finished_files.failed, LOCAL_USER, request_id)
    assert found.state is RequestState.FATAL
    assert "killed by signal 9" in found.failure
    assert [spec.attempt for spec in engine.seen] == [1, 2, 3]
    assert report.error is not None
    assert report.error.kind == "WorkerDied"


@on_both_databases
async def test_one_query_error_stops_a_long_request(tmp_path: Path) -> None:
    """If the first files have the same query error, the request ends without running the rest."""
    engine = MemoryEngine(failing(UnknownNameError("no branch x", hint="did you mean y?")))
    async with service(tmp_path, engine) as app:
        found = await ended(app, await submit(app, 300))
    assert found.state is RequestState.FATAL
    assert found.failure.startswith("no branch x (did you mean y?)")
    assert len(engine.seen) < 20


async def test_bad_files_do_not_stop_a_long_request(tmp_path: Path) -> None:
    """Corrupt files fail alone, also when they come first."""

    def work(spec: TaskSpec) -> Outcome:
        first = spec.replicas[0].url in {f"/data/{n}.root" for n in range(5)}
        return failing(CorruptError("bad"))(spec) if first else delivered(spec)

    async with service(tmp_path, MemoryEngine(work)) as app:
        found = await ended(app, await submit(app, 30))
    assert (found.state, found.completed, found.failed) == (RequestState.COMPLETE, 25, 5)


@on_both_databases
async def test_cancelled_request_starts_no_more_files(tmp_path: Path) -> None:
    """Other requests continue."""
    seen_after: list[TaskSpec] = []
    cancelled: set[str] = set()

    def work(spec: TaskSpec) -> Outcome:
        if spec.request_id in cancelled:
            seen_after.append(spec)
        return delivered(spec)

    engine = MemoryEngine(work, slots=1)
    async with service(tmp_path, engine) as app:
        long, other = await submit(app, 500), await submit(app, 5)
        while not engine.seen:
            await asyncio.sleep(0.005)
        await app.database.write(request_rows.cancel, LOCAL_USER, long)
        await app.stopped(long)
        cancelled.add(long)
        found = await ended(app, other)
        stopped = await app.database.read(request_rows.get, LOCAL_USER, long)
        objects = await app.objects.list(long)
    assert found.completed == 5
    assert stopped.state is RequestState.CANCELED
    assert seen_after == []
    assert len(objects) == stopped.completed


@on_both_databases
async def test_next_service_continues_a_request(tmp_path: Path) -> None:
    """A service on the same folder runs the files that the first one left, each once."""
    first = MemoryEngine(delivered, slots=1)
    async with service(tmp_path, first) as app:
        request_id = await submit(app, 200)
        while len(first.seen) < 20:
            await asyncio.sleep(0.005)
    second = MemoryEngine(delivered, slots=4)
    async with service(tmp_path, second) as app:
        found = await ended(app, request_id)
        files = await app.database.read(finished_files.listed, LOCAL_USER, request_id)
    assert found.completed == 200
    assert len({file.object_name for file in files}) == 200
    assert second.seen


@on_both_databases
async def test_outcome_that_is_recorded_twice_keeps_its_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the database's answer is lost, the service records outcomes again and loses no object."""
    lost = lose_an_answer(monkeypatch, outcome_rows.record)
    engine = MemoryEngine(delivered)
    async with service(tmp_path, engine) as app:
        request_id = await submit(app, 5)
        found = await ended(app, request_id)
        objects = await app.objects.list(request_id)
    assert lost
    assert (found.state, found.completed) == (RequestState.COMPLETE, 5)
    assert len(objects) == 5


@on_both_databases
async def test_requests_on_the_same_file_list_share_a_dataset(tmp_path: Path) -> None:
    """Both requests get every file."""
    async with service(tmp_path, MemoryEngine(delivered)) as app:
        found = [await ended(app, await submit(app, 10)) for _ in range(2)]
    assert found[0].dataset_id == found[1].dataset_id
    assert [one.completed for one in found] == [10, 10]


async def test_rejected_request_leaves_no_row(tmp_path: Path) -> None:
    """A wrong order raises an error and stores nothing."""
    async with service(tmp_path, MemoryEngine(delivered)) as app:
        with pytest.raises(RequestError):
            await app.submission.accept(
                LOCAL_USER, Order("[]", "uproot-raw", ResultFormat.PARQUET, files=["/a.root"])
            )
        assert await app.database.read(request_rows.listed, LOCAL_USER) == []


@on_both_databases
async def test_repeated_request_reuses_the_results(tmp_path: Path) -> None:
    """The service reuses results of unchanged files, and keeps them while a request uses them."""
    folder, engine = made(tmp_path / "in", 30), MemoryEngine(delivered)
    async with service(tmp_path / "data", engine) as app:
        first = await submit(app, 30, at=folder)
        await ended(app, first)
        assert len(engine.seen) == 30
        again = await submit(app, 30, at=folder)
        found = await ended(app, again)
        assert (found.state, found.completed) == (RequestState.COMPLETE, 30)
        assert len(engine.seen) == 30
        bucket = await app.buckets.objects(again)
        assert bucket is not None
        assert len({one.name for one in bucket}) == 30
        changed(folder, 7)
        await ended(app, await submit(app, 30, at=folder))
        assert [spec.replicas[0].url for spec in engine.seen[30:]] == [f"{folder}/7.root"]
        # the third one has made 7.root anew, and shares the rest with both
        for one, left in ((first, 30), (again, 29)):
            await app.database.write(request_rows.mark_deleted, LOCAL_USER, one)
            await clear(app.database, app.objects, one)
            assert len(await app.objects.list(first)) == left


def changed(folder: str, number: int) -> None:
    """Replace a file by another one."""
    Path(folder, f"{number}.root").write_bytes(b"another")


@pytest.mark.parametrize(
    ("share", "works"), [(Sharing.NONE, 9), (Sharing.OWN, 6), (Sharing.ALL, 3)]
)
async def test_setting_decides_whose_results_are_reused(
    tmp_path: Path, share: Sharing, works: int
) -> None:
    """They are nobody's, those of the same user, or everybody's."""
    folder, engine = made(tmp_path / "in", 3), MemoryEngine(delivered)
    async with service(
        tmp_path / "data", engine, storage=StorageSettings(share_results=share)
    ) as app:
        for name in ("ann", "bob", "ann"):
            request_id = await submit(app, 3, who=Principal(name), at=folder)
            await ended(app, request_id)
    assert len(engine.seen) == works


@on_both_databases
async def test_finished_file_of_a_dead_service_is_not_run_again(tmp_path: Path) -> None:
    """The next start records a complete object, and removes an incomplete one."""

    class Mute(MemoryEngine):
        """An engine that does the work, and dies before it reports the outcome."""

        def _run(self, spec: TaskSpec) -> None:
            self.seen.append(spec)
            if len(self.seen) == 1:
                delivered(spec)
            else:
                target = Path(unquote(urlsplit(spec.upload_url).path))
                target.parent.mkdir(parents=True, exist_ok=True)
                (target.parent / f"{UNFINISHED}x").write_bytes(b"half")

    mute = Mute(delivered, slots=2)
    async with service(tmp_path, mute) as app:
        request_id = await submit(app, 3)
        while len(mute.seen) < 2:
            await asyncio.sleep(0.005)
    second = MemoryEngine(delivered)
    async with service(tmp_path, second) as app:
        found = await ended(app, request_id)
        objects = await app.objects.list(request_id)
    assert (found.state, found.completed) == (RequestState.COMPLETE, 3)
    first = mute.seen[0].replicas[0].url
    assert {spec.replicas[0].url for spec in second.seen} == {
        f"/data/{n}.root" for n in range(3)
    } - {first}
    assert len(objects) == 3
    assert not any(UNFINISHED in info.key for info in objects)


@on_both_databases
async def test_lost_answer_leaves_no_file_running_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the database's answer is lost, the service begins files again, and each ends once."""
    lost = lose_an_answer(monkeypatch, task_rows.begin)
    engine = MemoryEngine(delivered)
    async with service(tmp_path, engine) as app:
        found = await ended(app, await submit(app, 5))
    assert lost
    assert (found.state, found.completed) == (RequestState.COMPLETE, 5)
    assert len({spec.file_id for spec in engine.seen}) == len(engine.seen) == 5


async def test_number_of_workers_follows_the_number_of_files(tmp_path: Path) -> None:
    """It rises to the limit, and falls to the minimum after a while."""
    engine = MemoryEngine(delivered, slots=1)
    options = {"workers": 8, "scaling": ScalingSettings(least_workers=0, idle_seconds=0.05)}
    async with service(tmp_path, engine, **options) as app:
        await ended(app, await submit(app, 3))
        async with asyncio.timeout(10):
            while engine.scaled[-1:] != [0]:
                await asyncio.sleep(0.01)
        assert max(engine.scaled) == 3
        await ended(app, await submit(app, 50, at="/more"))
    assert max(engine.scaled) == 8


async def test_files_at_once_are_limited_by_user_and_by_request(tmp_path: Path) -> None:
    """The limits hold even if slots are free."""
    most: dict[str, int] = {}
    engine = MemoryEngine(delivered, slots=50)

    def work(spec: TaskSpec) -> Outcome:
        inside = [one.request_id for one in engine._waiting] + [
            key.split("/")[0] for key in engine._running
        ]
        most[spec.request_id] = max(most.get(spec.request_id, 0), inside.count(spec.request_id))
        most["all"] = max(most.get("all", 0), len(inside))
        return delivered(spec)

    engine._work = work
    caps = LimitSettings(files_per_user_at_once=5, files_per_request_at_once=4)
    async with service(tmp_path, engine, limits=caps) as app:
        ids = [await submit(app, 40), await submit(app, 30)]
        for request_id in ids:
            await ended(app, request_id)
    assert most["all"] <= 5
    assert max(most[request_id] for request_id in ids) <= 4


@on_both_databases
@pytest.mark.parametrize("rows_too", [False, True])
async def test_deletion_continues_after_the_death_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, rows_too: bool
) -> None:
    """The request disappears at once; its rows and objects go in batches, also after a restart."""
    monkeypatch.setattr(request_rows, "MOST_PARAMETERS", 10)
    async with service(tmp_path, MemoryEngine(delivered)) as app:
        request_id = await submit(app, 35)
        await ended(app, request_id)
        await app.database.write(request_rows.mark_deleted, LOCAL_USER, request_id)
        with pytest.raises(NotFoundError):
            await app.database.read(request_rows.get, LOCAL_USER, request_id)
        assert await app.database.read(request_rows.listed, LOCAL_USER) == []
        assert await app.buckets.objects(request_id) is None
        task_ids, keys = await app.database.read(request_rows.tasks_to_remove, request_id)
        assert len(task_ids) == len(keys) == 10
        await app.objects.delete(keys)
        if rows_too:
            await app.database.write(request_rows.remove_tasks, task_ids)
        left = await app.objects.list(request_id)
        assert len(left) == 25
        # a worker that was killed leaves this
        (tmp_path / "objects" / left[0].key).with_name(f"{UNFINISHED}x").write_bytes(b"half")
    async with service(tmp_path, MemoryEngine(delivered)) as app, asyncio.timeout(10):
        while await app.database.read(request_rows.marked_deleted):
            await asyncio.sleep(0.005)
        count = select(func.count()).select_from(tasks).where(tasks.c.request_id == request_id)
        assert await app.database.read(lambda connection: connection.scalar(count)) == 0
        assert await app.objects.list(request_id) == []


async def test_request_may_lower_the_time_limit_of_its_files(tmp_path: Path) -> None:
    """Its tasks have its own limit, and others have that of the service."""
    engine = MemoryEngine(delivered)
    async with service(tmp_path, engine, limits=LimitSettings(file_seconds=60)) as app:
        for seconds in (None, 5.0):
            order = Order(
                SELECTION, "uproot-raw", ResultFormat.PARQUET, files=["/a"], file_seconds=seconds
            )
            await ended(app, await app.submission.accept(LOCAL_USER, order))
    assert [spec.limits.seconds for spec in engine.seen] == [60, 5]
