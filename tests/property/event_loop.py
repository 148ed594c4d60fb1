"""The meaning of a func_adl query, implemented again in plain Python: one event after the other.

Slow, and written for the tests alone, so that it is plainly right. It shares nothing with the
service, not even the reader of the text. An event or a record is a dict, a list a list, a tuple a
tuple, and a missing value is None.

Whole numbers fit into 64 bits: the writer of the queries sees to that.

A missing value makes each result missing that is computed from it. It does not fulfil a condition,
and sums and extremes pass over it. A missing list counts as an empty one. Extremes pass over NaN
too, and an order puts NaN last.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

Form = Any
"""A word, a number or a text in quotes as it stands, or a list of forms."""

Scope = Mapping[str, Any]

MODULES = ("np", "math", "ak")


def rows(query: str, events: list[dict[str, Any]]) -> list[Any]:
    """Return the rows of a query for some events."""
    found: list[Any] = value(read(query), {"EventDataset": events})
    return found


def read(text: str) -> Form:
    """Read the parentheses of a query."""
    stack: list[list[Form]] = [[]]
    for token in re.findall(r"'[^']*'|[()]|[^\s()]+", text):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    return stack[0][0]


def value(form: Form, scope: Scope) -> Any:
    """Return the value of an expression, with the names of the scope."""
    if isinstance(form, str):
        return word(form, scope)
    head, *parts = form
    match head:
        case "attr":
            return part(value(parts[0], scope), word(parts[1], scope))
        case "subscript":
            return item(value(parts[0], scope), value(parts[1], scope))
        case "list":
            return tuple(value(one, scope) for one in parts)
        case "dict":
            keys, values = parts[0][1:], parts[1][1:]
            return {word(k, scope): value(v, scope) for k, v in zip(keys, values, strict=True)}
        case "call":
            return call(parts[0], parts[1:], scope)
    if head in OPERATORS:
        return OPERATORS[head](value(parts[0], scope), *arguments(parts[1:], scope))
    return each(SYMBOLS[head, min(len(parts), 3)], *(value(one, scope) for one in parts))


def word(form: str, scope: Scope) -> Any:
    """Return the value of a word, a number or a text."""
    if form.startswith("'"):
        return form[1:-1]
    if form in ("True", "False"):
        return form == "True"
    if form in scope:
        return scope[form]
    return int(form) if re.fullmatch(r"[+-]?\d+", form) else float(form)


def arguments(forms: Sequence[Form], scope: Scope) -> list[Any]:
    """Return values, and functions where lambdas stand."""

    def function(names: Sequence[str], body: Form) -> Callable[..., Any]:
        return lambda *given: value(body, {**scope, **dict(zip(names, given, strict=True))})

    return [
        function(form[1][1:], form[2]) if form[0] == "lambda" else value(form, scope)
        for form in forms
    ]


def call(called: Form, forms: Sequence[Form], scope: Scope) -> Any:
    """Call an operator or a function."""
    if called == "EventDataset":
        return scope[called]
    name = called
    if isinstance(called, list):
        name = called[2][1:-1]
        if called[1] not in MODULES:
            forms = [called[1], *forms]
    given = arguments(forms, scope)
    if name in OPERATORS:
        return OPERATORS[name](*given)
    if name in ON_LISTS and len(given) == 1:
        return ON_LISTS[name](elements(given[0]))
    return each(known(FUNCTIONS[name]), *given)


def each(function: Callable[..., Any], *values: Any) -> Any:
    """Apply a function to values; where some are lists, to their elements."""
    if not any(isinstance(one, list) for one in values):
        return function(*values)
    if any(one is None for one in values):
        return None
    (length,) = {len(one) for one in values if isinstance(one, list)}
    return [
        each(function, *(one[at] if isinstance(one, list) else one for one in values))
        for at in range(length)
    ]


def known(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose value is missing where an argument is."""

    def result(*values: Any) -> Any:
        if any(one is None for one in values):
            return None
        found = function(*values)
        assert type(found) is not int or -(2**63) <= found < 2**64, "it needs more than 64 bits"
        return found

    return result


def divided(one: float, other: float) -> float:
    """Return a quotient; a division by zero gives infinity or NaN."""
    if other != 0:
        return one / other
    if one == 0 or math.isnan(one):
        return math.nan
    return math.copysign(math.inf, one) * math.copysign(1, other)


