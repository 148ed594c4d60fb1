"""The guarantees of the database to its callers, and the errors while it is away."""

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError

from servicex_server.app import App
from servicex_server.database import datasets as dataset_rows
from servicex_server.database.connection import Database
from servicex_server.database.leader_lock import NotLeadingError, ping
from servicex_server.errors import StartupError
from servicex_server.model import LOCAL_USER, Outcome, TaskSpec
from servicex_server.settings.service import Settings
from servicex_server.storage.bucket import bucket_keys
from servicex_server.testing.memory_engine import MemoryEngine
from servicex_server.web.application import web_app
from servicex_server.web.s3.signatures import presigned_query
from tests.postgres import Postgres, postgres

pytestmark = pytest.mark.anyio


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Postgres]:
    """Give a PostgreSQL server of its own to a test that breaks it."""
    with postgres() as server:
        monkeypatch.setenv("SERVICEX_SERVER_STORAGE__DATABASE_URL", server.url())
        monkeypatch.setenv("SERVICEX_SERVER_DATA_DIR", str(tmp_path / "data"))
        yield server


def create(connection: Connection, name: str) -> int:
    """Add a dataset."""
    return dataset_rows.create(connection, name=name, finder="f", owner=None, reference={})


async def names(database: Database) -> list[str]:
    """Return the names of all datasets, oldest first."""
    found = await database.read(dataset_rows.listed, LOCAL_USER, finder=None, with_stale=True)
    return [dataset.name for dataset in found]


async def test_writes_of_two_processes_run_one_after_another(database_url: str) -> None:
    """The rows that a write has read do not change before it writes."""

    def append(connection: Connection) -> None:
        count = connection.scalar(text("select count(*) from datasets"))
        create(connection, str(count))

    with closing(Database(database_url)) as one, closing(Database(database_url)) as other:
        one.migrate()
        await asyncio.gather(*(db.write(append) for db in (one, other) for _ in range(20)))
        assert sorted(map(int, await names(one))) == list(range(40))


async def test_writes_of_one_process_run_in_their_order(database: Database) -> None:
    """The second of two writes sees the first one, even if that is slow."""
    begun = threading.Event()

    def slow(connection: Connection) -> None:
        begun.wait(10)
        create(connection, "first")

    def seen(connection: Connection) -> int:
        return int(connection.scalar(text("select count(*) from datasets")) or 0)

    first = asyncio.create_task(database.write(slow))
    await asyncio.sleep(0)
    second = asyncio.create_task(database.write(seen))
    begun.set()
    assert await second == 1
    await first


async def test_read_sees_one_snapshot_and_waits_for_no_write(database: Database) -> None:
    """The rest of a read does not see a write that commits in the middle of it."""
    looked, written = threading.Event(), threading.Event()

    def twice(connection: Connection) -> list[Any]:
        count = text("select count(*) from datasets")
        first = connection.scalar(count)
        looked.set()
        assert written.wait(10)
        return [first, connection.scalar(count)]

    reading = asyncio.create_task(database.read(twice))
    await asyncio.to_thread(looked.wait, 10)
    await database.write(create, "meanwhile")
    assert not reading.done()
    written.set()
    assert await reading == [0, 0]
    assert await names(database) == ["meanwhile"]


async def test_a_read_on_postgresql_cannot_write(postgresql: Postgres) -> None:
    """PostgreSQL raises an error. SQLite has no such mode for one transaction."""
    with (
        closing(Database(postgresql.url("template"))) as database,
        pytest.raises(DBAPIError, match="read-only transaction"),
    ):
        await database.read(create, "x")


async def test_guard_runs_before_every_write(database: Database) -> None:
    """If it raises, the database writes nothing. The same database without the guard goes on."""

    def refuse(connection: Connection) -> None:
        raise NotLeadingError

    with pytest.raises(OperationalError, match="does not lead any more"):
        await database.guarded(refuse).write(create, "x")
    await database.write(create, "y")
    assert await names(database.guarded(refuse)) == ["y"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u:se%40cret@127.0.0.1:1/d", "PostgreSQL at 127.0.0.1:1, database d cannot"),
        ("postgresql://u:secret@127.0.0.1:1/d?user=secret", "cannot be opened"),
        ("postgresql://u:a@secret@host/d", "the password has an @"),
        ("postgresql://u:p@host:secret/d", "this is not a URL"),
        ("secret", "this is not a URL"),
        ("mysql://u:secret@host/d", "mysql is not supported"),
        ("postgresql+psycopg2://u:secret@host/d", "psycopg2 is not supported"),
        ("sqlite:////dev/null/x.sqlite", "cannot be opened"),
    ],
)
def test_error_of_a_wrong_url_is_one_line_without_the_password(url: str, words: str) -> None:
    """It names the place, and neither the user nor the password."""
    with pytest.raises(StartupError) as caught, closing(Database(url)) as database:
        database.migrate()
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "se@cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_of_a_database_has_no_user_and_no_password() -> None:
    """It names the place, which may be a socket."""
    shown = [
        "postgresql://me:secret@db.example:5433/servicex",
        "postgresql+psycopg:///servicex?host=/run/postgresql&password=secret",
    ]
    assert [str(Database(url)) for url in shown] == [
        "PostgreSQL at db.example:5433, database servicex",
        "PostgreSQL at /run/postgresql, database servicex",
    ]


