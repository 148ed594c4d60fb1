"""Operations on lists and records within loops: parts, elements, conditions, sums."""

from functools import partial
from typing import Any

from servicex_server.columnar import four_vectors, integer_overflow, logic, number_types
from servicex_server.columnar.elementwise import plain, ready
from servicex_server.columnar.event_arrays import picked
from servicex_server.columnar.loop_frames import (
    Column,
    Entries,
    Frame,
    Later,
    Loop,
    Parts,
    Scalar,
    Value,
    array_of,
    carried,
    described,
    is_list,
    lift,
)
from servicex_server.columnar.sizes import check_bytes, combined

_INDEX = 8
"""Bytes of the index of an element."""


def part_of(value: Value, name: str) -> Value:
    """Return a part of a record by its name, repeated for every turn of the record's frame."""
    if isinstance(value, Parts):
        if name not in value.fields:
            raise TypeError(f"{described(value)} has no part {name}")
        return lift(value.fields[name].value, value.frame)
    if isinstance(value, Loop):
        value = Column(value.frame, array_of(value, value.frame))
    if not isinstance(value, Column):
        raise TypeError(f"{described(value)} has no part {name}")
    return Column(value.frame, four_vectors.part(value.array, name))


def is_tuple(value: Value) -> bool:
    """Whether a value is a tuple, whose parts have numbers."""
    import awkward as ak

    if isinstance(value, Parts):
        return value.is_tuple
    if not isinstance(value, Column) or is_list(value.array):
        return False
    return bool(value.array.fields) and ak.is_tuple(value.array)


def zipped(value: Value, frame: Frame) -> Value:
    """Combine lists to a list of records, element by element; single values to one record."""
    import awkward as ak

    if not isinstance(value, Parts):
        array = array_of(value, frame)
        if not array.fields:
            raise TypeError(f"Zip needs a record of lists, and this is {described(value)}")
        if is_list(array):
            return Column(frame, array)
        parts = dict(zip(array.fields, ak.unzip(array), strict=True))
        columns = {name: ready(Column(frame, part)) for name, part in parts.items()}
        value = Parts(frame, columns, ak.is_tuple(array))
    return Column(frame, broadcast(value, frame, depth=2))


def broadcast(value: Value, frame: Frame, *, depth: int | None = None) -> Any:
    """Return parts as one record; where the parts are lists, as lists of records."""
    import awkward as ak

    if not isinstance(value, Parts):
        return array_of(value, frame)
    arrays = {name: plain(array_of(part.value, frame)) for name, part in value.fields.items()}
    try:
        if value.is_tuple:
            return ak.zip(tuple(arrays.values()), depth_limit=depth)
        return ak.zip(arrays, depth_limit=depth)
    except ValueError as error:
        raise TypeError(f"the lists {', '.join(arrays)} differ in length") from error


def masked(loop: Loop, mask: Any) -> Value:
    """Drop elements of lists by a condition that has a value for each of them."""
    element = loop.element
    if isinstance(element, Parts):
        parts = {
            name: Later(partial(_dropped_later, part, mask, loop.inner, name))
            for name, part in element.fields.items()
        }
        return Parts(loop.inner, parts, element.is_tuple)
    if isinstance(element, Entries):
        raise TypeError(
            "the condition has several values for each event; use Any(...), All(...) or Count()"
        )
    return _dropped(element, mask, loop.inner, "")


def _dropped_later(part: Later, mask: Any, frame: Frame, name: str) -> Value:
    return _dropped(part.value, mask, frame, name)


def _dropped(value: Value, mask: Any, frame: Frame, name: str) -> Value:
    import awkward as ak

    array = array_of(value, frame)
    if not is_list(array):
        raise TypeError(
            f"a condition on each object does not fit {name or 'a value'}, "
            f"which is {described(Column(frame, array))}; use Any(...) for one on events"
        )
    return Column(frame, picked(ak.from_regular(array, axis=None), mask))


def positions(index: Value, frame: Frame) -> Any:
    """Return positions in lists, one for every turn."""
    import awkward as ak

    if isinstance(index, Scalar):
        if not number_types.is_whole(index.value):
            raise TypeError(f"a position is a whole number, not {index.value!r}")
        return index.value
    array = array_of(index, frame)
    if number_types.primitive(array) not in ("i", "u") or is_list(array):
        raise TypeError(f"a position is a whole number, not {array.type.content}")
    return ak.fill_none(ak.values_astype(array, "int64"), 2**62, axis=0)


