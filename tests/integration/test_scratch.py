"""Temporary files of workers are private and do not outlive their process."""

import asyncio
import base64
import fcntl
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from servicex_server.clusters.local import LocalProcesses
from servicex_server.engine.dask_engine import DaskEngine
from servicex_server.model import Outcome, Replica
from servicex_server.worker.scratch import clear_left, name_of_account, private_folder
from tests.contract.test_engines import coded, question
from tests.integration.servers import http
from tests.integration.test_lost_workers import engine_of, pid_of, until, until_another
from tests.support import Server, below, copies
from tests.support import until as until_in_time

pytestmark = pytest.mark.anyio

STUBBORN = """
def run_query(path):
    import os, pathlib, time

    folder = pathlib.Path("results-of-ann")
    folder.mkdir()
    (folder / "column").write_text("private")
    folder.chmod(0)
    if os.fork() == 0:
        os.setsid()
    while True:
        time.sleep(0.1)
"""
"""A user's function that leaves a folder which its owner may not look into, and a process."""


def files_in(scratch: Path) -> list[Path]:
    """Return what users' work has left: not the folders and locks that Dask has for each worker."""
    return [path for path in below(scratch) if path.name.startswith(("servicex-", "results-"))]


@dataclass
class Shared:
    """An engine with one worker, and the folder for its temporary files."""

    scratch: Path
    engine: DaskEngine
    cluster: LocalProcesses
    ended: asyncio.Queue[Outcome]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Run asynchronous tests, and the engine that they share, on asyncio."""
    return "asyncio"


@pytest.fixture(scope="module")
async def shared(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shared]:
    """Give the engine that the tests share."""
    scratch = private_folder(tmp_path_factory.mktemp("shared"), name_of_account())
    async with engine_of(scratch, 1) as (engine, cluster, ended):
        yield Shared(scratch, engine, cluster, ended)


async def test_killed_worker_leaves_nothing_of_a_user_function(
    shared: Shared, tmp_path: Path
) -> None:
    """The folder of the task is gone once another process has replaced the worker."""
    shared.engine.submit(coded(tmp_path, "stubborn", STUBBORN))
    await until(lambda: [path for path in below(shared.scratch) if path.name == "results-of-ann"])
    os.kill(dead := pid_of(shared.cluster), signal.SIGKILL)
    outcome = await asyncio.wait_for(shared.ended.get(), 60)
    assert outcome.error is not None
    await until_another(shared.cluster, shared.engine, dead)
    assert files_in(shared.scratch) == []
    assert len(list((shared.scratch / "dask-scratch-space").glob("worker-*/"))) == 1


async def test_killed_worker_leaves_nothing_of_a_dry_run(shared: Shared) -> None:
    """A dry run that hangs has a folder, which is removed with the worker."""
    engine, scratch = shared.engine, shared.scratch
    with http("silent") as door:
        async with asyncio.timeout(60):
            while not door.asked:
                asking = asyncio.create_task(engine.check(question(door.url("x.root"))))
                while not (door.asked or asking.done()):
                    await asyncio.sleep(0.01)
        assert files_in(scratch) != []
        os.kill(dead := pid_of(shared.cluster), signal.SIGKILL)
        await asking
    await until_another(shared.cluster, engine, dead)
    assert files_in(scratch) == []


async def test_temporary_files_of_a_worker_are_private(shared: Shared, tmp_path: Path) -> None:
    """Other accounts cannot read the folder, and no file is in the system's temporary folder."""
    where = tmp_path / "told"
    source = (
        "def run_query(path):\n    import os, pathlib\n"
        f"    pathlib.Path({str(where)!r}).write_text(os.getcwd())\n    return {{'n': [1]}}\n"
    )
    shared.engine.submit(coded(tmp_path, "where", source))
    outcome = await asyncio.wait_for(shared.ended.get(), 60)
    assert outcome.error is None
    assert shared.scratch in Path(where.read_text()).parents
    assert shared.scratch.stat().st_mode & 0o777 == 0o700


WAITS = """
def run_query(path):
    import os, pathlib, time

    pathlib.Path("results-of-" + path.split("/")[-2]).touch()
    while os.stat(path).st_mtime:
        time.sleep(0.05)
    return {"n": [1]}
"""
"""A user's function that has a file, and goes on until its input is very old."""


