"""Syntax and functions of other languages in an expression, and what to write instead."""

import re
from collections.abc import Collection

from servicex_server.text.hints import did_you_mean

_SIGNS = (
    (re.compile(r"&&"), "write 'and' for &&"),
    (re.compile(r"\|\|"), "write 'or' for ||"),
    (re.compile(r"!(?!=)"), "write 'not x' for !x"),
    (re.compile(r"\b(?:Sum|Max|Min)\$"), "write sum(x), max(x) or min(x) for Sum$, Max$ and Min$"),
    (re.compile(r"\bLength\$|@"), "write num(x) for the length of x"),
    (re.compile(r"\bAlt\$"), "write fill_none(firsts(x), 0) for Alt$(x, 0)"),
    (re.compile(r"\w\$"), "names with $ have no meaning here"),
    (re.compile(r"::"), "write functions without a namespace, as abs(x) for TMath::Abs(x)"),
    (re.compile(r"\?"), "write where(test, yes, no) for test ? yes : no"),
    (re.compile(r"(?<![=!<>])=(?!=)"), "write == to compare"),
)
_FUNCTIONS = {
    "len": "num(x)",
    "size": "num(x)",
    "length": "num(x)",
    "Count": "num(x)",
    "Sum": "sum(x)",
    "Max": "max(x)",
    "Min": "min(x)",
    "First": "firsts(x)",
    "IfExp": "where(test, yes, no)",
    "ifelse": "where(test, yes, no)",
    "maximum": "fmax(x, y)",
    "minimum": "fmin(x, y)",
    "pow": "x ** y",
    "power": "x ** y",
    "square": "x ** 2",
    "sq": "x ** 2",
    "ln": "log(x)",
    "fmod": "x % y",
    "mod": "x % y",
    "round": "rint(x)",
    "int": "trunc(x)",
    "float": "x * 1.0",
    "isnull": "is_none(x)",
    "isna": "is_none(x)",
    "isnone": "is_none(x)",
    "logical_xor": "(x != 0) != (y != 0)",
}
MODULES = frozenset("np numpy ak awkward math".split())
"""Names of Python modules; functions are written without them here."""


def syntax_hint(text: str) -> str:
    """Return what to write instead of C++ or ROOT syntax.

    Examples
    --------
    >>> syntax_hint("met > 5 && n > 1")
    "write 'and' for &&"
    """
    hints = (hint for sign, hint in _SIGNS if sign.search(text))
    return next(hints, "write get('name') for a branch whose name is not a Python name")


def function_hint(name: str, known: Collection[str]) -> str:
    """Return what to write for a function that does not exist.

    Examples
    --------
    >>> function_hint("len", ["num"])
    'write num(x)'
    """
    if name in _FUNCTIONS:
        return f"write {_FUNCTIONS[name]}"
    return did_you_mean(name, sorted(known), otherwise="the functions are")