def taken(loop: Loop, index: Any) -> Value:
    """Return the element at a position of every sequence; missing where a sequence is too short."""
    import awkward as ak
    import numpy as np

    counts = loop.counts()
    starts = np.cumsum(counts) - counts
    position = np.broadcast_to(np.asarray(index), counts.shape)
    position = np.where(position < 0, position + counts, position)
    there = (position >= 0) & (position < counts)
    content = array_of(loop.element, loop.inner)
    chosen = np.where(there, starts + position, -1)
    single = not (content.layout.is_option or content.layout.is_list)
    if single and there.all():
        # the type stays the same, and operators need not handle missing values
        layout = ak.contents.UnmaskedArray.simplified(ak.to_packed(content[chosen]).layout)
    else:
        layout = ak.contents.IndexedOptionArray.simplified(ak.index.Index64(chosen), content.layout)
    return Column(loop.frame, ak.Array(layout, behavior=content.behavior))


def sorted_within(loop: Loop, keys: Any) -> Any:
    """Return the indices of the elements of all sequences, each sequence sorted by the keys.

    Every element has a key, which is a number. Elements with equal keys keep their order.
    """
    import awkward as ak
    import numpy as np

    counts = loop.counts()
    order = ak.argsort(ak.unflatten(keys, counts), axis=1, stable=True)
    starts = np.cumsum(counts) - counts
    return np.repeat(starts, counts) + np.asarray(ak.flatten(order))


def chosen(loop: Loop, many: int) -> Value:
    """Return for every sequence a sequence of lists, one for each way to take ``many`` elements.

    Both keep the order of the elements.
    """
    import awkward as ak
    import numpy as np

    counts = loop.counts()
    lists = ak.unflatten(np.arange(loop.inner.length), counts)
    check_bytes("Choose", combined(counts, many) * 2 * _INDEX)
    # a list that is too short has no combinations, and trying would take time
    ways = ak.combinations(lists, min(many, int(counts.max(initial=0)) + 1), axis=1)
    owner = np.repeat(np.arange(loop.frame.length), np.asarray(ak.num(ways)))
    groups = Frame(len(owner), (loop.frame, owner))
    index = np.stack([np.asarray(one) for one in ak.unzip(ak.flatten(ways))], axis=1).ravel()
    group = np.repeat(np.arange(len(owner)), len(index) // max(len(owner), 1))
    inner = Frame(len(index), (groups, group), (loop.inner, index))
    return Loop(loop.frame, groups, carried(groups, inner, loop))


def reduced(loop: Loop, name: str, what: str) -> Value:
    """Return the sum, minimum, maximum, ``any`` or ``all`` of the elements of every sequence."""
    import awkward as ak
    import numpy as np

    if name == "sum" and (total := _sum_of_momenta(loop)) is not None:
        return total
    content = array_of(loop.element, loop.inner)
    if is_list(content):
        raise TypeError(f"{what} needs a list of single values; SelectMany joins lists of lists")
    if four_vectors.is_momentum(content):
        if name != "sum":
            raise TypeError(f"{what} does not work on four-vectors")
    elif number_types.primitive(content) in ("S", "") and not content.layout.is_unknown:
        raise TypeError(f"{what} needs numbers")
    lists = array_of(Loop(loop.frame, loop.inner, Column(loop.inner, content)), loop.frame)
    if name in ("any", "all"):
        return Column(loop.frame, logic.quantified(name, lists, {"axis": 1}))
    if name == "sum" and not four_vectors.is_momentum(content):
        return Column(loop.frame, integer_overflow.reduced(name, lists, axis=1))
    result = getattr(ak, name)(lists, axis=1)
    if name in ("min", "max") and ak.any(np.isinf(result), axis=None):
        # NaN is ignored; where there is nothing else, awkward returns infinity
        result = getattr(ak, f"nan{name}")(lists, axis=1)
    return Column(loop.frame, result)


def _sum_of_momenta(loop: Loop) -> Value | None:
    """Return the sums of momenta; None if they are no momenta, or some are missing.

    If the momenta come from another sequence, their components are computed there.
    """
    import numpy as np

    source = loop.origin or loop
    content = array_of(source.element, source.inner)
    if is_list(content) or not four_vectors.is_momentum(content):
        return None
    components = four_vectors.components(content)
    if components is None:
        return None
    index, owner = loop.inner.index_to(source.inner), loop.inner.index_to(loop.frame)
    sums = {
        name: np.bincount(
            owner, values if index is None else values[index], minlength=loop.frame.length
        )
        for name, values in components.items()
    }
    return Column(loop.frame, four_vectors.from_components(sums))
