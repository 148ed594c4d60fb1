"""The nodes of an expression: data that `servicex_server.columnar.expression` makes of a text."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import EllipsisType


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
    """A number, a truth value, a text, None, or the ``...`` of a subscript."""

    value: float | bool | str | EllipsisType | None


@dataclass(frozen=True, slots=True)
class Sequence(Node):
    """A list of values, as functions that take many arrays expect it."""

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
    """``-x``, ``+x``, ``not x`` and ``~x``, which is *not* on truth values."""

    symbol: str
    operand: Node

    def children(self) -> tuple[Node, ...]:
        """Return the operand."""
        return (self.operand,)


@dataclass(frozen=True, slots=True)
class Binary(Node):
    """Arithmetic, bitwise, comparing and logical operators, element by element."""

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


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and all below it, from left to right; a shared node as often as it occurs."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += reversed(one.children())


def names(node: Node) -> Iterator[Name]:
    """Yield every name in a tree, from left to right."""
    return (one for one in walk(node) if isinstance(one, Name))


def depth_of(node: Node) -> int:
    """Return the depth of a tree; a single name has depth 1."""
    deepest, waiting = 0, [(node, 1)]
    while waiting:
        one, depth = waiting.pop()
        deepest = max(deepest, depth)
        waiting += [(child, depth + 1) for child in one.children()]
    return deepest
