"""Submission: after a dry run on its files, the service rejects or accepts a request."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from servicex_server import plugins
from servicex_server.app import App
from servicex_server.database import datasets as dataset_rows
from servicex_server.database import requests as request_rows
from servicex_server.engine.contract import CHECK_SECONDS
from servicex_server.errors import (
    CorruptError,
    ErrorRecord,
    FormatError,
    InternalError,
    QueryError,
    RequestError,
    ServiceXError,
    UnknownNameError,
    UnreadableError,
)
from servicex_server.finders.contract import Finder
from servicex_server.model import (
    LOCAL_USER,
    CheckSpec,
    DatasetState,
    InputFile,
    Outcome,
    Replica,
    ResultFormat,
    TaskSpec,
)
from servicex_server.requests.submission import Order
from servicex_server.settings.service import Settings
from servicex_server.testing.memory_engine import MemoryEngine

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("compiled_here")]

on_both_databases = pytest.mark.usefixtures("database_url")
"""For tests whose statements PostgreSQL may answer otherwise; the others run on SQLite alone."""

UNKNOWN = UnknownNameError("tree events has no branch x", hint="did you mean y?")


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio."""
    return "asyncio"


def done(spec: TaskSpec) -> Outcome:
    """End a task without an object: what becomes of tasks is not looked at here."""
    return Outcome(spec.request_id, spec.file_id, spec.attempt)


def says(**errors: ServiceXError) -> Callable[[CheckSpec], ErrorRecord | None]:
    """Return a check that finds these errors in the files of these names, in all others none."""

    def check(spec: CheckSpec) -> ErrorRecord | None:
        found = errors.get(Path(spec.replicas[0].url).stem)
        return found.record() if found else None

    return check


@asynccontextmanager
async def service(folder: Path, engine: MemoryEngine) -> AsyncIterator[App]:
    """Run the service without its web server."""
    async with App(Settings(data_dir=folder), engine=engine) as app:
        yield app


def order(*names: str, did: str | None = None, language: str = "uproot-raw") -> Order:
    """Return an order on files of these names, or on a dataset."""
    selection = json.dumps([{"treename": "events"}])
    if language == "python":
        selection = "ZGVmIHJ1bl9xdWVyeShwYXRoKToKICAgIHJldHVybiB7fQ=="
    files = None if did else [f"/data/{name}.root" for name in names]
    return Order(selection, language, ResultFormat.PARQUET, did=did, files=files)


async def stored(app: App) -> int:
    """Return how many requests and datasets there are."""
    requests = await app.database.read(request_rows.listed, LOCAL_USER)
    datasets = await app.database.read(
        dataset_rows.listed, LOCAL_USER, finder=None, with_stale=True
    )
    return len(requests) + len(datasets)


@pytest.mark.parametrize(
    "error", [UNKNOWN, QueryError("no"), FormatError("too wide"), UnreadableError("odd")]
)
async def test_query_that_the_only_file_contradicts_is_rejected(
    tmp_path: Path, error: ServiceXError
) -> None:
    """The error keeps its kind, and names field, hint and file. The service stores no row."""
    async with service(tmp_path, MemoryEngine(done, check=says(a=error))) as app:
        kind = type(error) if isinstance(error, QueryError) else QueryError
        with pytest.raises(kind) as caught:
            await app.submission.accept(LOCAL_USER, order("a"))
        assert await stored(app) == 0
    assert caught.value.status == 400
    assert str(caught.value).startswith(f"selection: {error.message} (")
    assert error.hint in caught.value.hint
    assert caught.value.hint.endswith("seen in /data/a.root")


@pytest.mark.parametrize(
    "error",
    [
        CorruptError("bad"),
        InternalError("a mistake of ours"),
        RequestError("codegen: the worker does not know this plug-in"),
        None,
    ],
)
async def test_only_errors_of_the_query_reject_a_request(
    tmp_path: Path, error: ServiceXError | None
) -> None:
    """A task reports a file that cannot be read, and a mistake of the service."""
    check = says(a=error) if error else says()
    async with service(tmp_path, MemoryEngine(done, check=check)) as app:
        assert await app.submission.accept(LOCAL_USER, order("a"))
        assert await stored(app) == 2


@pytest.mark.parametrize(
    ("names", "asked", "wrong", "refused"),
    [
        ("aaa", "a", "a", True),
        ("abc", "ac", "abc", True),
        ("abc", "ac", "ac", True),
        ("abc", "ac", "ab", False),
        ("abc", "ac", "bc", False),
        ("aba", "ab", "a", False),
    ],
)
async def test_two_files_must_give_the_same_error_to_reject_a_request(
    tmp_path: Path, names: str, asked: str, wrong: str, *, refused: bool
) -> None:
    """The service checks the first file and the last one that differs. One odd file is accepted."""
    engine = MemoryEngine(done, check=says(**dict.fromkeys(wrong, UNKNOWN)))
    async with service(tmp_path, engine) as app:
        try:
            await app.submission.accept(LOCAL_USER, order(*names))
        except UnknownNameError:
            assert refused
        else:
            assert not refused
        assert await stored(app) == (0 if refused else 2)
    seen = {Path(spec.replicas[0].url).stem for spec in engine.checked}
    assert (seen, len(engine.checked)) == (set(asked), len(asked))


