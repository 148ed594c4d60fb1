"""Small plots under each other on one axis of time: as data, of which a template makes SVGs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 600, 100
"""Of the area that is drawn in, in units of the picture; it is stretched to its place."""

_EVEN = (2, 4, 6, 8, 10)
"""Tops of scales, times a power of ten: their half is as round as they are."""

_EDGE = 96
"""Percent of the width from which on a label ends at its place, so that it is not cut."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a plot, in as many pieces as it has gaps; ``kind`` is how it looks."""

    name: str
    kind: str
    pieces: tuple[str, ...]
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot: its lines, what its scale says, and its numbers in words."""

    name: str
    lines: tuple[Line, ...]
    top: str
    middle: str
    note: str
    summary: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment on the axis of time."""

    place: str
    label: str
    anchor: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A number as a program reads it, and as people do."""

    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Figure:
    """Plots on one axis of time, and their numbers as a table."""

    plots: tuple[Plot, ...]
    marks: tuple[Mark, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell | None, ...], ...]
    width: int = WIDTH
    height: int = HEIGHT


def scale(most: float) -> float:
    """Return the top of a scale that has room for a number.

    Examples
    --------
    >>> scale(0), scale(1), scale(3.5), scale(41), scale(100_000), scale(2_100_000)
    (2, 2, 4, 60, 100000, 4000000)
    """
    power = 1
    while 10 * power < most:
        power *= 10
    return next(even * power for even in _EVEN if even * power >= most)


def rising(values: Sequence[float], top: float) -> str:
    """Return the points of a line through values at moments of the same distance.

    Examples
    --------
    >>> rising([0, 1, 2], 4)
    '0,100 300,75 600,50'
    """
    width = WIDTH / max(len(values) - 1, 1)
    return " ".join(
        f"{number * width:.5g},{_height(value, top)}" for number, value in enumerate(values)
    )


def level(values: Sequence[float | None], top: float) -> tuple[str, ...]:
    """Return the points of a line that has a value for each of so many spans, in its pieces.

    Examples
    --------
    >>> level([1, 2, None, 4], 4)
    ('0,75 150,75 150,50 300,50', '450,0 600,0')
    """
    width = WIDTH / max(len(values), 1)
    pieces: list[list[str]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            pieces.append([])
            continue
        height = _height(value, top)
        pieces[-1] += [f"{at * width:.5g},{height}" for at in (number, number + 1)]
    return tuple(" ".join(points) for points in pieces if points)


def _height(value: float, top: float) -> str:
    return f"{HEIGHT - HEIGHT * value / top:.4g}"


def plot(
    name: str, lines: Iterable[Line], top: float, text: Callable[[float], str], note: str
) -> Plot:
    """Return a plot whose scale goes to ``top``, said by ``text``."""
    return Plot(
        name=name,
        lines=tuple(lines),
        top=text(top),
        middle=text(top / 2),
        note=note,
        summary=f"{name}: {note}",
    )


def mark(share: float, label: str) -> Mark:
    """Return a mark at a share of the time that is shown.

    Examples
    --------
    >>> mark(0, "0"), mark(0.5, "1 h").anchor, mark(1, "2 h").anchor
    (Mark(place='0.00%', label='0', anchor='start'), 'middle', 'end')
    """
    anchor = "middle"
    if 100 * share < 100 - _EDGE:
        anchor = "start"
    elif 100 * share > _EDGE:
        anchor = "end"
    return Mark(f"{100 * share:.2f}%", label, anchor)
