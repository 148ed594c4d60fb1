"""A query's expressions as a small tree: parsed from text, evaluated on columns, never executed.

`parse` reads the expression language of uproot (Python syntax, names of branches, a fixed list
of functions) into nodes of this module; nothing else than these nodes can be evaluated, so a
query can reach columns and the functions of `servicex_server.columnar.functions` and nothing more.
"""

import ast
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from servicex_server.columnar.functions import FUNCTIONS, KEYWORDS, call, number
from servicex_server.errors import (
    QueryError,
    QueryTypeError,
    ServiceXError,
    UnknownNameError,
    did_you_mean,
)

MAX_DEPTH = 120
"""Nesting beyond which an expression is refused; the stack bears several times as much."""

_BINARY: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
    ast.FloorDiv: ("//", operator.floordiv),
    ast.Mod: ("%", operator.mod),
    ast.Pow: ("**", operator.pow),
    ast.BitAnd: ("&", operator.and_),
    ast.BitOr: ("|", operator.or_),
    ast.BitXor: ("^", operator.xor),
    ast.LShift: ("<<", operator.lshift),
    ast.RShift: (">>", operator.rshift),
}
_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
}
_OPERATORS = dict((*_BINARY.values(), *_COMPARE.values()))
_UNARY: dict[str, Callable[[Any], Any]] = {
    "-": operator.neg,
    "+": operator.pos,
    "~": operator.invert,
}
_UNARY_SYMBOLS: dict[type[ast.unaryop], str] = {ast.USub: "-", ast.UAdd: "+", ast.Invert: "~"}


@dataclass(frozen=True, slots=True)
class Node:
    """Base of all nodes; ``at`` is the column in the text it was read from."""

    at: int = field(default=0, compare=False, repr=False, kw_only=True)

    def children(self) -> tuple["Node", ...]:
        """Return the nodes below this one."""
        return ()


@dataclass(frozen=True, slots=True)
class Name(Node):
    """A branch or an alias, by name; the name may hold dots."""

    name: str


@dataclass(frozen=True, slots=True)
class Literal(Node):
    """A number, a truth value, a text or None."""

    value: float | bool | str | None


@dataclass(frozen=True, slots=True)
class Sequence(Node):
    """Several values in a row, as the functions that take many arrays expect."""

    items: tuple[Node, ...]

    def children(self) -> tuple[Node, ...]:
        """Return the items."""
        return self.items


@dataclass(frozen=True, slots=True)
class Record(Node):
    """Values by name."""

    items: tuple[tuple[str, Node], ...]

    def children(self) -> tuple[Node, ...]:
        """Return the values."""
        return tuple(node for _, node in self.items)


@dataclass(frozen=True, slots=True)
class Unary(Node):
    """``-x``, ``+x`` and ``~x``, which is *not* on truth values."""

    symbol: str
    operand: Node

    def children(self) -> tuple[Node, ...]:
        """Return the operand."""
        return (self.operand,)


@dataclass(frozen=True, slots=True)
class Binary(Node):
    """Arithmetic, bitwise and comparing operators, element by element."""

    symbol: str
    left: Node
    right: Node

    def children(self) -> tuple[Node, ...]:
        """Return both sides."""
        return (self.left, self.right)


@dataclass(frozen=True, slots=True)
class Subscript(Node):
    """``x[y]``: a position, a slice, a mask or a field name."""

    value: Node
    index: Node

    def children(self) -> tuple[Node, ...]:
        """Return the value and the index."""
        return (self.value, self.index)


@dataclass(frozen=True, slots=True)
class Slice(Node):
    """``start:stop:step`` within a subscript."""

    parts: tuple[Node | None, Node | None, Node | None]

    def children(self) -> tuple[Node, ...]:
        """Return those parts that are given."""
        return tuple(part for part in self.parts if part is not None)


@dataclass(frozen=True, slots=True)
class Call(Node):
    """One of the known functions on arguments."""

    function: str
    arguments: tuple[Node, ...]
    keywords: tuple[tuple[str, Node], ...] = ()

    def children(self) -> tuple[Node, ...]:
        """Return all arguments."""
        return (*self.arguments, *(node for _, node in self.keywords))


def names(node: Node) -> Iterator[Name]:
    """Yield every name in a tree, from left to right."""
    if isinstance(node, Name):
        yield node
    for child in node.children():
        yield from names(child)


def pointed(text: str, at: int) -> str:
    """Return the piece of ``text`` around column ``at`` with a caret under it.

    Examples
    --------
    >>> print(pointed("met > > 5", 6))
    met > > 5
          ^
    """
    start = max(0, at - 40)
    piece = text[start : at + 40].replace("\n", " ")
    return f"{piece}\n{' ' * (at - start)}^"


def _at(text: str, at: int) -> str:
    return f"at character {at + 1}:\n{pointed(text, at)}"


