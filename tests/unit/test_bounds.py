"""Limits of queries: the compilers check sizes first, and refuse what exceeds a limit."""

import json
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import awkward as ak
import numpy as np
import pytest

from servicex_server import plugins
from servicex_server.columnar.column_plan import MAX_ALIASES, ColumnQuery
from servicex_server.columnar.expression import parse
from servicex_server.columnar.expression_evaluator import evaluate
from servicex_server.columnar.expression_nodes import depth_of, walk
from servicex_server.columnar.limits import MAX_CHOSEN, MAX_FORMS, MAX_WORDS
from servicex_server.columnar.number_types import number
from servicex_server.columnar.sizes import combined
from servicex_server.errors import (
    QueryError,
    QueryTypeError,
    ServiceXError,
    UnknownNameError,
    storable,
)
from servicex_server.languages.func_adl import FuncAdl
from servicex_server.languages.python_function import PythonFunction
from servicex_server.languages.uproot_raw import UprootRaw
from servicex_server.model import ResultFormat
from servicex_server.text.hints import nearest
from tests.property.hostile_texts import FUNC_ADL, LANGUAGES, PYTHON, UPROOT_RAW

CALLS = 600_000
"""Calls of functions in Python that compiling any text may make."""

X = ak.Array([[1.0, 2.0, 3.0], [], [4.0, 5.0]])


def calls(work: Callable[[], Any]) -> int:
    """Return how many calls of functions written in Python some work makes."""
    count = 0

    def seen(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        del frame, event, argument
        count += 1  # it returns nothing, so lines and returns are not told of

    before = sys.gettrace()
    sys.settrace(seen)
    try:
        work()
    except ServiceXError:
        pass
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    ("language", "name"),
    [(language, name) for language, made in LANGUAGES.items() for name in made],
)
def test_hostile_text_is_compiled_in_few_steps(language: str, name: str) -> None:
    """The limit holds for any size; a fault in the text raises an error of the query."""
    compiler = plugins.load("languages", language, wire_name="codegen")()
    for size in (100, 4_000, 60_000):
        text = LANGUAGES[language][name](size)
        if len(text) <= 1 << 20:
            assert calls(partial(compiler.compile, text, ResultFormat.TTREE)) < CALLS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (UPROOT_RAW["arguments"](300_000), f"^selection has more than {MAX_WORDS}"),
        (UPROOT_RAW["expressions"](60_000), f"^selection has more than {MAX_WORDS}"),
        (UPROOT_RAW["trees of columns"](2_000), "columns of all trees together"),
        (UPROOT_RAW["trees of a long pattern"](5_000), "45005000 characters, counted for each"),
        (UPROOT_RAW["comparisons in comparisons"](60), "each chain of comparisons written out"),
        (UPROOT_RAW["digits"](5_000), "more digits than can be read"),
        (UPROOT_RAW["accents"](2_000), "in a row that are neither letters nor digits"),
    ],
)
def test_uproot_raw_query_over_a_limit_is_refused(text: str, words: str) -> None:
    """The error names the limit."""
    with pytest.raises(QueryError, match=words):
        UprootRaw().compile(text, ResultFormat.PARQUET)


def test_repeated_expression_is_one_column() -> None:
    """Uproot does the same; the compiler parses the expression once."""
    text = UPROOT_RAW["one expression, many times"](9)
    (extraction,) = UprootRaw().compile(text, ResultFormat.PARQUET).extractions
    assert isinstance(extraction, ColumnQuery)
    assert [column.name for column in extraction.columns or ()] == ["a+1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FUNC_ADL["columns"](60_000), f"more than {MAX_FORMS} .*at character"),
        (FUNC_ADL["stages that double"](60), "this record has .* columns"),
        (FUNC_ADL["open parentheses"](5_000), "nested more than 1000 deep, at character 1001"),
        (FUNC_ADL["a number"](5_000), "a number has more than 1000 characters"),
    ],
)
def test_func_adl_query_over_a_limit_is_refused(text: str, words: str) -> None:
    """The error names the limit and the place in the text."""
    with pytest.raises(QueryError, match=words):
        FuncAdl().compile(text, ResultFormat.PARQUET)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("calls", 60_000, f"^selection has more than {MAX_WORDS}"),
        ("functions", 1_000, "more than 500 functions, classes"),
        ("finally in finally", 18, "try blocks with a finally"),
        ("returns and finally", 1_000, "try blocks with a finally"),
        ("a long name of a class", 1_000, r"1000 characters \(line 3\); at most 255"),
    ],
)
def test_python_source_over_a_limit_is_refused(name: str, size: int, words: str) -> None:
    """The error names the limit."""
    with pytest.raises(QueryError, match=words):
        PythonFunction().compile(PYTHON[name](size), ResultFormat.PARQUET)


def test_long_chains_of_operators_make_shallow_trees() -> None:
    """A query with hundreds of flags joined by ``or`` is accepted, and keeps its meaning."""
    for text in (" or ".join(["a"] * 1_000), "<".join(["a"] * 1_000)):
        assert depth_of(parse(text)) < 20
    one = ak.Array([True, False])
    node = parse("a and b or a and not b")
    found = evaluate(node, {"a": one, "b": ~one}.__getitem__)
    assert found.to_list() == [True, False]
    assert len(list(walk(parse("1 < a < 3 < b")))) == 11


