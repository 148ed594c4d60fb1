"""The types of numbers in columns, and constants beside them."""

import math
from typing import Any

from servicex_server.columnar.limits import MAX_CONSTANT_BITS

SIGNED_END = 1 << 63
UNSIGNED_END = 1 << 64


class IntegerOverflowError(TypeError):
    """An integer result needs more than 64 bits."""

    hint = "multiply by 1.0 to compute in floats"


def number(value: Any) -> Any:
    """Return a constant unchanged, except for an integer that no column can hold: as a float."""
    if isinstance(value, int) and not -SIGNED_END <= value < UNSIGNED_END:
        if value.bit_length() < MAX_CONSTANT_BITS:
            return float(value)
        return math.inf if value > 0 else -math.inf
    return value


def core_of(array: Any) -> Any:
    """Return the layout below lists and options of an array: texts, numbers or records."""
    layout = array.layout
    while layout.is_option or layout.is_indexed or layout.is_list:
        if layout.parameter("__array__") in ("string", "bytestring"):
            break
        layout = layout.content
    return layout


def leaf(array: Any) -> Any:
    """Return the numpy dtype of the numbers in an array, or None if it has no numbers."""
    import numpy as np

    core = core_of(array)
    return np.dtype(core.dtype) if core.is_numpy else None


def primitive(array: Any) -> str:
    """Return numpy's letter for the kind of a column's numbers; ``S`` for texts, else ``""``."""
    if isinstance(array, bool):
        return "b"
    if isinstance(array, int | float):
        return "i" if isinstance(array, int) else "f"
    if isinstance(array, str) or core_of(array).is_list:
        return "S"
    found = leaf(array)
    return "" if found is None else str(found.kind)


def is_integer(value: Any) -> bool:
    """Whether a value is a constant whole number or truth value."""
    return isinstance(value, int)


def is_constant(side: Any) -> bool:
    """Whether a value is a constant number or truth value."""
    return isinstance(side, int | float)


def cast(value: Any, dtype: str) -> Any:
    """Convert an array or a constant to a type; do not copy an array that has it already."""
    import awkward as ak
    import numpy as np

    if dtype == "int64" and needs_unsigned(value):
        greatest = value if is_constant(value) else ak.max(value, axis=None)
        if greatest is not None and greatest >= SIGNED_END:
            raise IntegerOverflowError(
                f"{greatest} needs all of 64 bits, and the result may be below zero"
            )
    if is_constant(value):
        return np.array(value).astype(dtype)[()]
    return value if str(leaf(value)) == dtype else ak.values_astype(value, dtype)


def is_whole(value: Any) -> bool:
    """Whether a constant is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def needs_unsigned(side: Any) -> bool:
    """Whether a constant or a column may have values that need 64 bits without a sign."""
    if isinstance(side, int):
        return side >= SIGNED_END
    return str(leaf(side)) == "uint64"
