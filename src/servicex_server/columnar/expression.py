"""Parses the expressions of a query into nodes, which are evaluated on columns and never executed.

`parse` reads the expression language of uproot: Python syntax, names of branches, a fixed list of
functions. Only nodes can be evaluated, so a query can reach columns and the functions of
`servicex_server.columnar.functions`, and nothing more.
"""

import ast
import re
from array import array
from itertools import accumulate, islice
from keyword import iskeyword
from typing import Any

from servicex_server.columnar import number_types
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
    walk,
)
from servicex_server.columnar.foreign_syntax import MODULES, function_hint, syntax_hint
from servicex_server.columnar.functions import (
    ELEMENTWISE,
    FUNCTIONS,
    KEYWORDS,
    OF_TWO,
    check_constants,
)
from servicex_server.columnar.limits import MAX_WORDS, check_words, is_text
from servicex_server.errors import QueryError, UnknownNameError
from servicex_server.text.hints import did_you_mean

_SHOWN = 200
"""Characters of a rewritten expression that an error shows."""


MAX_DEPTH = 120
"""Nesting beyond which an expression is refused; the stack bears several times as much."""


_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.LShift: "<<",
    ast.RShift: ">>",
}


_BITWISE: dict[type[ast.operator], str] = {ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^"}


_BINARY = _ARITHMETIC | _BITWISE


_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


_UNARY: dict[type[ast.unaryop], str] = {
    ast.USub: "-",
    ast.UAdd: "+",
    ast.Invert: "~",
    ast.Not: "not",
}


_NAME = re.compile(r"(?!__)[\w.:/-][\w.:/ -]*")
"""A branch name that is not an expression, such as ``1lep`` or ``class``."""


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


def placed(text: str, at: int) -> str:
    """Return where column ``at`` of ``text`` is, in words and as `pointed` shows it."""
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
        The text is not an expression of this language; the message shows the place.

    Examples
    --------
    >>> parse("met_et > 1000")
    Binary(symbol='>', left=Name(name='met_et'), right=Literal(value=1000))
    """
    if not text.strip():
        raise QueryError(f"{what} is empty")
    if text.isascii() and text.isidentifier() and not (iskeyword(text) or text.startswith("__")):
        return Name(text)  # most expressions are just the name of a branch
    check_words(text, what)
    lead = len(text) - len(text.lstrip())
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        if _NAME.fullmatch(text):
            return Name(text)
        # where the text ends too early Python gives no place
        at = lead + error.offset - 1 if error.offset else len(text)
        raise QueryError(
            f"{what} has a syntax error ({error.msg}) {placed(text, at)}",
            hint=syntax_hint(text),
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise QueryError(
            f"{what} cannot be read: {str(error) or 'it is nested too deeply'}",
            hint="write it with fewer nested parentheses",
        ) from None
    node = _Reader(text, what, lead).read(tree.body, 0)
    # the middle of ``a < b < c`` is in the tree twice; the middle of a chain within it, four times
    if next(islice(walk(node), MAX_WORDS, None), None) is not None:
        raise QueryError(
            f"{what} has more than {MAX_WORDS} parts, each chain of comparisons written out",
            hint="write a < b and b < c with an alias for b",
        )
    return node


class _Reader:
    """Turns Python's syntax tree into ours; refuses every kind of node that it does not list."""

    def __init__(self, text: str, what: str, lead: int) -> None:
        self.text = text
        self.what = what
        lines = re.split(r"(\r\n|\r|\n)", text[lead:])
        self.lines = lines[::2]
        self.starts = list(accumulate(map(len, lines), initial=lead))[::2]
        self.columns: dict[int, array[int]] = {}

    def place(self, node: ast.expr) -> int:
        return self.offset(node.lineno, node.col_offset)

    def offset(self, lineno: int, column: int) -> int:
        """Return the place in the text of a line and column of Python's syntax tree."""
        number = lineno - 1
        line = self.lines[number]
        if line.isascii():
            return self.starts[number] + column
        if number not in self.columns:
            # ast counts bytes of UTF-8
            columns = array("I")
            for at, letter in enumerate(line):
                columns.extend([at] * len(letter.encode(errors="surrogatepass")))
            columns.append(len(line))
            self.columns[number] = columns
        return self.starts[number] + self.columns[number][column]

    def source(self, node: ast.expr) -> str:
        """Return the text of a node, with the parentheses around it."""
        start, end = self.span(node)
        text = self.text[start:end]
        return f"({text})" if self.in_parentheses(node) else text

    def span(self, node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None  # noqa: S101  # ast.parse sets both
        assert node.end_col_offset is not None  # noqa: S101
        return self.place(node), self.offset(node.end_lineno, node.end_col_offset)

    def in_parentheses(self, node: ast.expr) -> bool:
        before, after = self.span(node)
        while before and self.text[before - 1].isspace():
            before -= 1
        while after < len(self.text) and self.text[after].isspace():
            after += 1
        return self.text[before - 1 : before] == "(" and self.text[after : after + 1] == ")"

    def refuse(self, node: ast.expr, why: str, hint: str = "") -> QueryError:
        return QueryError(f"{self.what}: {why} {placed(self.text, self.place(node))}", hint=hint)

    def read(self, node: ast.expr, depth: int) -> Node:  # noqa: C901, PLR0912  # one case a kind
        if depth > MAX_DEPTH:
            raise self.refuse(node, f"nested more than {MAX_DEPTH} deep", "use an alias for a part")
        at = self.place(node)
        down = depth + 1
        match node:
            case ast.Constant(value=value):
                if not (value is None or isinstance(value, bool | int | float | str)):
                    raise self.refuse(node, f"a {type(value).__name__} is not a column")
                return Literal(number_types.number(self.sound(node, value)), at=at)
            case ast.Name(id=name):
                return Name(self.allowed(node, name), at=at)
            case ast.Attribute():
                return self.dotted(node, down)
            case ast.UnaryOp(op=op, operand=operand):
                return Unary(_UNARY[type(op)], self.value(operand, down), at=at)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                symbol = _BINARY[type(op)]
                return Binary(symbol, self.value(left, down), self.value(right, down), at=at)
            case ast.BoolOp(op=op, values=values):
                symbol = "and" if isinstance(op, ast.And) else "or"
                return _joined(symbol, [self.value(value, down) for value in values], at)
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
                    pairs.append((self.sound(key, key.value), self.read(value, down)))
                return Record(tuple(pairs), at=at)
            case ast.IfExp():
                raise self.refuse(
                    node,
                    "if and else are not part of the expression language",
                    f"write where({self.source(node.test)}, {self.source(node.body)}, "
                    f"{self.source(node.orelse)})"[:_SHOWN],
                )
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

    def sound(self, node: ast.expr, value: Any) -> Any:
        """Return a value; refuse a text that neither a file nor a database can hold."""
        if isinstance(value, str) and not is_text(value):
            raise self.refuse(node, "a text with a NUL character or a lone surrogate")
        return value

    def value(self, node: ast.expr, depth: int) -> Node:
        """Read an operand, which is a column or a number."""
        result = self.read(node, depth)
        if isinstance(result, Sequence | Record):
            raise self.refuse(node, "an operator cannot work on a list or dict")
        return result

    def index(self, node: ast.expr, depth: int) -> Node:
        if isinstance(node, ast.Slice):
            parts = (node.lower, node.upper, node.step)
            low, high, step = (self.read(p, depth) if p is not None else None for p in parts)
            return Slice((low, high, step))
        if isinstance(node, ast.Tuple):
            return Sequence(tuple(self.index(item, depth) for item in node.elts))
        if isinstance(node, ast.Constant) and node.value is Ellipsis:
            return Literal(..., at=self.place(node))
        return self.read(node, depth)

    def dotted(self, node: ast.Attribute, depth: int) -> Node:
        """Read ``A.b`` as one name, as uproot does, and ``f(x).b`` as a field."""
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
        links: list[Node] = []
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if type(op) not in _COMPARE:
                raise self.refuse(
                    node,
                    "'in' and 'is' do not work on columns",
                    "write (x == 1) | (x == 2), or is_none(x)",
                )
            right = self.value(right_node, depth)
            if Literal(None) in (left, right):
                raise self.refuse(
                    node,
                    "a comparison with None has no meaning",
                    "is_none(x) tells which values are missing, and ~is_none(x) which are not",
                )
            links.append(Binary(_COMPARE[type(op)], left, right, at=at))
            left = right
        self.check_precedence(node)
        return _joined("&", links, at)

    def check_precedence(self, node: ast.Compare) -> None:
        """Refuse ``a > 1 & b > 2``, which Python reads as ``a > (1 & b) > 2``."""
        operands = [node.left, *node.comparators]
        loose = [one for one in operands if self.is_loose(one)]
        if not loose:
            return
        signs = ["", *(_COMPARE[type(op)] for op in node.ops)]
        read: list[str] = []
        meant: list[list[str]] = [[]]
        joints = [""]
        for sign, one in zip(signs, operands, strict=True):
            first, *others = self.terms(one)
            read += [sign, f"({self.source(one)})" if one in loose else self.source(one)]
            meant[-1] += [sign, first[1]]
            meant += [[term] for _, term in others]
            joints += [symbol for symbol, _ in others]
        as_read = " ".join(filter(None, read))
        texts = [" ".join(filter(None, terms)) for terms in meant]
        compared = [any(sign in terms for sign in signs[1:]) for terms in meant]
        as_meant = " ".join(
            f"{joint} ({text})" if is_compared else f"{joint} {text}"
            for joint, text, is_compared in zip(joints, texts, compared, strict=True)
        ).strip()
        raise self.refuse(
            loose[0],
            f"&, | and ^ bind tighter than comparisons: this reads as {as_read[:_SHOWN]}",
            f"write {as_meant[:_SHOWN]}"
            if all(compared)
            else f"write {as_read[:_SHOWN]} or {as_meant[:_SHOWN]}",
        )

    def is_loose(self, node: ast.expr) -> bool:
        """Whether a node is a bitwise operator without parentheses around it."""
        is_bitwise = isinstance(node, ast.BinOp) and type(node.op) in _BITWISE
        return is_bitwise and not self.in_parentheses(node)

    def terms(self, node: ast.expr) -> list[tuple[str, str]]:
        """Return the operands of loose bitwise operators, each with the operator before it."""
        if not (isinstance(node, ast.BinOp) and self.is_loose(node)):
            return [("", self.source(node))]
        (_, first), *others = self.terms(node.right)
        return [*self.terms(node.left), (_BITWISE[type(node.op)], first), *others]

    def call(self, node: ast.Call, depth: int) -> Node:
        match node.func:
            case ast.Name():
                pass
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in MODULES:
                why = f"functions are written without {module}."
                hint = f"write {name}(...)" if name in FUNCTIONS else ""
                raise self.refuse(node, why, hint or function_hint(name, FUNCTIONS))
            case _:
                raise self.refuse(node, "only the listed functions can be called")
        name = self.allowed(node.func, node.func.id)
        if name == "get":
            match node.args:
                case [ast.Constant(value=str(branch))] if not node.keywords:
                    return Name(self.sound(node, branch), at=self.place(node))
            raise self.refuse(node, "get takes the name of one branch, as a text")
        if name not in FUNCTIONS:
            raise UnknownNameError(
                f"{self.what}: there is no function {name} {placed(self.text, self.place(node))}",
                hint=function_hint(name, FUNCTIONS),
            )
        keywords = []
        for keyword in node.keywords:
            if keyword.arg not in KEYWORDS:
                raise self.refuse(
                    node,
                    f"{name} takes no argument {keyword.arg}",
                    did_you_mean(
                        keyword.arg or "**", sorted(KEYWORDS), otherwise="arguments by name are"
                    ),
                )
            keywords.append((keyword.arg, self.read(keyword.value, depth)))
        arguments = tuple(self.read(argument, depth) for argument in node.args)
        if name in ELEMENTWISE and (keywords or len(arguments) != 1 + (name in OF_TWO)):
            many = "2 arguments" if name in OF_TWO else "1 argument"
            raise self.refuse(node, f"{name} takes {many}, and none by name")
        constants = [one.value if isinstance(one, Literal) else None for one in arguments]
        named = {key: one.value for key, one in keywords if isinstance(one, Literal)}
        try:
            check_constants(name, constants, named)
        except ValueError as error:
            raise self.refuse(node, str(error)) from None
        return Call(name, arguments, tuple(keywords), at=self.place(node))


def _joined(symbol: str, parts: list[Node], at: int) -> Node:
    """Return a chain of one symbol as a tree of the least depth."""
    while len(parts) > 1:
        odd = parts[-1:] if len(parts) % 2 else []
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [*(Binary(symbol, one, other, at=at) for one, other in pairs), *odd]
    return parts[0]
