"""Checks an expression for operations that mix events, before there is a file.

The rules are those of `servicex_server.columnar.event_axis`; the depth of columns is unknown here.
"""

from servicex_server.columnar.event_axis import (
    SIGNATURES,
    UNKNOWN,
    Column,
    Constant,
    EventsMixedError,
    Kind,
    Several,
    Stretch,
    check_call,
    check_subscript,
    compares,
)
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
from servicex_server.errors import QueryTypeError


def check_events(node: Node, *, standard_axis: bool, text: str, what: str) -> None:
    """Refuse an expression that mixes events, whatever the types of its columns are.

    Parameters
    ----------
    node
        The expression.
    standard_axis
        Whether functions work along awkward's own default axis.
    text, what
        The expression as the user wrote it, and what an error calls it.

    Raises
    ------
    QueryTypeError
        Its value for an event would depend on other events; the message shows the place.
    """
    try:
        _kind(node, standard_axis=standard_axis)
    except _PlacedError as error:
        raise QueryTypeError(
            f"{what}: {error.why} {placed(text, error.at)}", hint=error.hint
        ) from error


class _PlacedError(Exception):
    """A type error and its place in the text."""

    def __init__(self, error: TypeError, at: int) -> None:
        super().__init__(str(error))
        self.why = str(error)
        self.hint = error.hint if isinstance(error, EventsMixedError) else ""
        self.at = at


def _kind(node: Node, *, standard_axis: bool) -> Kind:
    """Return the kind of a node."""

    def kind(node: Node) -> Kind:
        match node:
            case Name():
                return Column()
            case Literal(value=value):
                return Constant(value)
            case Sequence(items=items):
                return Several(tuple(map(kind, items)))
            case Record(items=pairs):
                return Several(tuple(kind(one) for _, one in pairs))
            case Slice(parts=(low, high, step)):
                kinds = [kind(one) for one in (low, high, step) if one is not None]
                whole = low is None and high is None and step in (None, Literal(1))
                return Stretch(whole, all(isinstance(one, Constant) for one in kinds))
            case Unary(symbol="-", operand=Literal(value=int(value))):
                return Constant(-value)
        below = [kind(one) for one in node.children()]
        try:
            if isinstance(node, Subscript):
                return check_subscript(*below)
            if isinstance(node, Call) and node.function in SIGNATURES:
                count = len(node.arguments)
                names = [name for name, _ in node.keywords]
                named = dict(zip(names, below[count:], strict=True))
                if not compares(node.function, below[:count], named):
                    return check_call(
                        node.function, below[:count], named, standard_axis=standard_axis
                    )
            return _elementwise(node, below)
        except TypeError as error:
            raise _PlacedError(error, node.at) from error

    return kind(node)


def _elementwise(node: Node, below: list[Kind]) -> Kind:
    """Return the kind of an operator or a function that works element by element."""
    if any(isinstance(one, Several | Stretch) for one in below):
        what = f"{node.symbol}" if isinstance(node, Unary | Binary) else "this function"
        raise TypeError(f"{what} works on columns and numbers, not on several values")
    return Column() if any(isinstance(one, Column) for one in below) else Constant(UNKNOWN)
