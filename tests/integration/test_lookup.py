"""Dataset look-up: each file of a catalogue becomes one row, whatever the catalogue does."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import select

from servicex_server import plugins
from servicex_server.app import App
from servicex_server.database import datasets as dataset_rows
from servicex_server.database import finished_files, request_completion
from servicex_server.database import outcomes as outcome_rows
from servicex_server.database import requests as request_rows
from servicex_server.database.tables import tasks
from servicex_server.datasets import lookup
from servicex_server.errors import (
    CatalogueDeniedError,
    CatalogueError,
    DatasetError,
    DeniedError,
    MissingError,
    ServiceXError,
    StartupError,
    UnknownDatasetError,
    UnknownNameError,
    UnreachableError,
)
from servicex_server.finders.contract import Finder, FinderOptions
from servicex_server.finders.file_list import FileList
from servicex_server.model import (
    LOCAL_USER,
    Attempt,
    DatasetState,
    InputFile,
    Outcome,
    Replica,
    RequestState,
    ResultFormat,
    TaskSpec,
    TaskState,
)
from servicex_server.requests.submission import Order
from servicex_server.settings.groups import LimitSettings, ReadingSettings
from servicex_server.settings.service import Settings
from servicex_server.testing.memory_engine import MemoryEngine
from tests.services import SELECTION, ended, fail_a_write

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("compiled_here")]

on_both_databases = pytest.mark.usefixtures("database_url")
"""For tests whose statements PostgreSQL may answer otherwise; the others run on SQLite alone."""

Answer = InputFile | Exception


def file(name: str, *places: str) -> InputFile:
    """Return a file of a catalogue that is in these places."""
    return InputFile(tuple(Replica(f"root://{place}//{name}.root") for place in places), name=name)


FILES = [file(name, "one", "two") for name in "abcdef"]


class CatOptions(FinderOptions):
    """The options of the catalogue."""

    door: str = ""
    """Any."""


class Cat(Finder):
    """A catalogue that gives the answers that the test has prepared."""

    scheme = "cat"
    Options = CatOptions
    answers: ClassVar[list[list[Answer]]] = []
    asked: ClassVar[list[str]] = []
    given: ClassVar[int] = 0
    elsewhere: ClassVar[dict[str, tuple[Replica, ...]]] = {}
    looked_for: ClassVar[list[str]] = []
    away: ClassVar[bool] = False

    async def replicas_again(self, names: Sequence[str]) -> Mapping[str, tuple[Replica, ...]]:
        """Name the places that the test has written down."""
        Cat.looked_for += names
        if Cat.away:
            raise CatalogueError("it is away")
        return {name: Cat.elsewhere[name] for name in names if name in Cat.elsewhere}

    async def find(self, reference: str) -> AsyncGenerator[InputFile, None]:
        """Yield files until there is something else to do."""
        Cat.asked.append(reference)
        for answer in Cat.answers.pop(0):
            if isinstance(answer, Exception):
                raise answer
            Cat.given += 1
            yield answer
            await asyncio.sleep(0)


class _Installed:
    """An entry point of the test."""

    def load(self) -> type[Finder]:
        return Cat


@pytest.fixture(autouse=True)
def _cat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it installed, and a pause that does not take long."""
    installed = plugins.available
    monkeypatch.setattr(
        plugins,
        "available",
        lambda group: installed(group) | ({"cat": _Installed()} if group == "finders" else {}),
    )
    monkeypatch.setattr(lookup, "PAUSE", 0.001)
    monkeypatch.setattr(Cat, "answers", [])
    monkeypatch.setattr(Cat, "asked", [])
    monkeypatch.setattr(Cat, "given", 0)
    monkeypatch.setattr(Cat, "elsewhere", {})
    monkeypatch.setattr(Cat, "looked_for", [])
    monkeypatch.setattr(Cat, "away", False)


def done(spec: TaskSpec) -> Outcome:
    """End a task without an object: what becomes of tasks is not looked at here."""
    return Outcome(spec.request_id, spec.file_id, spec.attempt, url=spec.path)


def service(folder: Path, work: Callable[[TaskSpec], Outcome] = done, **settings: Any) -> App:
    """Return a service whose tasks end at once."""
    return App(Settings(data_dir=folder, **settings), engine=MemoryEngine(work))


async def submit(app: App, did: str) -> str:
    """Ask for a dataset."""
    order = Order(SELECTION, "uproot-raw", ResultFormat.PARQUET, did=did)
    return await app.submission.accept(LOCAL_USER, order)


