"""Fixtures that several rungs of the tests share."""

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import boto3
import pytest

from servicex_server.database.connection import Database
from tests.leaks import listening
from tests.postgres import Postgres, postgres
from tests.support import Server, warm_starter

HERE = Path(__file__).parent

RUNGS = ("e2e", "integration", "contract", "property", "docs", "unit")
"""Folders of tests, the slowest first: so no long file is alone at the end of a parallel run."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files by their folders."""
    items.sort(key=lambda item: RUNGS.index(item.path.relative_to(HERE).parts[0]))


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def secrets_are_heard() -> Iterator[None]:
    """Collect what is secret from before the first server to after the last one."""
    with listening():
        yield
        Server.hold_logs(ended=False)


@pytest.fixture(scope="session", autouse=True)
def starter_ends() -> Iterator[None]:
    """End the process from which servers were started, if there is one."""
    yield
    if warm_starter.cache_info().currsize:
        warm_starter().close()


@pytest.fixture(autouse=True)
def no_secret_is_in_a_log() -> Iterator[None]:
    """Fail the test in which a server has ended, also a killed one, that has logged a secret."""
    yield
    Server.hold_logs(ended=True)


@pytest.fixture(scope="session", autouse=True)
def imports_are_no_garbage() -> None:
    """Have the garbage collector skip what is imported, so that a collection is quick."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def garbage_is_collected() -> Iterator[None]:
    """Fail the file of tests that leaves a socket or a file open, and not a later file."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def s3_clients_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the S3 clients of a test: a socket that is left open fails the next test."""
    new_client = boto3.client
    with ExitStack() as closing_all:

        def tracked(*options: Any, **config: Any) -> Any:
            return closing_all.enter_context(closing(new_client(*options, **config)))

        monkeypatch.setattr(boto3, "client", tracked)
        yield


@pytest.fixture(scope="session")
def sqlite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give a server with two workers that all tests of the session share."""
    running = Server(
        tmp_path_factory.mktemp("server") / "data", ["--workers", "2"], warm=False
    ).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def postgresql_server(
    tmp_path_factory: pytest.TempPathFactory, postgresql: Postgres
) -> Iterator[Server]:
    """Give a server with two workers that has its rows in PostgreSQL."""
    postgresql.run("create database served template template")
    environment = {"SERVICEX_SERVER_STORAGE__DATABASE_URL": postgresql.url("served")}
    folder = tmp_path_factory.mktemp("server") / "data"
    running = Server(folder, ["--workers", "2"], environment).start()
    yield running
    running.stop()
    postgresql.run("drop database served with (force)")


@pytest.fixture(scope="session")
def server(sqlite_server: Server) -> Server:
    """Give the server that a test uses if it does not matter which; a module may choose another."""
    return sqlite_server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgres]:
    """Give a PostgreSQL server that all tests of the session share, with a database to copy."""
    with postgres() as server:
        server.run("create database template")
        with closing(Database(server.url("template"))) as made:
            made.migrate()
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an SQLite database to copy."""
    path = tmp_path_factory.mktemp("template") / "template.sqlite"
    with closing(Database(f"sqlite:///{path}")) as made:
        made.migrate()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Give a function that makes databases of this test's own, and returns their URLs.

    Each test that uses it runs on SQLite and on PostgreSQL.
    """
    made: list[str] = []

    def make(*, empty: bool = False) -> str:
        name = f"test_{len(made)}"
        made.append(name)
        if request.param == "sqlite":
            path = tmp_path / f"{name}.sqlite"
            if not empty:
                shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
            return f"sqlite:///{path}"
        server: Postgres = request.getfixturevalue("postgresql")
        server.run(f"create database {name} template {'template0' if empty else 'template'}")
        return server.url(name)

    yield make
    if request.param == "postgresql":
        for name in made:
            request.getfixturevalue("postgresql").run(f"drop database {name} with (force)")


@pytest.fixture
def database_url(new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the URL of a database; if it is PostgreSQL, settings name it too."""
    url = new_database()
    if url.startswith("postgresql"):
        monkeypatch.setenv("SERVICEX_SERVER_STORAGE__DATABASE_URL", url)
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Give a database with all tables and no rows."""
    with closing(Database(database_url)) as made:
        made.migrate()
        yield made


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Give a function that starts servers of this test's own."""
    with ExitStack() as stopping:

        def start(*options: str, name: str = "data", **environment: str) -> Server:
            made = Server(tmp_path / name, list(options) or ["--workers", "1"], environment)
            stopping.callback(_stop, made)
            return made.start()

        yield start


def _stop(server: Server) -> None:
    """Stop a server that runs."""
    if server.process is not None and server.process.poll() is None:
        server.stop()
