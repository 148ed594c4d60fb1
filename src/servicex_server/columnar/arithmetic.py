"""Operators on columns as they are in Python: whole numbers stay right, missing values missing.

numpy's own rules differ where columns are narrow: the sum of two truth values is no number, and
what is below zero wraps around where a branch is unsigned. Here both give the integer.
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

BINARY = frozenset(_OPERATORS)
UNARY = frozenset(("-", "+", "~", "not"))


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
    constants = isinstance(left, int | float) and isinstance(right, int | float)
    if constants and symbol == "**":
        # Python would compute 9**9**9 exactly, and for ever
        return float(left) ** float(right)
    if constants and symbol == "<<":
        raise TypeError("<< needs a column on one side")
    if symbol in _ARITHMETIC:
        left, right = _numbers(symbol, left, right, kinds)
    return _OPERATORS[symbol](left, right)


def _numbers(symbol: str, left: Any, right: Any, kinds: tuple[str, str]) -> tuple[Any, Any]:
    """Widen what numpy would compute in too narrow a type."""
    left, right = (int(one) if isinstance(one, bool) else one for one in (left, right))
    if kinds == ("b", "b"):
        return _as(left, "int64"), _as(right, "int64")
    if symbol == "**" and kinds[0] in "biu" and kinds[1] in "iu":
        # whether an exponent is negative may differ from event to event, a type may not
        constant = isinstance(right, int) and not isinstance(right, bool)
        if (constant and right < 0) or (not constant and kinds[1] == "i"):
            return _as(left, "float64"), right
    for one, other, kind in ((left, right, kinds[0]), (right, left, kinds[1])):
        fits = not isinstance(other, int) or _holds(one, other)
        if kind == "u" and (symbol == "-" or not fits):
            return _signed(left), _signed(right)
        if kind == "i" and not fits:
            return _as(left, "int64"), _as(right, "int64")
    return left, right


def _holds(array: Any, constant: int) -> bool:
    import numpy as np

    found = None if isinstance(array, int | float) else leaf(array)
    if found is None or found.kind not in "iu":
        return True
    return bool(np.iinfo(found).min <= constant <= np.iinfo(found).max)


def _signed(array: Any) -> Any:
    return _as(array, "int64") if primitive(array) in ("u", "b") else array


def _as(array: Any, dtype: str) -> Any:
    import awkward as ak

    if isinstance(array, int | float):
        return float(array) if dtype.startswith("float") else array
    return ak.values_astype(array, dtype)


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
    if symbol == "~":
        if isinstance(value, bool):
            return not value
        return ~value
    number = int(value) if isinstance(value, bool) else value
    if kind in ("b", "u"):
        number = _as(number, "int64")
    return -number if symbol == "-" else number


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
