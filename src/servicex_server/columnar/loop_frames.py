"""Values within loops: columns that know for which turns of which loops they hold a value.

A `Frame` is a set of turns, the iterations of a loop. The outermost frame has one turn, the range
of entries being run. A loop over a sequence opens a frame with one turn for each element. Values of
an outer frame are carried into it by index, never computed again. So a function of two nested loops
is one operation on two flat arrays. Turns are gathered into lists only where a list is needed as a
column.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from servicex_server.columnar.sizes import check_bytes

_INDEX = 8
"""Bytes of the index of a turn."""


class Frame:
    """The turns of a loop, or those that a condition leaves.

    Parameters
    ----------
    length
        The number of turns.
    parents
        Outer frames, each with an array that gives for every turn here the index of its turn
        there; None if both have the same turns. Indices into the frame that owns the sequence
        never decrease. If a frame is reached through several parents, the first one counts.
    """

    def __init__(self, length: int, *parents: tuple["Frame", Any]) -> None:
        self.length = length
        self.depth: int = max((frame.depth + 1 for frame, _ in parents), default=0)
        self._parents = parents
        self._indices: dict[Frame, Any] = {}  # without itself: a cycle would keep it in memory

    def index_to(self, outer: "Frame") -> Any:
        """Return for every turn the index of its turn in an outer frame; None if they are equal."""
        if outer is self:
            return None
        if outer not in self._indices:
            for frame, index in self._parents:
                if frame.within(outer):
                    above = frame.index_to(outer)
                    both = index is not None and above is not None
                    self._indices[outer] = (
                        above[index] if both else index if above is None else above
                    )
                    break
        return self._indices[outer]

    def within(self, outer: "Frame") -> bool:
        """Whether this is the other frame or one inside it."""
        return (
            outer is self
            or outer in self._indices
            or any(frame.within(outer) for frame, _ in self._parents)
        )


@dataclass(frozen=True)
class Scalar:
    """A constant."""

    value: float | bool | str


@dataclass(frozen=True)
class Column:
    """An array with one entry, which may be a list or a record, for every turn of a frame."""

    frame: Frame
    array: Any


class Later:
    """A value that is computed when it is first used."""

    def __init__(self, compute: "Callable[[], Value]") -> None:
        self._compute = compute

    @cached_property
    def value(self) -> "Value":
        """The value."""
        return self._compute()


@dataclass(frozen=True)
class Parts:
    """A record whose parts are values of their own."""

    frame: Frame
    fields: Mapping[str, Later]
    is_tuple: bool = False


@dataclass(frozen=True)
class Loop:
    """A sequence in every turn of ``frame``; its elements are the turns of ``inner``.

    ``origin`` is the sequence that all elements were taken from, if there is one. A function of one
    element is computed there, once for each element, and its values are carried here by index.
    """

    frame: Frame
    inner: Frame
    content: "Value | Later"
    origin: "Loop | None" = None

    @property
    def element(self) -> "Value":
        """The value of the element, one for every turn of ``inner``."""
        return self.content.value if isinstance(self.content, Later) else self.content

    def counts(self) -> Any:
        """Return how many elements each sequence has."""
        import numpy as np

        owner = self.inner.index_to(self.frame)
        return np.bincount(owner, minlength=self.frame.length)


@dataclass(frozen=True)
class Entries:
    """The event itself; its branches are read by name."""

    frame: Frame
    read: Callable[[tuple[str, ...]], Any]
    everything: Callable[[], Mapping[str, Any]]


Value: TypeAlias = Scalar | Column | Parts | Loop | Entries


def lift(value: Value, frame: Frame) -> Value:
    """Repeat a value of an outer frame for every turn of an inner frame."""
    match value:
        case Scalar():
            return value
        case Column(frame=outer, array=array):
            index = frame.index_to(outer)
            return Column(frame, array if index is None else array[index])
        case Parts(frame=outer, fields=fields, is_tuple=is_tuple):
            if outer is frame:
                return value
            lifted = {name: _later(part, frame) for name, part in fields.items()}
            return Parts(frame, lifted, is_tuple)
        case Loop(frame=outer):
            return value if outer is frame else _repeated(value, frame)
        case Entries(frame=outer, read=read, everything=everything):
            index = frame.index_to(outer)
            if index is None:
                return Entries(frame, read, everything)
            return Entries(
                frame,
                lambda path: read(path)[index],
                lambda: {name: array[index] for name, array in everything().items()},
            )


def _later(part: Later, frame: Frame) -> Later:
    return Later(lambda: lift(part.value, frame))


def _repeated(loop: Loop, frame: Frame) -> Loop:
    """Repeat a sequence of an outer frame for every turn of an inner frame.

    The inner frame may be a loop over the same sequence, as in
    ``x.Select(lambda p: x.Select(lambda q: ...))`` where ``x`` was computed before. A new turn then
    has two elements of that sequence: the one of the surrounding loop, and its own. Its own is
    therefore found through a separate frame that has no other parents.
    """
    import numpy as np

    index = frame.index_to(loop.frame)
    if index is None:
        own, owner = loop.inner, loop.inner.index_to(loop.frame)
    else:
        counts = loop.counts()
        starts = np.cumsum(counts) - counts
        taken = counts[index]
        check_bytes("a loop in a loop", float(taken.sum()) * 2 * _INDEX)
        owner = np.repeat(np.arange(frame.length), taken)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(taken) - taken, taken)
        own = Frame(len(owner), (loop.inner, starts[index][owner] + within))
    inner = Frame(len(owner), (frame, owner), (own, None))
    return Loop(frame, inner, lift(lift(loop.element, own), inner))


def carried(frame: Frame, inner: Frame, origin: Loop) -> Loop:
    """Return a sequence of elements of another one, to which ``inner`` has an index."""
    return Loop(frame, inner, Later(lambda: lift(origin.element, inner)), origin)


def array_of(value: Value, frame: Frame) -> Any:
    """Return a value as one awkward array with an entry for every turn of a frame."""
    import awkward as ak
    import numpy as np

    value = lift(value, frame)
    match value:
        case Scalar(value=str(text)):
            return ak.Array([text] * frame.length or [text])[: frame.length]
        case Scalar(value=number):
            return ak.Array(np.full(frame.length, number))
        case Column(array=array):
            return array
        case Parts(fields=fields, is_tuple=is_tuple):
            arrays = {name: array_of(part.value, frame) for name, part in fields.items()}
            if is_tuple:
                return ak.zip(tuple(arrays.values()), depth_limit=1)
            return ak.zip(arrays, depth_limit=1)
        case Loop():
            return _closed(value)
        case Entries(everything=everything):
            return ak.zip(dict(everything()), depth_limit=1)


def _closed(loop: Loop) -> Any:
    """Return a sequence as a column of lists."""
    import awkward as ak
    import numpy as np

    content = array_of(loop.element, loop.inner)
    offsets = np.zeros(loop.frame.length + 1, np.int64)
    np.cumsum(loop.counts(), out=offsets[1:])
    lists = ak.contents.ListOffsetArray(ak.index.Index64(offsets), content.layout)
    return ak.Array(lists, behavior=content.behavior)


def opened(value: Value, frame: Frame, what: str) -> Loop:
    """Return a value as a sequence in a frame; a missing list has no elements.

    Raises
    ------
    TypeError
        The value is not a list.
    """
    import awkward as ak
    import numpy as np

    value = lift(value, frame)
    if isinstance(value, Loop):
        return value
    if not (isinstance(value, Column) and is_list(value.array)):
        raise TypeError(f"{what} needs a list, and this is {described(value)}")
    array = ak.from_regular(value.array, axis=None)
    counts = ak.num(array, axis=1)
    if array.layout.is_option:
        counts = ak.fill_none(counts, 0)
        array = ak.drop_none(array, axis=0)
    counts = np.asarray(counts)
    content = ak.flatten(array, axis=1)
    inner = Frame(len(content), (frame, np.repeat(np.arange(frame.length), counts)))
    return Loop(frame, inner, Column(inner, content))


def is_list(array: Any) -> bool:
    """Whether the entries of a column are lists; texts do not count."""
    layout = array.layout
    while layout.is_option or layout.is_indexed:
        layout = layout.content
    if layout.is_numpy:
        return len(layout.inner_shape) > 0
    text = layout.parameter("__array__") in ("string", "bytestring")
    return bool(layout.is_list) and not text


def described(value: Value) -> str:
    """Describe a value for an error message."""
    match value:
        case Scalar(value=constant):
            return f"the constant {constant!r}"
        case Column(array=array):
            return f"of type {array.type.content}"
        case Parts(is_tuple=True):
            return "a tuple"
        case Parts(fields=fields):
            return f"a record of {', '.join(fields)}"
        case Loop():
            return "a list"
        case _:
            return "the event itself"
