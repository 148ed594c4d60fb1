"""Status of workers and queue, and metrics: who sees what, on SQLite and PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Connection, update

from servicex_server.app import App, Duty
from servicex_server.database import requests as request_rows
from servicex_server.database import status_snapshots, tables
from servicex_server.database.active_requests import queue as queued
from servicex_server.database.tables import requests, tasks
from servicex_server.errors import CorruptError, FunctionError
from servicex_server.model import (
    Attempt,
    Outcome,
    Principal,
    ResultFormat,
    Role,
    TaskSpec,
    TaskState,
    WorkerInfo,
    now,
)
from servicex_server.requests.submission import Order
from servicex_server.scheduling.status_writer import StatusWriter
from servicex_server.settings.groups import LimitSettings
from servicex_server.settings.service import Settings
from servicex_server.testing.memory_engine import MemoryEngine
from servicex_server.web.application import web_app
from tests.postgres import Postgres
from tests.services import ended

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("compiled_here")]


@pytest.fixture
def folder(tmp_path: Path, database_url: str) -> Path:
    """Give a data folder, with the database beside it: SQLite for one run, PostgreSQL for another.

    Which one it is, is in the environment.
    """
    del database_url
    return tmp_path


@pytest.fixture
def shared(postgresql: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a database that several processes can share."""
    postgresql.run("create database seen template template")
    monkeypatch.setenv("SERVICEX_SERVER_STORAGE__DATABASE_URL", postgresql.url("seen"))
    yield
    postgresql.run("drop database seen with (force)")


ANN, BEN = Principal("ann"), Principal("ben")
OPERATOR = Principal("olga", Role.OPERATOR)


class Halting(MemoryEngine):
    """An engine with a free slot, and a slot that holds its first file until ``let_go``."""

    def __init__(self, work: Callable[[TaskSpec], Outcome]) -> None:
        super().__init__(work)
        self.halted: TaskSpec | None = None
        self.address_shown = "tls://127.0.0.1:1234"

    @property
    def address(self) -> str:
        """Where a scheduler would be."""
        return self.address_shown

    def _run(self, spec: TaskSpec) -> None:
        if self.halted is None or self.halted is spec:
            self.halted = spec
        else:
            super()._run(spec)

    def let_go(self) -> None:
        """Do the file that was halted."""
        assert self.halted is not None
        super()._run(self.halted)


def done(spec: TaskSpec) -> Outcome:
    """End a file well after three seconds, without an object."""
    return Outcome(
        spec.request_id,
        spec.file_id,
        spec.attempt,
        attempts=(Attempt("/x", 3.0),),
        bytes_read=100,
        bytes_written=7,
        events_read=10,
        seconds=3.0,
    )


