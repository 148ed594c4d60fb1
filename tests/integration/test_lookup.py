"""Look-ups: what a catalogue tells becomes rows once, whatever it does in the meantime."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from servicex_server import lookup, plugins
from servicex_server.app import App
from servicex_server.database import datasets as dataset_rows
from servicex_server.engines.memory import MemoryEngine
from servicex_server.errors import (
    CatalogueDeniedError,
    CatalogueError,
    DatasetError,
    StartupError,
    UnknownDatasetError,
)
from servicex_server.finders.contract import Finder, FinderOptions
from servicex_server.finders.file_list import FileList
from servicex_server.model import (
    LOCAL_USER,
    DatasetState,
    InputFile,
    Outcome,
    Replica,
    RequestState,
    ResultFormat,
    TaskSpec,
)
from servicex_server.settings import Settings
from servicex_server.submission import Order
from tests.services import SELECTION, ended

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("database_url")]

Answer = InputFile | Exception


def file(name: str, *places: str) -> InputFile:
    """Return a file of a catalogue that is in these places."""
    return InputFile(tuple(Replica(f"root://{place}//{name}.root") for place in places), name=name)


FILES = [file(name, "one", "two") for name in "abcdef"]


class CatOptions(FinderOptions):
    """What can be chosen here."""

    door: str = ""
    """Any."""


class Cat(Finder):
    """A catalogue that answers each time it is asked as the test has written down."""

    scheme = "cat"
    Options = CatOptions
    answers: ClassVar[list[list[Answer]]] = []
    asked: ClassVar[list[str]] = []
    given: ClassVar[int] = 0

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


async def test_a_catalogue_that_fails_is_asked_again_for_what_is_not_there(tmp_path: Path) -> None:
    """No file comes twice, though the second answer is in another order."""
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
async def test_a_look_up_that_fails_reaches_the_user_and_is_not_kept(
    tmp_path: Path, error: Exception, asked: int, state: DatasetState
) -> None:
    """Neither is a part of a dataset: the next request looks it up anew."""
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


@pytest.mark.parametrize("count", [1, 4, 6, 7])
async def test_so_many_files_are_taken_as_are_asked_for(tmp_path: Path, count: int) -> None:
    """A catalogue is not asked for more."""
    Cat.answers.append(list(FILES))
    async with service(tmp_path) as app:
        found = await ended(app, await submit(app, f"cat://set?files={count}"))
        assert (found.state, found.files) == (RequestState.COMPLETE, min(count, 6))
    assert Cat.given == min(count, 6)
    assert Cat.asked == ["set"]


@pytest.mark.parametrize("count", ["0", "-1", "x", "", "²", "1.5"])
async def test_what_is_no_number_of_files_is_refused(tmp_path: Path, count: str) -> None:
    """With the words that were wrong."""
    async with service(tmp_path) as app:
        with pytest.raises(DatasetError, match=f"^did: files='{count}' is no number of files"):
            await submit(app, f"cat://set?files={count}")
    assert Cat.asked == []


async def test_a_dataset_is_looked_up_again_when_it_is_old_or_marked(tmp_path: Path) -> None:
    """Until then it is known."""
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
    async with service(tmp_path, dataset_seconds=0) as app:
        assert (await ended(app, await submit(app, "cat://set"))).files == 4


async def test_a_look_up_that_was_broken_off_is_gone_on_with(tmp_path: Path) -> None:
    """By the next process, whatever the order of its answer."""
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


async def test_a_file_that_is_nowhere_fails_alone(tmp_path: Path) -> None:
    """With its name, and what is the matter."""
    from servicex_server.transform import transform

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
async def test_options_of_a_finder_that_cannot_be_are_refused_at_the_start(
    tmp_path: Path, finders: dict[str, Any], said: str
) -> None:
    """With the name of the setting, and without what was given: it may be a password."""
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
def test_local_files_are_below_folders_that_the_operator_names(entry: str, *, read: bool) -> None:
    """Where there are none, no local file is read."""
    folders = (Path("/data"), Path("/more/x"))
    if read:
        FileList().check_entries([entry], folders=folders)
        return
    with pytest.raises(DatasetError, match=r"entry 1, .*\(below /data, /more/x\)"):
        FileList().check_entries([entry], folders=folders)
