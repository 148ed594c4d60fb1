"""Migrations create the tables of the code, and keep the content of the database."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, inspect, text

from servicex_server.app import App
from servicex_server.database import finished_files, usage
from servicex_server.database import migrate as migrations
from servicex_server.database import requests as request_rows
from servicex_server.database.connection import Database
from servicex_server.database.tables import metadata
from servicex_server.errors import StartupError
from servicex_server.model import LOCAL_USER, Outcome, RequestState, TaskSpec, TaskState
from servicex_server.settings.service import Settings
from servicex_server.testing.memory_engine import MemoryEngine
from tests.postgres import Postgres

pytestmark = pytest.mark.anyio


def described(engine: Engine) -> dict[str, Any]:
    """Return all that a database tells about its tables."""
    found: dict[str, Any] = {}
    look = inspect(engine)
    for table in metadata.tables:
        columns = {str(c.pop("name")): c for c in map(dict, look.get_columns(table))}
        found[table] = {
            "columns": {n: c | {"type": repr(c["type"])} for n, c in columns.items()},
            "indexes": sorted(map(_index, look.get_indexes(table))),
            "keys": [look.get_pk_constraint(table), sorted(map(str, look.get_foreign_keys(table)))],
        }
    return found


def _index(about: Any) -> str:
    options = {name: str(value) for name, value in about.get("dialect_options", {}).items()}
    return str({**about, "dialect_options": options})


def test_migrations_create_the_tables_of_the_code(new_database: Callable[..., str]) -> None:
    """An empty database that is migrated step by step equals a new one in every detail."""
    steps = ScriptDirectory.from_config(migrations._config()).walk_revisions()
    stepped, fresh = (create_engine(new_database(empty=True)) for _ in range(2))
    for step in reversed(list(steps)):
        with stepped.begin() as connection:
            migrations.upgrade(connection, step.revision)
    metadata.create_all(fresh)
    with stepped.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert described(stepped) == described(fresh)
    assert "ix_tasks_request_id_state" in str(described(stepped)["tasks"]["indexes"])
    for engine in (stepped, fresh):
        engine.dispose()


FIRST_ROWS = """
insert into datasets values (1, 'list', 'file-list', 'local', '{"value": [], "options": {}}',
    'complete', '', '2026-11-22 10:00:00', '2026-11-22 10:00:00', false);
insert into files values (1, 1, 0, '[["/data/0.root", ""]]', 0, 0, null);
insert into files values (2, 1, 1, '[["/data/1.root", ""]]', 0, 0, null);
insert into files values (3, 1, 2, '[["/data/2.root", ""]]', 0, 0, null);
insert into files values (4, 1, 3, '[["/data/3.root", ""]]', 0, 0, null);
insert into requests values ('old', 'an old one', 'local', 1, 'list', 'uproot-raw', 'QUERY',
    'parquet', 'Running', '2026-11-22 10:00:00', null, '', '0.1.0');
insert into requests values ('ended', null, 'local', 1, 'list', 'uproot-raw', 'QUERY',
    'parquet', 'Complete', '2026-11-21 10:00:00', '2026-11-21 10:01:00', '', '0.1.0');
insert into tasks values (1, 'old', 1, 0, null, 'done', 1, null, '2026-11-22 10:00:01',
    '/data/0.root', 'zero.parquet', 'old/1/zero.parquet', 7, 3, 0.5, 'w', null, null, '');
insert into tasks values (2, 'old', 2, 0, null, 'running', 1, null, null,
    null, null, null, 0, 0, 0.0, '', null, null, '');
insert into tasks values (3, 'old', 3, 0, null, 'waiting', 0, null, null,
    null, null, null, 0, 0, 0.0, '', null, null, '');
insert into tasks values (4, 'old', 4, 0, null, 'failed', 1, null, '2026-11-22 10:00:02',
    '/data/3.root', null, null, 0, 0, 0.1, 'w', 'ERROR', null, '');
insert into tasks values (5, 'ended', 1, 0, null, 'done', 1, null, '2026-11-21 10:00:59',
    '/data/0.root', 'zero.parquet', 'ended/1/zero.parquet', 7, 3, 0.5, 'w', null, null, '')
