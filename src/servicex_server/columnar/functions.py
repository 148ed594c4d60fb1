"""The functions a query may call, and along which axis they work.

The first group is uproot's expression language (uproot.language.python, 5.7); the second are the
awkward functions that upstream's ``uproot-raw`` adds. The rows of a query are events, so where
awkward's default axis would mix events (``axis=None`` or 0), the default here is within each event.
func_adl has more functions of numpy.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from servicex_server.columnar import integer_overflow, logic, number_types, operators
from servicex_server.columnar.event_arrays import as_lists, event_first
from servicex_server.columnar.event_axis import (
    ROW_OF_ARRAYS,
    SIGNATURES,
    Column,
    axis_of,
    bound,
    check_call,
    compares,
    kind_of,
)
from servicex_server.columnar.limits import MAX_CHOSEN, MAX_LENGTH
from servicex_server.columnar.sizes import check_size

_NUMPY = (
    "absolute arccos arccosh arcsin arcsinh arctan arctan2 arctanh cbrt ceil conjugate "
    "copysign cos cosh exp exp2 expm1 fabs floor fmax fmin hypot imag isfinite isinf isnan "
    "log log10 log1p log2 logical_and logical_or logical_not nextafter real rint round "
    "signbit sin sinh sqrt tan tanh trunc"
).split()
_NUMPY_ALIASES = {
    "abs": "absolute",
    "acos": "arccos",
    "acosh": "arccosh",
    "asin": "arcsin",
    "asinh": "arcsinh",
    "atan": "arctan",
    "atan2": "arctan2",
    "atanh": "arctanh",
    "conj": "conjugate",
}
_MORE_OF_NUMPY = (
    "deg2rad degrees float_power fmod heaviside logaddexp logaddexp2 logical_xor rad2deg radians "
    "reciprocal sign square"
).split()
_SYMBOLS = {"logical_and": "and", "logical_or": "or"}
_UNARY_SYMBOLS = {"logical_not": "not", "neg": "-"}
_SPECIAL = ("erf", "erfc", "factorial", "gamma", "lgamma", "tgamma")
_REDUCERS = (
    "count count_nonzero sum nansum prod nanprod any all min nanmin max nanmax argmin "
    "nanargmin argmax nanargmax moment mean nanmean var nanvar std nanstd softmax"
).split()
_COMPUTING = frozenset("mean nanmean moment var nanvar std nanstd softmax".split())
"""Functions that multiply and subtract, so that integers of few bits would overflow, and that
combine a column with a sum of itself, for which awkward aligns the last axes."""
_OVERFLOWING = frozenset("sum nansum prod nanprod".split())
"""Functions whose results may overflow."""
_AWKWARD = (
    "where num sort argsort mask is_none drop_none pad_none fill_none firsts singletons "
    "broadcast_arrays broadcast_fields cartesian argcartesian combinations argcombinations "
    "concatenate flatten isclose almost_equal"
).split()

FUNCTIONS: frozenset[str] = frozenset(
    (*_NUMPY, *_NUMPY_ALIASES, *_UNARY_SYMBOLS, *_SPECIAL, *_AWKWARD, *_REDUCERS)
)
"""Every function an expression may call, besides ``get("branch name")``."""

ELEMENTWISE: frozenset[str] = frozenset(
    (*_NUMPY, *_NUMPY_ALIASES, *_UNARY_SYMBOLS, *_MORE_OF_NUMPY, *_SPECIAL)
)
"""Functions that give one value for each value, and a missing one for a missing one. Some are only
in func_adl, because in an expression their names may be names of branches."""

OF_TWO: frozenset[str] = frozenset(
    (
        "arctan2 atan2 copysign float_power fmax fmin fmod heaviside hypot logaddexp logaddexp2 "
        "logical_and logical_or logical_xor nextafter"
    ).split()
)
"""Functions of `ELEMENTWISE` that take two values."""

KEYWORDS: frozenset[str] = frozenset(
    (
        "ascending axis clip ddof equal_nan fields initial keepdims mask_identity mergebool n "
        "nested replacement rtol atol stable target valid_when value weight"
    ).split()
)
"""Every argument an expression may give by name."""


_CONSTANTS: Mapping[str, tuple[str, int, int]] = {
    "pad_none": ("target", 1, MAX_LENGTH),
    "combinations": ("n", 1, MAX_CHOSEN),
    "argcombinations": ("n", 1, MAX_CHOSEN),
}
"""Arguments that set the size of a result: the name, the position, and the largest value."""


class NoListError(TypeError):
    """A function of lists was given a column without lists, or without lists of lists."""

    hint = "use a branch that has such lists"


def check_constants(name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Refuse constant arguments that would make a result too large for any memory.

    Parameters
    ----------
    name
        The function.
    arguments, keywords
        The constant arguments; None in place of the others.

    Raises
    ------
    ValueError
        A constant is too large; the message names the argument and the limit.
    """
    if name not in _CONSTANTS:
        return
    keyword, position, most = _CONSTANTS[name]
    value = keywords.get(keyword, arguments[position] if len(arguments) > position else None)
    if isinstance(value, int | float) and value > most:
        raise ValueError(f"{keyword} of {name} may be at most {most}")


