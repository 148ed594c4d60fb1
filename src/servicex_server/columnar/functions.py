"""The functions a query may call, and along which axis they work.

The first group is uproot's expression language (uproot.language.python, 5.7); the second are the
awkward functions that upstream's ``uproot-raw`` adds. A query means events by rows, so where
awkward's default would mix events (``axis=None`` or 0) the default here is within each event.
func_adl has more of numpy.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

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
    "neg": "negative",
}
_MORE_OF_NUMPY = (
    "deg2rad degrees float_power fmod heaviside logaddexp logaddexp2 logical_xor rad2deg radians "
    "reciprocal sign square"
).split()
_SPECIAL = ("erf", "erfc", "factorial", "gamma", "lgamma", "tgamma")
_REDUCERS = (
    "count count_nonzero sum nansum prod nanprod any all min nanmin max nanmax argmin "
    "nanargmin argmax nanargmax moment mean nanmean var nanvar std nanstd softmax"
).split()
_AWKWARD = (
    "where num sort argsort mask is_none drop_none pad_none fill_none firsts singletons "
    "broadcast_arrays broadcast_fields cartesian argcartesian combinations argcombinations "
    "isclose almost_equal"
).split()
_WITHIN_EVENT: dict[str, int] = {**dict.fromkeys(_REDUCERS, 1), "concatenate": 1, "flatten": 2}

FUNCTIONS: frozenset[str] = frozenset(
    (*_NUMPY, *_NUMPY_ALIASES, *_SPECIAL, *_AWKWARD, *_WITHIN_EVENT)
)
"""Every function an expression may call, besides ``get("branch name")``."""

ELEMENTWISE: frozenset[str] = frozenset((*_NUMPY, *_NUMPY_ALIASES, *_MORE_OF_NUMPY, *_SPECIAL))
"""Those that give one value for each, and a missing one for a missing one; with those that only
func_adl has, for in an expression their names may be those of branches."""

OF_TWO: frozenset[str] = frozenset(
    (
        "arctan2 atan2 copysign float_power fmax fmin fmod heaviside hypot logaddexp logaddexp2 "
        "logical_and logical_or logical_xor nextafter"
    ).split()
)
"""Those of `ELEMENTWISE` that take two values."""

KEYWORDS: frozenset[str] = frozenset(
    (
        "ascending axis clip ddof equal_nan fields initial keepdims mask_identity mergebool n "
        "nested replacement rtol atol stable target valid_when value weight"
    ).split()
)
"""Every argument an expression may give by name."""


def number(value: Any) -> Any:
    """Return a literal as it is, refusing integers that no column holds."""
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return float(value) if abs(value) < 2**1023 else math.copysign(math.inf, value)
    return value


def call(
    name: str, arguments: Sequence[Any], keywords: Mapping[str, Any], *, standard_axis: bool
) -> Any:
    """Call one of `FUNCTIONS` or `ELEMENTWISE` on arrays.

    Parameters
    ----------
    name
        The function.
    arguments, keywords
        Arrays and literals; what awkward's function of that name takes.
    standard_axis
        Whether awkward's own default axis holds.
    """
    import awkward as ak
    import numpy as np

    if name in _SPECIAL:
        return _special(name, arguments[0])
    if name in ELEMENTWISE:
        return getattr(np, _NUMPY_ALIASES.get(name, name))(*arguments, **keywords)
    keywords = dict(keywords)
    if name in _WITHIN_EVENT and not standard_axis:
        # a positional axis comes second in all of them but pad_none and fill_none
        second = len(arguments) > (2 if name == "moment" else 1)
        if "axis" not in keywords and not second:
            keywords["axis"] = _WITHIN_EVENT[name]
    if name in ("concatenate", "broadcast_arrays", "cartesian", "argcartesian"):
        arguments = [list(a) if isinstance(a, tuple) else a for a in arguments]
    if name == "where" and np.ndim(arguments[0]) == 0 and isinstance(arguments[0], bool | np.bool_):
        array = next((a for a in arguments if isinstance(a, ak.Array)), ak.Array([0]))
        arguments = [ak.full_like(array, bool(arguments[0]), dtype=bool), *arguments[1:]]
    if name == "flatten" and keywords.get("axis") == 2 and arguments[0].ndim < 3:  # noqa: PLR2004
        raise TypeError(
            "flatten needs lists of lists in each event; there is nothing to flatten here"
        )
    if keywords.get("axis") == 1 and name in _REDUCERS and getattr(arguments[0], "ndim", 0) < 2:  # noqa: PLR2004
        raise TypeError(f"{name} needs a list in each event; this column has one value per event")
    return getattr(ak, name)(*arguments, **keywords)


def _special(name: str, values: Any) -> Any:
    """Functions that numpy lacks, element by element, by the C library's own."""
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
