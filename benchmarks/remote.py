"""Reading from far away: a server by HTTP that answers every request 50 ms late."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

from benchmarks.engine import MILLION, SAMPLES, job_on
from benchmarks.race import Contender
from benchmarks.report import Section
from benchmarks.samples import CUTS, coffea_sample, prepared

DELAY = 0.05
"""Seconds before each answer: across an ocean and back."""

HEADINGS = ("what", "who", "seconds", "requests", "MB sent", "seconds by the peer / ours")


@dataclass
class Far:
    """A running server and what was asked of it."""

    url: str = ""
    requests: int = 0
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, sent: int) -> None:
        """Note a request that is answered with so many bytes."""
        with self.lock:
            self.requests += 1
            self.sent += sent

    def reset(self) -> None:
        """Begin to count anew."""
        with self.lock:
            self.requests = self.sent = 0


@contextmanager
def far_server(folder: Path) -> Iterator[Far]:
    """Serve the files of a folder, whole or by one range, each answer late."""
    far = Far()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            time.sleep(DELAY)
            # the folders before the name make it another file for whoever remembers files
            path = folder / Path(self.path).name
            size = path.stat().st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            stop = min(int(asked[2]) + 1, size) if asked and asked[2] else size
            self.send_response(206 if asked else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(stop - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.end_headers()
            far.count(stop - start if body else 0)
            if body:
                with path.open("rb") as file:
                    file.seek(start)
                    self.wfile.write(file.read(stop - start))

        def log_message(self, *text: object) -> None:
            del text

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    far.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield far
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def remote(repeats: int) -> list[Section]:
    """Measure one query on files that are far away, ours and uproot's own way."""
    rows: list[tuple[str, ...]] = []
    large = prepared("zlib", MILLION)
    jobs = [
        ("1 M events, 11 of 35 columns", large, job_on(large)),
        ("the same, 0.3 % kept", large, job_on(large, CUTS["0.3 %"])),
    ]
    for name, (tree, columns) in SAMPLES.items():
        try:
            path = coffea_sample(name)
        except LookupError as error:
            rows.append((name, "", "", "", "", f"skipped: {error}"))
            continue
        jobs.append((f"{name}, 10 columns", path, {"tree": tree, "columns": columns}))
    for what, path, job in jobs:
        rows += _by_turns(what, path, job, repeats)
    note = (
        f"Every request is answered {1000 * DELAY:.0f} ms late, by a server on this machine. "
        'The peer is `uproot.open("http://...")` and the rest as above.'
    )
    return [Section("Files far away", HEADINGS, tuple(rows), note)]


def _by_turns(what: str, path: Path, job: dict[str, object], repeats: int) -> list[tuple[str, ...]]:
    costs: dict[str, list[tuple[float, int, int]]] = {"ours": [], "plain": []}
    failed = ""
    with far_server(path.parent) as far, Contender("ours") as us, Contender("plain") as peer:
        for turn in range(repeats + 1):
            for one in (us, peer):
                far.reset()
                try:
                    run = one.run(job | {"path": f"{far.url}/{turn}/{path.name}"})
                except LookupError as error:
                    failed = f"skipped: {error}"
                    break
                if turn:
                    costs[one.name].append((run.seconds, far.requests, far.sent))
    if failed:
        return [(what, "", "", "", "", failed.replace("|", "/"))]
    rows: list[tuple[str, ...]] = []
    seconds = {name: median(cost[0] for cost in runs) for name, runs in costs.items()}
    for name, runs in costs.items():
        requests, sent = (median(cost[i] for cost in runs) for i in (1, 2))
        ratio = f"{seconds['plain'] / seconds['ours']:.2f}" if name == "ours" else ""
        rows.append(
            (what, name, f"{seconds[name]:.2f} s", f"{requests:g}", f"{sent / 1e6:.1f}", ratio)
        )
    return rows