def floored(one: float, other: float) -> float:
    """Return the floor of a quotient; a whole number by zero is 0, as numpy has it."""
    if other != 0:
        return one // other
    whole = isinstance(one, int) and isinstance(other, int)
    return 0 if whole else divided(one, other)


def remainder(one: float, other: float) -> float:
    """Return the remainder of a division."""
    if other != 0:
        return one % other
    return 0 if isinstance(one, int) and isinstance(other, int) else math.nan


def raised(one: float, other: float) -> float:
    """Return a power."""
    if isinstance(one, int) and isinstance(other, int) and other >= 0:
        return int(one**other)
    return math.inf if one == 0 and other < 0 else defined(math.pow)(one, other)


def conjunction(*values: Any) -> bool | None:
    """Return ``and`` of three values: true, false and missing."""
    if any(one is not None and not one for one in values):
        return False
    return None if None in values else True


def disjunction(*values: Any) -> bool | None:
    """Return ``or`` of three values: true, false and missing."""
    if any(values):
        return True
    return None if None in values else False


def bits(both: Callable[[int, int], int], truths: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operator on bits, which is one of logic on truth values."""

    def result(one: Any, other: Any) -> Any:
        if isinstance(one, bool) or isinstance(other, bool):
            return truths(one, other)
        return known(both)(one, other)

    return result


def either(test: Any, yes: Any, no: Any) -> Any:
    """Return one of two values."""
    return None if test is None else yes if test else no


def inverted(one: int) -> int:
    """Return ``~``, which is *not* on truth values."""
    return not one if isinstance(one, bool) else ~one


SYMBOLS: dict[tuple[str, int], Callable[..., Any]] = {
    ("+", 2): known(operator.add),
    ("-", 2): known(operator.sub),
    ("*", 2): known(operator.mul),
    ("/", 2): known(divided),
    ("//", 2): known(floored),
    ("%", 2): known(remainder),
    ("**", 2): known(raised),
    ("<", 2): known(operator.lt),
    ("<=", 2): known(operator.le),
    (">", 2): known(operator.gt),
    (">=", 2): known(operator.ge),
    ("==", 2): known(operator.eq),
    ("!=", 2): known(operator.ne),
    ("&", 2): bits(operator.and_, conjunction),
    ("|", 2): bits(operator.or_, disjunction),
    ("^", 2): known(operator.xor),
    ("<<", 2): known(operator.lshift),
    (">>", 2): known(operator.rshift),
    ("-", 1): known(operator.neg),
    ("+", 1): known(operator.pos),
    ("~", 1): known(inverted),
    ("not", 1): known(operator.not_),
    ("and", 2): conjunction,
    ("and", 3): conjunction,
    ("or", 2): disjunction,
    ("or", 3): disjunction,
    ("if", 3): either,
}
"""The meaning of symbols by the number of their operands; 3 also stands for more."""


def defined(function: Callable[..., float]) -> Callable[..., float]:
    """Return a function of the C library as numpy has it: NaN where it is not defined."""

    def result(*values: float) -> float:
        try:
            return function(*values)
        except ValueError:
            return math.nan

    return result


def nearest(one: float) -> float:
    """Return a number rounded, half to even, with its type."""
    return one if isinstance(one, int) or not math.isfinite(one) else float(round(one))


def least(*values: float) -> float:
    """Return the least number, or NaN if one is NaN."""
    return math.nan if any(map(math.isnan, values)) else min(values)


def greatest(*values: float) -> float:
    """Return the greatest number, or NaN if one is NaN."""
    return math.nan if any(map(math.isnan, values)) else max(values)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "absolute": abs,
    "arctan2": math.atan2,
    "cos": defined(math.cos),
    "hypot": math.hypot,
    "isnan": math.isnan,
    "max": greatest,
    "min": least,
    "round": nearest,
    "sin": defined(math.sin),
    "sqrt": defined(math.sqrt),
}


def elements(one: Any) -> list[Any]:
    """Return the elements of a list, which may be missing."""
    return [] if one is None else list(one)


def part(one: Any, name: str) -> Any:
    """Return a part of a record, or of each record of a list."""
    if isinstance(one, list):
        return [part(element, name) for element in one]
    if one is None:
        return None
    return one[int(name)] if isinstance(one, tuple) else one[name]


def item(one: Any, index: Any) -> Any:
    """Return what is in brackets: a name, a mask or a position."""
    if isinstance(index, str):
        return part(one, index)
    if isinstance(index, list):
        return [kept for kept, keep in zip(one, index, strict=True) if keep]
    if one is None or index is None or not -len(one) <= index < len(one):
        return None
    return one[index]


def where(source: Any, condition: Callable[[Any], Any]) -> list[Any]:
    """Keep elements; if the condition is a list, keep the parts of an element that it selects."""

    def masked(one: Any, mask: list[Any]) -> Any:
        if isinstance(one, dict):
            return {name: item(of, mask) for name, of in one.items()}
        if isinstance(one, tuple):
            return tuple(item(of, mask) for of in one)
        return item(one, mask)

    found = []
    for one in elements(source):
        keep = condition(one)
        if isinstance(keep, list):
            found.append(masked(one, keep))
        elif keep:
            found.append(one)
    return found


def ordered(source: Any, key: Callable[[Any], Any], *, reverse: bool = False) -> list[Any]:
    """Order by a key; elements whose key is NaN or missing come last."""
    with_keys = [(one, key(one)) for one in elements(source)]
    missing = [one for one, of in with_keys if of is None]
    nans = [one for one, of in with_keys if isinstance(of, float) and math.isnan(of)]
    rest = [(one, of) for one, of in with_keys if of is not None and of == of]  # noqa: PLR0124  # no NaN
    rest.sort(key=lambda pair: pair[1], reverse=reverse)
    return [one for one, _ in rest] + nans + missing


def extreme(choose: Callable[[list[Any]], Any], source: Any) -> Any:
    """Return the least or greatest value that is neither missing nor NaN."""
    numbers = [one for one in elements(source) if one is not None and not math.isnan(one)]
    return choose(numbers) if numbers else None


def added(source: Any) -> Any:
    """Return the sum of the values that are not missing."""
    return known(sum)([one for one in elements(source) if one is not None])


def zipped(source: Any) -> Any:
    """Return the records, or tuples, that several lists make; other values are repeated."""
    parts = list(source.values() if isinstance(source, dict) else source)
    if not any(isinstance(one, list) for one in parts):
        return source
    (length,) = {len(one) for one in parts if isinstance(one, list)}
    columns = [one if isinstance(one, list) else [one] * length for one in parts]
    rows = list(zip(*columns, strict=True))
    return (
        [dict(zip(source, one, strict=True)) for one in rows] if isinstance(source, dict) else rows
    )


def joined(source: Any) -> list[Any]:
    """Return the elements of a list, or the records that lists in a record make."""
    return zipped(source) if isinstance(source, dict | tuple) else elements(source)


def folded(source: Any, seed: Any, step: Callable[[Any, Any], Any]) -> Any:
    """Return the fold of a list with a function of the sum so far and an element."""
    total = seed
    for one in elements(source):
        found = step(total, one)
        total = total if found is None else found
    return total


OPERATORS: dict[str, Callable[..., Any]] = {
    "Where": where,
    "Select": lambda source, function: [function(one) for one in elements(source)],
    "SelectMany": lambda source, function: [
        below for one in elements(source) for below in joined(function(one))
    ],
    "First": lambda source: item(source, 0),
    "Last": lambda source: item(source, -1),
    "ElementAt": item,
    "Contains": lambda source, wanted: disjunction(
        *(known(operator.eq)(one, wanted) for one in elements(source))
    ),
    "Count": lambda source: len(elements(source)),
    "Sum": added,
    "Max": lambda source: extreme(max, source),
    "Min": lambda source: extreme(min, source),
    "Any": lambda source, function: disjunction(*map(function, elements(source))),
    "All": lambda source, function: conjunction(*map(function, elements(source))),
    "Concat": lambda source, other: elements(source) + elements(other),
    "Zip": zipped,
    "OrderBy": ordered,
    "OrderByDescending": lambda source, key: ordered(source, key, reverse=True),
    "Choose": lambda source, many: [list(one) for one in combinations(elements(source), many)],
    "Aggregate": folded,
}

ON_LISTS: dict[str, Callable[..., Any]] = {
    "len": len,
    "num": len,
    "sum": added,
    "max": lambda source: extreme(max, source),
    "min": lambda source: extreme(min, source),
    "any": lambda source: disjunction(*source),
    "all": lambda source: conjunction(*source),
}
"""Functions of one list."""
