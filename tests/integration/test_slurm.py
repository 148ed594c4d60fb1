"""The service on a real Slurm: its workers are jobs, and it leaves no job behind."""

import asyncio
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
import yaml

from servicex_server.clusters.dask_config import CONFIG
from servicex_server.clusters.jobqueue import JobQueue
from servicex_server.errors import StartupError
from servicex_server.settings.clusters import JobQueueOptions
from tests.integration.slurm import Slurm, slurm
from tests.support import Server, copies, doctor, on_workers, until, workers_of

FILES = 6
OPTIONS = {
    "kind": "jobqueue",
    "system": "slurm",
    "queue": "main",
    "walltime": "00:20:00",
    "scheduler_host": "127.0.0.1",
    "worker_arguments": ["--host=127.0.0.1"],
}
SECRETS = {
    "SERVICEX_SERVER_ACCOUNTS__WEBHOOK": "http://hush",
    "AWS_SECRET_ACCESS_KEY": "hush",
    "PGPASSWORD": "hush",
}


@pytest.fixture(scope="module")
def batch() -> Iterator[Slurm]:
    """Give a Slurm with room for two jobs."""
    with slurm(cpus=2) as running:
        yield running


@pytest.fixture
def queue(batch: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., JobQueue]:
    """Give a function that makes a cluster which is not open yet."""
    for name, value in batch.environment.items():
        monkeypatch.setenv(name, value)

    def make(**changes: Any) -> JobQueue:
        options = JobQueueOptions.model_validate(OPTIONS | changes)
        return JobQueue(options, memory=1 << 30, folder=tmp_path)

    return make


def configured(folder: Path, workers: int) -> list[str]:
    """Write the settings; return the options that name them."""
    config = folder / "settings.yaml"
    settings = {"workers": workers, "limits": {"worker_memory": 1 << 30}, "engine": OPTIONS}
    config.write_text(yaml.safe_dump(settings))
    return ["--config", str(config)]


def numbers(batch: Slurm, state: str = "") -> set[str]:
    """Return the numbers of all jobs, or of those in a state."""
    return {line.split()[0] for line in batch.jobs("%i %T") if line.endswith(state)}


def of_jobs(batch: Slurm) -> dict[str, list[psutil.Process]]:
    """Return the processes of each job, by its number."""
    found: dict[str, list[psutil.Process]] = {number: [] for number in numbers(batch)}
    for process in psutil.process_iter():
        try:
            job = process.environ().get("SLURM_JOB_ID", "")
        except psutil.Error:
            continue
        if job in found:
            found[job].append(process)
    return found


