"""The expression language: its syntax, its errors and its values."""

import contextlib

import awkward as ak
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uproot.language.python import PythonLanguage

from servicex_server.columnar.expression import parse
from servicex_server.columnar.expression_evaluator import evaluate
from servicex_server.columnar.expression_nodes import names
from servicex_server.columnar.functions import FUNCTIONS
from servicex_server.errors import QueryError, QueryTypeError, UnknownNameError

COLUMNS = {
    "x": ak.Array([1.0, -2.0, 3.5]),
    "n": ak.Array([0, 1, 2]),
    "flag": ak.Array([True, False, True]),
    "jets": ak.Array([[1.0, 2.0], [], [3.0]]),
    "deep": ak.Array([[[1.0], [2.0, 3.0]], [], [[]]]),
    "Aux.pt": ak.Array([10.0, 20.0, 30.0]),
}


def compute(text: str, *, standard_axis: bool = False) -> object:
    """Return the value of an expression on the columns above, as lists."""
    result = evaluate(parse(text), COLUMNS.__getitem__, standard_axis=standard_axis, text=text)
    return ak.to_list(result)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x * 2 + 1", [3.0, -3.0, 8.0]),
        ("-x", [-1.0, 2.0, -3.5]),
        ("~flag", [False, True, False]),
        ("not n", [True, False, False]),
        ("n and flag", [False, False, True]),
        ("n == 1 or flag", [True, True, True]),
        ("0 < n < 2", [False, True, False]),
        ("(x > 0) & flag", [True, False, True]),
        ("jets[jets > 1]", [[2.0], [], [3.0]]),
        ("sum(jets)", [3.0, 0.0, 3.0]),
        ("any(jets > 1.5)", [True, False, True]),
        ("max(jets)", [2.0, None, 3.0]),
        ("num(jets)", [2, 0, 1]),
        ("fill_none(firsts(jets), -1)", [1.0, -1.0, 3.0]),
        ("flatten(deep)", [[1.0, 2.0, 3.0], [], []]),
        ("concatenate([jets, jets])", [[1.0, 2.0, 1.0, 2.0], [], [3.0, 3.0]]),
        ("where(flag, x, 0.0)", [1.0, 0.0, 3.5]),
        ("Aux.pt / 10", [1.0, 2.0, 3.0]),
        ("get('Aux.pt')", [10.0, 20.0, 30.0]),
        ("jets[:, 0:1]", [[1.0], [], [3.0]]),
        ("factorial(n)", [1.0, 1.0, 2.0]),
        ("combinations(jets, 2)['0']", [[1.0], [], []]),
    ],
)
def test_expression_has_the_expected_value(text: str, expected: object) -> None:
    """Operators and functions work element by element, and functions within each event."""
    assert compute(text) == expected


def test_standard_axis_changes_only_the_default() -> None:
    """The default axis of awkward may combine events, and is refused; a given axis is used."""
    assert compute("sum(jets, axis=1)", standard_axis=True) == compute("sum(jets)")
    assert compute("flatten(deep, axis=2)", standard_axis=True) == compute("flatten(deep)")
    for text in ("sum(jets)", "flatten(deep)", "concatenate([jets, jets])"):
        with pytest.raises(QueryTypeError, match="at character 1"):
            compute(text, standard_axis=True)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "x.__class__",
        "sum(jets).__class__.__bases__",
        "(lambda: 1)()",
        "[y for y in x]",
        "x if flag else n",
        "f'{x}'",
        "x := 3",
        "open('/etc/passwd')",
        "eval('1')",
        "x in [1, 2]",
        "sum(jets, highlevel=False)",
        "b'bytes'",
        "1j",
        "...",
        "await x",
        "*x",
    ],
)
def test_expression_can_reach_only_columns(text: str) -> None:
    """The parser refuses names of Python, attributes with two underscores, and statements."""
    with pytest.raises(QueryError):
        parse(text)


def test_syntax_error_shows_the_place() -> None:
    """The message contains the text, with a caret at the error."""
    with pytest.raises(QueryError, match=r"cut has a syntax error .* at character 13") as error:
        parse("met_et > 10 10", what="cut")
    assert error.value.message.splitlines()[-1].index("^") == 12


def test_unknown_function_is_refused_with_the_nearest_name() -> None:
    """The parser refuses a function that does not exist, and suggests the nearest one."""
    with pytest.raises(UnknownNameError, match="did you mean sqrt"):
        parse("sqroot(x)")


@pytest.mark.parametrize(
    "text", ["(" * 10_000 + "x" + ")" * 10_000, "-" * 50_000 + "x", "x+" * 20_000 + "x", "x\0y"]
)
def test_deep_nesting_is_a_query_error(text: str) -> None:
    """Too deep nesting raises an error of the query, never an error of the interpreter."""
    with pytest.raises(QueryError):
        parse(text)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", ["9**9**9**9", "x * 9**9**9", "2 << 9999999999", "10**400 * x"])
def test_constants_cannot_grow_without_a_limit(text: str) -> None:
    """The evaluator computes literals in floating point, which takes little time and memory."""
    with contextlib.suppress(QueryTypeError):
        compute(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x + 'a'", "cannot compute"),
        ("sum(x)", "one value per event"),
        ("flatten(jets)", "lists of lists"),
        ("jets + x[n > 0]", "cannot compute"),
        ("jets[:, 5]", "cannot compute"),
    ],
)
def test_shape_mismatch_is_a_query_error(text: str, words: str) -> None:
    """Shapes and types that do not fit raise an error of the query that shows the text."""
    with pytest.raises(QueryTypeError, match=words):
        compute(text)


def test_names_of_an_expression_are_found_in_order() -> None:
    """The result contains all names, also those within functions and subscripts."""
    assert [n.name for n in names(parse("sqrt(a**2 + b.c)[d > 0]"))] == ["a", "b.c", "d"]


def test_all_functions_of_uproot_are_available() -> None:
    """An expression can call every function of uproot's own language."""
    assert set(PythonLanguage.default_functions) <= FUNCTIONS


_numbers = st.sampled_from(["x", "y", "2", "0.5"])
_expressions = st.recursive(
    _numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        inner.map(lambda e: f"(-{e})"),
        inner.map(lambda e: f"abs({e})"),
        inner.map(lambda e: f"hypot({e}, 1)"),
        st.tuples(inner, inner).map(lambda t: f"where({t[0]} > {t[1]}, {t[0]}, x)"),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(_expressions)
def test_values_equal_those_of_python(text: str) -> None:
    """The evaluator and Python compute the same values from the same text on numpy arrays."""
    columns = {"x": np.array([1.5, -2.0, 0.0, 7.25]), "y": np.array([-3.0, 0.25, 4.0, 1e3])}
    functions = {"abs": np.abs, "hypot": np.hypot, "where": np.where}
    with np.errstate(all="ignore"):
        expected = eval(text, {"__builtins__": {}}, {**columns, **functions})
        got = evaluate(parse(text), lambda name: ak.Array(columns[name]))
    assert np.array_equal(np.asarray(got), np.asarray(expected), equal_nan=True)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """The parser returns an expression or raises an error of the query, and nothing else."""
    with contextlib.suppress(QueryError):
        parse(text)
