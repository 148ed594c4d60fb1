"""The service as a whole: how soon it is there, how soon it answers, the memory of its workers."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks.report import Section
from benchmarks.samples import COLUMNS, prepared
from tests.support import PROGRAM, TERMINAL, Server, copies, sample

Row = tuple[str, str, str, str]
"""What was measured, the result, what was asked for, and how it was measured."""

HEADINGS = ("what", "result", "asked for", "how")

PLAIN = """
import sys, time, uproot, awkward as ak
files, target = sys.argv[2:], sys.argv[1]
began = time.perf_counter()
for number, path in enumerate(files):
    with uproot.open({path: "events"}) as tree:
        ak.to_parquet(tree.arrays(), f"{target}/{number}.parquet")
print(time.perf_counter() - began)
"""
"""What a user would write instead: one process, uproot and awkward, file by file."""

CLUSTER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None):
        print(flush=True)
        sys.stdin.read()
"""
"""What a user would have running instead: Dask alone, as it comes."""

IDLE_SECONDS = 20


@contextmanager
def serving(
    workers: int,
    *,
    environment: dict[str, str] | None = None,
    program: Path = PROGRAM,
    **settings: str,
) -> Iterator[Server]:
    """Run a server in a temporary folder; the settings as in its environment, and more of that."""
    chosen = {f"SERVICEX_SERVER_{name.upper()}": value for name, value in settings.items()}
    with tempfile.TemporaryDirectory(prefix="servicex-bench-") as name:
        server = Server(
            Path(name) / "data",
            ["--workers", str(workers)],
            (environment or {}) | chosen,
            program=program,
        ).start()
        try:
            yield server
        finally:
            server.stop()


def deliver(
    server: Server,
    files: list[Path] | str,
    result_format: str = "parquet",
    columns: list[str] | None = None,
) -> float:
    """Return the seconds from the POST to the request being complete; of files or a dataset."""
    tree = "Events" if "nano" in str(files[0]) else "events"
    dataset = {"did": files} if isinstance(files, str) else {"file-list": list(map(str, files))}
    body = {
        "title": "bench",
        **dataset,
        "selection": json.dumps([{"treename": tree, "filter_name": columns}]),
        "codegen": "uproot-raw",
        "result-destination": "object-store",
        "result-format": result_format,
    }
    with httpx.Client(base_url=server.url, timeout=60) as client:
        began = time.perf_counter()
        answer = client.post("/servicex/transformation", json=body).raise_for_status()
        path = f"/servicex/transformation/{answer.json()['request_id']}"
        while True:
            status = client.get(path).json()
            if status["status"] in TERMINAL:
                break
            # asking takes of the cores that the work is on: no oftener than a thirtieth of the time
            time.sleep(max(0.005, (time.perf_counter() - began) / 30))
        seconds = time.perf_counter() - began
    if status["status"] != "Complete" or status["files-failed"]:
        sys.exit(f"a request failed: {server.output[-2000:]}")
    return seconds


def latency(repeats: int, beside: Path | None = None) -> list[Section]:
    """Measure how long one and a hundred small files take on a warm server.

    With ``beside``, the folder of another checkout that has a ``.venv``, its service is measured
    in the same run, in turn with this one.
    """
    small = sample("uproot-Zmumu.root")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="servicex-bench-")))
        files = [Path(one) for one in copies(folder / "files", 100)]
        server = stack.enter_context(serving(2, storage__share_results="none"))
        first = deliver(server, [small])
        one = [deliver(server, [small]) for _ in range(3 * repeats)]
        many, plain = [], []
        for _ in range(repeats):  # in turn, so that a slow moment of the machine hits both
            many.append(deliver(server, files) / 100)
            ran = subprocess.run(
                [sys.executable, "-c", PLAIN, str(folder), *map(str, files)],
                capture_output=True,
                text=True,
                check=True,
            )
            plain.append(float(ran.stdout) / 100)
        rows: list[Row] = []
        if beside is not None:
            program = beside / ".venv" / "bin" / "servicex-server"
            ours = stack.enter_context(serving(2))
            other = stack.enter_context(serving(2, program=program))
            rows = _beside(ours, other, files, repeats)
    ratio = statistics.median(p / m for p, m in zip(plain, many, strict=True))
    spread = f"{min(one):.3f} to {max(one):.3f} s"
    rows = [
        ("first small file after the start", f"{first:.2f} s", "", "POST to Complete"),
        (
            "one small file (Zmumu), warm",
            f"{statistics.median(one):.3f} s",
            "under 0.3 s",
            f"median of {len(one)}, {spread}",
        ),
        (
            "100 small files, each, 2 workers",
            f"{statistics.median(many):.4f} s",
            "under 0.06 s",
            f"median of {repeats}",
        ),
        (
            "the same by a plain uproot loop, each",
            f"{statistics.median(plain):.4f} s",
            "",
            f"one process, no service; the service is {ratio:.2f} times as fast",
        ),
        *rows,
    ]
    return [Section("Latency", HEADINGS, tuple(rows))]


