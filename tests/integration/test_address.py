"""The service on a Dask scheduler and workers that it has not started."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed.client import Future, FutureState

from servicex_server.clusters import existing
from servicex_server.clusters.dask_config import CONFIG, variables
from servicex_server.clusters.existing import ExistingScheduler
from servicex_server.engine.dask_engine import DaskEngine
from servicex_server.engine.workers import RunningTask, WorkerState
from servicex_server.errors import StartupError
from servicex_server.model import Limits, Outcome, Replica, ResultFormat, TaskSpec
from servicex_server.settings.clusters import AddressOptions
from tests.integration.servers import certificate, free_port, http
from tests.support import Server, copies, doctor, refused, until

FILES = 2


@dataclass
class Foreign:
    """A scheduler and a worker that use TLS with a self-signed certificate."""

    address: str
    files: Mapping[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of Dask until the block ends."""
    started = subprocess.Popen(
        [str(Path(sys.executable).with_name("dask")), *command],
        env=os.environ | variables(CONFIG),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield started
    finally:
        started.terminate()
        started.wait(20)


def tls(folder: Path) -> dict[str, str]:
    """Make a certificate; return the settings that name it."""
    folder.mkdir()
    cert, key = map(str, certificate(folder))
    return {"tls_ca_file": cert, "tls_cert_file": cert, "tls_key_file": key}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    """Give a scheduler with its worker."""
    found = tls(tmp_path_factory.mktemp("foreign") / "tls")
    options = ["--tls-ca-file", found["tls_ca_file"], "--tls-cert", found["tls_cert_file"]]
    options += ["--tls-key", found["tls_key_file"], "--protocol", "tls", "--host", "127.0.0.1"]
    port = str(free_port())
    where = f"tls://127.0.0.1:{port}"
    scheduler = ["scheduler", "--port", port, "--dashboard-address", "127.0.0.1:0", *options]
    worker = ["worker", where, "--nthreads", "1", "--memory-limit", "1GiB", "--no-dashboard"]
    with ExitStack() as started:
        commands = (scheduler, [*worker, *options])
        running = [started.enter_context(process(*command)) for command in commands]
        until(lambda: listens(int(port)), "the scheduler listens")
        yield Foreign(where, found, running)


def listens(port: int) -> bool:
    """Return whether a server listens at a port."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.anyio
async def test_task_of_a_lost_scheduler_costs_no_attempt(tmp_path: Path) -> None:
    """The engine queues the task again once, whether it saw the loss before or sees it now."""
    options = AddressOptions(kind="address", scheduler="tcp://127.0.0.1:9", allow_plain_tcp=True)
    engine = DaskEngine(ExistingScheduler(options), workers=0)
    for seen in (False, True):
        running = RunningTask(task(tmp_path, f"seen {seen}", "/x"))
        worker = WorkerState("tcp://127.0.0.1:8", "w")
        worker.take(running)
        future: Any = Future(f"seen {seen}")
        running.future = future
        future._state = FutureState(future.key)
        future._state.cancel(reason="scheduler-connection-lost")
        if seen:
            engine._requeue(worker, running)
        await engine._wait(worker, running, future)
        assert list(engine._ready) == [running]
        assert (running.over, running.future, worker.task) == (False, None, None)
        engine._ready.clear()


@pytest.mark.anyio
async def test_lost_scheduler_costs_no_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a scheduler is back, the engine runs each task once, as the first attempt."""
    port, (path,) = str(free_port()), copies(tmp_path / "in", 1)
    where = f"tcp://127.0.0.1:{port}"
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", port]
    scheduler += ["--dashboard-address", "127.0.0.1:0"]
    worker = ["worker", where, "--nthreads", "1", "--no-dashboard"]
    engine = DaskEngine(
        ExistingScheduler(AddressOptions(kind="address", scheduler=where, allow_plain_tcp=True)),
        workers=0,
    )
    ended: asyncio.Queue[Outcome] = asyncio.Queue()
    with ExitStack() as running, http("silent") as door:
        first = [running.enter_context(process(*command)) for command in (scheduler, worker)]
        await engine.start(ended.put_nowait)
        monkeypatch.setattr(existing, "CONNECT_SECONDS", 0.5)
        try:
            engine.submit(task(tmp_path, "hangs", door.url("x.root")))
            engine.submit(task(tmp_path, "waits", path))
            async with asyncio.timeout(60):
                while not door.asked:
                    await asyncio.sleep(0.05)
            for one in first:
                one.kill()
                await asyncio.to_thread(one.wait)
            async with asyncio.timeout(60):
                while engine.restarts < 3:  # it is looked for in vain
                    await asyncio.sleep(0.05)
            engine.submit(task(tmp_path, "comes", path))
            assert ended.empty()
            assert engine.workers() == []
            await engine.stop([task(tmp_path, "hangs", path).key])
            for command in (scheduler, worker):
                running.enter_context(process(*command))
            async with asyncio.timeout(90):
                outcomes = [await ended.get() for _ in range(2)]
        finally:
            await engine.close()
    assert [(one.request_id, one.attempt, one.error) for one in outcomes] == [
        ("waits", 1, None),
        ("comes", 1, None),
    ]
    assert ended.empty()


def task(folder: Path, name: str, url: str) -> TaskSpec:
    """Return a task on a file."""
    return TaskSpec(
        request_id=name,
        file_id=1,
        attempt=1,
        replicas=(Replica(url),),
        language="uproot-raw",
        selection='[{"treename": "events", "filter_name": "E1"}]',
        format=ResultFormat.PARQUET,
        object_name="x.parquet",
        upload_url=(folder / name / "x.parquet").as_uri(),
        limits=Limits(),
    )


def configured(folder: Path, **engine: str) -> list[str]:
    """Write the settings; return the options that name them."""
    config = folder / "settings.yaml"
    config.write_text(yaml.safe_dump({"workers": 1, "engine": {"kind": "address"} | engine}))
    return ["--config", str(config)]


def test_request_runs_on_existing_workers(
    foreign: Foreign, new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """The service finds and uses the workers, and leaves them running when it ends."""
    server = new_server(*configured(tmp_path, scheduler=foreign.address, **foreign.files))
    status = server.run(file_list=copies(tmp_path / "in", FILES))
    assert (status["status"], status["files-completed"]) == ("Complete", FILES)
    assert server.dask_processes() == []
    assert "allowed-failures" not in server.output
    server.stop()
    assert [process.poll() for process in foreign.processes] == [None] * 2


@pytest.mark.anyio
async def test_unreachable_scheduler_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error states the reason or the time limit, and the service tries no longer than that."""
    assert existing.CONNECT_SECONDS == 10
    monkeypatch.setattr(existing, "CONNECT_SECONDS", 2)
    nobody = f"tcp://127.0.0.1:{free_port()}"
    options = AddressOptions(kind="address", scheduler=nobody, allow_plain_tcp=True)
    began = time.monotonic()
    with pytest.raises(StartupError) as refusal:
        await ExistingScheduler(options).open()
    assert time.monotonic() - began < 5
    start, why = str(refusal.value).split(" cannot be reached: ")
    assert start == f"the scheduler {nobody}"
    # the last try may end before or after the time
    assert why in (
        "[Errno 111] Connection refused",
        f"Timed out trying to connect to {nobody} after 2 s",
    )


@pytest.fixture
def others(tmp_path: Path) -> dict[str, str]:
    """Give certificates that have nothing to do with those of the scheduler."""
    return tls(tmp_path / "others")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("tls_ca_file", "tls_cert_file", "tls_key_file"), "certificate verify failed"),
        (("tls_ca_file",), "certificate verify failed"),
        (
            ("tls_cert_file", "tls_key_file"),
            "trust the authority that signed the other's certificate",
        ),
        (("tls_key_file",), "do not match: "),
    ],
)
async def test_each_kind_of_wrong_certificate_has_its_own_error(
    foreign: Foreign, others: dict[str, str], wrong: tuple[str, ...], said: str
) -> None:
    """The error is one line, and comes at once if the scheduler answers."""
    files = {**foreign.files, **{name: others[name] for name in wrong}}
    options = AddressOptions.model_validate(
        {"kind": "address", "scheduler": foreign.address, **files}
    )
    began = time.monotonic()
    with pytest.raises(StartupError) as refusal:
        await ExistingScheduler(options).open()
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert time.monotonic() - began < existing.CONNECT_SECONDS + 2


def test_missing_key_file_is_one_line_at_the_start(foreign: Foreign, tmp_path: Path) -> None:
    """The service looks for the file before it connects, and does not start."""
    files = {**foreign.files, "tls_key_file": "/no/such"}
    options = configured(tmp_path, scheduler=foreign.address, **files)
    said = refused(*options, "--port", "0", "--data-dir", str(tmp_path / "data"))
    assert said == "servicex-server: /no/such cannot be read: No such file or directory"


@pytest.mark.parametrize("there", [True, False])
def test_doctor_checks_the_scheduler(foreign: Foreign, tmp_path: Path, *, there: bool) -> None:
    """It reports that the scheduler answers, or the error that the service would report."""
    files = foreign.files if there else {**foreign.files, "tls_key_file": "/no/such"}
    options = configured(tmp_path, scheduler=foreign.address, **files)
    ran = doctor(*options, "--data-dir", str(tmp_path / "data"))
    said = f"ok      scheduler {foreign.address} answers, "
    assert (said if there else "wrong   /no/such cannot be read") in ran.stdout
    assert ran.returncode == (0 if there else 1)
