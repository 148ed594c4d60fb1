"""Tables of results: on the screen, and in ``RESULTS.md``, section by section."""

import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("RESULTS.md")

LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
"""Processes that wanted a core in the minute before all this began: more than 0.3 spoils it."""

INTRODUCTION = (
    "Written by `make bench`. Numbers of one machine, each section on the day it names; "
    "run it on yours.\n"
)


@dataclass(frozen=True)
class Section:
    """One table. A heading is what its title says; ``note`` tells how to read it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def show(self, out: Console) -> None:
        """Print the table."""
        table = Table(*self.headings, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        out.print(table)

    @property
    def text(self) -> str:
        """The section in Markdown, without its heading."""
        lines = [f"{datetime.now(UTC):%Y-%m-%d}, {machine()}", ""]
        if self.note:
            lines += [self.note, ""]
        lines += ["| " + " | ".join(self.headings) + " |", "|" + " --- |" * len(self.headings)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


def save(sections: list[Section], *, keep: bool) -> None:
    """Write sections to the results.

    Parameters
    ----------
    sections
        What was measured.
    keep
        Whether sections that are there and were not measured now stay as they are.
    """
    there: dict[str, str] = {}
    if keep and RESULTS.exists():
        old = re.split(r"^## (.+)\n\n", RESULTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
        there = {
            title: f"{text.strip()}\n" for title, text in zip(old[1::2], old[2::2], strict=True)
        }
    there |= {section.title: section.text for section in sections}
    parts = ["# Results\n", INTRODUCTION]
    parts += [f"## {title}\n\n{text}" for title, text in there.items()]
    RESULTS.write_text("\n".join(parts), encoding="utf-8")


def machine() -> str:
    """Name the machine and the versions."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        model = next((line.split(": ")[1] for line in lines if "model name" in line), model)
    total = psutil.virtual_memory().total / 2**30
    libraries = ("uproot", "awkward", "numpy", "pyarrow", "distributed", "fastapi", "sqlalchemy")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    return (
        f"{model}, {os.cpu_count()} cores, {total:.0f} GiB, load {LOAD:.1f} before; "
        f"{platform.system()}, Python {platform.python_version()}; {versions}"
    )