def _beside(ours: Server, other: Server, files: list[Path], repeats: int) -> list[Row]:
    """Measure two services in turn; each goes first every other time."""
    rows: list[Row] = []
    for what, asked, times in (
        ("one small file", files[:1], 40 * repeats),
        ("100 small files", files, 4 * repeats),
    ):
        seconds: dict[str, list[float]] = {ours.url: [], other.url: []}
        for server in (ours, other):  # so that both are warm
            deliver(server, asked)
        for turn in range(times):
            for path in asked:  # a file that has changed has no result that could be reused
                path.touch()
            for server in (ours, other) if turn % 2 else (other, ours):
                seconds[server.url].append(deliver(server, asked))
        mine, theirs = seconds.values()
        pairs = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        medians = [statistics.median(each) for each in (mine, theirs)]
        rows.append(
            (
                f"{what}, over the other checkout",
                f"{pairs:.3f}",
                "at most 1.05",
                f"median of {times} pairs; {medians[0]:.3f} and {medians[1]:.3f} s",
            )
        )
    return rows


def _peak(server: Server) -> int:
    """Return the highest resident memory of any worker so far, in bytes."""
    peaks = []
    for process in server.descendants():
        if "multiprocessing.forkserver" not in " ".join(process.cmdline()):
            continue  # neither a worker nor the process of which workers are copies
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        peaks.append(int(line.split()[1]) * 1024)
    return max(peaks)


