"""``python -m benchmarks [part ...]``: measure, print, and write ``benchmarks/RESULTS.md``.

All parts write the results anew; some parts write their own sections only.
"""

import argparse
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks import environments, measure
from benchmarks.catalogue import catalogue
from benchmarks.dispatch import dispatch, on_workers
from benchmarks.endpoints import endpoints
from benchmarks.engine import engine
from benchmarks.fuzz import fuzz
from benchmarks.others import dask, root
from benchmarks.pages import pages
from benchmarks.queries import func_adl
from benchmarks.remote import remote
from benchmarks.report import RESULTS, Section, save
from benchmarks.retention import retention

PARTS: dict[str, Callable[[Namespace], list[Section]]] = {
    "startup": lambda options: measure.startup(options.repeats),
    "latency": lambda options: measure.latency(options.repeats, options.beside),
    "memory": lambda options: measure.memory(options.events, large=options.large),
    "workers": lambda _: measure.workers(10_000_000),
    "idle": lambda options: measure.idle(options.repeats),
    "pages": lambda options: pages(min(options.repeats, 3)),
    "dispatch": lambda options: [*dispatch(options.files), *on_workers(options.repeats)],
    "engine": lambda options: engine(options.repeats, large=options.large),
    "func_adl": lambda options: func_adl(options.repeats),
    "root": lambda options: root(options.repeats),
    "dask": lambda options: dask(options.repeats),
    "endpoints": lambda options: endpoints(min(options.repeats, 3)),
    "remote": lambda options: remote(min(options.repeats, 3)),
    "catalogue": lambda options: catalogue(min(options.files, 100_000)),
    "retention": lambda options: retention(min(options.repeats, 3)),
    "fuzz": lambda options: fuzz(options.seconds or (600 if options.part == ["fuzz"] else 30)),
}


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--events", type=int, default=2_000_000, help="of the file for `memory`")
    parser.add_argument("--files", type=int, default=1_000_000, help="of one request, `dispatch`")
    parser.add_argument(
        "--seconds", type=float, help="of `fuzz`; default: 600 where it is asked for alone, else 30"
    )
    parser.add_argument(
        "--beside", type=Path, help="another checkout with a .venv, for `latency`: which is faster"
    )
    parser.add_argument("--large", action="store_true", help="also 20 M events; takes 6 GB of disk")
    parser.add_argument(
        "--install-root", action="store_true", help="install ROOT, 700 MB, for `root`; then end"
    )
    options = parser.parse_args()
    if options.install_root:
        try:
            environments.install("root")
        except LookupError as error:
            sys.exit(f"ROOT {error}")
        return
    chosen = options.part or list(PARTS)
    out = Console(highlight=False)
    sections: list[Section] = []
    for name in chosen:
        out.print(f"measuring {name} …")
        began = time.monotonic()
        measured = PARTS[name](options)
        for section in measured:
            section.show(out)
        out.print(f"{name} took {time.monotonic() - began:.0f} s")
        sections += measured
        save(sections, keep=set(chosen) != set(PARTS))
    out.print(f"written to {RESULTS.name}")


if __name__ == "__main__":
    main()
