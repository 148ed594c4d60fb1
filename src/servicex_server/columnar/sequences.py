"""A query as loops over sequences: the nodes of func_adl, and what they say without a file.

Nodes are data. A reader of a language makes them (`servicex_server.languages.func_adl`), and
`servicex_server.columnar.loops` computes them on columns. A variable is a number, given to each
lambda's names in the order of the text, so that names may shadow each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

SHOWN = 80
"""Characters of an expression that an error shows."""


@dataclass(frozen=True, slots=True)
class Node:
    """Base of all nodes; ``at`` is the character in the text it was read from."""

    at: int = field(default=0, compare=False, kw_only=True)

    def children(self) -> tuple["Node", ...]:
        """Return the nodes below this one."""
        return ()


@dataclass(frozen=True, slots=True)
class Events(Node):
    """The entries of the tree, as a sequence."""


@dataclass(frozen=True, slots=True)
class Constant(Node):
    """A number, a truth value or a text."""

    value: float | bool | str


@dataclass(frozen=True, slots=True)
class Variable(Node):
    """What a lambda's name stands for."""

    number: int


@dataclass(frozen=True, slots=True)
class Branch(Node):
    """A branch of an event. Of ``e.a.b`` both words are kept: ``a.b`` may be one name."""

    event: Node
    path: tuple[str, ...]

    def children(self) -> tuple[Node, ...]:
        """Return the event."""
        return (self.event,)


@dataclass(frozen=True, slots=True)
class Field(Node):
    """A part of a record, by name, or a property of a four-vector."""

    value: Node
    name: str

    def children(self) -> tuple[Node, ...]:
        """Return the record."""
        return (self.value,)


@dataclass(frozen=True, slots=True)
class Item(Node):
    """``x[y]``: an element by its position, or elements by a mask or by positions."""

    value: Node
    index: Node

    def children(self) -> tuple[Node, ...]:
        """Return the list and the index."""
        return (self.value, self.index)


@dataclass(frozen=True, slots=True)
class Record(Node):
    """Values by name; those of a tuple are called 0, 1 and so on."""

    items: tuple[tuple[str, Node], ...]
    is_tuple: bool = False

    def children(self) -> tuple[Node, ...]:
        """Return the values."""
        return tuple(node for _, node in self.items)


@dataclass(frozen=True, slots=True)
class Unary(Node):
    """``-x``, ``+x``, ``~x`` and ``not x``."""

    symbol: str
    operand: Node

    def children(self) -> tuple[Node, ...]:
        """Return the operand."""
        return (self.operand,)


@dataclass(frozen=True, slots=True)
class Binary(Node):
    """Arithmetic, bitwise and comparing operators."""

    symbol: str
    left: Node
    right: Node

    def children(self) -> tuple[Node, ...]:
        """Return both sides."""
        return (self.left, self.right)


@dataclass(frozen=True, slots=True)
class Logical(Node):
    """``and`` and ``or`` of any number of operands."""

    symbol: str
    operands: tuple[Node, ...]

    def children(self) -> tuple[Node, ...]:
        """Return the operands."""
        return self.operands


@dataclass(frozen=True, slots=True)
class Conditional(Node):
    """``yes if test else no``."""

    test: Node
    yes: Node
    no: Node

    def children(self) -> tuple[Node, ...]:
        """Return the test and both outcomes."""
        return (self.test, self.yes, self.no)


@dataclass(frozen=True, slots=True)
class Call(Node):
    """One of the known functions."""

    function: str
    arguments: tuple[Node, ...]

    def children(self) -> tuple[Node, ...]:
        """Return the arguments."""
        return self.arguments


@dataclass(frozen=True, slots=True)
class Lambda(Node):
    """A function of one or two variables; only operators take one."""

    variables: tuple[int, ...]
    body: Node

    def children(self) -> tuple[Node, ...]:
        """Return the body."""
        return (self.body,)


