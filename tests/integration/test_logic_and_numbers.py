"""Missing values, precedence, integers and names, in both languages, on real files.

The expected values are constants, or plain Python computes them from the content of the file.
"""

import json
import math
import operator
import re
from functools import partial
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from servicex_server.columnar import functions
from servicex_server.columnar.functions import ELEMENTWISE, FUNCTIONS, OF_TWO
from servicex_server.columnar.plan import chunks
from servicex_server.columnar.reading.trees import open_root
from servicex_server.errors import QueryError, QueryTypeError, UnknownNameError
from servicex_server.languages.func_adl import FuncAdl
from servicex_server.languages.uproot_raw import UprootRaw
from servicex_server.model import ResultFormat

PT = [[25.0, 10.0], [], [5.0], [], [40.0]]
MET = [10.0, 60.0, 70.0, 20.0, 80.0]
FLAG = [True, False, True, True, False]
N = [0, 1, 2, 3, 4]
BITS = [0, 4, 5, 12, 15]
TINY = [[100, 100], [], [-128], [7], [127, 127, 127]]
WIDE = [2**64 - 1, 2**63, 2**63 - 1, 1, 0]
LOW = [-128, -1, 0, 1, 127]
SIGNED = [-1, 0, 2**62, -(2**63), 2**63 - 1]
COLUMNS: dict[str, Any] = {
    "pt": ak.Array(PT),
    "met": np.array(MET),
    "flag": np.array(FLAG),
    "n": np.array(N, "uint32"),
    "byte": np.array([0, 100, 200, 250, 255], "uint8"),
    "bits": np.array(BITS, "uint8"),
    "tiny": ak.values_astype(ak.Array(TINY), "int8"),
    "low": np.array(LOW, "int8"),
    "wide": np.array(WIDE, "uint64"),
    "signed": np.array(SIGNED, "int64"),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a tree of five events."""
    made = tmp_path_factory.mktemp("logic") / "events.root"
    with uproot.recreate(made) as file:
        file.mktree("t", {name: ak.type(ak.Array(of)).content for name, of in COLUMNS.items()})
        file["t"].extend(COLUMNS)
    return made


def run(path: Path, extraction: Any, budget: int = 1 << 20) -> dict[str, Any]:
    """Return the columns of an extraction."""
    with open_root(str(path)) as file:
        tree = file.tree("t")
        found = chunks(extraction.bind(tree), tree, budget=budget)
        pieces = [columns for _, _, columns in found if columns]
    return {name: ak.concatenate([one[name] for one in pieces]) for name in pieces[0]}


def raw(path: Path, expression: str, **subquery: Any) -> Any:
    """Return one column of an uproot-raw query."""
    query = [{"treename": "t", "expressions": [expression], **subquery}]
    (extraction,) = UprootRaw().compile(json.dumps(query), ResultFormat.PARQUET).extractions
    return run(path, extraction)[expression]


def loop(path: Path, body: str, *, cut: str = "") -> Any:
    """Return the column of a func_adl query whose lambdas call the event ``e``."""
    source = "(call EventDataset 'bogus.root' 't')"
    if cut:
        source = f"(call Where {source} (lambda (list e) {cut}))"
    query = f"(call Select {source} (lambda (list e) {body}))"
    (extraction,) = FuncAdl().compile(query, ResultFormat.PARQUET).extractions
    return run(path, extraction)["branch"]


MAX = "(call (attr (attr e 'pt') 'Max'))"

TRUTHS = [
    # the events 1 and 3 have no pt
    (
        "max(pt) > 20 or met > 50",
        f"(or (> {MAX} 20) (> (attr e 'met') 50))",
        [True, True, True, None, True],
    ),
    (
        "(max(pt) > 20) | (met > 50)",
        f"(| (> {MAX} 20) (> (attr e 'met') 50))",
        [True, True, True, None, True],
    ),
    (
        "logical_or(met > 50, max(pt) > 20)",
        f"(call (attr np 'logical_or') (> (attr e 'met') 50) (> {MAX} 20))",
        [True, True, True, None, True],
    ),
    (
        "max(pt) > 20 and met > 50",
        f"(and (> {MAX} 20) (> (attr e 'met') 50))",
        [False, None, False, False, True],
    ),
    (
        "(met > 50) & (max(pt) > 20)",
        f"(& (> (attr e 'met') 50) (> {MAX} 20))",
        [False, None, False, False, True],
    ),
    (
        "not (max(pt) > 20 and met > 50)",
        f"(not (and (> {MAX} 20) (> (attr e 'met') 50)))",
        [True, None, True, True, False],
    ),
    (
        "not (max(pt) > 20)",
        f"(not (> {MAX} 20))",
        [False, None, True, None, False],
    ),
    (
        "5 < max(pt) < 30",
        f"(and (< 5 {MAX}) (< {MAX} 30))",
        [True, None, False, None, False],
    ),
    (
        "any(where(pt > 0, pt, 0) > max(pt) - 1)",
        f"(call (attr (attr e 'pt') 'Any') (lambda (list p) (> p (- {MAX} 1))))",
        [True, False, True, False, True],
    ),
    (
        "where(max(pt) > 20, met, 0)",
        f"(if (> {MAX} 20) (attr e 'met') 0)",
        [10.0, None, 0.0, None, 80.0],
    ),
    (
        "(max(pt) == 25) | (max(pt) == 40)",
        f"(call (attr (list 25 40) 'Contains') {MAX})",
        [True, None, False, None, True],
    ),
    (
        "not ((max(pt) == 25) | (max(pt) == 40))",
        f"(not (call (attr (list 25 40) 'Contains') {MAX}))",
        [False, None, True, None, False],
    ),
]


@pytest.mark.parametrize(("expression", "body", "expected"), TRUTHS)
def test_logic_has_three_values(path: Path, expression: str, body: str, expected: Any) -> None:
    """``true or missing`` is true, and ``false and missing`` is false, in both languages."""
    assert raw(path, expression).to_list() == expected
    assert loop(path, body).to_list() == expected


@pytest.mark.parametrize(("expression", "body", "expected"), TRUTHS)
def test_cut_drops_events_with_a_missing_value(
    path: Path, expression: str, body: str, expected: Any
) -> None:
    """A cut keeps the events for which it is true. Only the value of the whole cut counts."""
    kept = [met for met, one in zip(MET, expected, strict=True) if one]
    assert raw(path, "met", cut=expression).to_list() == kept
    assert loop(path, "(attr e 'met')", cut=body).to_list() == kept


MASKED = "mask(pt, pt < 20)"  # [[None, 10], [], [5], [], [None]]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (f"any({MASKED} > 7)", [True, False, False, False, None]),
        (f"all({MASKED} > 7)", [None, True, False, True, None]),
        (f"not any({MASKED} > 7)", [False, True, True, True, None]),
        (f"any({MASKED} > 7, axis=-1)", [True, False, False, False, None]),
        (f"all({MASKED} > 10)", [False, True, False, True, None]),
        (f"pt[{MASKED} > 7]", [[10.0], [], [], [], []]),
        (f"({MASKED} > 7) | flag", [[True, True], [], [True], [], [None]]),
        (f"({MASKED} > 7) & flag", [[None, True], [], [False], [], [False]]),
        ("is_none(max(pt)) or max(pt) > 30", [False, True, False, True, True]),
        ("fill_none(max(pt) > 20, False)", [True, False, False, False, True]),
    ],
)
def test_lists_with_missing_values(path: Path, expression: str, expected: Any) -> None:
    """``any`` and ``all`` are missing where a missing value would decide."""
    assert raw(path, expression).to_list() == expected


def wrapped(texts: list[str]) -> list[Any]:
    """Return what plain Python makes of an expression, for every event."""
    names = {"n": N, "bits": BITS, "byte": [0, 100, 200, 250, 255], "low": [-128, -1, 0, 1, 127]}
    return [
        [eval(text, {"abs": abs}, {name: of[at] for name, of in names.items()}) for text in texts]
        for at in range(5)
    ]


PYTHON = [
    ("n - 2", "(- (attr e 'n') 2)"),
    ("byte * 100", "(* (attr e 'byte') 100)"),
    ("byte + byte", "(+ (attr e 'byte') (attr e 'byte'))"),
    ("low * low", "(* (attr e 'low') (attr e 'low'))"),
    ("low - byte", "(- (attr e 'low') (attr e 'byte'))"),
    ("-low", "(- (attr e 'low'))"),
    ("-byte", "(- (attr e 'byte'))"),
    ("~byte", "(~ (attr e 'byte'))"),
    ("abs(low)", "(call abs (attr e 'low'))"),
    ("byte ** 3", "(** (attr e 'byte') 3)"),
    ("byte << 8", "(<< (attr e 'byte') 8)"),
    ("1 << bits", "(<< 1 (attr e 'bits'))"),
    ("n // 3 - n % 3", "(- (// (attr e 'n') 3) (% (attr e 'n') 3))"),
    ("byte > 300", "(> (attr e 'byte') 300)"),
    ("byte > -1", "(> (attr e 'byte') -1)"),
    ("(bits & (1 << 2)) != 0", "(!= (& (attr e 'bits') (<< 1 2)) 0)"),
    ("bits & 2**2", "(& (attr e 'bits') (** 2 2))"),
    ("bits & ~4", "(& (attr e 'bits') (~ 4))"),
    ("1 < n < 3", "(and (< 1 (attr e 'n')) (< (attr e 'n') 3))"),
]


@pytest.mark.parametrize(("expression", "body"), PYTHON)
def test_integers_behave_as_in_python(path: Path, expression: str, body: str) -> None:
    """Both languages widen narrow integers before they compute with them."""
    expected = [one for (one,) in wrapped([expression])]
    for got in (raw(path, expression), loop(path, body)):
        assert got.to_list() == expected
        assert str(got.type.content) in ("bool", "int64", "uint64")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("sum(tiny * tiny)", [20000, 0, 16384, 49, 3 * 127**2]),
        ("sum(tiny)", [200, 0, -128, 7, 381]),
        ("prod(tiny)", [10000, 1, -128, 7, 127**3]),
        ("mean(tiny)", [100.0, None, -128.0, 7.0, 127.0]),
        ("moment(tiny, 2)", [10000.0, None, 16384.0, 49.0, 16129.0]),
        ("where(tiny > 0, tiny, 1000)", [[100, 100], [], [1000], [7], [127, 127, 127]]),
        ("fmax(byte, 300)", [300] * 5),
        ("max(byte, low)", [0, 100, 200, 250, 255]),
        ("min(pt, met)", [[10.0, 10.0], [], [5.0], [], [40.0]]),
        ("max(met, 50.0)", [50.0, 60.0, 70.0, 50.0, 80.0]),
        ("sqrt(byte)", [0.0, 10.0, 200**0.5, 250**0.5, 255**0.5]),
        ("wide > signed", [True] * 2 + [2**63 - 1 > 2**62, True, False]),
        ("wide == 18446744073709551615", [True, False, False, False, False]),
        ("wide >= 9223372036854775808", [True, True, False, False, False]),
        ("signed < 9223372036854775808", [True] * 5),
        ("wide & ~1", [one & ~1 for one in WIDE]),
        ("wide >> 60", [one >> 60 for one in WIDE]),
        ("wide >> n", [one >> n for one, n in zip(WIDE, N, strict=True)]),
        ("wide // 2 + 1", [one // 2 + 1 for one in WIDE]),
        ("wide % 10", [one % 10 for one in WIDE]),
    ],
)
def test_results_are_right_for_all_widths_and_signs(
    path: Path, expression: str, expected: Any
) -> None:
    """Lists, reductions, functions and unsigned 64-bit integers give right values."""
    got = raw(path, expression).to_list()
    if "mean" in expression or "moment" in expression:
        got = [None if one is None or np.isnan(one) else one for one in got]
    assert got == expected


@pytest.mark.parametrize(
    ("expression", "body"),
    [
        ("wide - 1", "(- (attr e 'wide') 1)"),
        ("wide + signed", "(+ (attr e 'wide') (attr e 'signed'))"),
        ("-wide", "(- (attr e 'wide'))"),
        ("signed + 9223372036854775808", "(+ (attr e 'signed') 9223372036854775808)"),
    ],
)
def test_unsigned_64_bit_value_in_signed_arithmetic_is_rejected(
    path: Path, expression: str, body: str
) -> None:
    """A value that needs all 64 bits, where a sign is needed, is an error and does not wrap."""
    with pytest.raises(QueryTypeError, match="needs all of 64 bits"):
        raw(path, expression)
    with pytest.raises(QueryTypeError, match="needs all of 64 bits"):
        loop(path, body)


@pytest.mark.parametrize(
    ("expression", "body", "expected"),
    [
        (
            "(bits & 4) & (met > 50)",
            "(& (& (attr e 'bits') 4) (> (attr e 'met') 50))",
            [False, True, True, False, True],
        ),
        ("flag & n", "(& (attr e 'flag') (attr e 'n'))", [False, False, True, True, False]),
        ("n | flag", "(| (attr e 'n') (attr e 'flag'))", [True, True, True, True, True]),
        ("bits ^ flag", None, [True, True, False, False, True]),
        ("(n & 1) & flag", None, [False, False, False, True, False]),
        ("flag & 2", None, [True, False, True, True, False]),
        ("(n > 1) & num(pt)", None, [False, False, True, False, True]),
        ("(max(pt) > 20) & n", None, [False, None, False, None, True]),
    ],
)
def test_number_beside_a_boolean_becomes_a_boolean(
    path: Path, expression: str, body: str | None, expected: list[Any]
) -> None:
    """It is true unless it is 0, in both languages. A bitwise result would lose a mask."""
    assert raw(path, expression).to_list() == expected
    if body is not None:
        assert loop(path, body).to_list() == expected


@pytest.mark.parametrize(
    ("expression", "body", "expected"),
    [
        ("signed + 1", "(+ (attr e 'signed') 1)", "refused"),
        ("signed - 2", "(- (attr e 'signed') 2)", "refused"),
        ("signed * 2", "(* (attr e 'signed') 2)", "refused"),
        ("signed ** 2", "(** (attr e 'signed') 2)", "refused"),
        ("wide + 1", "(+ (attr e 'wide') 1)", "refused"),
        ("wide * wide", "(* (attr e 'wide') (attr e 'wide'))", "refused"),
        ("bits ** 17", "(** (attr e 'bits') 17)", "refused"),
        ("bits ** 16", "(** (attr e 'bits') 16)", [n**16 for n in BITS]),
        ("bits * 614891469123651720", None, [n * 614891469123651720 for n in BITS]),
        ("bits * 614891469123651721", None, "refused"),
        ("(low * 2**55 - 1) * -1", None, [1 - n * 2**55 for n in LOW]),
        ("low ** 9", None, [n**9 for n in LOW]),
        ("low ** 10", None, "refused"),
        ("sum(tiny * 2**54)", None, [sum(n) * 2**54 for n in TINY]),
        ("sum(tiny * 2**55)", None, "refused"),
        ("prod(tiny)", None, [math.prod(n) for n in TINY]),
        ("prod(tiny * 2**14)", None, [math.prod(m * 2**14 for m in n) for n in TINY]),
        ("prod(tiny * 2**15)", None, "refused"),
        ("where(signed > 0, 0, 1) * (wide - wide * 1)", None, "all of 64 bits"),
        ("-signed", "(- (attr e 'signed'))", "refused"),
        ("abs(signed)", "(call abs (attr e 'signed'))", "refused"),
        ("signed // -1", "(// (attr e 'signed') -1)", "refused"),
        ("-low", "(- (attr e 'low'))", [-n for n in LOW]),
        ("abs(low)", "(call abs (attr e 'low'))", [abs(n) for n in LOW]),
        ("low // -1", "(// (attr e 'low') -1)", [-n for n in LOW]),
        ("signed * 1.0 * 4", None, [4.0 * n for n in SIGNED]),
    ],
)
def test_result_of_more_than_64_bits_is_rejected(
    path: Path, expression: str, body: str | None, expected: Any
) -> None:
    """The first value that does not fit is an error. The service never delivers a wrapped value."""
    asks = [partial(raw, path, expression), *([partial(loop, path, body)] if body else [])]
    for ask in asks:
        if isinstance(expected, list):
            assert ask().to_list() == expected
        else:
            words = "more than 64 bits" if expected == "refused" else expected
            with pytest.raises(QueryTypeError, match=words) as raised:
                ask()
            assert raised.value.hint == "multiply by 1.0 to compute in floats"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("met > 30 & n > 1", r"met > \(30 & n\) > 1 .*write \(met > 30\) & \(n > 1\)"),
        ("met > 30 | n > 1", r"\(met > 30\) \| \(n > 1\)"),
        ("met > 3 & n > 1 | n == 2", r"\(met > 3\) & \(n > 1\) \| \(n == 2\)"),
        ("any(pt > 1 & pt < 9)", r"\(pt > 1\) & \(pt < 9\)"),
        ("bits & 4 == 4", r"write \(bits & 4\) == 4 or bits & \(4 == 4\)"),
        ("flag & met > 5", r"flag & \(met > 5\)"),
        ("(met > 1) & n > 1", r"\(met > 1\) & \(n > 1\)"),
        ("met > 5 ^ flag", r"met > \(5 \^ flag\)"),
    ],
)
def test_ambiguous_precedence_is_rejected_with_a_hint(text: str, words: str) -> None:
    """For a comparison beside a bitwise operator, the error shows where parentheses belong."""
    with pytest.raises(QueryError, match=re.compile(words, re.DOTALL)):
        raw(Path("nowhere"), "met", cut=text)


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ("n & 1", [1, 3]),
        ("(bits & 4) != 0", [1, 2, 3, 4]),
        ("( bits & 4 ) == 4", [1, 2, 3, 4]),
        ("1 < n < 4", [2, 3]),
        ("(met > 30) & (n > 1)", [2, 4]),
        ("met > 30 and n > 1", [2, 4]),
        ("((n & 1)) == (1 | 0)", [1, 3]),
    ],
)
def test_explicit_precedence_is_accepted(path: Path, cut: str, kept: list[int]) -> None:
    """Masks, chains and comparisons in parentheses keep their meaning."""
    assert raw(path, "n", cut=cut).to_list() == kept


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("where(pt > 20, pt, 0)", [[25.0, 0.0], [], [0.0], [], [40.0]]),
        ("where(flag, pt, 0)", [[25.0, 10.0], [], [5.0], [], [0.0]]),
        ("where(pt > 20, met, -1)", [[10.0, -1.0], [], [-1.0], [], [80.0]]),
        ("where(True, pt, 0)", PT),
        ("where(n, met, 0)", [0.0, *MET[1:]]),
        ("where(max(pt) > met, max(pt), met)", [25.0, None, 70.0, None, 80.0]),
        ("pt > max(pt) - 16", [[True, True], [], [True], [], [True]]),
        ("(pt > max(pt)) | (met > 15)", [[False, False], [], [True], [], [True]]),
        ("pt[..., :1]", [[25.0], [], [5.0], [], [40.0]]),
        ("pt[...]", PT),
        ("round(met)", MET),
        ("rint(pt)", PT),
        ("real(pt)", PT),
    ],
)
def test_lists_are_accepted_in_place_of_numbers(path: Path, expression: str, expected: Any) -> None:
    """Conditions, functions and subscripts work on lists as on numbers."""
    assert raw(path, expression).to_list() == expected


@pytest.mark.parametrize("column", ["pt", "met", "tiny", "low", "max(pt)", "pt[pt > 1000]"])
def test_functions_agree_with_numpy(path: Path, column: str) -> None:
    """They agree for each number of flat, jagged, narrow, missing and empty columns."""
    texts = {
        name: f"{name}({column}, {column})" if name in OF_TWO else f"{name}({column})"
        for name in sorted(ELEMENTWISE & FUNCTIONS)
    }
    query = json.dumps([{"treename": "t", "expressions": [column, *texts.values()]}])
    (extraction,) = UprootRaw().compile(query, ResultFormat.PARQUET).extractions
    got = run(path, extraction)
    values, whole = ak.to_list(got[column]), column in ("tiny", "low")
    for name, text in texts.items():
        compare(name, values, ak.to_list(got[text]), np.int64 if whole else np.float64)


def compare(name: str, value: Any, result: Any, number: Any) -> None:
    """Compare the result of a function with that of numpy, for each number in a value."""
    if value is None:
        assert result is None
    elif isinstance(value, list):
        for one, other in zip(value, result, strict=True):
            compare(name, one, other, number)
    else:
        with np.errstate(all="ignore"):
            expected = REFERENCE[name](*([number(value)] * (1 + (name in OF_TWO))))
        assert np.allclose(result, expected, rtol=1e-6, equal_nan=True), (name, value)


def _gamma(value: float) -> float:
    try:
        return math.gamma(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return math.nan


def _lgamma(value: float) -> float:
    try:
        return math.lgamma(value)
    except ValueError:
        return math.nan


REFERENCE: dict[str, Any] = {
    **{
        name: getattr(np, functions._NUMPY_ALIASES.get(name, name))
        for name in ELEMENTWISE & FUNCTIONS
        if hasattr(np, functions._NUMPY_ALIASES.get(name, name))
    },
    "neg": operator.neg,
    "erf": math.erf,
    "erfc": math.erfc,
    "gamma": _gamma,
    "tgamma": _gamma,
    "lgamma": _lgamma,
    "factorial": lambda value: _gamma(value + 1),
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("met > 5 && n > 1", "write 'and' for &&"),
        ("met > 5 || n > 1", "write 'or' for"),
        ("!flag", "write 'not x' for !x"),
        ("Sum$(pt) > 5", r"write sum\(x\)"),
        ("Length$(pt)", r"write num\(x\)"),
        ("TMath::Abs(met)", "without a namespace"),
        ("@pt.size()", r"write num\(x\)"),
        ("met > 5 ? 1 : 0", "where"),
        ("np.abs(met)", r"write abs\(\.\.\.\)"),
        ("ak.num(pt)", r"write num\(\.\.\.\)"),
        ("math.pow(met, 2)", r"write x \*\* y"),
        ("len(pt)", r"write num\(x\)"),
        ("maximum(met, n)", r"write fmax\(x, y\)"),
        ("met if flag else n", r"write where\(flag, met, n\)"),
        ("IfExp(flag, met, n)", r"write where\(test, yes, no\)"),
        ("met == None", "is_none"),
        ("met is None", "is_none"),
        ("n in [1, 2]", r"\(x == 1\) \| \(x == 2\)"),
        ("sqrt(met, n)", "sqrt takes 1 argument"),
        ("flag == 'yes'", "texts can only be compared"),
        ("met + 'a'", "texts can only be compared"),
        ("met & 1", "needs whole numbers or truth values"),
        ("min(pt, 50)", r"fmin\(x, 50\) compares"),
        ("max(met, 1)", r"fmax\(x, 1\) compares"),
        ("met[..., 0]", "positions after ... reach the axis of events"),
        ("pt + tiny", r"\+ does not fit var \* float64 and var \* int8"),
        ("sum(met)", "sum needs a list in each event; this column has one value per event"),
        ("num(met, axis=1)", "num needs a list in each event"),
        ("firsts(n)", "firsts needs a list in each event"),
        ("sum(pt, axis=2)", "sum needs lists of lists in each event; .* one list per event"),
    ],
)
def test_syntax_of_other_languages_gets_a_hint(path: Path, text: str, words: str) -> None:
    """The error says what to write, and never shows the name of a Python exception."""
    with pytest.raises(QueryError, match=words) as error:
        raw(path, text)
    assert "AssertionError" not in error.value.message


NAMES = ["1lep", "lambda", "class", "a-b", "name with space", "not"]


@pytest.fixture(scope="module")
def aliased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with odd names of branches and aliases that the tree stores."""
    made = tmp_path_factory.mktemp("aliases") / "events.root"
    with uproot.recreate(made) as file:
        odd = {name: np.arange(3.0) + at for at, name in enumerate(NAMES)}
        file["t"] = {**odd, "a": np.array([9.0, 9, 9]), "b": np.array([1.0, 2, 3])}
    return made


@pytest.mark.parametrize("name", NAMES)
def test_branch_name_need_not_be_an_identifier(aliased: Path, name: str) -> None:
    """Such a name works in expressions and filters, as a cut, in an alias, and with ``get``."""
    expected = (np.arange(3.0) + NAMES.index(name)).tolist()
    assert raw(aliased, name).to_list() == expected
    assert raw(aliased, f"get('{name}') * 1").to_list() == expected
    assert raw(aliased, "x", aliases={"x": name}).to_list() == expected
    assert raw(aliased, "y y", aliases={"y y": name}).to_list() == expected
    assert raw(aliased, name, cut=name).to_list() == [one for one in expected if one]


@pytest.mark.parametrize("text", ["1lepp", "pt eta", "b b"])
def test_unknown_name_is_rejected(aliased: Path, text: str) -> None:
    """A text that is neither an expression nor a branch is an unknown branch."""
    with pytest.raises(UnknownNameError, match=f"no branch {text}"):
        raw(aliased, text)


def test_alias_with_the_name_of_a_branch_is_rejected(path: Path) -> None:
    """The service does not silently choose the branch or the alias."""
    with pytest.raises(QueryError, match="met is a branch of tree t, which the alias would hide"):
        raw(path, "met", aliases={"met": "pt * 2"})


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give trees aliases, as ``TTree::SetAlias`` stores them."""
    aliases = {
        "twice": "met * 2",
        "half": "twice / 4",
        "lead": "max(pt)",
        "power": "met^2",
        "odd": "met > 5 && n > 1",
        "n": "met",
    }
    monkeypatch.setattr(uproot.TTree, "aliases", aliases)


@pytest.mark.usefixtures("stored")
def test_aliases_of_the_tree_are_found(path: Path) -> None:
    """Both languages find them. Branches come before them, and those of the query hide them."""
    half = [one / 2 for one in MET]
    assert raw(path, "half").to_list() == half
    assert raw(path, "n").to_list() == N
    assert raw(path, "half", aliases={"twice": "met * 4"}).to_list() == MET
    assert loop(path, "(attr e 'half')").to_list() == half
    assert loop(path, "(attr e 'met')", cut="(> (attr e 'lead') 20)").to_list() == [10.0, 80.0]
    assert raw(path, "lead").to_list() == [25.0, None, 5.0, None, 40.0]


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(("name", "words"), [("power", "ROOT reads \\^"), ("odd", "'and' for &&")])
def test_error_names_a_tree_alias_in_root_syntax(path: Path, name: str, words: str) -> None:
    """An alias that cannot mean the same here is an error with its name."""
    with pytest.raises(QueryError, match=f"alias {name}, which tree t stores") as error:
        raw(path, name)
    assert re.search(words, f"{error.value.message} {error.value.hint}")


def test_momenta_are_computed_in_64_bits(tmp_path: Path) -> None:
    """The mass of two equal momenta is twice that of one, however fast they are."""
    made = tmp_path / "pairs.root"
    rng = np.random.default_rng(1)
    values = {
        name: rng.uniform(*bounds, 50).astype("float32")
        for name, bounds in {"pt": (100, 900), "eta": (2, 4), "phi": (-3, 3)}.items()
    }
    values["mass"] = np.full(50, 0.106, "float32")
    with uproot.recreate(made) as file:
        file["t"] = values
    items = " ".join(f"(attr e '{name}')" for name in values)
    keys = " ".join(f"'{name}'" for name in values)
    momentum = f"(call (attr (dict (list {keys}) (list {items})) 'ToFourMomentum'))"
    got = loop(made, f"(attr (+ {momentum} {momentum}) 'mass')")
    pt, phi, mass = (values[name].astype("float64") for name in ("pt", "phi", "mass"))
    assert str(got.type.content) == "float64"
    assert np.allclose(got, 2 * mass, rtol=1e-3)
    flat = "(call (attr (dict (list 'pt' 'phi') (list (attr e 'pt') (attr e 'phi'))) "
    flat += "'ToFourMomentum'))"
    assert np.allclose(loop(made, f"(attr {flat} 'px')"), pt * np.cos(phi))
    assert np.allclose(loop(made, f"(attr (+ {flat} {flat}) 'pt')"), 2 * pt)
    assert np.allclose(loop(made, f"(call (attr {flat} 'deltaphi') {momentum})"), 0)
    for wrong in (f"(attr {flat} 'eta')", f"(call (attr {flat} 'deltaR') {momentum})"):
        with pytest.raises(QueryTypeError, match="two dimensions"):
            loop(made, wrong)
