"""The chart of one request: files, workers, bytes and events over its duration."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from itertools import accumulate

from servicex_server.database.request_timeline import Step
from servicex_server.web.pages import formatting
from servicex_server.web.pages.formatting import count, duration, plural, short, size
from servicex_server.web.pages.svg_chart import (
    Cell,
    Figure,
    Line,
    Mark,
    Plot,
    level,
    mark,
    plot,
    rising,
    scale,
)

STEPS = 60
"""Steps into which the duration of a request is divided."""

_ROW = 5
"""Steps that one row of the table of numbers covers."""

_SHORT = 10.0

_MARKS = 4
"""Most intervals between marks on the time axis."""

_SPANS = (
    *(number / 1000 for number in (1, 2, 5, 10, 20, 50, 100, 200, 500)),
    *(1, 2, 5, 10, 15, 30),
    *(60 * number for number in (1, 2, 5, 10, 15, 30)),
    *(3600 * number for number in (1, 2, 3, 6, 12)),
    *(86_400 * number for number in (1, 2, 5, 10, 20, 50, 100)),
)
"""Seconds from one mark to the next."""

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def step(began: datetime, ended: datetime) -> timedelta:
    """Return the length of a step, at least a millisecond, which is the resolution of databases."""
    return max((ended - began) / STEPS, timedelta(milliseconds=1))


def timeline(steps: Sequence[Step], files: int, length: timedelta) -> Figure:
    """Return the plots of a request.

    Parameters
    ----------
    steps
        What happened in each step.
    files
        Number of files of the request.
    length
        Length of each step.
    """
    seconds = length.total_seconds()
    ended = _sums(one.files for one in steps)
    sizes = _sums(one.bytes for one in steps)
    events = _sums(one.events for one in steps)
    read, kept = totals(steps)
    of_all = f"{count(ended[-1])} of {plural(files, 'file')}"
    return Figure(
        plots=(
            _sum("Files finished", ended, scale(files), short, of_all),
            _workers([one.work / seconds for one in steps]),
            _sum("Bytes delivered", sizes, scale(sizes[-1]), size, size(sizes[-1])),
            _events(events, _kept(steps), formatting.events(read, kept)),
        ),
        marks=_marks(len(steps) * seconds),
        columns=(
            "Until",
            "Files",
            "Workers",
            "Bytes",
            "Events",
            *(() if kept is None else ("Kept",)),
        ),
        rows=tuple(
            (
                _until(end * seconds, len(steps) * seconds),
                Cell(ended[end], count(ended[end])),
                _mean([one.work / seconds for one in steps[end - _ROW : end]]),
                Cell(sizes[end], size(sizes[end])),
                Cell(events[end], count(events[end])),
                *(Cell(sums[end], count(sums[end])) for sums in _kept(steps)),
            )
            for end in range(_ROW, len(steps) + 1, _ROW)
        ),
    )


def totals(steps: Iterable[Step]) -> tuple[int, int | None]:
    """Return the events read, and the events kept, which are None if a file's are not known."""
    read, kept = 0, 0
    known = True
    for one in steps:
        read += one.events
        known = known and one.events_kept is not None
        kept += one.events_kept or 0
    return read, kept if known else None


def _kept(steps: Sequence[Step]) -> tuple[list[int], ...]:
    """Return the cumulative events kept; an empty tuple if a file's are not known."""
    _, kept = totals(steps)
    return () if kept is None else (_sums(one.events_kept or 0 for one in steps),)


def _events(read: Sequence[int], kept: Sequence[Sequence[int]], note: str) -> Plot:
    top = scale(max([read[-1], *(sums[-1] for sums in kept)]))
    lines = [
        Line("read", "there", (rising(read, top),)),
        *(Line("kept", "busy", (rising(sums, top),), filled=True) for sums in kept),
    ]
    return plot("Events", lines, top, short, note)


def _sums(values: Iterable[int]) -> list[int]:
    return [0, *accumulate(values)]


def _sum(
    name: str, sums: Sequence[int], top: float, text: Callable[[float], str], note: str
) -> Plot:
    return plot(name, [Line(name, "busy", (rising(sums, top),), filled=True)], top, text, note)


def _workers(busy: Sequence[float]) -> Plot:
    top = scale(max(busy))
    lines = [Line("busy", "busy", level(busy, top), filled=True)]
    return plot(
        "Workers", lines, top, short, f"at most {max(busy):.1f}, {_mean(busy).text} on average"
    )


def _until(at: float, length: float) -> Cell:
    # rows of a short request differ by less than a tenth of a second
    return Cell(at, duration(at) if length >= _SHORT else f"{at:.2f} s")


def _mean(values: Sequence[float]) -> Cell:
    mean = sum(values) / len(values)
    return Cell(mean, f"{mean:.1f}")


def _marks(seconds: float) -> tuple[Mark, ...]:
    """Return round times since the beginning.

    Examples
    --------
    >>> [one.label for one in _marks(100)], [one.label for one in _marks(9000)]
    (['0', '30 s', '60 s', '90 s'], ['0', '1 h', '2 h'])
    """
    span = next((one for one in _SPANS if _MARKS * one >= seconds), _SPANS[-1])
    length, unit = next((one for one in _UNITS if one[0] <= span), _UNITS[-1])
    labels = [(number * span, f"{number * span / length:g} {unit}") for number in range(_MARKS + 1)]
    labels[0] = (0, "0")
    return tuple(mark(at / seconds, label) for at, label in labels if at <= seconds)