"""


def fill(connection: Connection) -> None:
    """Write rows as the first release did."""
    error = {
        "kind": "Corrupt",
        "blame": "replica",
        "message": "bad",
        "hint": "",
        "retryable": False,
    }
    rows = FIRST_ROWS.replace("ERROR", json.dumps(error))
    for statement in rows.replace("QUERY", '[{"treename": "events"}]').split(";"):
        connection.exec_driver_sql(statement)


@pytest.fixture
def first_release(
    new_database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Give the settings of a service whose database the first release has filled."""
    url = new_database(empty=True)
    engine = create_engine(url)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0001")
        fill(connection)
        if engine.dialect.name == "postgresql":  # whose numbers do not follow what was inserted
            for table, number in (("datasets", 2), ("files", 5), ("tasks", 6)):
                connection.execute(text(f"alter sequence {table}_id_seq restart {number}"))
    engine.dispose()
    if engine.dialect.name == "postgresql":
        monkeypatch.setenv("SERVICEX_SERVER_STORAGE__DATABASE_URL", url)
    else:
        Path(str(engine.url.database)).rename(tmp_path / "servicex.sqlite")
    return Settings(data_dir=tmp_path)


async def test_service_continues_on_a_database_of_the_first_release(
    first_release: Settings,
) -> None:
    """Finished files stay finished, workers process open files, and the counters are right."""

    def work(spec: TaskSpec) -> Outcome:
        return Outcome(spec.request_id, spec.file_id, spec.attempt, bytes_written=7)

    memory = MemoryEngine(work)
    async with App(first_release, engine=memory) as app:
        ended = await app.database.read(request_rows.get, LOCAL_USER, "ended")
        assert (ended.state, ended.files, ended.completed) == (RequestState.COMPLETE, 1, 1)
        assert await app.database.read(usage.of, "local") == usage.Usage(
            open=1, recent=(), bytes=14
        )
        while not (
            found := await app.database.read(request_rows.get, LOCAL_USER, "old")
        ).finished_at:
            await asyncio.sleep(0.005)
        files = await app.database.read(finished_files.listed, LOCAL_USER, "old")
    assert (found.state, found.files) == (RequestState.COMPLETE, 4)
    assert (found.completed, found.failed) == (3, 1)
    assert {file.file_id for file in files if file.state is TaskState.DONE} == {1, 2, 3}
    assert {spec.file_id for spec in memory.seen} == {2, 3}


def test_newer_database_is_rejected(new_database: Callable[..., str]) -> None:
    """Migration and inspection both reject a revision that the code does not know."""
    url = new_database()
    with closing(Database(url)) as database:
        database.migrate()
        with database._engine.begin() as connection:
            connection.exec_driver_sql("update alembic_version set version_num = '9999'")
        for act in (database.migrate, database.standing):
            with pytest.raises(StartupError, match=r"newer version of servicex-server .*9999"):
                act()


def test_inspection_changes_nothing(new_database: Callable[..., str]) -> None:
    """``doctor`` describes a database that is empty, and one that is up to date."""
    with closing(Database(new_database(empty=True))) as database:
        assert database.standing().endswith("empty; the first start makes the tables")
        assert inspect(database._engine).get_table_names() == []
        database.migrate()
        assert "up to date, at revision" in database.standing()


def test_processes_that_start_together_migrate_once(postgresql: Postgres) -> None:
    """One of the processes creates the tables of an empty database. The others wait for it."""
    postgresql.run("create database together")
    program = (
        "import sys; from servicex_server.database.connection import Database; "
        "made = Database(sys.argv[1]); made.standing(); print(flush=True); "
        "sys.stdin.readline(); made.migrate()"
    )
    command = [sys.executable, "-c", program, postgresql.url("together")]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0, 0], said
    assert len(postgresql.run("select * from alembic_version", database="together")) == 1
    postgresql.run("drop database together")


def test_files_of_migrations_begin_with_their_revisions() -> None:
    """The names tell the service whether a database is up to date, without reading the files."""
    scripts = ScriptDirectory(str(migrations.MIGRATIONS))
    for script in scripts.walk_revisions():
        assert Path(script.path).name.startswith(f"{script.revision}_")
    assert migrations.newest() == scripts.get_current_head()
