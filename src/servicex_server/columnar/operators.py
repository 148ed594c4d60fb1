"""Operators on columns with Python's results: integers do not wrap around, missing stays missing.

numpy computes in the types of the columns: the sum of two 8-bit numbers has 8 bits, the sum of two
truth values is a truth value, and a negative result of unsigned numbers wraps around. Here integers
are computed in signed 64 bits. They are computed in unsigned 64 bits only if an unsigned 64-bit
column is added to, multiplied or divided by an unsigned operand. A result that does not fit is an
error. Columns that no operator touches keep their types.

Constants are computed exactly, as Python computes them. Truth values that may be missing follow
Kleene's logic, with ``and`` and ``or`` as with ``&`` and ``|``. Beside a truth value, a number
counts as a truth value too, true unless it is 0: bit by bit, ``(bits & 4) & (pt > 20)`` would never
be true.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

from servicex_server.columnar.integer_overflow import OVERFLOWING, check_overflow
from servicex_server.columnar.limits import MAX_CONSTANT_BITS
from servicex_server.columnar.number_types import (
    SIGNED_END,
    UNSIGNED_END,
    IntegerOverflowError,
    cast,
    core_of,
    is_constant,
    is_integer,
    leaf,
    needs_unsigned,
    number,
    primitive,
)
from servicex_server.columnar.symbols import ARITHMETIC, COMPARE, OPERATORS

_UNARY: dict[str, Callable[[Any], Any]] = {
    "-": operator.neg,
    "+": operator.pos,
    "~": operator.invert,
}

_KLEENE = {"&": "and", "|": "or"}

BINARY = frozenset(OPERATORS)
UNARY = frozenset((*_UNARY, "not"))


def binary(symbol: str, left: Any, right: Any) -> Any:
    """Apply an operator to two arrays, or an array and a constant, or two constants.

    Raises
    ------
    TypeError
        The operator does not work on these types, or a value does not fit into 64 bits.
    """
    kinds = primitive(left), primitive(right)
    if "S" in kinds and (symbol not in ("==", "!=") or kinds != ("S", "S")):
        raise TypeError("texts can only be compared, with == and !=, and only with texts")
    if is_integer(left) and is_integer(right) and _is_exact(symbol, left, right):
        return OPERATORS[symbol](left, right)
    left, right = number(left), number(right)
    if symbol in ("//", "%") and is_integer(left) and is_integer(right):
        return 0  # the divisor is 0, and numpy gives 0 for whole numbers in columns
    if symbol in COMPARE:
        left, right = _comparable(left, right), _comparable(right, left)
    elif symbol in ARITHMETIC:
        left, right = _numbers(symbol, left, right, kinds)
    elif "f" in kinds:
        raise TypeError(
            f"{symbol} needs whole numbers or truth values; comparisons beside it need "
            f"parentheses, as in (a > 1) {symbol} (b > 2)"
        )
    elif "b" in kinds and symbol in _KLEENE:
        return logical(_KLEENE[symbol], left, right)
    elif "b" in kinds and symbol == "^":
        return truth(left) != truth(right)
    elif symbol in ("<<", ">>"):
        left, right = _shifted(left, right)
    else:
        left, right = wide(*_masks(symbol, left, right))
    result = OPERATORS[symbol](left, right)
    if symbol in OVERFLOWING and primitive(result) in ("i", "u"):
        check_overflow(symbol, left, right, result)
    return result


def _is_exact(symbol: str, left: int, right: int) -> bool:
    """Whether Python computes two constants as columns would.

    Raises
    ------
    TypeError
        The result has more than `MAX_CONSTANT_BITS`.
    """
    if symbol in ("**", "<<", ">>") and right < 0:
        return False
    if symbol in ("/", "//", "%") and right == 0:
        return False
    one, other = left.bit_length(), right.bit_length()
    bits = {"**": one * right, "<<": one + right, "*": one + other}.get(symbol, max(one, other))
    if bits > MAX_CONSTANT_BITS:
        raise TypeError(f"a constant has more than {MAX_CONSTANT_BITS} binary digits")
    return True


def _masks(symbol: str, left: Any, right: Any) -> tuple[Any, Any]:
    """Return both sides of a bitwise operator; beside an unsigned column ``~4`` is unsigned."""
    if symbol != "&":
        return left, right
    return _mask(left, right), _mask(right, left)


def _mask(side: Any, other: Any) -> Any:
    negative = is_integer(side) and side < 0
    return side % UNSIGNED_END if negative and needs_unsigned(other) else side


def _shifted(value: Any, places: Any) -> tuple[Any, Any]:
    """Return both sides of a shift; the left side decides whether the result is signed."""
    if any(primitive(side) not in ("b", "i", "u") for side in (value, places)):
        return value, places
    dtype = "uint64" if needs_unsigned(value) else "int64"
    return cast(value, dtype), cast(places, dtype)


def _numbers(symbol: str, left: Any, right: Any, kinds: tuple[str, str]) -> tuple[Any, Any]:
    """Return both sides of an operator, converted to types in which the result is correct."""
    if symbol == "**" and kinds[0] in "biu" and kinds[1] in "iu":
        # an exponent may be negative in some events only, but the type is the same for all events
        negative = right < 0 if isinstance(right, int) else kinds[1] == "i"
        if negative:
            return cast(left, "float64"), cast(right, "float64")
    whole = kinds[0] in ("b", "i", "u") and kinds[1] in ("b", "i", "u")
    if symbol == "/" and whole and (needs_unsigned(left) or needs_unsigned(right)):
        return cast(left, "float64"), cast(right, "float64")
    if is_constant(left) and is_constant(right):
        # Python does not divide by zero
        return cast(left, "float64"), cast(right, "float64")
    return wide(left, right, signed=symbol == "-")


def wide(one: Any, other: Any, *, signed: bool = False) -> tuple[Any, Any]:
    """Convert two integer columns or constants to 64 bits; return other values unchanged.

    They become unsigned only if one of them needs it, and if neither can be negative. The result
    must not be negative either; ``signed`` is true if it can be.

    Raises
    ------
    TypeError
        A value needs all 64 bits, and another one a sign.
    """
    sides = one, other
    if any(primitive(side) not in ("b", "i", "u") for side in sides):
        return sides
    signed = signed or any(
        side < 0 if isinstance(side, int) else primitive(side) == "i" for side in sides
    )
    dtype = "uint64" if not signed and any(map(needs_unsigned, sides)) else "int64"
    return cast(one, dtype), cast(other, dtype)


def widened(value: Any) -> Any:
    """Convert integers to 64 bits; return other values unchanged."""
    return wide(value, 0)[0]


def alike(one: Any, other: Any) -> tuple[Any, Any]:
    """Convert two columns or constants of numbers to types that fit into one column.

    A constant takes the type of the column, if it fits.
    """
    kinds = {primitive(one), primitive(other)}
    if kinds == {"b"} or not kinds <= {"b", "i", "u", "f"}:
        return one, other
    if "f" in kinds:
        return _beside(one, other), _beside(other, one)
    types = {leaf(side) for side in (one, other) if not is_constant(side)}
    (found,) = types if len(types) == 1 else (None,)
    if found is None or found.kind == "b" or not (_holds(found, one) and _holds(found, other)):
        return wide(one, other)
    return cast(one, str(found)), cast(other, str(found))


def _beside(side: Any, other: Any) -> Any:
    """Return a constant in the type that a column needs to hold it too."""
    import numpy as np

    if not is_constant(side):
        return side
    dtype = np.dtype("float64") if is_constant(other) else leaf(other)
    return np.result_type(dtype, side).type(side)


def _holds(dtype: Any, side: Any) -> bool:
    """Whether an integer type can hold a constant; true for a column."""
    import numpy as np

    if not isinstance(side, int) or dtype.kind not in "iu":
        return True
    return bool(np.iinfo(dtype).min <= side <= np.iinfo(dtype).max)


def _comparable(side: Any, other: Any) -> Any:
    """Return a constant as a 64-bit number, because the type of a column may be too narrow."""
    import numpy as np

    if not isinstance(side, int) or primitive(other) not in ("b", "i", "u"):
        return side
    return np.uint64(side) if side >= SIGNED_END else np.int64(side)


def unary(symbol: str, value: Any) -> Any:
    """Apply ``-``, ``+``, ``~`` (which is *not* on truth values) or ``not``."""
    if symbol == "not":
        found = truth(value)
        return not found if isinstance(found, bool) else ~found
    kind = primitive(value)
    if kind == "" and core_of(value).is_unknown:
        return value
    if kind in ("S", ""):
        raise TypeError(f"{symbol} needs numbers")
    if symbol == "~" and kind == "b":
        return not value if isinstance(value, bool) else ~value
    if symbol == "~" and kind == "f":
        raise TypeError("~ needs whole numbers or truth values")
    if is_constant(value) or kind == "f":
        return _UNARY[symbol](value)
    value = wide(value, 0, signed=symbol != "+")[0]
    return _UNARY[symbol](negatable(value) if symbol == "-" else value)


def negatable(value: Any) -> Any:
    """Return a value unchanged if its integers can be negated.

    Raises
    ------
    TypeError
        An integer is the least of 64 bits, whose opposite needs more bits.
    """
    import awkward as ak

    if primitive(value) == "i" and ak.min(value, axis=None) == -SIGNED_END:
        raise IntegerOverflowError(f"the opposite of {-SIGNED_END} needs more than 64 bits")
    return value


def truth(value: Any) -> Any:
    """Return which values are true: all numbers except 0."""
    import awkward as ak

    kind = primitive(value)
    if kind == "b":
        return value
    if kind == "" and core_of(value).is_unknown:
        return ak.values_astype(value, bool, including_unknown=True)
    if kind in ("S", ""):
        raise TypeError("a text, a list or a record is neither true nor false")
    return value != 0


def lesser(name: str, one: Any, other: Any) -> Any:
    """Return the lesser (``min``) or greater (``max``) of two values, element by element."""
    import numpy as np

    one, other = alike(one, other)
    return (np.minimum if name == "min" else np.maximum)(one, other)


def logical(symbol: str, left: Any, right: Any) -> Any:
    """Apply Kleene's ``and`` or ``or``: a missing value counts only where it decides."""
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


