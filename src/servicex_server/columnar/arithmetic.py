"""Operators on columns as they are in Python: whole numbers stay right, missing values missing.

numpy computes in the types of the columns: the sum of two numbers of 8 bits has 8 bits, that of two
truth values is no number, and what is below zero wraps around where a branch is unsigned. Here
whole numbers are computed in 64 bits, with a sign; without one only where a column of unsigned 64
bits is added to, multiplied or divided by what has no sign either. Columns that are not computed
with keep their types.
"""

import operator
from collections.abc import Callable
from typing import Any

_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}
_BITS: dict[str, Callable[[Any, Any], Any]] = {
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "<<": operator.lshift,
    ">>": operator.rshift,
}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_OPERATORS = _ARITHMETIC | _BITS | _COMPARE

_UNARY: dict[str, Callable[[Any], Any]] = {
    "-": operator.neg,
    "+": operator.pos,
    "~": operator.invert,
}

BINARY = frozenset(_OPERATORS)
UNARY = frozenset((*_UNARY, "not"))

_SIGNED_END = 1 << 63


def _core(array: Any) -> Any:
    """Return what lies below the lists and missing values of an array: texts, numbers, records."""
    layout = array.layout
    while layout.is_option or layout.is_indexed or layout.is_list:
        if layout.parameter("__array__") in ("string", "bytestring"):
            break
        layout = layout.content
    return layout


def leaf(array: Any) -> Any:
    """Return numpy's type of the numbers in an array, or None if there are none."""
    import numpy as np

    core = _core(array)
    return np.dtype(core.dtype) if core.is_numpy else None


def primitive(array: Any) -> str:
    """Return the kind of a column's numbers by numpy's letter; ``S`` for texts, else nothing."""
    if isinstance(array, bool):
        return "b"
    if isinstance(array, int | float):
        return "i" if isinstance(array, int) else "f"
    if isinstance(array, str) or _core(array).is_list:
        return "S"
    found = leaf(array)
    return "" if found is None else str(found.kind)


def binary(symbol: str, left: Any, right: Any) -> Any:
    """Apply an operator to two arrays, or an array and a constant, or two constants."""
    kinds = primitive(left), primitive(right)
    if "S" in kinds and (symbol not in ("==", "!=") or kinds != ("S", "S")):
        raise TypeError("texts can only be compared, with == and !=, and only with texts")
    if symbol in _COMPARE:
        left, right = _comparable(left, right), _comparable(right, left)
    elif symbol in _ARITHMETIC:
        left, right = _numbers(symbol, left, right, kinds)
    elif kinds != ("b", "b") or symbol in ("<<", ">>"):
        left, right = wide(left, right)
    return _OPERATORS[symbol](left, right)


def _numbers(symbol: str, left: Any, right: Any, kinds: tuple[str, str]) -> tuple[Any, Any]:
    """Return both sides of an operator in types in which the result is right."""
    if symbol == "**" and kinds[0] in "biu" and kinds[1] in "iu":
        # whether an exponent is negative may differ from event to event, a type may not
        negative = right < 0 if isinstance(right, int) else kinds[1] == "i"
        if negative:
            return _as(left, "float64"), _as(right, "float64")
    if "f" in kinds and _is_constant(left) and _is_constant(right):
        # Python does not divide by zero
        return _as(left, "float64"), _as(right, "float64")
    return wide(left, right, signed=symbol == "-")


def wide(one: Any, other: Any, *, signed: bool = False) -> tuple[Any, Any]:
    """Return two columns or constants of whole numbers in 64 bits; all else as it is.

    They are unsigned only where one of them has to be, and neither may be below zero, nor the
    result, which ``signed`` tells.
    """
    sides = one, other
    if any(primitive(side) not in ("b", "i", "u") for side in sides):
        return sides
    signed = signed or any(
        side < 0 if isinstance(side, int) else primitive(side) == "i" for side in sides
    )
    dtype = "uint64" if not signed and any(map(_needs_unsigned, sides)) else "int64"
    return _as(one, dtype), _as(other, dtype)


def widened(value: Any) -> Any:
    """Return whole numbers in 64 bits; all else as it is."""
    return wide(value, 0)[0]