class Service:
    """A running service, and its answers to users."""

    def __init__(self, app: App, client: httpx.AsyncClient) -> None:
        self.app = app
        self._client = client

    async def get(self, path: str, who: Principal = OPERATOR) -> httpx.Response:
        """Ask as somebody."""

        async def asker(authorization: str | None) -> Principal:
            del authorization
            return who

        self.app.principal = asker  # type: ignore[method-assign]  # who signs in is not looked at
        return await self._client.get(path)

    async def json(self, path: str, who: Principal = OPERATOR) -> Any:
        """Return what is answered well."""
        answer = await self.get(path, who)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def metrics(self) -> dict[tuple[str, ...], float]:
        """Return all samples by name and labels."""
        answer = await self.get("/metrics", ANN)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return samples(answer.text)

    async def submit(self, count: int, who: Principal = ANN, title: str = "mine") -> str:
        """Ask for so many files."""
        files = [f"/secret-{who.user}/{n}.root" for n in range(count)]
        selection = '[{"treename": "events"}]'
        order = Order(selection, "uproot-raw", ResultFormat.PARQUET, files=files, title=title)
        return await self.app.submission.accept(who, order)

    async def written(self, so: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """Wait until the leader has written down what it sees; return the answer on workers."""
        async with asyncio.timeout(20):
            while not so(found := await self.json("/servicex/workers")):
                await asyncio.sleep(0.05)
        answer: Mapping[str, Any] = found
        return answer


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a text of Prometheus by their names and the values of their labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@asynccontextmanager
async def service(
    folder: Path, engine: MemoryEngine, *, duty: Duty = Duty.ALL, **settings: Any
) -> AsyncIterator[Service]:
    """Run the service with its routes, and without a socket."""
    chosen = Settings(data_dir=folder, workers=2, **settings)
    async with App(chosen, duty=duty, engine=engine) as app:
        web = web_app(app)
        transport = httpx.ASGITransport(app=web)
        async with (
            web.router.lifespan_context(web),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            yield Service(app, client)


async def test_workers_are_shown_with_their_files(folder: Path) -> None:
    """One worker is busy with a file of a request, and the other one is idle."""
    engine = Halting(done)
    async with service(folder, engine) as running:
        request_id = await running.submit(1)
        found = await running.written(lambda seen: any(w["request_id"] for w in seen["workers"]))
        assert [worker["state"] for worker in found["workers"]] == ["busy", "idle"]
        busy, idle = found["workers"]
        assert (busy["request_id"], busy["file"]) == (request_id, "/secret-ann/0.root")
        assert (idle["request_id"], idle["file"], idle["problem"]) == (None, None, None)
        assert (found["workers-wanted"], found["scheduler"]) == (2, "tls://127.0.0.1:1234")
        assert "the floor is 2" in found["reason"]
        assert found["age"] is None
        numbers = await running.metrics()
        assert numbers["servicex_workers", "busy"] == numbers["servicex_workers", "idle"] == 1
        assert numbers["servicex_workers", "unfit"] == 0
        assert numbers["servicex_workers_wanted",] == 2


class Bereft(MemoryEngine):
    """An engine that has lost its workers; others have been replaced or are queued."""

    lost = ""
    replaced = 5
    pending = 3

    @property
    def absence(self) -> str:
        """Return what the test says."""
        return self.lost


async def test_missing_workers_make_the_service_not_ready(folder: Path) -> None:
    """The answer has the reason. The metrics count replaced and queued workers."""
    engine = Bereft(done)
    async with service(folder, engine) as running:
        assert (await running.get("/readyz")).status_code == 200
        engine.lost = "2 workers are wanted and none has been available for 61 s"
        answer = await running.get("/readyz")
        assert (answer.status_code, engine.lost in answer.text) == (503, True)
        found = await running.written(lambda seen: seen["workers-pending"] == 3)
        assert found["workers-wanted"] == 2
        numbers = await running.metrics()
        assert numbers["servicex_workers_pending",] == 3
        assert numbers["servicex_workers_replaced_total",] == 5
        engine.lost = ""
        assert (await running.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("path", "field", "count"),
    [("workers", "workers", 2), ("sites", "sites", 0), ("replicas/bad", "replicas", 0)],
)
async def test_only_operators_and_administrators_see_the_whole_status(
    folder: Path, path: str, field: str, count: int
) -> None:
    """A user gets the same answer as at an address that does not exist."""
    async with service(folder, MemoryEngine(done)) as running:
        refused = await running.get(f"/servicex/{path}", ANN)
        nowhere = await running.get("/servicex/nowhere", ANN)
        assert (refused.status_code, nowhere.status_code) == (404, 404)
        assert refused.json()["message"].replace(path, "nowhere") == nowhere.json()["message"]
        for who in (OPERATOR, Principal("anna", Role.ADMINISTRATOR)):
            assert len((await running.json(f"/servicex/{path}", who))[field]) == count


async def test_user_sees_only_their_own_requests_in_the_queue(folder: Path) -> None:
    """Operators see all requests. A request that has ended is not in the queue."""
    engine = Halting(done)
    async with service(
        folder, engine, limits=LimitSettings(files_per_request_at_once=1)
    ) as running:
        first = await running.submit(3, ANN, "of ann")
        async with asyncio.timeout(20):
            while engine.halted is None:
                await asyncio.sleep(0.01)
        other = await running.submit(2, BEN)
        await ended(running.app, other)
        (mine,) = (await running.json("/servicex/queue", ANN))["requests"]
        assert (mine["request_id"], mine["title"], mine["user"]) == (first, "of ann", "ann")
        assert [mine[k] for k in ("waiting", "running", "done", "failed")] == [2, 1, 0, 0]
        assert (mine["files-per-minute"], mine["seconds-left"]) == (0, None)
        assert await running.json("/servicex/queue", BEN) == {"requests": []}
        assert (await running.json("/servicex/queue", OPERATOR))["requests"] == [mine]
        numbers = await running.metrics()
        assert numbers["servicex_files", "waiting"] == 2
        assert numbers["servicex_files", "running"] == 1
        assert numbers["servicex_requests", "Running"] == 1
        assert numbers["servicex_oldest_waiting_request_seconds",] == 0
        engine.let_go()
        await ended(running.app, first)
        assert await running.json("/servicex/queue", OPERATOR) == {"requests": []}


def set_back(connection: Connection, request_id: str, submitted: float, ended: list[float]) -> None:
    """Let a request have come so many seconds ago, and files of it have ended then."""
    moment = now()
    connection.execute(
        update(requests)
        .where(requests.c.id == request_id)
        .values(submitted_at=moment - timedelta(seconds=submitted), completed=len(ended))
    )
    chosen = tasks.c.request_id == request_id
    ids = list(connection.execute(tasks.select().where(chosen).order_by(tasks.c.id)).scalars())
    for task_id, seconds in zip(ids, ended, strict=False):
        connection.execute(
            update(tasks)
            .where(tasks.c.id == task_id)
            .values(state=TaskState.DONE, finished_at=moment - timedelta(seconds=seconds))
        )


@pytest.mark.parametrize(
    ("submitted", "ended", "rate", "left"),
    [
        (600, [300, 200, 50, 40, 30, 20], 4, 60),  # of 10 files 4 in the last minute, 4 are left
        (10, [5, 4], 12, 40),  # 2 files in the 10 seconds that it has been there, 8 are left
        (600, [300, 200], 0, None),  # nothing lately
    ],
)
async def test_remaining_time_follows_from_the_last_minute(
    folder: Path, submitted: float, ended: list[float], rate: float, left: float | None
) -> None:
    """The estimate is the number of remaining files divided by the measured rate."""
    engine = MemoryEngine(done, slots=0)  # so that no file starts
    async with service(folder, engine) as running:
        request_id = await running.submit(10)
        async with asyncio.timeout(20):
            while (await running.json("/servicex/queue"))["requests"][0]["status"] != "Running":
                await asyncio.sleep(0.01)
        await running.app.database.write(set_back, request_id, submitted, ended)
        (found,) = await running.app.database.read(queued, ANN)
        assert found.waiting == 10 - len(ended)
        assert 60 * found.rate == pytest.approx(rate, rel=0.1)
        assert found.seconds_left == (left and pytest.approx(left, rel=0.1))


async def test_metrics_have_the_age_of_the_oldest_waiting_request(folder: Path) -> None:
    """It is the time since the submission of a request of which no file has started."""
    async with service(folder, MemoryEngine(done, slots=0)) as running:
        request_id = await running.submit(2)
        await running.submit(1, BEN)
        await running.app.database.write(set_back, request_id, 100, [])
        oldest = (await running.metrics())["servicex_oldest_waiting_request_seconds",]
        assert 100 <= oldest < 130


async def test_metrics_count_finished_work_once(folder: Path) -> None:
    """They count seconds, bytes, events, attempts by blame, and requests by their end."""
    broken = CorruptError("bad").record()
    wrong = FunctionError("no").record()

    def work(spec: TaskSpec) -> Outcome:
        path = spec.replicas[0].url
        if "ben" in path:
            return Outcome(spec.request_id, spec.file_id, spec.attempt, error=wrong, seconds=0.2)
        return replace(done(spec), attempts=(Attempt("/bad", 1.0, broken), Attempt("/good", 2.0)))

    engine = MemoryEngine(work)
    engine.restarts = 2
    async with service(folder, engine) as running:
        await ended(running.app, await running.submit(4))
        await ended(running.app, await running.submit(1, BEN))
        async with asyncio.timeout(20):
            while (numbers := await running.metrics()).get(
                ("servicex_requests_ended_total", "Fatal")
            ) != 1:
                await asyncio.sleep(0.05)
    assert numbers["servicex_requests_ended_total", "Complete"] == 1
    assert numbers["servicex_task_seconds_count", "done"] == 4
    assert numbers["servicex_task_seconds_sum", "done"] == 12
    assert numbers["servicex_task_seconds_bucket", "2.5", "done"] == 0
    assert numbers["servicex_task_seconds_bucket", "5.0", "done"] == 4
    assert numbers["servicex_task_seconds_count", "failed"] == 1
    assert numbers["servicex_read_bytes_total",] == 400
    assert numbers["servicex_written_bytes_total",] == 28
    assert numbers["servicex_events_total",] == 40
    assert numbers["servicex_attempts_total", "none"] == 4
    assert numbers["servicex_attempts_total", "replica"] == 4
    assert numbers["servicex_attempts_total", "query"] == 1
    assert numbers["servicex_engine_restarts_total",] == 2
    assert numbers["servicex_led",] == 1


async def test_metrics_count_cancelled_requests(folder: Path) -> None:
    """A cancelled request does not end by its files."""
    async with service(folder, MemoryEngine(done, slots=0)) as running:
        request_id = await running.submit(2)
        async with asyncio.timeout(20):
            while (await running.json("/servicex/queue"))["requests"][0]["status"] != "Running":
                await asyncio.sleep(0.01)
        await running.app.database.write(request_rows.cancel, ANN, request_id)
        await running.app.stopped(request_id)
        async with asyncio.timeout(20):
            while not (await running.metrics())["servicex_requests_ended_total", "Canceled"]:
                await asyncio.sleep(0.05)
        numbers = await running.metrics()
        assert numbers["servicex_requests_ended_total", "Canceled"] == 1
        assert numbers["servicex_requests_ended_total", "Complete"] == 0
        assert numbers["servicex_requests", "Running"] == 0


async def test_idle_service_writes_no_status(folder: Path) -> None:
    """The status writer does not store an unchanged status, or a small change of memory."""

    class Breathing(MemoryEngine):
        memory = 204_000_000

        def workers(self) -> list[WorkerInfo]:
            return [replace(one, memory=self.memory) for one in super().workers()]

    engine = Breathing(done)
    async with service(folder, engine) as running:
        leader, database = running.app.leader, running.app.database
        assert leader is not None
        reporter = StatusWriter(database, leader.dispatcher, engine, running.app.objects)
        await reporter.write()
        before = await database.read(status_snapshots.get, status_snapshots.WORKERS)
        engine.memory += 700_000
        await reporter.write()
        assert await database.read(status_snapshots.get, status_snapshots.WORKERS) == before
        engine.memory += 10_000_000
        await reporter.write()
        after = await database.read(status_snapshots.get, status_snapshots.WORKERS)
    assert before is not None
    assert after is not None
    assert (before.value["workers"][0]["memory"], after.at > before.at) == (200_000_000, True)
    assert after.value["workers"][0]["memory"] == 210_000_000


async def test_error_of_a_worker_is_shortened(folder: Path) -> None:
    """A worker with a problem is unfit."""

    class Unfit(MemoryEngine):
        def workers(self) -> list[WorkerInfo]:
            one, other = super().workers()
            return [replace(one, problem="it has version 0"), replace(other, last_error="e" * 9999)]

    async with service(folder, Unfit(done)) as running:
        found = await running.written(lambda seen: bool(seen["workers"]))
        unfit, other = found["workers"]
        assert (unfit["state"], unfit["problem"]) == ("unfit", "it has version 0")
        assert other["last-error"] == "e" * 500
        assert (await running.metrics())["servicex_workers", "unfit"] == 1


def make_old(connection: Connection, seconds: float) -> None:
    """Let what the leader wrote down be so old."""
    moment = now() - timedelta(seconds=seconds)
    connection.execute(update(tables.snapshots).values(at=moment))


async def test_status_without_a_leader_is_shown_with_its_age(tmp_path: Path, shared: None) -> None:
    """A process without workers shows what the leader stored, and its age once no process leads."""
    api = service(tmp_path, MemoryEngine(done), duty=Duty.API)
    async with api as running:
        empty = await running.json("/servicex/workers")
        assert (empty["workers"], empty["reason"]) == ([], "no process has led yet")
        assert (await running.metrics())["servicex_led",] == 0
        dispatcher = service(tmp_path, MemoryEngine(done), duty=Duty.DISPATCH)
        async with dispatcher:
            found = await running.written(lambda seen: bool(seen["workers"]))
            await running.app.database.write(make_old, 100)
            assert (await running.json("/servicex/workers"))["age"] is None
            numbers = await running.metrics()
            assert (numbers["servicex_led",], numbers["servicex_workers", "idle"]) == (1, 2)
        left = await running.json("/servicex/workers")
        assert left["workers"] == found["workers"]
        assert 100 <= left["age"] < 130
        numbers = await running.metrics()
        assert numbers["servicex_led",] == 0
        assert ("servicex_workers", "idle") not in numbers
        assert numbers["servicex_read_bytes_total",] == 0
