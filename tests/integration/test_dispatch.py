"""From rows to the engine and back, with an engine whose tasks end as the test says."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from servicex_server.app import App
from servicex_server.database import requests as request_rows
from servicex_server.database import tasks as task_rows
from servicex_server.database.connection import Database
from servicex_server.engines.memory import MemoryEngine
from servicex_server.errors import CorruptError, RequestError, UnknownNameError, WorkerDiedError
from servicex_server.model import (
    LOCAL_USER,
    Outcome,
    Request,
    RequestState,
    ResultFormat,
    TaskSpec,
    TaskState,
)
from servicex_server.settings import Settings
from servicex_server.submission import Order

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("database_url")]

SELECTION = json.dumps([{"treename": "events"}])


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
async def service(folder: Path, engine: MemoryEngine) -> AsyncIterator[App]:
    """Run the service without its web server."""
    async with App(Settings(data_dir=folder), engine=engine) as app:
        yield app


async def submit(app: App, count: int) -> str:
    """Ask for so many files."""
    files = [f"/data/{n}.root" for n in range(count)]
    order = Order(SELECTION, "uproot-raw", ResultFormat.PARQUET, files=files)
    return await app.submission.accept(LOCAL_USER, order)


async def ended(app: App, request_id: str) -> Request:
    """Wait until a request has ended."""
    async with asyncio.timeout(20):
        while True:
            found = await app.database.read(request_rows.get, LOCAL_USER, request_id)
            if found.state.terminal:
                return found
            await asyncio.sleep(0.005)


async def test_every_file_ends_once(tmp_path: Path) -> None:
    """A request of many files completes, each file having run once, and each object is there."""
    engine = MemoryEngine(delivered, slots=4)
    async with service(tmp_path, engine) as app:
        request_id = await submit(app, 300)
        found = await ended(app, request_id)
        objects = await app.objects.list(request_id)
    assert (found.state, found.files, found.completed) == (RequestState.COMPLETE, 300, 300)
    assert len({spec.file_id for spec in engine.seen}) == len(engine.seen) == 300
    assert len(objects) == 300


async def test_the_window_is_bounded(tmp_path: Path) -> None:
    """The engine never holds more than two tasks a slot, however many files wait."""
    most = 0

    def work(spec: TaskSpec) -> Outcome:
        nonlocal most
        most = max(most, len(engine._waiting) + len(engine._running))
        return delivered(spec)

    engine = MemoryEngine(work, slots=3)
    async with service(tmp_path, engine) as app:
        await ended(app, await submit(app, 200))
    assert most <= 6


async def test_a_worker_that_dies_costs_an_attempt(tmp_path: Path) -> None:
    """A file is tried again on worker death, and its attempts are all told."""
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
    """After the third death the file fails with what is known."""
    engine = MemoryEngine(failing(WorkerDiedError("killed by signal 9")))
    async with service(tmp_path, engine) as app:
        request_id = await submit(app, 1)
        found = await ended(app, request_id)
        (report,) = await app.database.read(task_rows.reports, request_id, [TaskState.FAILED])
    assert found.state is RequestState.FATAL
    assert "killed by signal 9" in found.failure
    assert [spec.attempt for spec in engine.seen] == [1, 2, 3]
    assert report.error is not None
    assert report.error.kind == "WorkerDied"


async def test_one_query_error_stops_a_long_request(tmp_path: Path) -> None:
    """The same query error in the first files ends the request without running the rest."""
    engine = MemoryEngine(failing(UnknownNameError("no branch x", hint="did you mean y?")))
    async with service(tmp_path, engine) as app:
        found = await ended(app, await submit(app, 1000))
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


async def test_a_cancelled_request_runs_no_further(tmp_path: Path) -> None:
    """After a cancel no file of the request starts, and others go on."""
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


async def test_a_second_service_takes_up_the_rest(tmp_path: Path) -> None:
    """What a service leaves is done by the next one on the same folder, each file once."""
    first = MemoryEngine(delivered, slots=1)
    async with service(tmp_path, first) as app:
        request_id = await submit(app, 200)
        while len(first.seen) < 20:
            await asyncio.sleep(0.005)
    second = MemoryEngine(delivered, slots=4)
    async with service(tmp_path, second) as app:
        found = await ended(app, request_id)
        reports = await app.database.read(task_rows.reports, request_id, [TaskState.DONE])
    assert found.completed == 200
    assert len({report.object_name for report in reports}) == 200
    assert second.seen


async def test_an_outcome_that_comes_twice_keeps_its_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nobody hears that outcomes were written, writing them again loses no object."""
    write, unheard = Database.write, 0

    async def lost_answer(self: Database, function: Any, *args: Any, **options: Any) -> Any:
        # what a cancelled wait, or a connection that breaks after the commit, looks like
        nonlocal unheard
        answer = await write(self, function, *args, **options)
        if function is task_rows.record and not unheard:
            unheard += 1
            raise ConnectionError("the answer is lost")
        return answer

    engine = MemoryEngine(delivered)
    monkeypatch.setattr(Database, "write", lost_answer)
    async with service(tmp_path, engine) as app:
        request_id = await submit(app, 5)
        found = await ended(app, request_id)
        objects = await app.objects.list(request_id)
    assert unheard == 1
    assert (found.state, found.completed) == (RequestState.COMPLETE, 5)
    assert len(objects) == 5


async def test_the_same_list_is_one_dataset(tmp_path: Path) -> None:
    """Two requests on one list share its dataset, and both get every file."""
    async with service(tmp_path, MemoryEngine(delivered)) as app:
        found = [await ended(app, await submit(app, 10)) for _ in range(2)]
    assert found[0].dataset_id == found[1].dataset_id
    assert [one.completed for one in found] == [10, 10]


async def test_a_refused_request_leaves_no_row(tmp_path: Path) -> None:
    """A wrong order raises and stores nothing."""
    async with service(tmp_path, MemoryEngine(delivered)) as app:
        with pytest.raises(RequestError):
            await app.submission.accept(
                LOCAL_USER, Order("[]", "uproot-raw", ResultFormat.PARQUET, files=["/a.root"])
            )
        assert await app.database.read(request_rows.listed, LOCAL_USER) == []