def test_a_request_runs_on_jobs_of_slurm(
    batch: Slurm, new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Each worker is a job, and has no secrets of the service. The service replaces a lost job."""
    server = new_server(*configured(tmp_path, 2), **batch.environment, **SECRETS)
    status = server.run(file_list=copies(tmp_path / "in", FILES))
    assert (status["status"], status["files-completed"]) == ("Complete", FILES)
    until(lambda: len(numbers(batch, "RUNNING")) == 2, "there are two jobs")
    # partition, cores, memory with what the nanny needs, walltime
    assert set(batch.jobs("%P %C %m %l")) == {"main 1 1.50G 20:00"}
    # the work was done below Slurm's daemon, and nowhere else
    assert server.dask_processes() == []
    until(lambda: all(len(some) >= 2 for some in of_jobs(batch).values()), "both workers are up")
    for processes in of_jobs(batch).values():
        for process in processes:
            assert "hush" not in " ".join(process.environ().values())
    lost, kept = sorted(numbers(batch))
    # a look at the installation leaves those that run alone
    data = ["--data-dir", str(server.data_dir)]
    ran = doctor(*configured(tmp_path, 2), *data, **batch.environment)
    assert re.search(r"ok      scheduler tls://127.0.0.1:\d+ answers, 0 workers", ran.stdout)
    assert numbers(batch, "RUNNING") == {lost, kept}
    assert "hush" not in batch.ask("scontrol", "write", "batch_script", lost, "-")
    batch.ask("scancel", lost)
    until(
        lambda: kept in (running := numbers(batch, "RUNNING")) and len(running - {lost}) == 2,
        "another job takes the place of the lost one",
    )
    assert server.run(file_list=copies(tmp_path / "more", FILES))["status"] == "Complete"
    assert server.stop() < 10
    until(lambda: not numbers(batch), "no job is left", seconds=10)
    assert [path.name for path in (server.data_dir / "jobs").iterdir()] == ["logs"]


def test_a_killed_service_leaves_no_job(
    batch: Slurm, new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Running jobs end by themselves. The next start removes a waiting job and goes on working."""
    server = new_server(*configured(tmp_path, 3), **batch.environment)
    until(lambda: len(numbers(batch, "RUNNING")) == 2, "two jobs run")
    until(lambda: len(numbers(batch, "PENDING")) == 1, "one job waits")
    before = numbers(batch)
    request_id = server.submit(file_list=copies(tmp_path / "in", FILES)).json()["request_id"]
    server.stop(signal.SIGKILL)
    server.start()
    until(lambda: not before & numbers(batch), "the jobs of the killed service are gone")
    assert server.wait(request_id)["files-completed"] == FILES
    server.stop()
    until(lambda: not numbers(batch), "no job is left", seconds=10)


@pytest.mark.anyio
async def test_cluster_scales_its_jobs(batch: Slurm, queue: Callable[..., JobQueue]) -> None:
    """It goes from none to two and back. A worker has one thread, a limit and our configuration."""
    cluster = queue(directives=["--comment=columns"])
    client: Any = await cluster.open()
    assert cluster.address.startswith("tls://127.0.0.1:")
    try:
        assert not numbers(batch)
        await cluster.scale(2)
        workers = await workers_of(client, 2)
        assert set(batch.jobs("%k")) == {"columns"}
        assert {(one["nthreads"], one["memory_limit"]) for one in workers} == {(1, 1 << 30)}
        assert all(one["nanny"].startswith("tls://") for one in workers)
        for name, value in CONFIG.items():
            found = await on_workers(client, dask.config.get, name)
            assert list(found.values()) == [value, value]
        await cluster.scale(0)
        async with asyncio.timeout(20):
            while numbers(batch):
                await asyncio.sleep(0.1)
        assert await workers_of(client, 0) == []
    finally:
        await client.close()
        await cluster.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"queue": "nowhere"}, "invalid partition"),
        ({"directives": ["--no-such-option"]}, "unrecognized option"),
        ({"scheduler_interface": "none7", "scheduler_host": None}, "none7"),
        ({"job_folder": "/dev/null/jobs"}, "choose another with engine.job_folder"),
    ],
)
async def test_invalid_option_is_an_error_of_one_line(
    batch: Slurm, queue: Callable[..., JobQueue], changes: dict[str, Any], said: str
) -> None:
    """The cluster does not open. The error has the reason, in Slurm's words if there are any."""
    with pytest.raises(StartupError) as refused:
        await queue(**changes).open()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not numbers(batch)


@pytest.mark.anyio
async def test_jobs_that_fail_are_reported_and_not_repeated_at_once(
    batch: Slurm,
    queue: Callable[..., JobQueue],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job without a worker is an error with its log. The next job comes later."""
    cluster = queue(python="/no/such/python")
    client: Any = await cluster.open()
    try:
        await cluster.scale(2)
        async with asyncio.timeout(30):
            while "ended before their workers connected" not in caplog.text:
                await asyncio.sleep(0.1)
        logs = [path.read_text() for path in (tmp_path / "jobs" / "logs").glob("*.err")]
        assert len(logs) == 2
        assert all("/no/such/python" in text for text in logs)
        assert "in 15 s" in caplog.text
        assert not numbers(batch)
    finally:
        await client.close()
        await cluster.close()


def test_error_names_the_missing_program_of_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster cannot be created without ``sbatch``."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartupError, match="there is no sbatch on this machine"):
        JobQueue(JobQueueOptions.model_validate(OPTIONS), memory=1 << 30, folder=tmp_path)