def call(
    name: str, arguments: Sequence[Any], keywords: Mapping[str, Any], *, standard_axis: bool
) -> Any:
    """Call one of `FUNCTIONS` or `ELEMENTWISE` on arrays.

    Parameters
    ----------
    name
        The function.
    arguments, keywords
        Arrays and literals, as awkward's function of that name takes them.
    standard_axis
        Whether to use awkward's own default axis instead of the one within each event.
    """
    import awkward as ak

    if name in ELEMENTWISE:
        return _elementwise(name, operators.aligned(event_first(*arguments)))
    kinds = [kind_of(one) for one in arguments]
    named = {key: kind_of(one) for key, one in keywords.items()}
    if compares(name, kinds, named):
        sides = operators.aligned(event_first(*arguments))
        return functools.reduce(functools.partial(operators.lesser, name), sides)
    check_call(name, kinds, named, standard_axis=standard_axis)
    keywords = dict(keywords)
    if SIGNATURES[name].has_axis:
        given = bound(name, kinds, named)
        if "axis" not in given:
            keywords["axis"] = axis_of(name, given, standard_axis=standard_axis)
    arguments = _arguments(name, arguments, keywords)
    check_constants(name, arguments, keywords)
    check_size(name, arguments, keywords)
    if name == "where" and not keywords:
        return logic.either(*operators.aligned(arguments))
    axis = dict(zip(("axis",), arguments[1:], strict=False))
    if name in ("any", "all"):
        return logic.quantified(name, arguments[0], axis | keywords)
    if name == "pad_none" and isinstance(kinds[0], Column) and kinds[0].optional:
        # awkward 2.14 returns lists of other events where the lists of some events are missing
        lists = ak.fill_none(arguments[0], [], axis=0)
        padded = ak.pad_none(lists, *arguments[1:], **keywords)
        return ak.mask(padded, ~ak.is_none(arguments[0]))
    if name in _OVERFLOWING:
        return integer_overflow.reduced(name, arguments[0], **axis, **keywords)
    return getattr(ak, name)(*arguments, **keywords)


def _arguments(name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> list[Any]:
    """Return arguments as awkward takes them.

    Raises
    ------
    TypeError
        The function works on lists, and the column has none.
    """
    import awkward as ak
    import numpy as np

    if name in ROW_OF_ARRAYS:
        row = arguments[0] if isinstance(arguments[0], list | tuple | dict) else arguments
        if isinstance(row, dict):
            fields = zip(row, event_first(*row.values()), strict=True)
            return [dict(fields), *arguments[1:]]
        several = list(event_first(*row))
        return several if row is arguments else [several, *arguments[1:]]
    arguments = list(event_first(*arguments))
    if name in _COMPUTING:
        arguments = [
            operators.widened(as_lists(one)) if _is_array(one) else one for one in arguments
        ]
    if name == "where" and keywords and isinstance(arguments[0], bool | int | float | np.generic):
        array = next((a for a in arguments if isinstance(a, ak.Array)), ak.Array([0]))
        arguments[0] = ak.full_like(array, bool(arguments[0]), dtype=bool)
    depth = getattr(arguments[0], "ndim", 0)
    if name in ("min", "max") and len(arguments) > 1 and arguments[1] >= depth:
        raise TypeError(
            f"{name}(x, {arguments[1]}) takes {arguments[1]} for an axis, which x does not have; "
            f"f{name}(x, {arguments[1]}) compares with the number"
        )
    axis = keywords.get("axis")
    if isinstance(axis, int) and _is_array(arguments[0]) and axis >= depth:
        needed = "a list" if axis == 1 else "lists of lists"
        has = "value" if depth < 2 else "list"  # noqa: PLR2004
        raise NoListError(
            f"{name} needs {needed} in each event; this column has one {has} per event"
        )
    return arguments


def _is_array(value: Any) -> bool:
    return hasattr(value, "layout")


def _elementwise(name: str, arguments: Sequence[Any]) -> Any:
    """Call one of `ELEMENTWISE`; whole numbers are computed in 64 bits, as by the operators."""
    import numpy as np

    if name in _SPECIAL:
        return _special(name, arguments[0])
    if name in _SYMBOLS:
        return operators.logical(_SYMBOLS[name], *arguments)
    if name in _UNARY_SYMBOLS:
        return operators.unary(_UNARY_SYMBOLS[name], arguments[0])
    if name == "square":
        return operators.binary("*", arguments[0], arguments[0])
    if name in ("abs", "absolute") and _is_array(arguments[0]):
        arguments = [operators.negatable(operators.widened(arguments[0]))]
    columns = any(map(_is_array, arguments))
    # a constant takes the width of the column beside it
    wide = [
        one if columns and not _is_array(one) else operators.widened(one)
        for one in map(number_types.number, arguments)
    ]
    return getattr(np, _NUMPY_ALIASES.get(name, name))(*wide)


def _special(name: str, values: Any) -> Any:
    """Call a function that numpy lacks, element by element, with the one of the C library."""
    import awkward as ak
    import numpy as np

    table: dict[str, Any] = {
        "erf": math.erf,
        "erfc": math.erfc,
        "gamma": math.gamma,
        "tgamma": math.gamma,
        "lgamma": math.lgamma,
        "factorial": lambda x: math.gamma(round(x) + 1),
    }
    function = table[name]

    def safe(x: float) -> float:
        try:
            return float(function(x))
        except OverflowError:
            return math.inf
        except ValueError:
            return math.nan

    if isinstance(values, int | float):
        return safe(values)
    each = np.vectorize(safe, otypes=[np.float64])

    def on_leaves(layout: Any, **_: Any) -> Any:
        if layout.is_numpy:
            leaves: Any = ak.contents.NumpyArray
            return leaves(each(layout.data))
        return None

    return ak.transform(on_leaves, ak.Array(values))
