"""Every function of uproot-raw on columns of every kind equals that of awkward, also in ranges."""

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import awkward as ak
import numpy as np
import pytest

from servicex_server.columnar.column_plan import Column, compute_column
from servicex_server.columnar.expression import parse
from servicex_server.columnar.functions import ELEMENTWISE, FUNCTIONS, OF_TWO
from servicex_server.errors import QueryError
from tests.property.test_events_apart import COLUMNS, EVENTS

EMPTY = ak.Array([[]] * EVENTS)
KINDS = {
    "flat": COLUMNS["x"],
    "truth values": COLUMNS["b"],
    "jagged": COLUMNS["j"],
    "doubly jagged": COLUMNS["d"],
    "fixed length": COLUMNS["two"],
    "optional": COLUMNS["maybe"],
    "optional lists": COLUMNS["lists"],
    "optional in lists": ak.pad_none(COLUMNS["j"], 2),
    "records": COLUMNS["r"],
    "empty": ak.values_astype(EMPTY, "int64"),
}
CALLS = {
    **dict.fromkeys(OF_TWO, ("{f}(c, c)", "{f}(c, 2)")),
    "moment": ("moment(c, 2)",),
    "where": ("where(c > 1, c, 0)", "where(c > 1, c, c)"),
    "mask": ("mask(c, c > 1)",),
    "pad_none": ("pad_none(c, 2)",),
    "fill_none": ("fill_none(c, 7)",),
    "isclose": ("isclose(c, c)",),
    "almost_equal": ("almost_equal(c, c)",),
    "combinations": ("combinations(c, 2)",),
    "argcombinations": ("argcombinations(c, 2)",),
    "broadcast_arrays": ("broadcast_arrays(c, c)[0]",),
    "broadcast_fields": ("broadcast_fields(c, c)[0]",),
    **dict.fromkeys(("concatenate", "cartesian", "argcartesian"), ("{f}([c, c])",)),
}
"""How a function is called, where it takes more than a column."""

AXES = {
    **dict.fromkeys("concatenate num firsts pad_none softmax".split(), 1),
    **dict.fromkeys("combinations argcombinations cartesian argcartesian".split(), 1),
    **dict.fromkeys(
        "count count_nonzero sum nansum prod nanprod any all min nanmin max nanmax argmin "
        "nanargmin argmax nanargmax moment mean nanmean var nanvar std nanstd".split(),
        1,
    ),
    "flatten": 2,
}
"""The axis within each event, where awkward's own is another."""

OF_C: dict[str, Callable[[float], float]] = {
    "erf": math.erf,
    "erfc": math.erfc,
    "factorial": lambda x: math.gamma(x + 1),
    "gamma": math.gamma,
    "lgamma": math.lgamma,
    "tgamma": math.gamma,
}

ACROSS = {
    "sort": ("flat", "truth values", "optional"),
    "argsort": ("flat", "truth values", "optional"),
    "drop_none": ("optional", "optional lists"),
    "flatten": ("empty",),
}
"""Where awkward works along the events, so the service refuses."""

MISSING = {
    "any(c)": ("optional in lists",),
    "all(c)": ("optional in lists",),
    "logical_or(c, 2)": ("optional", "optional in lists"),
    "pad_none(c, 2)": ("optional lists",),
}
"""Calls in which awkward 2.14 forgets that values are missing, or confuses lists of events; the
right values of Kleene's logic are in tests/integration/test_logic_and_numbers.py."""


class Functions(dict[str, Any]):
    """Functions of awkward and NumPy under their names in a query."""

    def __missing__(self, name: str) -> Any:
        if name not in FUNCTIONS:
            raise KeyError(name)
        if name in ELEMENTWISE:
            return elementwise(name)
        function = getattr(ak, name)
        axis = {"axis": AXES[name]} if name in AXES else {}
        return lambda *arguments: function(*arguments, **axis)


def elementwise(name: str) -> Callable[..., Any]:
    """Return a function that works on each number."""
    if name in OF_C:
        return lambda array: ak.Array(each(OF_C[name], array.to_list()))
    names = {"abs": "absolute", "conj": "conjugate", "neg": "negative"}
    names |= {f"a{one}": f"arc{one}" for one in "cos cosh sin sinh tan tanh tan2".split()}
    function: Callable[..., Any] = getattr(np, names.get(name, name))
    return lambda *arguments: function(*(widened(one) for one in arguments))


def widened(value: Any) -> Any:
    """Return booleans as 64-bit integers, which is how the service computes them."""
    is_truth = isinstance(value, ak.Array) and "bool" in str(value.type)
    return ak.values_astype(value, "int64") if is_truth else value


def each(function: Callable[[float], float], value: Any) -> Any:
    """Apply a function to each number of nested lists."""
    if isinstance(value, list):
        return [each(function, one) for one in value]
    if value is None:
        return None
    if isinstance(value, dict):
        return {name: each(function, one) for name, one in value.items()}
    try:
        return function(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return math.nan


def calls(name: str) -> list[tuple[str, str]]:
    """Return the calls of a function, each with the kind of its column."""
    return [(one.format(f=name), kind) for one in CALLS.get(name, ("{f}(c)",)) for kind in KINDS]


def ours(text: str, array: Any) -> Any:
    """Return the values that the service computes, as lists, or its error."""
    column = Column("c", text, parse(text))
    try:
        return ak.to_list(compute_column(column, {"c": array}.__getitem__, len(array)))
    except QueryError as error:
        return error


def theirs(text: str, array: Any) -> Any:
    """Return the values that awkward computes, as lists, or its error."""
    try:
        with np.errstate(all="ignore"):
            found = eval(text, {}, Functions(c=array))  # a text of this file
    except Exception as error:  # noqa: BLE001  # whatever awkward and NumPy raise
        return error
    return ak.to_list(found)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_function_gives_the_values_of_awkward(name: str) -> None:
    """The service rejects a call that awkward does not compute within events."""
    for text, kind in calls(name):
        found, expected = ours(text, KINDS[kind]), theirs(text, KINDS[kind])
        if kind in ACROSS.get(name, ()):
            assert isinstance(found, QueryError), (text, kind)
        elif isinstance(found, QueryError):
            assert isinstance(expected, Exception) or not isinstance(expected, list), (text, kind)
        elif kind in MISSING.get(text, ()):
            assert repr(found) != repr(expected), (text, kind)
        elif not isinstance(expected, Exception):
            assert repr(found) == repr(expected), (text, kind)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_function_gives_the_same_values_in_ranges(name: str) -> None:
    """The values of some events do not depend on other events; nor does a rejection."""
    for text, kind in calls(name):
        whole = KINDS[kind]
        found = ours(text, whole)
        ranges = [ours(text, ak.to_packed(one)) for one in (whole[:3], whole[3:])]
        if isinstance(found, QueryError):
            assert any(isinstance(one, QueryError) for one in ranges), (text, kind)
        else:
            assert repr(list(chain.from_iterable(ranges))) == repr(found), (text, kind)
