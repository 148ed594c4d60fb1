"""Small plots above each other with a common time axis, as data for an SVG template."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 600, 100
"""Width and height of the plot area, in SVG user units; the page stretches it."""

_EVEN = (2, 4, 6, 8, 10)
"""Tops of scales, times a power of ten. Half of each is a round number too."""

_EDGE = 96
"""Percent of the width beyond which a label is right-aligned, so that it is not cut off."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a plot. Gaps divide it into ``pieces``; ``kind`` is its CSS class."""

    name: str
    kind: str
    pieces: tuple[str, ...]
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot: its lines, the labels of its scale, and a summary in words."""

    name: str
    lines: tuple[Line, ...]
    top: str
    middle: str
    note: str
    summary: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A labelled mark on the time axis."""

    place: str
    label: str
    anchor: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A number, and its text for people."""

    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Figure:
    """Plots with a common time axis, and their numbers as a table."""

    plots: tuple[Plot, ...]
    marks: tuple[Mark, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell | None, ...], ...]
    width: int = WIDTH
    height: int = HEIGHT


def scale(most: float) -> float:
    """Return the top of the smallest scale that has room for a number.

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
    """Return the points of a line through values at equal distances.

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
    """Return the points of a step line, which has one value for each span; None makes a gap.

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
    """Return a plot whose scale ends at ``top``; ``text`` formats the labels of the scale."""
    return Plot(
        name=name,
        lines=tuple(lines),
        top=text(top),
        middle=text(top / 2),
        note=note,
        summary=f"{name}: {note}",
    )


def mark(share: float, label: str) -> Mark:
    """Return a mark at a fraction of the time axis.

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
