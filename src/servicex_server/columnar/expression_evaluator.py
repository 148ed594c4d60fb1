"""Evaluates the nodes of an expression on columns. Nothing of the text is executed."""

from collections.abc import Callable
from typing import Any

from servicex_server.columnar import operators
from servicex_server.columnar.event_arrays import event_first, subscript
from servicex_server.columnar.expression import placed
from servicex_server.columnar.expression_nodes import (
    Binary,
    Call,
    Literal,
    Name,
    Node,
    Record,
    Sequence,
    Slice,
    Subscript,
    Unary,
)
from servicex_server.columnar.functions import (
    call,
)
from servicex_server.errors import QueryTypeError, ServiceXError


def evaluate(
    node: Node, column: Callable[[str], Any], *, standard_axis: bool = False, text: str = ""
) -> Any:
    """Compute a tree on columns.

    Parameters
    ----------
    node
        What to compute.
    column
        Returns the array of a branch or an alias by name.
    standard_axis
        Whether functions work along awkward's own default axis instead of within each event.
    text
        The expression as the user wrote it, for errors.

    Raises
    ------
    QueryTypeError
        Shapes or types do not fit together.
    """
    import numpy as np

    def compute(node: Node) -> Any:
        try:
            match node:
                case Name(name=name):
                    return column(name)
                case Literal(value=value):
                    return value
                case Sequence(items=items):
                    return tuple(compute(item) for item in items)
                case Record(items=pairs):
                    return {key: compute(item) for key, item in pairs}
                case Slice(parts=parts):
                    return slice(*(None if part is None else compute(part) for part in parts))
                case Unary(symbol=symbol, operand=operand):
                    return operators.unary(symbol, _operand(compute(operand)))
                case Binary(symbol=symbol, left=left, right=right):
                    sides = event_first(compute(left), compute(right))
                    return _binary(symbol, *map(_operand, sides))
                case Subscript(value=value, index=index):
                    return _constant(subscript(compute(value), compute(index)))
                case Call(function=function, arguments=arguments, keywords=keywords):
                    result = call(
                        function,
                        [compute(argument) for argument in arguments],
                        {key: compute(argument) for key, argument in keywords},
                        standard_axis=standard_axis,
                    )
                    return _constant(result)
                case _:
                    return None  # there is no other kind of node
        except (ServiceXError, MemoryError, RecursionError):
            raise
        except Exception as error:
            place = f" {placed(text, node.at)}" if text else ""
            raise QueryTypeError(
                f"cannot compute this: {_why(error)}{place}",
                hint=getattr(error, "hint", "") or "the shapes or types do not fit together",
            ) from error

    # a division by zero gives infinity or NaN, as everywhere in numpy
    with np.errstate(all="ignore"):
        return compute(node)


def _why(error: Exception) -> str:
    """Return the first line of an error, with its class for unusual exceptions."""
    why = next((line for line in str(error).splitlines() if line.strip()), "")
    plain = isinstance(error, TypeError | ValueError | AssertionError)
    return (why or "the types do not fit") if plain else f"{type(error).__name__}: {why}"


def _operand(value: Any) -> Any:
    """Return an operand; refuse lists, which Python would repeat, and other objects."""
    if value is None:
        raise TypeError("an operator cannot work on None; is_none(x) finds missing values")
    if isinstance(value, list | tuple | dict | slice):
        raise TypeError(f"an operator cannot work on a {type(value).__name__}")
    return value


def _constant(value: Any) -> Any:
    """Return a number of numpy as a number of Python, which has no width; others unchanged."""
    import numpy as np

    return value.item() if isinstance(value, np.generic) else value


def _binary(symbol: str, left: Any, right: Any) -> Any:
    left, right = operators.aligned((left, right))
    try:
        if symbol in ("and", "or"):
            return operators.logical(symbol, left, right)
        return operators.binary(symbol, left, right)
    except (ValueError, AssertionError) as error:
        types = f"{_type_of(left)} and {_type_of(right)}"
        raise TypeError(f"{symbol} does not fit {types}: {_why(error)}") from error


def _type_of(value: Any) -> str:
    return repr(value) if isinstance(value, bool | int | float | str) else str(value.type.content)
