"""What a page costs the server, beside what a program is answered to the same question."""

import statistics

import httpx
import psutil

from benchmarks.measure import serving
from benchmarks.report import Section
from tests.many_files import FILES, REQUEST_ID, many_files
from tests.support import Server

HEADINGS = ("page", "processor time", "the same by the API", "ratio", "whole answer", "asked for")

API = "/servicex/transformation"

PAGES = {
    "/": "/servicex",
    "/requests": API,
    f"/requests/{REQUEST_ID}": f"{API}/{REQUEST_ID}/results",
    "/datasets": "/servicex/datasets",
    "/sites": "/servicex/sites",
    "/workers": "/servicex/workers",
}
"""Each page, and where the API answers to the same."""


def pages(repeats: int) -> list[Section]:
    """Ask for each page in turn with the API, so that a slow moment of the machine hits both."""
    with serving(2) as server:
        server.run()
        many_files(server)
        rows = [_row(server, page, PAGES[page], repeats) for page in PAGES]
    note = (
        f"A service on SQLite that keeps a request of {FILES:,} files, two idle workers. Medians. "
        "Of processor time the system tells hundredths of a second, so each is of ten in a row."
    )
    return [Section("Pages", HEADINGS, tuple(rows), note)]


def _row(server: Server, page: str, api: str, repeats: int) -> tuple[str, ...]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        shown, told = [], []
        for _ in range(repeats):
            shown.append(_cost(server, client, page, "text/html"))
            told.append(_cost(server, client, api, "application/json"))
    (processor, clock), (other, _) = (
        [statistics.median(column) for column in zip(*rows, strict=True)] for rows in (shown, told)
    )
    ratio = sum(one for one, _ in shown) / sum(one for one, _ in told)
    return (
        f"`{page}`",
        f"{processor * 1000:.0f} ms",
        f"{other * 1000:.0f} ms",
        f"{ratio:.2f}",
        f"{clock * 1000:.0f} ms",
        "under 100 ms",
    )


def _cost(server: Server, client: httpx.Client, path: str, kind: str) -> tuple[float, float]:
    """Return the seconds of a processor and of the clock that an answer takes."""
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    before, clock = process.cpu_times(), 0.0
    for _ in range(10):
        answer = client.get(path, headers={"Accept": kind}).raise_for_status()
        assert answer.headers["Content-Type"].startswith(kind)
        clock += answer.elapsed.total_seconds()
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / 10, clock / 10