async def test_next_start_removes_files_of_a_killed_service(shared: Shared, tmp_path: Path) -> None:
    """Files of another engine that still runs stay."""
    environment = {
        "SERVICEX_SERVER_ENGINE__KIND": "local",
        "SERVICEX_SERVER_ENGINE__SCRATCH_FOLDER": str(shared.scratch.parent),
    }
    (file,) = copies(tmp_path / "living", 1)
    living = replace(coded(tmp_path, "living", WAITS), replicas=(Replica(file),))
    shared.engine.submit(living)
    # while a server is waited for, the living engine has to go on
    await asyncio.to_thread(_kill_and_start, shared.scratch, tmp_path, environment)
    os.utime(file, (0, 0))
    assert (await asyncio.wait_for(shared.ended.get(), 60)).error is None
    await until(lambda: not files_in(shared.scratch))


def _kill_and_start(scratch: Path, folder: Path, environment: dict[str, str]) -> None:
    """Have a service at work killed with its workers, and start it again to the end of its work."""
    server = Server(folder / "data", ["--workers", "1"], environment).start()
    answer = server.submit(
        file_list=copies(folder / "killed", 1), codegen="python", selection=encoded(WAITS)
    )
    both = {"results-of-killed", "results-of-living"}
    until_in_time(lambda: results_in(scratch) == both, "both work")
    left = next(path for path in below(scratch) if path.name == "results-of-killed").parents[2]
    processes = server.descendants()
    server.stop(signal.SIGKILL)
    for process in processes:
        if process.is_running():
            process.kill()
    psutil.wait_procs(processes, timeout=10)
    assert left.exists()
    server.start()
    assert not left.exists()
    assert "results-of-living" in results_in(scratch)
    os.utime(folder / "killed" / "0.root", (0, 0))
    assert server.wait(answer.json()["request_id"])["status"] == "Complete"
    assert results_in(scratch) == {"results-of-living"}
    assert server.stop() < 10


def results_in(scratch: Path) -> set[str]:
    """Return the names of the files of users' functions."""
    return {path.name for path in files_in(scratch) if path.name.startswith("results-")}


def encoded(source: str) -> str:
    """Return a function as a request has it."""
    return base64.b64encode(source.encode()).decode()


# --- folders and locks ------------------------------------------------------------------------


def test_private_folder_of_another_account_is_not_used(tmp_path: Path) -> None:
    """The service does not use an existing folder, link or file, and finds its own folder again."""
    ways: list[Callable[[Path], None]] = [others, link, Path.touch]
    for number, prepare in enumerate(ways):
        parent = tmp_path / str(number)
        parent.mkdir()
        prepare(parent / "servicex-0")
        made = private_folder(parent, "servicex-0")
        assert made.name.startswith("servicex-0-")
        assert made.stat().st_mode & 0o777 == 0o700
        assert private_folder(parent, "servicex-0") == made


def others(path: Path) -> None:
    """Make a folder of another account."""
    if os.geteuid():
        pytest.skip("giving a folder away needs root")
    path.mkdir()
    os.chown(path, 12345, 12345)


def link(path: Path) -> None:
    """Make a link to a folder."""
    path.symlink_to("/")


def test_private_folder_loses_its_open_permissions(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir(mode=0o755)
    assert private_folder(tmp_path, "scratch").stat().st_mode & 0o777 == 0o700


def test_only_folders_of_dead_processes_are_removed(tmp_path: Path) -> None:
    """A free lock shows a dead process. A process that begins may have a folder without a lock."""
    workers = tmp_path / "dask-scratch-space"
    for name in ("worker-dead", "worker-living", "worker-new", "worker-old"):
        (workers / name / "servicex-1").mkdir(parents=True)
    (workers / "worker-dead.dirlock").touch()
    (workers / "worker-link").symlink_to(tmp_path)
    (workers / "worker-link.dirlock").touch()
    os.utime(workers / "worker-old", (0, 0))
    with (workers / "worker-living.dirlock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert clear_left(tmp_path) == 2
    assert {path.name for path in workers.glob("worker-*/")} == {
        "worker-living",
        "worker-new",
        "worker-link",
    }
    assert clear_left(tmp_path / "nowhere") == 0
