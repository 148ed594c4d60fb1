"""What a page costs the server, beside what a program is answered to the same question."""

import statistics

import httpx

from benchmarks.measure import serving, spent
from benchmarks.report import Section
from tests.e2e.test_accounts import command
from tests.many_files import FILES, REQUEST_ID, many_files
from tests.support import Server

HEADINGS = ("page", "processor time", "the same by the API", "ratio", "whole answer", "asked for")

IN_A_ROW = 10
"""Answers that are measured together: the system tells hundredths of a second."""

API = "/servicex/transformation"

PAGES = {
    "/": "/servicex",
    "/requests": API,
    f"/requests/{REQUEST_ID}": f"{API}/{REQUEST_ID}/results",
    "/datasets": "/servicex/datasets",
    "/datasets/1": "/servicex/datasets/1",
    "/sites": "/servicex/sites",
    "/workers": "/servicex/workers",
    "/docs": "/openapi.json",
}
"""Each page, and where the API answers to the same."""

WHERE_USERS_SIGN_IN = ("/profile", "/device", "/users")
"""Pages to which the API has no answer."""


def pages(repeats: int) -> list[Section]:
    """Ask for each page in turn with the API, so that a slow moment of the machine hits both."""
    rows = []
    with serving(1) as server:
        server.run()
        many_files(server)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            rows += [_row(server, client, page, repeats, api=api) for page, api in PAGES.items()]
    with serving(1, sign_in="true") as server:
        command(server, "add", "olga@example.org", "--role", "operator")
        token = command(server, "token", "olga@example.org")
        with httpx.Client(base_url=server.url, timeout=60) as client:
            client.post("/sign-in", data={"token": token})
            rows += [_row(server, client, page, repeats) for page in WHERE_USERS_SIGN_IN]
    note = (
        f"A service on SQLite that keeps a request of {FILES:,} files; the pages of accounts, of "
        f"another one. Medians of {repeats}, each of {IN_A_ROW} answers in a row."
    )
    return [Section("Pages", HEADINGS, tuple(rows), note)]


def _row(
    server: Server, client: httpx.Client, page: str, repeats: int, *, api: str = ""
) -> tuple[str, ...]:
    assert server.process is not None
    pid, shown, told = server.process.pid, [], []
    for _ in range(repeats):
        shown.append(_cost(pid, client, page, "text/html"))
        if api:
            told.append(_cost(pid, client, api, "application/json"))
    processor, clock = (statistics.median(column) for column in zip(*shown, strict=True))
    other, ratio = "", ""
    if told:
        other = f"{statistics.median(seconds for seconds, _ in told) * 1000:.0f} ms"
        ratio = f"{sum(one for one, _ in shown) / sum(one for one, _ in told):.2f}"
    return (
        f"`{page}`",
        f"{processor * 1000:.0f} ms",
        other,
        ratio,
        f"{clock * 1000:.0f} ms",
        "under 100 ms",
    )


def _cost(pid: int, client: httpx.Client, path: str, kind: str) -> tuple[float, float]:
    """Return the seconds of processors and of the clock that an answer takes."""
    before, clock = spent(pid), 0.0
    for _ in range(IN_A_ROW):
        answer = client.get(path, headers={"Accept": kind}).raise_for_status()
        assert answer.headers["Content-Type"].startswith(kind)
        clock += answer.elapsed.total_seconds()
    return (spent(pid) - before) / IN_A_ROW, clock / IN_A_ROW
