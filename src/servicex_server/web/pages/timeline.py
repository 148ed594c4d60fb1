"""How many files ended when: a plot as data, of which a template makes an SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate

from servicex_server.web.pages.numbers import count, duration

STEPS = 60
"""Classes that the time of a request is divided into."""

WIDTH, HEIGHT = 600, 120
"""Of the area that is drawn in, in units of the picture."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Points of a line and of the area below it, and what its axes say."""

    line: str
    area: str
    seconds: str
    files: str
    summary: str
    width: int = WIDTH
    height: int = HEIGHT


def moments(began: datetime, ended: datetime) -> list[datetime]:
    """Return the limits of the classes, from the beginning to just after the end."""
    step = max((ended - began) / STEPS, timedelta(milliseconds=1))
    last = ended + timedelta(seconds=1)
    return [*(began + step * number for number in range(STEPS)), last]


def timeline(counts: Sequence[int], files: int, seconds: float) -> Timeline:
    """Return the plot of files that have ended, of so many, in so many seconds.

    Examples
    --------
    >>> timeline([0, 1, 1], 4, 12.0).line
    '0,120 200,120 400,90 600,60'
    """
    sums = [0, *accumulate(counts)]
    most = max(files, 1)
    width = WIDTH / max(len(counts), 1)
    line = " ".join(
        f"{number * width:.4g},{HEIGHT - HEIGHT * done / most:.4g}"
        for number, done in enumerate(sums)
    )
    return Timeline(
        line=line,
        area=f"0,{HEIGHT} {line} {WIDTH},{HEIGHT}",
        seconds=duration(seconds),
        files=count(files),
        summary=f"{count(sums[-1])} of {count(files)} files ended in {duration(seconds)}",
    )
