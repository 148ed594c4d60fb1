"""Dispatch: a million files through an engine whose tasks end at once, and real workers."""

import asyncio
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn
from pydantic import SecretStr

from benchmarks.measure import deliver, serving
from benchmarks.report import Section
from benchmarks.samples import COLUMNS, folder, prepared
from servicex_server.app import App
from servicex_server.clusters.local import LocalProcesses
from servicex_server.engine.dask_engine import DaskEngine
from servicex_server.model import (
    Limits,
    Outcome,
    Principal,
    ResultFormat,
    Sharing,
    TaskSpec,
)
from servicex_server.process import freeze_gc
from servicex_server.settings.groups import StorageSettings
from servicex_server.settings.service import Settings
from servicex_server.testing.memory_engine import MemoryEngine
from servicex_server.web.application import web_app
from tests.postgres import postgres
from tests.services import ended, store, submit
from tests.support import sample

HEADINGS = ("what", "result", "asked for", "how")
SLOTS = 500
SELECTION = '[{"treename": "events"}]'


@asynccontextmanager
async def _asking(url: str) -> AsyncIterator[list[float]]:
    """Ask for a URL again and again, from a thread; give the seconds that each answer took."""
    took: list[float] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while not over.is_set():
                began = time.perf_counter()
                client.get(url).raise_for_status()
                took.append(time.perf_counter() - began)
                over.wait(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        # it may wait for an answer of this very loop
        await asyncio.to_thread(thread.join)


async def _run(place: Path, files: int, database: str | None) -> dict[str, Any]:
    def done(spec: TaskSpec) -> Outcome:
        engine.seen.clear()  # which is for tests, and would be what is measured
        return Outcome(spec.request_id, spec.file_id, spec.attempt, bytes_written=1, events_read=1)

    address = None if database is None else SecretStr(database)
    settings = Settings(
        data_dir=place, storage=StorageSettings(database_url=address, share_results=Sharing.NONE)
    )
    engine = MemoryEngine(done, slots=SLOTS)
    async with App(settings, engine=engine) as app:
        server = uvicorn.Server(uvicorn.Config(web_app(app), port=0, log_level="warning"))
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0.01)
        freeze_gc()
        port = server.servers[0].sockets[0].getsockname()[1]
        began = time.perf_counter()
        giant = await app.database.write(store, "ann", "giant", files)
        stored = time.perf_counter() - began
        began = time.perf_counter()
        await app.wake(giant)
        small: list[float] = []
        async with _asking(f"http://127.0.0.1:{port}/servicex/transformation/{giant}") as took:
            ending = asyncio.create_task(ended(app, giant, within=3600, every=0.1))
            while not ending.done():
                submitted = time.perf_counter()
                of_bob = await submit(app, 3, who=Principal("bob"), at=f"root://far//{len(small)}")
                await ended(app, of_bob)
                small.append(time.perf_counter() - submitted)
                await asyncio.wait({ending}, timeout=0.5)
        seconds = time.perf_counter() - began
        found = ending.result()
        if (found.completed, found.failed) != (files, 0):
            sys.exit(f"of {files} files {found.completed} are done and {found.failed} have failed")
        peak = psutil.Process().memory_info().rss
        server.should_exit = True
        await serving
    return {
        "stored": stored,
        "seconds": seconds,
        "answers": took,
        "small": small,
        "resident": peak,
    }


def dispatch(files: int) -> list[Section]:
    """Measure the rate of files, and what others notice of it, with both databases."""
    rows = _rows("SQLite", files, None)
    with postgres() as server:
        rows += _rows("PostgreSQL", files, server.url())
    return [Section("Dispatch", HEADINGS, tuple(rows))]


