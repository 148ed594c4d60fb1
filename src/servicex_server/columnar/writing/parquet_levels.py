"""Shreds an awkward array into what Parquet stores: leaves, each with its levels.

Parquet stores a column with lists as its values and two small numbers for each place. The
repetition level says which list this place continues; it is 0 for a new row. The definition level
says how many of the lists and optional values on the path to the place are present; it is below the
maximum for an empty list or a missing value, which have a place but no value. These are the levels
of Dremel, see "Nested Encoding" in the README of the Parquet format. numpy computes them for all
places at once.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray


class UnheldError(ValueError):
    """Parquet cannot hold a type; the message says why."""


class MismatchError(ValueError):
    """An array does not fit a type that was decided before; the message says why."""


@dataclass(frozen=True, slots=True)
class Node:
    """A type as Parquet sees it: a leaf, a list with one child, or a record with several."""

    name: str
    kind: Literal["leaf", "list", "record"]
    optional: bool
    dtype: str = ""
    """The type of a leaf: numpy's name, or ``string``, ``bytes`` or ``unknown``."""
    size: int | None = None
    """The length of a list, if it is fixed."""
    children: "tuple[Node, ...]" = ()


class Texts(NamedTuple):
    """Texts or bytes, concatenated."""

    offsets: NDArray[np.int64]
    data: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Slots:
    """The levels of all places. A number instead of an array means that all levels are equal."""

    count: int
    repetition: NDArray[np.uint8] | None = None
    definition: NDArray[np.uint8] | int = 0

    def defined(self, level: int) -> NDArray[np.bool_] | bool:
        """Return which places are defined up to a level; a single bool if all or none are."""
        return self.definition == level


@dataclass(frozen=True, slots=True)
class Leaf:
    """The values of a column, or of a part of one, and the levels of its places."""

    node: Node
    path: tuple[str, ...]
    slots: Slots
    max_definition: int
    max_repetition: int
    values: Any
    """The values that are not missing: an array, or `Texts`."""


def node_of(name: str, layout: Any) -> Node:
    """Return the type of an awkward layout.

    Raises
    ------
    UnheldError
        The values differ in type, or a record has no fields.
    """
    layout = _plain(layout)
    if layout.is_option:
        node = node_of(name, layout.content)
        return replace(node, optional=True)
    if layout.is_union:
        raise UnheldError("its values differ in type")
    if layout.is_record:
        if not layout.fields:
            raise UnheldError("a record in it has no fields")
        fields = zip(layout.fields, layout.contents, strict=True)
        children = tuple(node_of(field, content) for field, content in fields)
        return Node(name, "record", optional=False, children=children)
    if layout.is_unknown:
        return Node(name, "leaf", optional=True, dtype="unknown")
    if layout.is_numpy:
        return Node(name, "leaf", optional=False, dtype=str(layout.dtype))
    if texts := _texts(layout):
        return Node(name, "leaf", optional=False, dtype=texts)
    size = layout.size if layout.is_regular else None
    return Node(
        name, "list", optional=False, size=size, children=(node_of("element", layout.content),)
    )


def _plain(layout: Any) -> Any:
    """Return a layout without an index that only reorders, and without inner numpy dimensions."""
    while layout.is_indexed and not layout.is_option:
        layout = layout.project()
    return layout.to_RegularArray() if layout.is_numpy else layout


def _texts(layout: Any) -> str:
    return {"string": "string", "bytestring": "bytes"}.get(layout.parameter("__array__"), "")


class Shredder:
    """Shreds the columns of one range.

    The columns of a collection have the same offsets. The last offsets are cached with their
    levels, because comparing offsets is ten times as fast as computing levels from them.
    """

    def __init__(self) -> None:
        self._leaves: list[Leaf] = []
        self._offsets: NDArray[np.int64] = np.zeros(0, np.int64)
        self._slots = Slots(0)

    def shred(self, node: Node, layout: Any) -> list[Leaf]:
        """Return the leaves of a column, in the order of its type.

        Raises
        ------
        MismatchError
            The layout has another type, and its values cannot be converted to this one.
        """
        self._leaves = []
        self._visit(node, layout, Slots(layout.length), (0, 0), (node.name,))
        return self._leaves

    def _visit(
        self, node: Node, layout: Any, slots: Slots, depth: tuple[int, int], path: tuple[str, ...]
    ) -> None:
        """Add the leaves below a node; its values belong to the fully defined places."""
        layout = _plain(layout)
        definition, repetition = depth
        valid: NDArray[np.bool_] | None = None
        if layout.is_option:
            valid = np.asarray(layout.mask_as_bool(valid_when=True)).view(np.bool_)
            layout = _plain(layout.project())
            if not node.optional and layout.length != len(valid):
                raise MismatchError(f"{node.name} has missing values")
        if node.optional:
            slots = _optional(slots, definition, valid)
            definition += 1
        if node.kind == "record":
            _same(node, "a record", layout.is_record or layout.is_unknown, layout)
            names = {child.name for child in node.children}
            if not layout.is_unknown and set(layout.fields) != names:
                raise MismatchError(f"{node.name} has other fields")
            for child in node.children:
                content = layout if layout.is_unknown else layout[child.name]
                self._visit(child, content, slots, (definition, repetition), (*path, child.name))
        elif node.kind == "list":
            slots, content = self._listed(node, slots, definition, repetition + 1, layout)
            below = (*path, "list", "element")
            self._visit(node.children[0], content, slots, (definition + 1, repetition + 1), below)
        else:
            values = _values(node, layout)
            self._leaves.append(Leaf(node, path, slots, definition, repetition, values))

    def _listed(
        self, node: Node, slots: Slots, level: int, repetition: int, layout: Any
    ) -> tuple[Slots, Any]:
        """Give each item of lists a place of its own; return the places and the items."""
        if layout.is_unknown:
            return _spread(slots, level, repetition, np.zeros(0, np.int64)), layout
        _same(node, "a list", layout.is_list and not _texts(layout), layout)
        if node.size is not None and (not layout.is_regular or layout.size != node.size):
            raise MismatchError(f"{node.name} has lists of another length")
        if layout.is_regular:
            counts = np.full(layout.length, layout.size, np.int64)
            return _spread(slots, level, repetition, counts), layout.content[: int(counts.sum())]
        layout = layout.to_ListOffsetArray64(True)  # noqa: FBT003 - awkward's own signature
        offsets = np.asarray(layout.offsets.data)
        content = layout.content[: offsets[-1]]
        if level or repetition > 1:
            return _spread(slots, level, repetition, np.diff(offsets)), content
        if not np.array_equal(offsets, self._offsets):
            self._offsets = offsets
            self._slots = _spread(slots, level, repetition, np.diff(offsets))
        return self._slots, content


