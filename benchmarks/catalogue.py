"""Looking up a large dataset in a real Rucio server: the first file, all of them, and memory."""

import asyncio
import json
import os
import subprocess
import sys
import time

import psutil

from benchmarks.report import Section
from servicex_server.finders.rucio import Rucio, RucioOptions
from tests.integration import rucio as servers

FILES_OF_DATASET = 10_000

HEADINGS = ("what", "files", "first file after", "all files after", "memory for them")


def catalogue(files: int) -> list[Section]:
    """Register so many files in a server of this machine, and look them up."""
    with servers.rucio() as server:
        server.scope("bench")
        server.rse("NEAR", {"root": "near:1094"})
        server.rse("FAR", {"root": "far:1094"})
        parts = []
        for start in range(0, files, FILES_OF_DATASET):
            last = min(files, start + FILES_OF_DATASET)
            names = [f"bench:run.{n:07d}.root" for n in range(start, last)]
            for rse in ("NEAR", "FAR"):
                server.files(rse, names, size=1 << 30)
            parts.append(server.dataset(f"bench:part.{start}", names))
        whole = server.container("bench:whole", parts)
        rows = [_row("a dataset", server.url, parts[0]), _row("a container", server.url, whole)]
    note = (
        f"A Rucio {servers.VERSION} with SQLite and one worker process, on the same machine. Each "
        f"file has two copies; the container has datasets of {FILES_OF_DATASET:,} files. "
        "The server does not order copies: without tables of places that takes it 3 ms a file."
    )
    return [Section("Looking up in Rucio", HEADINGS, tuple(rows), note)]


def _row(what: str, url: str, did: str) -> tuple[str, ...]:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.catalogue", url, did],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
        env=os.environ,
    )
    found = json.loads(ran.stdout)
    return (
        what,
        f"{found['files']:,}",
        f"{found['first']:.2f} s",
        f"{found['all']:.1f} s",
        f"{found['memory'] / 1e6:.0f} MB",
    )


async def _look_up(url: str, did: str) -> dict[str, float]:
    options = {"url": url, "auth": "userpass", "account": "root"}
    options |= {"username": servers.ROOT, "password": servers.PASSWORD, "sort": "random"}
    finder = Rucio(RucioOptions.model_validate(options))
    process, files, first, before, peak = psutil.Process(), 0, 0.0, 0, 0
    began = time.perf_counter()
    async for _ in finder.find(did):
        files += 1
        if files == 1:
            first = time.perf_counter() - began
            before = process.memory_info().rss
        elif not files % 1000:
            peak = max(peak, process.memory_info().rss)
    seconds = time.perf_counter() - began
    return {"files": files, "first": first, "all": seconds, "memory": peak - before}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_look_up(*sys.argv[1:]))))
