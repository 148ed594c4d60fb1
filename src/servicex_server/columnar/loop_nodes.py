"""A query as loops over sequences: the nodes of func_adl, and what they tell without a file.

Nodes are data. A language makes them from text (`servicex_server.languages.func_adl`), and
`servicex_server.columnar.loop_evaluator` computes them on columns. The names of lambdas are
numbered in the order of the text; a variable is such a number, so names may shadow each other.
"""

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

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
    """A use of a name that a lambda binds."""

    number: int


@dataclass(frozen=True, slots=True)
class Branch(Node):
    """A branch of an event. For ``e.a.b`` both words are kept, because ``a.b`` may be one name."""

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


@dataclass(frozen=True)
class Record(Node):
    """Values by name; those of a tuple are called 0, 1 and so on."""

    items: tuple[tuple[str, Node], ...]
    is_tuple: bool = False

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """The values by name, for callers that look up many of them."""
        return dict(self.items)

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
    waiting = [node]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += reversed(one.children())


def free_variables(node: Node, known: dict[int, frozenset[int]]) -> frozenset[int]:
    """Return the variables that a node uses but does not bind; ``known`` caches the results."""
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


def common_subexpressions(node: Node) -> dict[int, tuple[int, int]]:
    """Return the nodes that a query has more than once, by their ``id``.

    Returns
    -------
    A number that equal nodes share, and how often such a node is used if its value is kept:
    a node within equal nodes counts once.
    """
    numbers: dict[Hashable, int] = {}
    known: dict[int, int] = {}
    nodes = list(walk(node))
    for one in reversed(nodes):  # a node comes after the nodes below it
        known[id(one)] = numbers.setdefault((type(one), *_structure(one, known)), len(numbers))
    uses: Counter[int] = Counter()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        uses[known[id(one)]] += 1
        if uses[known[id(one)]] == 1:
            waiting += one.children()
    return {
        id(one): (number, uses[number])
        for one in nodes
        if uses[number := known[id(one)]] > 1 and not isinstance(one, _CHEAP)
    }


_CHEAP = (Constant, Events, Lambda, Variable)
"""Nodes whose value takes no time to compute."""


def _structure(node: Node, known: dict[int, int]) -> Iterator[Hashable]:
    """Yield the fields of a node, with the numbers of the nodes below it."""

    def said(value: Any) -> Hashable:
        if isinstance(value, Node):
            return known[id(value)]
        if isinstance(value, tuple):
            return tuple(map(said, value))
        return type(value), repr(value)  # 1, 1.0 and True are equal, and so are 0.0 and -0.0

    return (said(getattr(node, one.name)) for one in fields(node) if one.compare)


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """A query, with what is derived from it once for all ranges of entries.

    Parameters
    ----------
    node
        A sequence over the events.
    text
        The query as the user wrote it, for errors.
    common
        The nodes that occur more than once; see `common_subexpressions`.
    free
        The variables that each node uses but does not bind, by ``id``.
    """

    node: Node
    text: str
    common: dict[int, tuple[int, int]]
    free: dict[int, frozenset[int]]


def prepare(node: Node, text: str) -> PreparedQuery:
    """Find the common subexpressions of a query, and the variables that its nodes use."""
    free: dict[int, frozenset[int]] = {}
    free_variables(node, free)
    return PreparedQuery(node, text, common_subexpressions(node), free)


def paths(node: Node) -> tuple[dict[tuple[str, ...], int], dict[tuple[str, ...], int]]:
    """Return the branches that a query names, each with the place in the text.

    The first dict has the branches that decide which events are kept, the second the others.
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
    """Yield the nodes that conditions on events use, also through records of earlier stages."""
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
        return  # seen before: stages that name a value many times would multiply the work
    seen.add(id(node))
    match node:
        case Field(value=Variable(number=number), name=name) if number in known:
            body = known[number]
            items = body.by_name if isinstance(body, Record) else {}
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
    """Return where a node is in the text, for the end of an error message."""
    return f"at character {at + 1}: {shown(text, at)}"