def _rows(name: str, files: int, database: str | None) -> list[tuple[str, ...]]:
    # in a process of its own, whose memory is that of this run
    with (
        tempfile.TemporaryDirectory(prefix="servicex-bench-") as place,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process,
    ):
        found = process.submit(_measured, Path(place), files, database).result()
    answers = sorted(found["answers"])
    p99 = answers[int(0.99 * (len(answers) - 1))]
    return [
        (
            f"one request of {files:,} files, {name}",
            f"{files / found['seconds']:,.0f} files/s",
            "at least 2,000",
            f"{found['seconds']:.0f} s; an engine of {SLOTS} slots whose tasks end at once",
        ),
        (
            "GET of the request meanwhile, 99 of 100",
            f"{p99 * 1000:.0f} ms",
            "under 100 ms",
            f"{len(answers)} answers, median {statistics.median(answers) * 1000:.0f} ms",
        ),
        (
            "a request of 3 files by another user meanwhile",
            f"{max(found['small']):.2f} s",
            "under 2 s",
            f"the slowest of {len(found['small'])}",
        ),
        (
            "memory of the server at the end",
            f"{found['resident'] / 1e6:.0f} MB",
            "under 500 MB",
            "resident",
        ),
    ]


def _measured(place: Path, files: int, database: str | None) -> dict[str, Any]:
    return asyncio.run(_run(place, files, database))


async def _empty_tasks(count: int) -> float:
    """Return the seconds for each of so many tasks without any work, on two real workers."""
    engine = DaskEngine(LocalProcesses(memory=1 << 30), workers=2)
    ended: asyncio.Queue[Outcome] = asyncio.Queue()
    await engine.start(ended.put_nowait)
    try:
        began = 0.0
        for number in range(-20, count):
            if number == 0:
                for _ in range(20):
                    await ended.get()
                began = time.perf_counter()
            engine.submit(_nothing(number))
        for _ in range(count):
            await ended.get()
        return (time.perf_counter() - began) / count
    finally:
        await engine.close()


def _nothing(number: int) -> TaskSpec:
    """Return a task on a file that is nowhere: all that is done for one, but no work."""
    return TaskSpec(
        request_id="empty",
        file_id=number,
        attempt=1,
        replicas=(),
        language="uproot-raw",
        selection=SELECTION,
        format=ResultFormat.PARQUET,
        object_name="",
        upload_url="",
        limits=Limits(),
    )


def on_workers(repeats: int) -> list[Section]:
    """Measure what real workers cost and gain, and what is saved where work was done before."""
    each = statistics.median(asyncio.run(_empty_tasks(500)) for _ in range(repeats))
    seconds: dict[int, list[float]] = {1: [], 2: []}
    again: list[float] = []
    with tempfile.TemporaryDirectory(dir=folder()) as name:
        files = _named(prepared("zlib", 200_000), Path(name), 40)
        small = _named(sample("uproot-Zmumu.root"), Path(name), 100)
        for _ in range(2):
            for count, runs in seconds.items():
                with serving(count) as server:
                    deliver(server, small[:4])
                    runs.append(deliver(server, files, columns=COLUMNS))
        with serving(2, storage__share_results="own") as server:
            deliver(server, small)
            again += [deliver(server, small) for _ in range(3 * repeats)]
    one, two = (statistics.mean(runs) for runs in seconds.values())
    rows = [
        (
            "a file without work, two real workers",
            f"{each * 1000:.2f} ms",
            "under 5 ms",
            f"wall time for each of 500, median of {repeats}",
        ),
        (
            "40 files, two workers against one",
            f"{one / two:.2f}",
            "1.9",
            f"{one:.1f} s and {two:.1f} s; 11 of 35 columns of 200,000 events each",
        ),
        (
            "100 files whose results are there",
            f"{statistics.median(again) * 1000:.0f} ms",
            "under 100 ms",
            f"POST to Complete, median of {len(again)}",
        ),
    ]
    return [Section("Dispatch on real workers", HEADINGS, tuple(rows))]


def _named(file: Path, place: Path, count: int) -> list[Path]:
    """Return so many names of a file, which are as many files to the service."""
    names = [place / f"{number}-{file.name}" for number in range(count)]
    for name in names:
        name.write_bytes(file.read_bytes())
    return names