def alike(one: Any, other: Any) -> tuple[Any, Any]:
    """Return two columns or constants of numbers in types that one column can hold.

    A constant takes the type of the column, if it fits.
    """
    kinds = {primitive(one), primitive(other)}
    if kinds == {"b"} or not kinds <= {"b", "i", "u", "f"}:
        return one, other
    if "f" in kinds:
        return _beside(one, other), _beside(other, one)
    types = {leaf(side) for side in (one, other) if not _is_constant(side)}
    (found,) = types if len(types) == 1 else (None,)
    if found is None or found.kind == "b" or not (_holds(found, one) and _holds(found, other)):
        return wide(one, other)
    return _as(one, str(found)), _as(other, str(found))


def _beside(side: Any, other: Any) -> Any:
    """Return a constant in the type that a column needs to hold it too."""
    import numpy as np

    if not _is_constant(side):
        return side
    dtype = np.dtype("float64") if _is_constant(other) else leaf(other)
    return np.result_type(dtype, side).type(side)


def _is_constant(side: Any) -> bool:
    return isinstance(side, int | float)


def _needs_unsigned(side: Any) -> bool:
    if isinstance(side, int):
        return side >= _SIGNED_END
    return str(leaf(side)) == "uint64"


def _holds(dtype: Any, side: Any) -> bool:
    """Whether a type of whole numbers has room for a constant; it has for a column of its own."""
    import numpy as np

    if not isinstance(side, int) or dtype.kind not in "iu":
        return True
    return bool(np.iinfo(dtype).min <= side <= np.iinfo(dtype).max)


def _comparable(side: Any, other: Any) -> Any:
    """Return a constant as a number of 64 bits, for the type of a column may be too narrow."""
    import numpy as np

    if not isinstance(side, int) or primitive(other) not in ("b", "i", "u"):
        return side
    return np.uint64(side) if side >= _SIGNED_END else np.int64(side)


def _as(value: Any, dtype: str) -> Any:
    """Return an array, or a constant, in a type; what has it is not copied."""
    import awkward as ak
    import numpy as np

    if _is_constant(value):
        return np.array(value).astype(dtype)[()]
    return value if str(leaf(value)) == dtype else ak.values_astype(value, dtype)


def is_whole(value: Any) -> bool:
    """Whether a constant is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def unary(symbol: str, value: Any) -> Any:
    """Apply ``-``, ``+``, ``~`` (which is *not* on truth values) or ``not``."""
    kind = primitive(value)
    if kind in ("S", ""):
        raise TypeError(f"{symbol} needs numbers")
    if symbol == "not":
        return not value if isinstance(value, int | float) else truth(value) == False  # noqa: E712
    if symbol == "~" and kind == "b":
        return not value if isinstance(value, bool) else ~value
    if symbol == "~" and kind == "f":
        raise TypeError("~ needs whole numbers or truth values")
    number = value if kind == "f" else wide(value, 0, signed=symbol != "+")[0]
    return _UNARY[symbol](number)


def truth(value: Any) -> Any:
    """Return which values count as true: all numbers but 0."""
    kind = primitive(value)
    if kind == "b":
        return value
    if kind in ("S", ""):
        raise TypeError("a text, a list or a record is neither true nor false")
    return value != 0


def logical(symbol: str, left: Any, right: Any) -> Any:
    """Apply ``and`` or ``or``; what is missing counts only where it would make a difference."""
    import awkward as ak

    sides = truth(left), truth(right)
    apply = operator.and_ if symbol == "and" else operator.or_
    if not any(may_miss(one) for one in sides):
        return apply(*sides)
    neutral = symbol == "and"
    filled = [ak.fill_none(one, neutral, axis=-1) if may_miss(one) else one for one in sides]
    result = apply(*filled)
    known = result != neutral
    present = [~ak.is_none(one, axis=-1) if may_miss(one) else True for one in sides]
    return ak.mask(result, known | (present[0] & present[1]))


def may_miss(array: Any) -> bool:
    """Whether the innermost values of a column may be missing."""
    layout = getattr(array, "layout", None)
    while layout is not None and not (layout.is_numpy or layout.is_record or layout.is_unknown):
        if layout.is_option:
            return True
        layout = layout.content
    return False