async def test_two_different_errors_do_not_reject_a_request(tmp_path: Path) -> None:
    """The faults of the files differ, and each task reports its own."""
    check = says(a=UNKNOWN, b=UnknownNameError("there is no tree events in this file"))
    async with service(tmp_path, MemoryEngine(done, check=check)) as app:
        assert await app.submission.accept(LOCAL_USER, order("a", "b"))


async def test_function_of_a_user_has_no_dry_run(tmp_path: Path) -> None:
    """The service runs it on the files in tasks, and not before."""
    engine = MemoryEngine(done, check=says(a=UNKNOWN))
    async with service(tmp_path, engine) as app:
        assert await app.submission.accept(LOCAL_USER, order("a", language="python"))
    assert engine.checked == []


async def test_dry_runs_of_two_files_are_concurrent(tmp_path: Path) -> None:
    """The second dry run begins before the first has ended."""
    both = threading.Barrier(2)

    def check(spec: CheckSpec) -> ErrorRecord:
        both.wait(30)
        return UNKNOWN.record()

    async with service(tmp_path, MemoryEngine(done, check=check)) as app:
        with pytest.raises(UnknownNameError):
            await app.submission.accept(LOCAL_USER, order("a", "b"))


@on_both_databases
async def test_dry_run_of_one_good_file_is_enough(tmp_path: Path) -> None:
    """A file that does not open delays nobody if the dry run of the other file has no error."""
    ended = threading.Event()

    def check(spec: CheckSpec) -> None:
        if Path(spec.replicas[0].url).stem == "hangs":
            ended.wait(60)

    async with service(tmp_path, MemoryEngine(done, check=check)) as app:
        order_on_both = asyncio.create_task(app.submission.accept(LOCAL_USER, order("a", "hangs")))
        hanging = asyncio.create_task(app.submission.accept(LOCAL_USER, order("hangs")))
        assert await order_on_both
        assert not hanging.done()
        ended.set()
        assert await hanging


async def test_request_is_accepted_without_an_answer_of_the_dry_run(tmp_path: Path) -> None:
    """A file that does not open delays its request until the deadline, and no other request."""
    ended = threading.Event()

    def check(spec: CheckSpec) -> None:
        if Path(spec.replicas[0].url).stem == "hangs":
            ended.wait(60)

    async with service(tmp_path, MemoryEngine(done, check=check)) as app:
        began = time.monotonic()
        slow = asyncio.create_task(app.submission.accept(LOCAL_USER, order("hangs")))
        await app.submission.accept(LOCAL_USER, order("a"))
        assert not slow.done()
        assert await slow
        assert time.monotonic() - began < CHECK_SECONDS + 10
        ended.set()


class Catalogue(Finder):
    """A finder of three files, or of none until the test says so."""

    scheme = "cat"
    complete = asyncio.Event()

    async def find(self, reference: Any) -> AsyncGenerator[InputFile, None]:
        """Yield a, b and c."""
        yield InputFile((Replica("/data/a.root"), Replica("/copy/a.root")))
        await Catalogue.complete.wait()
        for name in "bc":
            yield InputFile((Replica(f"/data/{name}.root"),))


class _Installed:
    """An entry point of the test."""

    def load(self) -> type[Finder]:
        return Catalogue


@on_both_databases
async def test_dataset_has_a_dry_run_once_its_files_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service accepts the first request without one. A later request has a dry run."""
    installed = plugins.available
    monkeypatch.setattr(
        plugins,
        "available",
        lambda group: installed(group) | ({"cat": _Installed()} if group == "finders" else {}),
    )
    monkeypatch.setattr(Catalogue, "complete", asyncio.Event())
    engine = MemoryEngine(done, check=says(a=UNKNOWN, c=UNKNOWN))
    async with service(tmp_path, engine) as app:
        await app.submission.accept(LOCAL_USER, order(did="cat://set"))
        await app.submission.accept(LOCAL_USER, order(did="cat://set"))
        assert engine.checked == []
        Catalogue.complete.set()
        async with asyncio.timeout(20):
            while await app.database.read(dataset_rows.state_of, 1) is not DatasetState.COMPLETE:
                await asyncio.sleep(0.005)
        before = await stored(app)
        with pytest.raises(UnknownNameError):
            await app.submission.accept(LOCAL_USER, order(did="cat://set"))
        assert await stored(app) == before
        await app.submission.accept(LOCAL_USER, order(did="cat://other"))
    assert [[one.url for one in spec.replicas] for spec in engine.checked] == [
        ["/data/a.root", "/copy/a.root"],
        ["/data/c.root"],
    ]