async def names(app: App, dataset_id: int) -> list[str]:
    """Return the names of the files of a dataset that are stored."""
    found = await app.database.read(dataset_rows.files_of, LOCAL_USER, dataset_id)
    return [one.name for _, one in found]


@on_both_databases
async def test_look_up_is_repeated_after_an_error_of_the_catalogue(tmp_path: Path) -> None:
    """The service stores no file twice, though the second answer is in another order."""
    first, second = FILES[:3], [FILES[n] for n in (4, 1, 0, 5, 2, 3)]
    Cat.answers += [[*first, CatalogueError("it is away")], [*second]]
    async with service(tmp_path) as app:
        found = await ended(app, await submit(app, "cat://set"))
        assert (found.state, found.files, found.completed) == (RequestState.COMPLETE, 6, 6)
        assert sorted(await names(app, found.dataset_id)) == list("abcdef")
    assert Cat.asked == ["set", "set"]


@pytest.mark.parametrize(
    ("error", "asked", "state"),
    [
        (CatalogueError("it is away"), lookup.TRIES, DatasetState.INTERNAL_FAILURE),
        (CatalogueDeniedError("the proxy is old"), 1, DatasetState.INTERNAL_FAILURE),
        (UnknownDatasetError("there is none"), 1, DatasetState.DOES_NOT_EXIST),
        (DatasetError("it was withdrawn"), 1, DatasetState.BAD_NAME),
        (ValueError("a bug"), 1, DatasetState.INTERNAL_FAILURE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_failed_look_up_reaches_the_user_and_is_not_reused(
    tmp_path: Path, error: Exception, asked: int, state: DatasetState
) -> None:
    """The service does not reuse a part of a dataset: the next request looks it up again."""
    Cat.answers += [[FILES[0], error]] * asked
    async with service(tmp_path) as app:
        found = await ended(app, await submit(app, "cat://set"))
        assert (found.state, len(Cat.asked)) == (RequestState.BAD_DATASET, asked)
        assert str(error) in found.failure
        dataset = await app.database.read(dataset_rows.get, LOCAL_USER, found.dataset_id)
        assert (dataset.state, dataset.stale) == (state, True)
        assert dataset.message == found.failure
        Cat.answers.append(list(FILES))
        again = await ended(app, await submit(app, "cat://set"))
        assert (again.state, again.completed) == (RequestState.COMPLETE, 6)


async def test_processing_starts_before_the_look_up_ends(tmp_path: Path) -> None:
    """The dataset has 20,000 files, and the service stores each once."""
    count = 20_000
    Cat.answers.append([file(str(number), "one") for number in range(count)])
    early: list[int] = []

    def first(spec: TaskSpec) -> Outcome:
        early.append(Cat.given)
        return done(spec)

    async with service(tmp_path, first) as app:
        request_id = await submit(app, "cat://many")
        async with asyncio.timeout(60):
            while True:
                found = await app.database.read(request_rows.get, LOCAL_USER, request_id)
                if found.state is not RequestState.LOOKUP:
                    break
                await asyncio.sleep(0.05)
        assert (found.files, Cat.given) == (count, count)
        assert early[0] < count // 2
        known = await names(app, found.dataset_id)
        assert len(set(known)) == len(known) == count


async def test_files_option_limits_the_look_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service does not ask the catalogue for more files."""
    async with service(tmp_path) as app:
        for count in (1, 4, 6, 7):
            monkeypatch.setattr(Cat, "given", 0)
            Cat.answers.append(list(FILES))
            found = await ended(app, await submit(app, f"cat://set{count}?files={count}"))
            assert (found.state, found.files) == (RequestState.COMPLETE, min(count, 6))
            assert Cat.given == min(count, 6)
    assert Cat.asked == ["set1", "set4", "set6", "set7"]


async def test_invalid_number_of_files_is_rejected(tmp_path: Path) -> None:
    """The error quotes the value."""
    async with service(tmp_path) as app:
        for count in ("0", "-1", "x", "", "²", "1.5"):
            said = f"^did: files='{count}' is not a number of files"
            with pytest.raises(DatasetError, match=said):
                await submit(app, f"cat://set?files={count}")
    assert Cat.asked == []


@on_both_databases
async def test_old_or_stale_dataset_is_looked_up_again(tmp_path: Path) -> None:
    """Until then, the service uses the files that it has stored."""
    Cat.answers += [list(FILES[:n]) for n in (2, 3, 4)]
    async with service(tmp_path) as app:
        counts = []
        for mark in (False, False, True):
            found = await ended(app, await submit(app, "cat://set"))
            counts.append(found.files)
            if mark:
                await app.database.write(dataset_rows.mark_stale, LOCAL_USER, found.dataset_id)
        counts.append((await ended(app, await submit(app, "cat://set"))).files)
        assert counts == [2, 2, 2, 3]
    async with service(tmp_path, reading=ReadingSettings(dataset_seconds=0)) as app:
        assert (await ended(app, await submit(app, "cat://set"))).files == 4


@on_both_databases
async def test_next_process_continues_an_interrupted_look_up(tmp_path: Path) -> None:
    """The order of the second answer does not matter."""
    hangs: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Hangs(Cat):
        async def find(self, reference: str) -> AsyncGenerator[InputFile, None]:
            for one in [*FILES[:3], *many]:
                yield one
            await hangs

    many = [file(f"m{n}", "one") for n in range(lookup.FIRST_BATCH)]
    _Installed.load, load = lambda self: Hangs, _Installed.load  # type: ignore[method-assign]
    try:
        async with service(tmp_path) as app:
            request_id = await submit(app, "cat://set")
            async with asyncio.timeout(20):
                while len(await names(app, 1)) < lookup.FIRST_BATCH:
                    await asyncio.sleep(0.005)
    finally:
        _Installed.load = load  # type: ignore[method-assign]
    Cat.answers.append([*reversed(many), *reversed(FILES)])
    async with service(tmp_path) as app:
        found = await ended(app, request_id)
        assert found.completed == len(many) + len(FILES)
        assert len(set(await names(app, 1))) == found.files


@on_both_databases
async def test_file_without_replicas_fails_alone(tmp_path: Path) -> None:
    """The failure has its name and the reason."""
    from servicex_server.worker.transform import transform

    def work(spec: TaskSpec) -> Outcome:
        return done(spec) if spec.replicas else transform(spec)

    Cat.answers.append([FILES[0], file("nowhere"), FILES[1]])
    async with service(tmp_path, work) as app:
        found = await ended(app, await submit(app, "cat://set"))
        assert (found.state, found.completed, found.failed) == (RequestState.COMPLETE, 2, 1)
        assert "the catalogue knows no replica of this file" in found.failure
        rows = await app.database.read(
            lambda connection: connection.exec_driver_sql(
                "select path, attempts from tasks where state = 'failed'"
            ).all()
        )
        assert [tuple(row) for row in rows] == [("nowhere", 1)]


@pytest.mark.parametrize(
    ("finders", "said"),
    [
        ({"cta": {}}, "there is no setting finders.cta (did you mean cat?)"),
        ({"cat": {"dor": "x"}}, "there is no setting finders.cat.dor (did you mean door?)"),
        ({"cat": {"door": [1]}}, "setting finders.cat.door: Input should be a valid string"),
    ],
)
async def test_invalid_finder_option_stops_the_start(
    tmp_path: Path, finders: dict[str, Any], said: str
) -> None:
    """The error names the setting. It does not quote the value, which may be a password."""
    with pytest.raises(StartupError) as caught:
        async with service(tmp_path, finders=finders):
            pass
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("entry", "read"),
    [
        ("/data/x.root", True),
        ("file:///data/a%20b/x.root", True),
        ("/more/x/y.root", True),
        ("/data/../etc/x.root", False),
        ("/database/x.root", False),
        ("file:///etc/x.root", False),
        ("file:///data/%2e%2e/etc/x.root", False),
        ("root://host//etc/x.root", True),
    ],
)
def test_local_files_must_be_in_folders_of_the_operator(entry: str, *, read: bool) -> None:
    """Without such folders, the service does not read local files."""
    folders = (Path("/data"), Path("/more/x"))
    if read:
        FileList().check_entries([entry], folders=folders)
        return
    with pytest.raises(DatasetError, match=r"entry 1, .*below /data, /more/x"):
        FileList().check_entries([entry], folders=folders)


# --- files that are somewhere else by now --------------------------------------------------


def lost_at(*places: str, error: ServiceXError | None = None) -> Callable[[TaskSpec], Outcome]:
    """Return work that finds nothing at some storage endpoints, and succeeds at all others."""

    def work(spec: TaskSpec) -> Outcome:
        attempts = []
        for replica in spec.replicas:
            bad = any(replica.url.startswith(f"root://{place}/") for place in places)
            record = (error or MissingError(f"{replica.url} does not exist")).record()
            attempts.append(Attempt(replica.url, 0.1, record if bad else None))
            if not bad:
                break
        last = attempts[-1]
        same = (spec.request_id, spec.file_id, spec.attempt)
        return Outcome(*same, url=last.url, error=last.error, attempts=tuple(attempts))

    return work


@on_both_databases
async def test_missing_file_gets_one_replica_refresh(tmp_path: Path) -> None:
    """A worker tries the new replicas. A file without new replicas fails with its own error."""
    Cat.answers += [list(FILES), list(FILES)]
    here = Replica("root://three//a.root", "THREE")
    known = FILES[1].replicas[0]
    Cat.elsewhere = {"a": (FILES[0].replicas[0], here), "b": (known,)}
    async with service(tmp_path, lost_at("one", "two")) as app:
        found = await ended(app, await submit(app, "cat://set"))
        assert (found.state, found.completed, found.failed) == (RequestState.COMPLETE, 1, 5)
        done = [
            one
            for one in await app.database.read(finished_files.listed, LOCAL_USER, found.id)
            if one.state is TaskState.DONE
        ]
        failed = await app.database.read(finished_files.failed, LOCAL_USER, found.id)
        assert [one.path for one in done] == [here.url]
        query = select(tasks.c.tried).where(tasks.c.id == done[0].id)
        (tried,) = await app.database.read(lambda connection: connection.scalars(query).all())
        assert [one["url"] for one in tried] == [one.url for one in (*FILES[0].replicas, here)]
        assert {len(one.attempts) for one in failed} == {2}
        assert {one.error.kind for one in failed if one.error} == {"Missing"}
        assert sorted(Cat.looked_for) == list("abcdef")
        files = await app.database.read(dataset_rows.files_of, LOCAL_USER, found.dataset_id)
        assert files[0][1].replicas == (here, FILES[0].replicas[0])
        # the dataset is not believed any more
        again = await ended(app, await submit(app, "cat://set"))
        assert again.dataset_id != found.dataset_id


@on_both_databases
async def test_database_failure_does_not_repeat_a_replica_refresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service keeps the answer until the transaction that needs it has committed."""
    Cat.answers.append(list(FILES))
    here = Replica("root://three//a.root", "THREE")
    Cat.elsewhere = {"a": (FILES[0].replicas[0], here)}
    failed = fail_a_write(monkeypatch, outcome_rows.record, once=lambda: len(Cat.looked_for) == 6)
    async with service(tmp_path, lost_at("one", "two")) as app:
        found = await ended(app, await submit(app, "cat://set"))
    assert failed
    assert (found.state, found.completed, found.failed) == (RequestState.COMPLETE, 1, 5)
    assert sorted(Cat.looked_for) == list("abcdef")


@on_both_databases
async def test_request_ends_after_a_database_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are stored. Then the transaction that ends the request fails once."""
    Cat.answers.append(list(FILES))
    failed = fail_a_write(monkeypatch, request_completion.finish, once=lambda: Cat.given == 6)
    async with service(tmp_path, lost_at()) as app:
        found = await ended(app, await submit(app, "cat://set"))
    assert failed
    assert (found.state, found.completed) == (RequestState.COMPLETE, 6)


@pytest.mark.parametrize(
    ("error", "searched"),
    [
        (UnreachableError("nobody answers"), 6),
        (DeniedError("the proxy is refused"), 0),
        (UnknownNameError("there is no branch x"), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_only_errors_of_location_cause_a_replica_refresh(
    tmp_path: Path, error: ServiceXError, searched: int
) -> None:
    """There is one refresh, however often the service tries the file after that."""
    Cat.answers.append(list(FILES))
    async with service(
        tmp_path, lost_at("one", "two", error=error), limits=LimitSettings(attempts=2)
    ) as app:
        found = await ended(app, await submit(app, "cat://set"))
        assert (found.state, found.completed) == (RequestState.FATAL, 0)
    assert len(Cat.looked_for) == searched


async def test_failed_replica_refresh_keeps_the_error_of_the_file(tmp_path: Path) -> None:
    """The catalogue does not answer, and the files fail with their own errors."""
    Cat.answers.append(list(FILES))
    Cat.away = True
    async with service(tmp_path, lost_at("one", "two")) as app:
        found = await ended(app, await submit(app, "cat://set"))
        assert (found.state, found.failed) == (RequestState.FATAL, 6)
        assert "does not exist" in found.failure
