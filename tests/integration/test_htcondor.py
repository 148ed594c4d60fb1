"""Jobs for HTCondor: their description as its parser reads it, and the workers that they start.

A pool cannot run here. Programs of the same names stand in for it.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from servicex_server.clusters import jobqueue
from servicex_server.clusters.batch_systems import HTCondor
from servicex_server.clusters.dask_config import CONFIG
from servicex_server.clusters.jobqueue import JobQueue
from servicex_server.settings.clusters import JobQueueOptions
from tests.integration import condor_stand_in
from tests.integration.condor_stand_in import unquoted
from tests.support import on_workers, workers_of

OPTIONS = {
    "kind": "jobqueue",
    "system": "htcondor",
    "account": "group_columns.alice",
    "walltime": "1-02:30:00",
    "directives": ['+JobFlavour = "longlunch"', 'requirements = OpSysAndVer == "AlmaLinux9"'],
    "prologue": ["export SAID='it''s \"quoted\"'"],
    "scheduler_host": "127.0.0.1",
    "worker_arguments": ["--host=127.0.0.1"],
}


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-ins for HTCondor's programs on the path; return the folder of the jobs."""
    jobs, programs = tmp_path / "pool", tmp_path / "bin"
    jobs.mkdir()
    programs.mkdir()
    for name in ("condor_submit", "condor_q", "condor_rm"):
        program = programs / name
        program.write_text(
            f'#!/bin/sh\nexec {sys.executable} {condor_stand_in.__file__} {name} "$@"\n'
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("CONDOR_STAND_IN", str(jobs))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setattr(condor_stand_in, "JOBS", jobs)
    return jobs


@pytest.fixture
def queue(pool: Path, tmp_path: Path) -> Callable[..., JobQueue]:
    """Give a function that makes a cluster, which is not open yet."""

    def make(**changes: Any) -> JobQueue:
        options = JobQueueOptions.model_validate(OPTIONS | changes)
        return JobQueue(options, memory=1 << 30, folder=tmp_path / "data")

    return make


def records(pool: Path) -> list[dict[str, Any]]:
    """Return the record of each job: its description, and the environment of its submitter."""
    return [json.loads(job.read_text()) for job in pool.glob("*/job.json")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"3 simple arguments"', ["3", "simple", "arguments"]),
        ("\"one 'two with spaces' 3\"", ["one", "two with spaces", "3"]),
        (
            "\"one \"\"two\"\" 'spacey ''quoted'' argument'\"",
            ["one", '"two"', "spacey 'quoted' argument"],
        ),
    ],
)
def test_stand_in_unquotes_arguments_as_the_manual_says(text: str, words: list[str]) -> None:
    """The examples are from the manual of condor_submit."""
    assert unquoted(text) == words


@pytest.mark.anyio
async def test_job_description_starts_workers(pool: Path, queue: Callable[..., JobQueue]) -> None:
    """Two jobs find their certificates without a shared folder, and none is left at the end."""
    cluster = queue()
    client: Any = await cluster.open()
    try:
        await cluster.scale(2)
        workers = await workers_of(client, 2)
        assert {(one["nthreads"], one["memory_limit"]) for one in workers} == {(1, 1 << 30)}
        for name, value in CONFIG.items():
            found = await on_workers(client, dask.config.get, name)
            assert list(found.values()) == [value, value]
        said = (await on_workers(client, os.getenv, "SAID")).values()
        assert list(said) == ['its "quoted"'] * 2
        assert "hush" not in str(records(pool))
        (lost, process), _ = sorted(condor_stand_in.alive())
        for one in [process, *process.children(recursive=True)]:
            one.kill()
        async with asyncio.timeout(60):
            while {number for number, _ in condor_stand_in.alive()} != {"2", "3"}:
                await asyncio.sleep(0.1)
        assert lost == "1"
        await cluster.scale(0)
        await _none_is_left()
    finally:
        await client.close()
        await cluster.close()
    assert [path.name for path in (pool.parent / "data" / "jobs").iterdir()] == ["logs"]