def aligned(values: Sequence[Any]) -> Sequence[Any]:
    """Spread an event's missing value over the elements of its lists in the other columns.

    awkward would make the whole list missing instead, even an empty one, and lose its length.
    """
    import awkward as ak
    import numpy as np

    arrays = [one for one in values if isinstance(one, ak.Array)]
    deepest = max(arrays, key=lambda one: one.ndim, default=None)
    if deepest is None or deepest.ndim == 1 or not any(map(_lacks, arrays)):
        return values
    events = ak.broadcast_arrays(np.arange(len(deepest)), deepest)[0]
    return [_spread(one, events) if _lacks(one) else one for one in values]


def _lacks(value: Any) -> bool:
    """Whether a column has one number per event, and the number of some events is missing."""
    layout = getattr(value, "layout", None)
    return layout is not None and bool(layout.is_option) and primitive(value) in tuple("biuf")


def _spread(column: Any, events: Any) -> Any:
    """Return the values of a column at indices of events, which are in lists."""
    import awkward as ak

    def at(layout: Any, **_: Any) -> Any:
        return column[layout.data].layout if layout.is_numpy else None

    return ak.transform(at, events) if column.ndim == 1 else column


def known(condition: Any) -> Any:
    """Return a condition with missing replaced by false, so that it can select."""
    import awkward as ak

    missing = may_miss(condition)
    return ak.fill_none(condition, False, axis=-1) if missing else condition  # noqa: FBT003


def may_miss(array: Any) -> bool:
    """Whether the innermost values of a column may be missing."""
    layout = getattr(array, "layout", None)
    while layout is not None and not (layout.is_numpy or layout.is_record or layout.is_unknown):
        if layout.is_option:
            return True
        layout = layout.content
    return False