@pytest.mark.parametrize(
    "text",
    [
        "'a' * 1000000000 == x",
        "'%1000000000d' % 5 == x",
        "broadcast_arrays(x, x) * 1000000000",
        "-broadcast_arrays(x, x)",
        "1 << 1000000000",
        "pad_none(x, 10**9)",
        "combinations(x, 10**9)",
        "*".join(["18446744073709551615"] * 100),
    ],
)
def test_constants_are_never_computed_to_texts_lists_or_huge_numbers(text: str) -> None:
    """Python itself would repeat texts and lists, and multiply without a limit."""
    with pytest.raises(QueryTypeError):
        evaluate(parse(text), {"x": X}.__getitem__)


@pytest.mark.parametrize(
    "text",
    [
        "pad_none(x, 1000000000)",
        "pad_none(x, target=1000000000)",
        "combinations(x, 1000000000)",
        "argcombinations(x, n=33)",
    ],
)
def test_too_large_constant_argument_is_refused_at_compile_time(text: str) -> None:
    """Both the expression parser and the func_adl compiler refuse it before they know a file."""
    with pytest.raises(QueryError, match="may be at most"):
        parse(text)
    if "=" not in text:
        name, many = text.removesuffix(")").replace("(x, ", " ").split(" ")
        body = f"(call {name} (attr e 'x') {many})"
        query = f"(Select (call EventDataset 'f' 't') (lambda (list e) {body}))"
        with pytest.raises(QueryError, match=r"may be at most .*, at character"):
            FuncAdl().compile(query, ResultFormat.PARQUET)


def test_choose_with_too_many_elements_is_refused() -> None:
    """A list would have too many combinations of this size."""
    body = f"(call (attr (attr e 'x') 'Choose') {MAX_CHOSEN + 1})"
    query = f"(Select (call EventDataset 'f' 't') (lambda (list e) {body}))"
    with pytest.raises(QueryError, match=f"Choose takes at most {MAX_CHOSEN}"):
        FuncAdl().compile(query, ResultFormat.PARQUET)


@pytest.mark.parametrize(
    "text",
    [
        "combinations(x, 20)",
        "cartesian([x, x, x, x, x, x])",
        "cartesian({'a': x, 'b': x, 'c': x, 'd': x, 'e': x, 'f': x})",
        "argcartesian([x, x, x, x, x, x], axis=1)",
        "pad_none(x, 99999)",
    ],
)
def test_result_too_large_for_a_worker_is_refused_before_it_is_computed(text: str) -> None:
    """The error states the size of the result and the limit."""
    x = ak.Array(np.zeros((5_000, 60)))
    with pytest.raises(QueryTypeError, match=r"would make .* GiB .*at most 2 GiB"):
        evaluate(parse(text), {"x": ak.from_regular(x)}.__getitem__)


def test_small_result_is_computed_and_its_size_is_predicted() -> None:
    """The predicted size is the size of the result."""
    get = {"x": X}.__getitem__
    assert ak.num(evaluate(parse("combinations(x, 2)"), get)).to_list() == [3, 0, 1]
    assert ak.num(evaluate(parse("cartesian([x, x])"), get)).to_list() == [9, 0, 4]
    assert ak.num(evaluate(parse("pad_none(x, 4)"), get)).to_list() == [4, 4, 4]
    assert combined([3, 0, 2], 2) == pytest.approx(8)
    assert combined([3, 0, 2], 2, with_replacement=True) == pytest.approx(2 * (6 + 3))


class Known:
    """A tree of which only the names are known."""

    def __init__(self) -> None:
        self.names = {"x": None}


def test_too_long_chain_of_aliases_is_refused() -> None:
    """Each alias takes room on the stack of the worker."""

    def bound(count: int, text: str = "a{} + 1") -> Any:
        aliases = {"a0": "x"} | {f"a{at}": text.format(at - 1) for at in range(1, count)}
        query = [{"treename": "t", "expressions": [f"a{count - 1}"], "aliases": aliases}]
        (columns,) = UprootRaw().compile(json.dumps(query), ResultFormat.PARQUET).extractions
        return columns.bind(Known())  # type: ignore[arg-type]

    assert bound(MAX_ALIASES).rest == ("x",)
    with pytest.raises(QueryError, match=r"depends on .* aliases"):
        bound(MAX_ALIASES + 5)
    with pytest.raises(QueryError, match="deep; at most"):
        bound(MAX_ALIASES - 5, "-" * 60 + "a{}")


def test_nearest_of_many_names_is_found_in_few_steps() -> None:
    """Similar names are the most expensive to compare."""
    many = ["ab" * 45 + str(at) for at in range(20_000)]
    assert calls(lambda: nearest("ba" * 47, many)) < CALLS
    assert nearest("Muon_ptt", ["Muon_pt", *many]) == ["Muon_pt"]
    assert nearest("x" * 5_000, ["x" * 5_001]) == []


def test_error_with_any_name_can_be_stored() -> None:
    """Names in files may contain NUL characters and bytes that are not UTF-8."""
    error = UnknownNameError("no branch a\udcff", hint="b\0")
    assert str(error).encode() == rb"no branch a\udcff (b\0)"
    assert storable("µ") == "µ"


def test_number_too_large_for_a_column_becomes_infinite() -> None:
    """The number keeps its sign."""
    assert number(10**4_000) == np.inf
    assert number(-(10**4_000)) == -np.inf
    parse("a > " + "9" * 4_000)