def _same(node: Node, kind: str, fits: bool, layout: Any) -> None:  # noqa: FBT001
    if not fits:
        raise MismatchError(f"{node.name} was {kind} and is {layout.form.type}")


def _optional(slots: Slots, level: int, valid: NDArray[np.bool_] | None) -> Slots:
    """Raise the definition level of places whose value is valid; None means all values are."""
    live = slots.defined(level)
    if live is False:
        return slots
    if live is True:
        if valid is None or valid.all():
            return replace(slots, definition=level + 1)
        return replace(slots, definition=valid.view(np.uint8) + np.uint8(level))
    levels = np.array(slots.definition, np.uint8)
    levels[live] += 1 if valid is None else valid.view(np.uint8)
    return replace(slots, definition=levels)


def _spread(slots: Slots, level: int, repetition: int, counts: NDArray[np.int64]) -> Slots:
    """Give each item of lists a place of its own; an empty list keeps the one it has.

    Parameters
    ----------
    slots
        The places down to the lists.
    level
        The definition level of a place that has a list.
    repetition
        The repetition level of items that are not the first.
    counts
        The lengths of the lists.
    """
    live = slots.defined(level)
    if live is False:
        return slots
    if live is not True:
        below = np.zeros(slots.count, np.int64)
        below[live] = counts
        counts = below
    own = np.maximum(counts, 1)
    ends = np.cumsum(own)
    count = int(ends[-1]) if len(ends) else 0
    begin = ends - own
    repeated = np.full(count, repetition, np.uint8)
    repeated[begin] = 0 if slots.repetition is None else slots.repetition
    empty = counts == 0
    old = slots.definition
    if not empty.any():
        return Slots(count, repeated, level + 1)
    if empty.all():
        return Slots(count, repeated, old)
    defined = np.full(count, level + 1, np.uint8)
    defined[begin[empty]] = old if isinstance(old, int) else old[empty]
    return Slots(count, repeated, defined)


def _values(node: Node, layout: Any) -> Any:
    """Return the values of a leaf, without missing ones."""
    if node.dtype in ("string", "bytes"):
        if layout.is_unknown:
            return Texts(np.zeros(1, np.int64), np.zeros(0, np.uint8))
        _same(node, node.dtype, _texts(layout) == node.dtype, layout)
        lists = layout.to_ListOffsetArray64(True)  # noqa: FBT003 - awkward's own signature
        offsets = np.asarray(lists.offsets.data)
        return Texts(offsets, np.asarray(lists.content.data)[: offsets[-1]])
    if layout.is_unknown:
        return np.zeros(0, "i4" if node.dtype == "unknown" else node.dtype)
    _same(node, node.dtype, layout.is_numpy and node.dtype != "unknown", layout)
    values = np.ascontiguousarray(layout.data)
    return values if str(values.dtype) == node.dtype else _fitted(node, values)


def _fitted(node: Node, values: NDArray[Any]) -> NDArray[Any]:
    """Convert values to a type decided before; floats may be rounded, other values not change."""
    wanted = np.dtype(node.dtype)
    kinds = {values.dtype.kind, wanted.kind}
    if len(kinds) > 1 and not kinds <= set("biuf"):
        raise MismatchError(f"{node.name} was {wanted} and is {values.dtype}")
    with np.errstate(invalid="ignore", over="ignore"):
        fitted = values.astype(wanted)
        kept = kinds == {"f"} or (
            np.array_equal(fitted.astype(values.dtype), values)
            # an integer that wrapped around, from -1 to the maximum, also survives the way back
            and (kinds != set("iu") or not ((fitted < 0) | (values < 0)).any())
        )
    if not kept:
        raise MismatchError(f"{node.name} was {wanted} and has values that are only {values.dtype}")
    return fitted