def parse(text: str, *, what: str = "expression") -> Node:
    """Read an expression.

    Parameters
    ----------
    text
        Python syntax; names are branches or aliases.
    what
        What to call it in an error, such as ``cut``.

    Raises
    ------
    QueryError
        It has no meaning here; the message shows the place.

    Examples
    --------
    >>> parse("met_et > 1000")
    Binary(symbol='>', left=Name(name='met_et'), right=Literal(value=1000))
    """
    if not text.strip():
        raise QueryError(f"{what} is empty")
    lead = len(text) - len(text.lstrip())
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        # where the text ends too early Python gives no place
        at = lead + error.offset - 1 if error.offset else len(text)
        raise QueryError(
            f"{what} has a syntax error ({error.msg}) {_at(text, at)}",
            hint="a branch whose name is no Python name is written get('name')",
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise QueryError(
            f"{what} cannot be read: {str(error) or 'it is nested too deeply'}",
            hint="write it with fewer nested parentheses",
        ) from None
    return _Reader(text, what, lead).read(tree.body, 0)


class _Reader:
    """Turns Python's syntax tree into ours; every kind of node that is not named is refused."""

    def __init__(self, text: str, what: str, lead: int) -> None:
        self.text = text
        self.what = what
        self.lead = lead

    def place(self, node: ast.expr) -> int:
        # ast counts bytes of UTF-8 in each line; expressions are one line in practice
        lines = self.text.strip().splitlines()
        before = sum(len(line) + 1 for line in lines[: node.lineno - 1])
        column = len(lines[node.lineno - 1].encode()[: node.col_offset].decode(errors="ignore"))
        return self.lead + before + column

    def refuse(self, node: ast.expr, why: str, hint: str = "") -> QueryError:
        return QueryError(f"{self.what}: {why} {_at(self.text, self.place(node))}", hint=hint)

    def read(self, node: ast.expr, depth: int) -> Node:  # noqa: C901, PLR0912  # one case a kind
        if depth > MAX_DEPTH:
            raise self.refuse(node, f"nested more than {MAX_DEPTH} deep", "use an alias for a part")
        at = self.place(node)
        down = depth + 1
        match node:
            case ast.Constant(value=value):
                if not (value is None or isinstance(value, bool | int | float | str)):
                    raise self.refuse(node, f"a {type(value).__name__} is no column")
                return Literal(number(value), at=at)
            case ast.Name(id=name):
                return Name(self.allowed(node, name), at=at)
            case ast.Attribute():
                return self.dotted(node, down)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Binary("==", self.value(operand, down), Literal(0), at=at)
            case ast.UnaryOp(op=op, operand=operand):
                symbol = _UNARY_SYMBOLS[type(op)]
                return Unary(symbol, self.value(operand, down), at=at)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                symbol = _BINARY[type(op)][0]
                return Binary(symbol, self.value(left, down), self.value(right, down), at=at)
            case ast.BoolOp(op=op, values=values):
                symbol = "&" if isinstance(op, ast.And) else "|"
                result = self.truth(values[0], down)
                for value in values[1:]:
                    result = Binary(symbol, result, self.truth(value, down), at=at)
                return result
            case ast.Compare():
                return self.comparison(node, down)
            case ast.Subscript(value=value, slice=index):
                return Subscript(self.value(value, down), self.index(index, down), at=at)
            case ast.Call():
                return self.call(node, down)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return Sequence(tuple(self.read(item, down) for item in items), at=at)
            case ast.Dict(keys=keys, values=values):
                pairs = []
                for key, value in zip(keys, values, strict=True):
                    if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
                        raise self.refuse(node, "the keys of a dict must be texts")
                    pairs.append((key.value, self.read(value, down)))
                return Record(tuple(pairs), at=at)
            case _:
                raise self.refuse(
                    node,
                    f"{type(node).__name__} is not part of the expression language",
                    "use names, numbers, operators, comparisons and the listed functions",
                )

    def allowed(self, node: ast.expr, name: str) -> str:
        if name.startswith("__"):
            raise self.refuse(node, f"the name {name} is not allowed")
        return name

    def value(self, node: ast.expr, depth: int) -> Node:
        """Read what an operator works on, which is a column or a number."""
        result = self.read(node, depth)
        if isinstance(result, Sequence | Record):
            raise self.refuse(node, "an operator cannot work on a list or dict")
        return result

    def truth(self, node: ast.expr, depth: int) -> Node:
        """Read one side of ``and`` or ``or``, where a number other than 0 means true."""
        return Binary("!=", self.value(node, depth), Literal(0), at=self.place(node))

    def index(self, node: ast.expr, depth: int) -> Node:
        if isinstance(node, ast.Slice):
            parts = (node.lower, node.upper, node.step)
            low, high, step = (self.read(p, depth) if p is not None else None for p in parts)
            return Slice((low, high, step))
        if isinstance(node, ast.Tuple):
            return Sequence(tuple(self.index(item, depth) for item in node.elts))
        return self.read(node, depth)

    def dotted(self, node: ast.Attribute, depth: int) -> Node:
        """Read ``A.b`` as the one name it is in uproot, and ``f(x).b`` as a field."""
        self.allowed(node, node.attr)
        parts = [node.attr]
        below: ast.expr = node.value
        while isinstance(below, ast.Attribute):
            parts.append(self.allowed(below, below.attr))
            below = below.value
        if isinstance(below, ast.Name):
            parts.append(self.allowed(below, below.id))
            return Name(".".join(reversed(parts)), at=self.place(node))
        inner = self.value(node.value, depth)
        return Subscript(inner, Literal(node.attr), at=self.place(node))

    def comparison(self, node: ast.Compare, depth: int) -> Node:
        """Read a comparison; a chain ``a < b < c`` means ``(a < b) & (b < c)``."""
        at = self.place(node)
        left = self.value(node.left, depth)
        result: Node | None = None
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if type(op) not in _COMPARE:
                raise self.refuse(node, "'in' and 'is' do not work on columns", "compare with ==")
            right = self.value(right_node, depth)
            link = Binary(_COMPARE[type(op)][0], left, right, at=at)
            result = link if result is None else Binary("&", result, link, at=at)
            left = right
        assert result is not None  # noqa: S101  # the grammar has at least one comparator
        return result

    def call(self, node: ast.Call, depth: int) -> Node:
        if not isinstance(node.func, ast.Name):
            raise self.refuse(node, "only the listed functions can be called")
        name = self.allowed(node.func, node.func.id)
        if name == "get":
            match node.args:
                case [ast.Constant(value=str(branch))] if not node.keywords:
                    return Name(branch, at=self.place(node))
            raise self.refuse(node, "get takes the name of one branch, as a text")
        if name not in FUNCTIONS:
            raise UnknownNameError(
                f"{self.what}: there is no function {name} {_at(self.text, self.place(node))}",
                hint=did_you_mean(name, FUNCTIONS, otherwise="the functions are"),
            )
        keywords = []
        for keyword in node.keywords:
            if keyword.arg not in KEYWORDS:
                raise self.refuse(
                    node,
                    f"{name} takes no argument {keyword.arg}",
                    did_you_mean(keyword.arg or "**", KEYWORDS, otherwise="arguments by name are"),
                )
            keywords.append((keyword.arg, self.read(keyword.value, depth)))
        arguments = tuple(self.read(argument, depth) for argument in node.args)
        return Call(name, arguments, tuple(keywords), at=self.place(node))


def evaluate(
    node: Node, column: Callable[[str], Any], *, standard_axis: bool = False, text: str = ""
) -> Any:
    """Compute a tree on columns.

    Parameters
    ----------
    node
        What to compute.
    column
        Gives the array of a branch or alias by name.
    standard_axis
        Whether functions work along awkward's own default axis instead of within each event.
    text
        The expression as the user wrote it, for errors.

    Raises
    ------
    QueryTypeError
        Shapes or types do not fit together.
    """

    def walk(node: Node) -> Any:
        try:
            match node:
                case Name(name=name):
                    return column(name)
                case Literal(value=value):
                    return value
                case Sequence(items=items):
                    return tuple(walk(item) for item in items)
                case Record(items=pairs):
                    return {key: walk(item) for key, item in pairs}
                case Slice(parts=parts):
                    return slice(*(None if part is None else walk(part) for part in parts))
                case Unary(symbol=symbol, operand=operand):
                    return _UNARY[symbol](walk(operand))
                case Binary(symbol=symbol, left=left, right=right):
                    return _binary(symbol, walk(left), walk(right))
                case Subscript(value=value, index=index):
                    return _subscript(walk(value), walk(index))
                case Call(function=function, arguments=arguments, keywords=keywords):
                    return call(
                        function,
                        [walk(argument) for argument in arguments],
                        {key: walk(argument) for key, argument in keywords},
                        standard_axis=standard_axis,
                    )
                case _:
                    return None  # there is no other kind of node
        except (ServiceXError, MemoryError):
            raise
        except Exception as error:
            why = next((line for line in str(error).splitlines() if line.strip()), "")
            place = f" {_at(text, node.at)}" if text else ""
            raise QueryTypeError(
                f"cannot compute this: {type(error).__name__}: {why}{place}",
                hint="the shapes or types do not fit together",
            ) from error

    return walk(node)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _binary(symbol: str, left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str) and symbol not in ("==", "!="):
        raise TypeError("texts can only be compared with == and !=")
    if _is_number(left) and _is_number(right) and symbol in ("**", "<<"):
        # Python would compute 9**9**9 exactly, and for ever
        if symbol == "<<":
            raise TypeError("<< needs a column on one side")
        return float(left) ** float(right)
    return _OPERATORS[symbol](left, right)


def _subscript(value: Any, index: Any) -> Any:
    if isinstance(index, tuple) and not any(isinstance(part, slice) for part in index):
        index = list(index) if all(isinstance(part, str) for part in index) else index
    return value[index]
