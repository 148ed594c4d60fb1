"""Buffers small ranges of columns until they are large enough for a row group or a cluster.

Numbers and lists of numbers are handled with numpy: for a hundred columns, awkward's own functions
take longer than the compression of the result.

The module loads numpy and awkward: import it where it is used.
"""

from typing import Any

import awkward as ak
import numpy as np
from awkward.contents import IndexedOptionArray, ListOffsetArray, NumpyArray
from awkward.index import Index64


def packed(array: Any) -> Any:
    """Return the layout of an array, without data that the array does not use.

    Otherwise a few entries that passed a cut would keep all entries that they were chosen from.
    Categories become their values, because different sets of categories cannot be concatenated.
    Missing values are marked in one way, because an RNTuple of uproot accepts only the way of its
    first range.
    """
    layout = ak.to_layout(array, regulararray=True)
    if _is_plain(layout):
        return layout
    if any(word in str(layout.form) for word in ("categorical", "Masked", "masked")):
        layout = ak.transform(_unified, layout, highlevel=False)
    return layout.to_packed()


def joined(layouts: list[Any]) -> Any:
    """Concatenate layouts of the same type."""
    if len(layouts) == 1:
        return layouts[0]
    first = layouts[0]
    if not all(map(_is_plain, layouts)):
        return ak.concatenate(layouts, highlevel=False)
    if first.is_numpy:
        return _numbers(layouts)
    ends = np.cumsum([0, *(layout.content.length for layout in layouts)])
    parts = [layout.offsets.data[1:] + end for layout, end in zip(layouts, ends[:-1], strict=True)]
    offsets = Index64(np.concatenate([np.zeros(1, np.int64), *parts]))
    content = _numbers([layout.content for layout in layouts])
    return ListOffsetArray(offsets, content, parameters=first.parameters)


def _numbers(layouts: list[Any]) -> Any:
    values = np.concatenate([layout.data for layout in layouts])
    return NumpyArray(values, parameters=layouts[0].parameters)


def _is_plain(layout: Any) -> bool:
    """Whether a layout is numbers, or lists that use all numbers of their content in order."""
    if isinstance(layout, ListOffsetArray):
        if not isinstance(layout.content, NumpyArray):
            return False
        offsets, content = layout.offsets.data, layout.content
        if not isinstance(offsets, np.ndarray) or offsets[0] or offsets[-1] != content.length:
            return False
        layout = content
    return (
        isinstance(layout, NumpyArray)
        and isinstance(layout.data, np.ndarray)
        and layout.data.ndim == 1
        and layout.data.flags.c_contiguous
    )


def _unified(layout: Any, **_: Any) -> Any:
    """Replace categories by their values, and masks by an index."""
    category = layout.parameter("__array__") == "categorical"
    if layout.is_option:
        index = layout.to_IndexedOptionArray64()
        content = ak.transform(_unified, index.content, highlevel=False)
        return IndexedOptionArray.simplified(
            index.index, content, parameters=None if category else layout.parameters
        )
    return ak.transform(_unified, layout.project(), highlevel=False) if category else None