@pytest.mark.anyio
async def test_former_leader_leaves_the_jobs_of_the_next_leader(
    pool: Path, queue: Callable[..., JobQueue]
) -> None:
    """The next leader, on the same folder, has removed the old jobs, and keeps its own."""
    last, following = queue(), queue()
    clients: list[Any] = [await last.open()]
    try:
        await last.scale(1)
        await workers_of(clients[0], 1)
        clients.append(await following.open())
        await following.scale(1)
        (worker,) = await workers_of(clients[1], 1)
        last.disown()
        await clients[0].close()
        await last.close()
        await following.scale(2)
        assert worker["name"] in [one["name"] for one in await workers_of(clients[1], 2)]
    finally:
        await clients[-1].close()
        await following.close()
    await _none_is_left()
    assert [path.name for path in (pool.parent / "data" / "jobs").iterdir()] == ["logs"]


async def _none_is_left() -> None:
    async with asyncio.timeout(30):
        while list(condor_stand_in.alive()):
            await asyncio.sleep(0.1)


@pytest.mark.anyio
async def test_job_description_has_the_chosen_settings(
    pool: Path, queue: Callable[..., JobQueue]
) -> None:
    """HTCondor's parser finds them under its own names."""
    cluster = queue(job_memory=3 << 30, disk=8 << 30)
    client: Any = await cluster.open()
    try:
        await cluster.scale(1)
        async with asyncio.timeout(30):
            while not records(pool):
                await asyncio.sleep(0.1)
        told = records(pool)[0]["told"]
    finally:
        await client.close()
        await cluster.close()
    await _none_is_left()
    assert told["accounting_group"] == "group_columns.alice"
    assert told["allowed_job_duration"] == str(26 * 3600 + 30 * 60)
    assert told["my.jobflavour"] == '"longlunch"'
    assert told["requirements"] == 'OpSysAndVer == "AlmaLinux9"'
    assert told["requestmemory"] == "3072"
    assert told["my.daskworkerdisk"] == str(8 << 30)
    assert told["should_transfer_files"] == "YES"
    sent = [Path(name.strip()) for name in told["transfer_input_files"].split(",")]
    assert [path.name for path in sent] == ["ca.pem", "certificate.pem", "key.pem"]
    assert not any(path.exists() for path in sent)


@pytest.mark.anyio
async def test_jobs_of_a_killed_service_are_removed(
    pool: Path, queue: Callable[..., JobQueue]
) -> None:
    """The next start on the same folder knows them by a name that does not change."""
    first = queue()
    client = await first.open()
    await first.scale(1)
    async with asyncio.timeout(30):
        while not list(condor_stand_in.alive()):
            await asyncio.sleep(0.1)
    assert first._keeper is not None
    first._keeper.cancel()
    ((_, process),) = condor_stand_in.alive()
    process.suspend()  # it does not end by itself
    second = queue()
    other = await second.open()
    process.resume()
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [process], 20)
    assert gone == [process] or process.status() == psutil.STATUS_ZOMBIE
    for one in (client, other):
        await one.close()
    for cluster in (first, second):
        await cluster.close()


@pytest.mark.anyio
async def test_batch_system_that_does_not_answer_is_asked_again(
    pool: Path,
    queue: Callable[..., JobQueue],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The service forgets neither a job to start nor a job to end."""
    monkeypatch.setattr(jobqueue, "FIRST_WAIT", 0.5)
    cluster = queue(prologue=["sleep 600"])  # no worker will come
    client = await cluster.open()
    down = pool / "down"
    try:
        for count in (1, 0):
            down.touch()
            caplog.clear()
            await cluster.scale(count)
            async with asyncio.timeout(20):
                while "Failed to connect to local queue manager" not in caplog.text:
                    await asyncio.sleep(0.1)
                assert len(list(condor_stand_in.alive())) == 1 - count
                down.unlink()
                while len(list(condor_stand_in.alive())) != count:
                    await asyncio.sleep(0.1)
    finally:
        await client.close()
        await cluster.close()


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [("30", 1800), ("90:30", 5430), ("1:00:00", 3600), ("2-12", 216000), ("1-02:30:05", 95405)],
)
def test_walltime_has_the_forms_of_slurm(walltime: str, seconds: int) -> None:
    """They are the forms of sbatch's ``--time``."""
    options = JobQueueOptions.model_validate(OPTIONS | {"walltime": walltime})
    told = HTCondor(options, "x", 1 << 30).arguments([])["job_extra_directives"]
    assert told["allowed_job_duration"] == str(seconds)
