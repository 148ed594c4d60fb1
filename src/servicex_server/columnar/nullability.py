"""Finds the columns of a query that may have missing values, from its text, without a file.

The first element of an empty list is missing, and so is its maximum. Whether a list can be empty
depends on the data, unless the query itself guards against it. So only certain cases are reported:
a list that comes from a branch, an element of it that reaches a column, and nothing in the query
that may be a guard. Everything that may be a guard counts as one: a condition on events before or
after, an ``if``, an ``and``, and a loop, because ``e.x`` is not empty within
``e.x.Select(lambda x: x / e.x.Max())``.
"""

from collections.abc import Iterator, Mapping

from servicex_server.columnar.four_vectors import METHODS
from servicex_server.columnar.functions import ELEMENTWISE
from servicex_server.columnar.loop_nodes import (
    Binary,
    Branch,
    Call,
    Constant,
    Events,
    Field,
    Item,
    Lambda,
    Node,
    Operator,
    Record,
    Unary,
    Variable,
)

_ELEMENTS = frozenset(("First", "Last", "ElementAt", "Max", "Min"))
_EXTREMES = frozenset(("max", "min"))
_KEEP_A_LIST = frozenset(
    ("Where Select OrderBy OrderByDescending Choose Zip ToFourMomenta ToFourMomentum").split()
)
_GUARDS = frozenset("&|")


def unguarded(node: Node) -> Iterator[tuple[str, Node]]:
    """Yield the columns that may have missing values, each with the node that causes them.

    A column without a name has the name ``""``.
    """
    stages: list[Lambda] = []
    while isinstance(node, Operator):
        function = node.arguments[0] if node.arguments else None
        if node.name != "Select" or not isinstance(function, Lambda):
            return
        stages.append(function)
        node = node.source
    known: dict[int, Node] = {}
    element: Node | None = None
    for function in reversed(stages):
        if element is not None:
            known[function.variables[0]] = element
        element = function.body
    if element is not None and isinstance(node, Events):
        yield from _Search(known).columns(element)


class _Search:
    """A search through the values of an event.

    Parameters
    ----------
    known
        The values of the variables of the stages, by number.
    """

    def __init__(self, known: Mapping[int, Node]) -> None:
        self._known = known
        # each value is examined once, however often every stage names it
        self._missing: dict[int, Node | None] = {}
        self._lists: dict[int, bool] = {}

    def columns(self, element: Node) -> Iterator[tuple[str, Node]]:
        """Yield the columns that may have missing values."""
        element = self._resolved(element)
        items = element.items if isinstance(element, Record) else (("", element),)
        for name, value in items:
            if found := self._find(value):
                yield name, found

    def _resolved(self, node: Node) -> Node:
        """Return the value of a variable, or of a part of a record, of an earlier stage."""
        while True:
            if isinstance(node, Variable) and node.number in self._known:
                node = self._known[node.number]
                continue
            record = self._resolved(node.value) if isinstance(node, Field) else None
            items = record.by_name if isinstance(record, Record) else {}
            if not (isinstance(node, Field) and node.name in items):
                return node
            node = items[node.name]

    def _find(self, node: Node) -> Node | None:
        """Return the node in a value that may be missing, or None."""
        node = self._resolved(node)
        if id(node) not in self._missing:
            self._missing[id(node)] = self._found(node)
        return self._missing[id(node)]

    def _found(self, node: Node) -> Node | None:
        parts: tuple[Node, ...] = ()
        match node:
            case Operator(name=name, source=source) if name in _ELEMENTS:
                return self._element(node, source)
            case Call(function=name, arguments=(one,)) if name in _EXTREMES:
                return self._element(node, one)
            case Item(value=value, index=Constant(value=int())):
                return self._element(node, value)
            case Operator(name=name, source=source, arguments=arguments) if name in METHODS:
                parts = (source, *arguments)
            case Binary(symbol=symbol) if symbol not in _GUARDS:
                parts = node.children()
            case Call(function=name) if name in ELEMENTWISE:
                parts = node.children()
            case Unary() | Record() | Field():
                parts = node.children()
        return next(filter(None, map(self._find, parts)), None)

    def _element(self, node: Node, source: Node) -> Node | None:
        """Return the node that may be missing in an element, minimum or maximum of a list."""
        # an element of a missing list is missing too
        return node if self._is_list(source) else self._find(source)

    def _is_list(self, node: Node) -> bool:
        """Whether a value that is used as a list is made of branches only."""
        node = self._resolved(node)
        if id(node) not in self._lists:
            self._lists[id(node)] = self._made_of_lists(node)
        return self._lists[id(node)]

    def _made_of_lists(self, node: Node) -> bool:
        match node:
            case Branch():
                return True
            case Operator(name=name, source=source) if name in _KEEP_A_LIST:
                return self._is_list(source)
            case Operator(name="Concat", source=source, arguments=(other,)):
                return self._is_list(source) and self._is_list(other)
            case Call(function=name) if name not in ELEMENTWISE:
                return False
            case Unary() | Binary() | Call() | Record():
                values = [one for one in node.children() if not isinstance(one, Constant)]
                return bool(values) and all(map(self._is_list, values))
        return False
