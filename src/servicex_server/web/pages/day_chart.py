"""The chart of the last 24 hours: workers, waiting files, stored results and free disk space."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from statistics import fmean

from servicex_server.database.service_history import Moment
from servicex_server.web.pages.formatting import count, short, size
from servicex_server.web.pages.svg_chart import (
    Cell,
    Figure,
    Line,
    Mark,
    Plot,
    level,
    mark,
    plot,
    scale,
)

LENGTH = timedelta(minutes=15)
"""Length of the spans into which the day is divided; each shows the mean of its samples."""

SPANS = 96
"""Number of spans in a day."""

_ROW = 8
"""Spans that one row of the table of numbers covers."""

_MARK_HOURS = 6

_Values = Sequence[float | None]


def beginning(at: datetime) -> datetime:
    """Return the start of the 24 hours that end with the quarter of an hour containing ``at``."""
    quarter = at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)
    return quarter + LENGTH - SPANS * LENGTH


def day(rows: Sequence[Moment], began: datetime) -> Figure | None:
    """Return the plots of a day from its samples; None if there are none."""
    if not rows:
        return None
    names = ["wanted", "there", "busy", "waiting", "stored"]
    if any(row.free is not None for row in rows):
        names.append("free")
    seen = {name: _means(rows, began, name) for name in names}
    return Figure(
        plots=tuple(_plots(seen, rows)),
        marks=_marks(began),
        columns=("Until", *(_COLUMNS[name] for name in names)),
        rows=tuple(_rows(seen, began)),
    )


_COLUMNS = {
    "wanted": "Wanted",
    "there": "There",
    "busy": "Busy",
    "waiting": "Files waiting",
    "stored": "Results stored",
    "free": "Disk free",
}


def _means(rows: Sequence[Moment], began: datetime, name: str) -> _Values:
    """Return the mean of a value in each span; None for a span without a leader."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if (value := attrgetter(name)(row)) is not None:
            found[(row.at - began) // LENGTH].append(value)
    return [fmean(found[span]) if span in found else None for span in range(SPANS)]


def _plots(seen: dict[str, _Values], rows: Sequence[Moment]) -> list[Plot]:
    lines = ("wanted", "there", "busy")
    most = {name: max(attrgetter(name)(row) for row in rows) for name in (*lines, "waiting")}
    top = scale(max(most[name] for name in lines))
    last = rows[-1]
    files = f"at most {count(most['waiting'])}, latest {count(last.waiting)}"
    return [
        plot(
            "Workers",
            [Line(name, name, level(seen[name], top), filled=name == "busy") for name in lines],
            top,
            short,
            f"at most {count(most['wanted'])} wanted, {count(most['there'])} there, "
            f"{count(most['busy'])} busy",
        ),
        _one("waiting", seen, short, files),
        _one("stored", seen, size, f"latest {size(last.stored)}"),
        *([_one("free", seen, size, f"latest {size(last.free or 0)}")] if "free" in seen else []),
    ]


def _one(name: str, seen: dict[str, _Values], text: Callable[[float], str], note: str) -> Plot:
    top = scale(max(value for value in seen[name] if value is not None))
    line = Line(name, "busy", level(seen[name], top), filled=True)
    return plot(_COLUMNS[name], [line], top, text, note)


def _rows(seen: dict[str, _Values], began: datetime) -> Iterator[tuple[Cell | None, ...]]:
    """Yield table rows with the means of `_ROW` spans; rows without data are left out."""
    for end in range(_ROW, SPANS + 1, _ROW):
        cells = [_cell(name, values[end - _ROW : end]) for name, values in seen.items()]
        if any(cells):
            until = began + end * LENGTH
            yield (Cell(until.timestamp(), until.strftime("%H:%M")), *cells)


def _cell(name: str, values: _Values) -> Cell | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = fmean(known)
    if name in ("stored", "free"):
        return Cell(mean, size(mean))
    return Cell(mean, count(mean) if name == "waiting" else f"{mean:.1f}")


def _marks(began: datetime) -> tuple[Mark, ...]:
    """Return marks at the hours that are multiples of six."""
    hours = [began + timedelta(hours=1) * number for number in range(25)]
    whole = [one.replace(minute=0) for one in hours]
    return tuple(
        mark((one - began) / (SPANS * LENGTH), one.strftime("%H:%M"))
        for one in whole
        if one.hour % _MARK_HOURS == 0 and one >= began
    )