def memory(events: int, *, large: bool) -> list[Section]:
    """Measure the peak memory of a worker on a long file and on one ten times shorter."""
    rows: list[Row] = []
    long, short = prepared("zstd", events), prepared("zstd", events // 10)
    for result_format in ("parquet", "root-file", "root-rntuple"):
        peaks, seconds = {}, {}
        for path in (long, short):
            with serving(1) as server:
                seconds[path] = deliver(server, [path], result_format)
                peaks[path] = _peak(server)
        ratio = peaks[long] / peaks[short]
        size = long.stat().st_size / 1e6
        rows.append(
            (
                f"worker, {events / 1e6:g} M events to {result_format}",
                f"{peaks[long] / 1e6:.0f} MB",
                "at most 600 MB",
                (
                    f"all 35 columns of {size:.0f} MB in {seconds[long]:.1f} s; "
                    f"{size / seconds[long]:.0f} MB/s"
                ),
            )
        )
        rows.append(
            (
                f"the same over {events / 1e7:g} M events, {result_format}",
                f"{ratio:.2f}",
                "within 1.2",
                f"ratio of peaks; the shorter one {peaks[short] / 1e6:.0f} MB",
            )
        )
    what, asked = "one worker of 1 GB, 20 M events to parquet", "under 1000 MB"
    if large:
        path = prepared("zlib", 20_000_000)
        with serving(1, limits__worker_memory="1000000000") as server:
            seconds = deliver(server, [path], columns=COLUMNS)
            peak = f"{_peak(server) / 1e6:.0f} MB"
        how = f"11 of 35 columns of {path.stat().st_size / 1e9:.1f} GB in {seconds:.0f} s"
        rows.append((what, peak, asked, how))
    else:
        rows.append((what, "", asked, "skipped: only with --large"))
    return [Section("Memory", HEADINGS, tuple(rows))]


def workers(events: int) -> list[Section]:
    """Measure one long file with one worker and with two."""
    path = prepared("zlib", events)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for turn in range(2):
            for count, runs in seconds.items():
                # another name each time: the same work is not done twice
                name = Path(folder) / f"nano-{count}-{turn}.root"
                name.hardlink_to(path)
                with serving(count) as server:
                    deliver(server, copies(Path(folder) / f"{count}-{turn}", 4))
                    runs.append(deliver(server, [name], columns=COLUMNS))
    one, two = (statistics.mean(runs) for runs in seconds.values())
    rows: list[Row] = [
        (
            f"one file of {events / 1e6:g} M events, one worker",
            f"{one:.1f} s",
            "",
            f"11 of 35 columns of {path.stat().st_size / 1e9:.1f} GB; POST to Complete",
        ),
        ("the same, two workers", f"{two:.1f} s", "", "mean of 2, by turns"),
        ("two workers against one", f"{one / two:.2f}", "1.8", "how many times as fast"),
    ]
    return [Section("Workers on one file", HEADINGS, tuple(rows))]


def _seconds(command: list[str]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - began

    return run


def startup(repeats: int) -> list[Section]:
    """Measure how long the import, the help text and the start of the service take."""
    script = str(Path(sys.executable).with_name("servicex-server"))
    empty = _seconds([sys.executable, "-c", "pass"])
    imported = _seconds([sys.executable, "-c", "import servicex_server"])
    helped = _seconds([script, "--help"])
    empty(), imported(), helped()
    extra = [imported() - empty() for _ in range(repeats)]
    shown = [helped() for _ in range(repeats)]
    ready, stopped = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="servicex-bench-") as name:
            began = time.perf_counter()
            server = Server(Path(name) / "data", ["--workers", "2"]).start()
            ready.append(time.perf_counter() - began)
            stopped.append(server.stop())
    rows = [
        (
            "import servicex_server",
            f"{1000 * statistics.median(extra):.0f} ms",
            "under 150 ms",
            f"beyond an empty Python, median of {repeats}",
        ),
        (
            "servicex-server --help",
            f"{1000 * statistics.median(shown):.0f} ms",
            "under 500 ms",
            f"whole process, median of {repeats}",
        ),
        (
            "start until ready",
            f"{statistics.median(ready):.2f} s",
            "under 5 s",
            f"2 workers, empty folder, median of {repeats}",
        ),
        (
            "stop after SIGTERM",
            f"{statistics.median(stopped):.2f} s",
            "under 5 s",
            f"idle, median of {repeats}",
        ),
    ]
    return [Section("Startup", HEADINGS, tuple(rows))]


def idle(repeats: int) -> list[Section]:
    """Measure what a service and a cluster of Dask cost that have nothing to do, together."""
    with serving(2) as server, tempfile.TemporaryDirectory() as folder:
        deliver(server, [sample("uproot-Zmumu.root")])
        program = Path(folder) / "cluster.py"
        program.write_text(CLUSTER, encoding="utf-8")
        with subprocess.Popen(
            [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as cluster:
            assert server.process is not None
            assert cluster.stdout is not None
            cluster.stdout.readline()
            pids = server.process.pid, cluster.pid
            ours, theirs = [], []
            for _ in range(repeats):
                before = [spent(pid) for pid in pids]
                time.sleep(IDLE_SECONDS)  # what is measured is a length of time
                after = [spent(pid) for pid in pids]
                mine, other = (
                    (now - then) / IDLE_SECONDS for then, now in zip(before, after, strict=True)
                )
                ours.append(mine)
                theirs.append(other)
            cluster.communicate()
    ratio = statistics.median(one / two for one, two in zip(ours, theirs, strict=True))
    how = f"median of {repeats} times {IDLE_SECONDS} s, at the same time; all processes"
    rows = [
        ("the service, 2 idle workers", f"{statistics.median(ours):.1%} of a core", "", how),
        (
            "`distributed.LocalCluster`, 2 idle workers, no pages",
            f"{statistics.median(theirs):.1%} of a core",
            "",
            f"the service costs {ratio:.2f} times as much",
        ),
    ]
    return [Section("Idle", HEADINGS, tuple(rows))]


def spent(pid: int) -> float:
    """Return the seconds of processors that a process and those below it have had."""
    first = psutil.Process(pid)
    times = [one.cpu_times() for one in (first, *first.children(recursive=True))]
    return sum(one.user + one.system for one in times)