@dataclass(frozen=True, slots=True)
class Operator(Node):
    """An operator on a sequence, such as ``Where``, with its lambdas and values."""

    name: str
    source: Node
    arguments: tuple[Node, ...] = ()

    def children(self) -> tuple[Node, ...]:
        """Return the sequence and the arguments."""
        return (self.source, *self.arguments)


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and all below it, from left to right."""
    yield node
    for child in node.children():
        yield from walk(child)


def free_variables(node: Node, known: dict[int, frozenset[int]]) -> frozenset[int]:
    """Return the variables that a node uses and does not bind; ``known`` keeps what was found."""
    found = known.get(id(node))
    if found is None:
        found = frozenset().union(*(free_variables(child, known) for child in node.children()))
        match node:
            case Variable(number=number):
                found |= {number}
            case Lambda(variables=variables):
                found -= set(variables)
        known[id(node)] = found
    return found


def paths(node: Node) -> tuple[dict[tuple[str, ...], int], dict[tuple[str, ...], int]]:
    """Return the branches that a query names, each with a place where it does.

    First those that decide which events are kept, then the others.
    """
    deciding: dict[tuple[str, ...], int] = {}
    for one in _decisions(node):
        if isinstance(one, Branch):
            deciding.setdefault(one.path, one.at)
    others: dict[tuple[str, ...], int] = {}
    for one in walk(node):
        if isinstance(one, Branch) and one.path not in deciding:
            others.setdefault(one.path, one.at)
    return deciding, others


def _decisions(node: Node) -> Iterator[Node]:
    """Yield what the conditions on events stand on, through the records of earlier stages."""
    stages = []
    while isinstance(node, Operator):
        stages.append(node)
        node = node.source
    element: Node | None = None
    known: dict[int, Node] = {}
    seen: set[int] = set()
    for stage in reversed(stages):
        function = stage.arguments[0] if stage.arguments else None
        if stage.name not in ("Where", "Select") or not isinstance(function, Lambda):
            return
        if element is not None:
            known[function.variables[0]] = element
        if stage.name == "Select":
            element = function.body
        else:
            yield from _stands_on(function.body, known, seen)


def _stands_on(node: Node, known: dict[int, Node], seen: set[int]) -> Iterator[Node]:
    if id(node) in seen:
        return  # a stage may name a value of the one before many times, and that one likewise
    seen.add(id(node))
    match node:
        case Field(value=Variable(number=number), name=name) if number in known:
            body = known[number]
            items = dict(body.items) if isinstance(body, Record) else {}
            yield from _stands_on(items.get(name, body), known, seen)
        case Variable(number=number) if number in known:
            yield from _stands_on(known[number], known, seen)
        case Branch():
            yield node
    for child in node.children():
        if not (isinstance(node, Field) and isinstance(child, Variable)):
            yield from _stands_on(child, known, seen)


def shown(text: str, at: int) -> str:
    """Return the expression that begins at a character, cut to what fits into a line.

    Examples
    --------
    >>> shown("(call Select (attr e 'x'))", 13)
    "(attr e 'x')"
    """
    depth, end, quote = 0, at, ""
    while end < len(text) and end - at <= SHOWN:
        letter = text[end]
        end += 1
        if quote:
            if letter == "\\":
                end += 1
            elif letter == quote:
                quote = ""
        elif letter in "'\"":
            quote = letter
        elif letter in "()":
            depth += 1 if letter == "(" else -1
            if depth < 0:
                end -= 1
        if not quote and depth <= 0 and (end >= len(text) or text[end] in " \t\r\n()"):
            break
    piece = " ".join(text[at : min(end, len(text))].split())
    return piece[:SHOWN] + "…" if len(piece) > SHOWN else piece


def place(text: str, at: int) -> str:
    """Return where something stands in a query, for the end of an error's sentence."""
    return f"at character {at + 1}: {shown(text, at)}"