async def test_restarted_database_costs_one_error(own_server: Postgres) -> None:
    """A broken connection raises an OperationalError, and the next call works."""
    with closing(Database(own_server.url())) as database:
        database.migrate()
        for how in ("fast", "immediate"):
            stuck, broken = threading.Event(), threading.Event()

            def wait(
                connection: Connection,
                stuck: threading.Event = stuck,
                broken: threading.Event = broken,
            ) -> None:
                ping(connection)
                stuck.set()
                assert broken.wait(30)
                ping(connection)

            reading, writing = (asyncio.create_task(act(wait)) for act in _acts(database))
            await asyncio.to_thread(stuck.wait, 10)
            await asyncio.to_thread(own_server.restart, how)
            broken.set()
            for task in (reading, writing):
                with pytest.raises(OperationalError):
                    await task
            await database.write(create, how)
        assert await names(database) == ["fast", "immediate"]


async def test_read_only_database_counts_as_away(postgresql: Postgres) -> None:
    """So does one that has ended an idle session in the middle of a write."""
    postgresql.run("create database refusing template template")

    def idle(connection: Connection) -> None:
        connection.execute(text("set local idle_in_transaction_session_timeout = '10ms'"))
        pid = connection.scalar(text("select pg_backend_pid()"))
        while postgresql.run("select 1 from pg_stat_activity where pid = %s", pid):
            pass
        ping(connection)

    with closing(Database(postgresql.url("refusing"))) as database:
        with pytest.raises(OperationalError, match="idle-in-transaction timeout"):
            await database.write(idle)
        await database.write(create, "a")
        postgresql.run("alter database refusing set default_transaction_read_only = on")
    with closing(Database(postgresql.url("refusing"))) as database:
        with pytest.raises(OperationalError, match="read-only transaction"):
            await database.write(create, "b")
        assert await names(database) == ["a"]
    postgresql.run("drop database refusing with (force)")


def _acts(database: Database) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return database.read, database.write


@asynccontextmanager
async def client(app: App) -> AsyncIterator[httpx.AsyncClient]:
    """Speak to the web application in this process."""
    web = web_app(app)
    async with (
        web.router.lifespan_context(web),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(web, raise_app_exceptions=False),
            base_url="http://localhost",
        ) as speaking,
    ):
        yield speaking


ROUTES = [
    ("GET", "/readyz"),
    ("GET", "/servicex/transformation"),
    ("GET", "/servicex/transformation/7"),
    ("GET", "/servicex/transformation/7/results"),
    ("POST", "/servicex/transformation/7/cancel"),
    ("DELETE", "/servicex/transformation/7"),
    ("GET", "/servicex/datasets"),
    ("POST", "/servicex/transformation"),
]
BODY = {
    "file-list": ["/a.root"],
    "selection": '[{"treename": "t"}]',
    "codegen": "uproot-raw",
    "result-destination": "object-store",
}


async def test_api_answers_503_while_the_database_is_away(own_server: Postgres) -> None:
    """No answer is a 500 or has the password. Afterwards all routes work, and a leader leads again.

    The S3 gateway answers in its own format, after it has checked the signature.
    """

    def work(spec: TaskSpec) -> Outcome:
        return Outcome(spec.request_id, spec.file_id, spec.attempt)

    async with App(Settings(), engine=MemoryEngine(work)) as app, client(app) as web:
        assert (await web.get("/readyz")).json() == {"status": "ready", "leads": True, "workers": 2}
        own_server.stop("immediate")
        for method, path in ROUTES:
            body = BODY if path.endswith("transformation") and method == "POST" else None
            answer = await web.request(method, path, json=body)
            assert answer.status_code == 503, path
            assert answer.json()["message"].startswith("the database of the service does not")
        assert (await web.get("/healthz")).status_code == 200
        bucket = str(uuid.uuid4())
        signed = presigned_query(f"/{bucket}/x", bucket_keys(app.keys.current, bucket), 2**33)
        answer = await web.get(f"/{bucket}/x?{signed}")
        assert (answer.status_code, "ServiceUnavailable" in answer.text) == (503, True)
        own_server.start()
        answer = await web.post("/servicex/transformation", json=BODY)
        assert answer.status_code == 200, answer.text
        async with asyncio.timeout(30):
            path = f"/servicex/transformation/{answer.json()['request_id']}"
            while (await web.get(path)).json()["status"] != "Complete":
                await asyncio.sleep(0.02)
        assert (await web.get("/readyz")).json()["leads"] is True


async def test_log_does_not_have_the_database_password(
    own_server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """The log stays clean at the start, and when the database stops under a leader."""
    engine = MemoryEngine(lambda spec: Outcome(spec.request_id, spec.file_id, spec.attempt))
    async with App(Settings(), engine=engine) as app, client(app) as web:
        own_server.stop("immediate")
        assert (await web.get("/servicex/transformation")).status_code == 503
        while app.leader is not None:
            await asyncio.sleep(0.01)
        while "this process cannot lead" not in caplog.text:
            await asyncio.sleep(0.01)
        own_server.start()
    assert "this process has lost the lead" in caplog.text
    assert own_server.password not in caplog.text
    assert own_server.password not in repr(Settings()) + str(Settings())
