"""Subscripts and broadcasting on arrays whose first axis is that of the events.

Where all lists have the same length by type, awkward follows NumPy, which aligns the last axes of
two arrays and lets an array of positions choose along the first axis. Both would mix events, so
here the first axes are aligned, and a position counts within an event.
"""

from typing import Any

from servicex_server.columnar import number_types, operators
from servicex_server.columnar.event_axis import check_subscript, kind_of


class NoElementError(ValueError):
    """Some event has no element at a position."""

    hint = "handle such events with firsts(x), pad_none(x, n) or a cut such as num(x) > n"


def event_first(*values: Any) -> tuple[Any, ...]:
    """Return values whose first axes align, so that only values of the same event combine."""
    import awkward as ak

    layouts = [value.layout for value in values if isinstance(value, ak.Array)]
    if len(layouts) < 2 or not all(one.purelist_isregular for one in layouts):  # noqa: PLR2004
        return values
    depths = {one.purelist_depth for one in layouts}
    if len(depths) == 1:
        return values
    return tuple(map(as_lists, values))


def as_lists(value: Any) -> Any:
    """Return a column with lists of fixed length turned into lists of any length."""
    import awkward as ak

    if not isinstance(value, ak.Array) or value.ndim < 2:  # noqa: PLR2004
        return value
    return ak.from_regular(value, axis=1)


def subscript(value: Any, index: Any) -> Any:
    """Return ``value[index]``, where ``index`` applies to each event.

    Raises
    ------
    EventsMixedError
        The subscript would take some of the events, or values of other events.
    NoElementError
        Some event has no element at a position.
    TypeError
        The value has no elements to take.
    """
    import awkward as ak

    check_subscript(kind_of(value), kind_of(index))
    if not isinstance(value, ak.Array):
        return value[index]
    parts = index if isinstance(index, tuple) else (index,)
    if len(parts) > 1 and all(isinstance(part, str) for part in parts):
        return value[list(parts)]
    positions = []
    for part in parts:
        if isinstance(part, str):
            value = value[part]
        elif isinstance(part, tuple) and part and all(isinstance(one, str) for one in part):
            value = value[list(part)]
        else:
            positions.append(list(part) if isinstance(part, tuple) else part)
    if not positions:
        return value
    if isinstance(positions[0], ak.Array):
        return picked(value, positions[0])
    try:
        return value[tuple(positions)]
    except (IndexError, ValueError):
        _check_lengths(value, positions)
        raise


def picked(array: Any, chosen: Any) -> Any:
    """Return the elements of the list of each event at positions, or where a mask is true.

    A missing mask selects nothing.
    """
    import awkward as ak

    if number_types.primitive(chosen) == "b":
        chosen = operators.known(chosen)
    return ak.from_regular(array, axis=1)[ak.from_regular(chosen, axis=None)]


def _check_lengths(value: Any, positions: list[Any]) -> None:
    """Raise `NoElementError` if a position is beyond the end of the list of some event."""
    import awkward as ak

    for axis, position in enumerate(positions):
        if position is Ellipsis or position is None or axis >= value.ndim:
            return
        if not axis or isinstance(position, slice):
            continue
        for one in position if isinstance(position, list) else [position]:
            counts = ak.num(value, axis=axis)
            if ak.any(counts <= one if one >= 0 else counts < -one, axis=None):
                raise NoElementError(f"some event has no element {one}")
