"""Whole numbers that need more than 64 bits: they are an error, and never wrap around."""

from typing import Any

from servicex_server.columnar.number_types import (
    SIGNED_END,
    IntegerOverflowError,
    cast,
    core_of,
    leaf,
    primitive,
)
from servicex_server.columnar.symbols import OPERATORS

OVERFLOWING = frozenset(("+", "-", "*", "**", "//"))
"""Operators whose results may need more bits than their operands have."""


_WRAPPED = float(1 << 62)


def check_overflow(symbol: str, left: Any, right: Any, result: Any) -> None:
    """Raise if an integer has wrapped around because it needs more than 64 bits.

    Mostly the minimum and the maximum of the operands rule that out. Otherwise the result is also
    computed in floats: a wrapped integer is off by 2^64 or more, a float by far less.
    """
    if _cannot_overflow(symbol, left, right, leaf(result)):
        return
    in_floats = OPERATORS[symbol](_float(left), _float(right))
    _check_near(result, in_floats, f"a result of {symbol}")


def reduced(name: str, values: Any, **how: Any) -> Any:
    """Return the sums or products of lists, as awkward computes them.

    Raises
    ------
    TypeError
        An integer result needs more than 64 bits.
    """
    import awkward as ak

    reduce = getattr(ak, name)
    result = reduce(values, **how)
    if primitive(values) not in ("i", "u") or not (bounds := _bounds(values)):
        return result
    greatest = max(map(abs, bounds))
    within = len(core_of(values).data) * greatest < SIGNED_END if "sum" in name else greatest <= 1
    if not within:
        _check_near(result, reduce(_float(values), **how), f"a result of {name}")
    return result


def _check_near(result: Any, in_floats: Any, what: str) -> None:
    import awkward as ak

    off = ak.max(abs(in_floats - _float(result)), axis=None)
    if off is not None and not off < _WRAPPED:
        raise IntegerOverflowError(f"{what} needs more than 64 bits")


def _float(value: Any) -> Any:
    return cast(value, "float64") if hasattr(value, "layout") else float(value)


def _cannot_overflow(symbol: str, left: Any, right: Any, dtype: Any) -> bool:
    import numpy as np

    bounds = _bounds(left), _bounds(right)
    if not all(bounds):
        return True  # there are no values
    if symbol == "//":
        return bounds[0][0] != -SIGNED_END  # only the least integer, divided by -1, overflows
    if symbol == "**" and max(map(abs, bounds[1])) > np.iinfo(dtype).bits:
        return False
    corners = [OPERATORS[symbol](one, other) for one in bounds[0] for other in bounds[1]]
    # the extremes of powers may be at neither corner, if the base has both signs
    least, greatest = (-max(map(abs, corners)), max(map(abs, corners)))
    if symbol != "**":
        least, greatest = min(corners), max(corners)
    return bool(least >= np.iinfo(dtype).min and greatest <= np.iinfo(dtype).max)


def _bounds(side: Any) -> tuple[int, ...]:
    """Return the minimum and the maximum of integers, or an empty tuple if there are no values.

    Values that the layout hides may count too.
    """
    import numpy as np

    data = np.asarray(core_of(side).data) if hasattr(side, "layout") else np.asarray(side)
    return (int(data.min()), int(data.max())) if data.size else ()
