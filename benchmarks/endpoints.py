"""Files in two places, of which the preferred one does not answer."""

import inspect
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.measure import HEADINGS, Row, deliver, serving
from benchmarks.report import Section
from tests import listed
from tests.integration.servers import free_port, put, xrootd
from tests.support import copies, plug_in, sample

FILES = 100
DEADLINE = 2.0
"""Deadline of an endpoint in these runs, in seconds; 20 and 30 if nobody sets it."""


def endpoints(repeats: int) -> list[Section]:
    """Measure a request whose preferred endpoint is dead against one whose endpoint works."""
    seconds: dict[str, list[float]] = {"well": [], "closed": [], "frozen": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="servicex-bench-")))
        first, second = (stack.enter_context(xrootd(f"127.0.0.{number}")) for number in (2, 3))
        for door in (first, second):
            for number in range(FILES):
                put(door.folder, f"{number}.root", sample("uproot-Zmumu.root"))
        closed = f"root://127.0.0.4:{free_port('127.0.0.4')}/"
        environment = plug_in(folder / "plug", "listed", "Listed", inspect.getsource(listed))
        names = [f"/{number}.root" for number in range(FILES)]
        warm = copies(folder / "warm", 4, "uproot-HZZ.root")
        for how, door in (("well", ""), ("closed", closed), ("frozen", "")):
            preferred = door or first.url("")[:-1]
            places = [[preferred + name, second.url("")[:-1] + name] for name in names]
            (folder / f"{how}.json").write_text(json.dumps(places))
        for _ in range(repeats):
            for how, runs in seconds.items():
                with ExitStack() as run:
                    if how == "frozen":
                        run.enter_context(first.frozen())
                    server = run.enter_context(
                        serving(
                            2,
                            environment=environment,
                            reading__open_seconds=str(DEADLINE),
                            reading__silence_seconds=str(DEADLINE),
                            storage__share_results="none",
                        )
                    )
                    deliver(server, warm)
                    runs.append(deliver(server, f"listed://{folder / how}.json"))
    well, shut, frozen = (statistics.median(runs) for runs in seconds.values())
    how = f"median of {repeats}; two workers"
    rows: list[Row] = [
        (f"{FILES} files, both endpoints work", f"{well:.2f} s", "", how),
        (
            "the preferred endpoint refuses, over that",
            f"{shut / well:.2f}",
            "at most 1.1",
            f"{shut:.2f} s, nothing taken off",
        ),
        (
            "the preferred endpoint is frozen, less one deadline, over that",
            f"{(frozen - DEADLINE) / well:.2f}",
            "at most 1.1",
            f"{frozen:.2f} s; a deadline is {DEADLINE:g} s",
        ),
    ]
    return [Section("An endpoint that is dead", HEADINGS, tuple(rows))]
