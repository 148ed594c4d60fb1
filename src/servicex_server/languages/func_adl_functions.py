"""The functions that a func_adl query may call, and the nodes that they become.

A function is written bare or with its module: ``sqrt(x)``, ``np.sqrt(x)``, ``math.sqrt(x)``. A
numpy function for which Python has an operator, such as ``np.add``, becomes the node of the
operator, so that both mean the same.
"""

from collections.abc import Mapping
from functools import lru_cache

from servicex_server.columnar import number_types
from servicex_server.columnar.functions import ELEMENTWISE, FUNCTIONS, OF_TWO, check_constants
from servicex_server.columnar.loop_nodes import (
    Binary,
    Call,
    Conditional,
    Constant,
    Lambda,
    Logical,
    Node,
    Unary,
    Variable,
    walk,
)

MODULES = frozenset(("np", "numpy", "math", "ak", "awkward"))
"""Names that mean a module, unless a lambda binds them."""

NUMBERS: Mapping[str, float] = {
    "pi": 3.141592653589793,
    "e": 2.718281828459045,
    "inf": float("inf"),
    "nan": float("nan"),
    "tau": 6.283185307179586,
}
"""Constants of ``np`` and ``math``."""

_PLAIN = frozenset(("len", "sum", "any", "all", "abs", "min", "max", "round", "pow"))
_OF_A_LIST = frozenset(("sum", "any", "all", "min", "max"))
_RENAMED = {
    "amax": "max",
    "amin": "min",
    "around": "round",
    "maximum": "max",
    "minimum": "min",
}
_SYMBOLS = {
    "add": "+",
    "bitwise_and": "&",
    "bitwise_not": "~",
    "bitwise_or": "|",
    "bitwise_xor": "^",
    "divide": "/",
    "equal": "==",
    "floor_divide": "//",
    "greater": ">",
    "greater_equal": ">=",
    "invert": "~",
    "left_shift": "<<",
    "less": "<",
    "less_equal": "<=",
    "logical_and": "and",
    "logical_not": "not",
    "logical_or": "or",
    "mod": "%",
    "multiply": "*",
    "negative": "-",
    "not_equal": "!=",
    "positive": "+",
    "pow": "**",
    "power": "**",
    "remainder": "%",
    "right_shift": ">>",
    "subtract": "-",
    "true_divide": "/",
}
_OF_ONE = frozenset(("bitwise_not", "invert", "logical_not", "negative", "positive"))


@lru_cache
def known(module: str) -> frozenset[str]:
    """Return the names of all functions of a module; of bare functions for an empty name."""
    if not module:
        return FUNCTIONS | _PLAIN
    if module in ("ak", "awkward"):
        return FUNCTIONS
    return FUNCTIONS | ELEMENTWISE | _RENAMED.keys() | _SYMBOLS.keys()


def is_elementwise(name: str) -> bool:
    """Whether a function works element by element, on numbers and on lists."""
    return name in ELEMENTWISE or name in _SYMBOLS


def called(name: str, module: str, values: tuple[Node, ...], at: int) -> Node:
    """Return the node of a call.

    Parameters
    ----------
    name
        One of `known`.
    module
        The module as the query writes it; empty for a bare name.
    values
        The arguments.
    at
        The place in the text.

    Raises
    ------
    ValueError
        The number of arguments is wrong, or a constant is too large; the message says what the
        function takes.
    """
    check_constants(name, [one.value if isinstance(one, Constant) else None for one in values], {})
    if name in _SYMBOLS:
        return _of_symbol(name, values, at)
    two = name in ("maximum", "minimum")
    plain = _RENAMED.get(name, name)
    if plain == "where" and len(values) > 1:
        _count(name, values, 3)
        return Conditional(*values, at=at)
    if two or plain in OF_TWO:
        _count(name, values, 2)
    elif plain == "round":
        _count(name, values, 1, 2)
    elif plain in ELEMENTWISE or (plain in _PLAIN - {"min", "max"} and not module):
        _count(name, values, 1)
    elif not values:
        raise ValueError(f"{name} needs an argument")
    if module and not two and len(values) > 1 and plain in _OF_A_LIST:
        axis = values[1]
        if not (isinstance(axis, Constant) and number_types.is_whole(axis.value)):
            raise ValueError(
                f"{module}.{name} works on one list, and its second argument is an axis"
            )
        plain = f"ak.{plain}"
    return Call(plain, values, at=at)


def _of_symbol(name: str, values: tuple[Node, ...], at: int) -> Node:
    symbol = _SYMBOLS[name]
    if name in _OF_ONE:
        (value,) = _count(name, values, 1)
        return Unary(symbol, value, at=at)
    one, other = _count(name, values, 2)
    if symbol in ("and", "or"):
        return Logical(symbol, (one, other), at=at)
    return Binary(symbol, one, other, at=at)


def _count(name: str, values: tuple[Node, ...], *wanted: int) -> tuple[Node, ...]:
    if len(values) not in wanted:
        many = " or ".join(map(str, wanted))
        raise ValueError(f"{name} takes {many}; got {len(values)}")
    return values


def fold(function: Lambda) -> tuple[str, Lambda] | None:
    """Split the lambda of a fold into an operation on the accumulator, and a lambda of the element.

    ``lambda total, x: total + 2 * x`` becomes ``+`` and ``lambda x: 2 * x``. Return None if the
    operation is not ``+``, ``-``, ``*``, ``min`` or ``max``: columns support only these.
    """
    total, element = function.variables
    so_far = Variable(total)
    match function.body:
        case Binary(symbol="+" | "*" as symbol, left=left, right=right):
            one, other = left, right
        case Binary(symbol="-" as symbol, left=left, right=right) if left == so_far:
            one, other = left, right
        case Call(function="min" | "max" as symbol, arguments=(left, right)):
            one, other = left, right
        case _:
            return None
    step = other if one == so_far else one
    if so_far not in (one, other) or so_far in walk(step):
        return None
    return symbol, Lambda((element,), step, at=function.at)
