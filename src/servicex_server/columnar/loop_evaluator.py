"""Computes a query of nested loops on columns: one operation on flat arrays for each node.

`Evaluation` takes the nodes of `servicex_server.columnar.loop_nodes`. It computes a node in the
outermost frame that has all it depends on (`servicex_server.columnar.loop_frames`), so a list that
is the same for every element of another list is computed once. So is a common subexpression, and
a function of one element that many lists of `Choose` contain.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from servicex_server.columnar import four_vectors, logic, number_types, operators
from servicex_server.columnar.elementwise import (
    argument,
    column,
    deepest,
    on_arrays,
    result_of,
    seeded,
)
from servicex_server.columnar.event_arrays import picked
from servicex_server.columnar.loop_frames import (
    Column,
    Entries,
    Frame,
    Later,
    Loop,
    Parts,
    Scalar,
    Value,
    array_of,
    carried,
    is_list,
    lift,
    opened,
)
from servicex_server.columnar.loop_lists import (
    broadcast,
    chosen,
    is_tuple,
    masked,
    part_of,
    positions,
    reduced,
    sorted_within,
    taken,
    zipped,
)
from servicex_server.columnar.loop_nodes import (
    Binary,
    Branch,
    Call,
    Conditional,
    Constant,
    Events,
    Field,
    Item,
    Lambda,
    Logical,
    Node,
    Operator,
    PreparedQuery,
    Record,
    Unary,
    Variable,
    place,
)
from servicex_server.errors import QueryTypeError, ServiceXError

_ARRAYS_IN_A_ROW = frozenset(("concatenate", "broadcast_arrays", "cartesian", "argcartesian"))

_REDUCERS = {
    "Sum": "sum",
    "Min": "min",
    "Max": "max",
    "sum": "sum",
    "min": "min",
    "max": "max",
    "any": "any",
    "all": "all",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A range of entries: their number, and functions that read their branches.

    ``read`` returns a branch by the words of its name; ``everything`` returns all readable branches
    by name.
    """

    entries: int
    read: Callable[[tuple[str, ...]], Any]
    everything: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Bound:
    """The value of a variable, and the frame in which it is bound."""

    frame: Frame
    value: Value


_Scope = Mapping[int, _Bound]


@dataclass(slots=True)
class _Kept:
    """The value of a node for certain values of its variables, and how often it is still needed."""

    bound: tuple[_Bound, ...]
    value: Value
    left: int


class Evaluation:
    """One query on one range of entries.

    Parameters
    ----------
    query
        The query to compute.
    source
        The range.
    """

    def __init__(self, query: PreparedQuery, source: Source) -> None:
        self._query = query
        self._source = source
        self._range = Frame(1)
        self._kept: dict[int, _Kept] = {}

    def loop(self) -> Loop:
        """Return the result: a sequence with one element for each row.

        Raises
        ------
        QueryTypeError
            Shapes or types do not fit together.
        """
        import numpy as np

        # a division by zero gives infinity or NaN, as everywhere in numpy
        with np.errstate(all="ignore"):
            return opened(self.value(self._query.node, {}), self._range, "a query")

    def value(self, node: Node, scope: _Scope) -> Value:
        """Compute a node, or return the value of an equal node that was computed before."""
        number, uses = self._query.common.get(id(node), (0, 1))
        if uses == 1:
            return self._computed(node, scope)
        bound = tuple(scope[one] for one in sorted(self._query.free[id(node)]))
        kept = self._kept.get(number)
        if kept is None or any(
            one is not other for one, other in zip(kept.bound, bound, strict=True)
        ):
            kept = self._kept[number] = _Kept(bound, self._computed(node, scope), uses)
        kept.left -= 1
        if kept.left == 0:
            del self._kept[number]
        return kept.value

    def _computed(self, node: Node, scope: _Scope) -> Value:
        try:
            return self._value(node, scope)
        except (ServiceXError, MemoryError, RecursionError):
            raise
        except Exception as error:
            why = next((line for line in str(error).splitlines() if line.strip()), "")
            hint = getattr(error, "hint", "")
            kind = "" if hint or type(error) is TypeError else f"{type(error).__name__}: "
            raise QueryTypeError(
                f"cannot compute this: {kind}{why[:300]}, {place(self._query.text, node.at)}",
                hint=hint or "the shapes or types do not fit together",
            ) from error

    def _value(self, node: Node, scope: _Scope) -> Value:  # noqa: C901, PLR0911, PLR0912  # one case a kind
        match node:
            case Events():
                return self._events()
            case Constant(value=constant):
                return Scalar(constant)
            case Variable(number=number):
                return scope[number].value
            case Branch(event=event, path=path):
                return self._branch(self.value(event, scope), path)
            case Record(items=items, is_tuple=is_tuple):
                fields = {name: self._promised(item, scope) for name, item in items}
                return Parts(self._frame(node, scope), fields, is_tuple)
            case Field(value=inner, name=name):
                return part_of(self.value(inner, scope), name)
            case Item(value=inner, index=index):
                return self._item(self.value(inner, scope), self.value(index, scope))
            case Unary(symbol=symbol, operand=operand):
                return on_arrays(
                    lambda one: operators.unary(symbol, one), self.value(operand, scope)
                )
            case Binary(symbol=symbol, left=left, right=right):
                return on_arrays(
                    lambda one, other: four_vectors.binary(symbol, one, other),
                    self.value(left, scope),
                    self.value(right, scope),
                )
            case Logical(symbol=symbol, operands=operands):
                values = [self.value(operand, scope) for operand in operands]
                result = values[0]
                for value in values[1:]:
                    result = on_arrays(
                        lambda one, other: operators.logical(symbol, one, other), result, value
                    )
                return result
            case Conditional(test=test, yes=yes, no=no):
                return on_arrays(logic.either, *(self.value(one, scope) for one in (test, yes, no)))
            case Call(function=function, arguments=arguments):
                return self._call(function, [self.value(one, scope) for one in arguments])
            case Operator():
                return self._operator(node, scope)
            case _:
                raise TypeError("a value is needed here, not a function")

    def _promised(self, node: Node, scope: _Scope) -> Later:
        return Later(lambda: self.value(node, scope))

    def _frame(self, node: Node, scope: _Scope) -> Frame:
        """Return the innermost frame that a node depends on."""
        frames = [scope[one].frame for one in self._query.free[id(node)]]
        return max(frames, key=lambda frame: frame.depth, default=self._range)

    def _events(self) -> Loop:
        import numpy as np

        count = self._source.entries
        inner = Frame(count, (self._range, np.zeros(count, np.int64)))
        return Loop(self._range, inner, Entries(inner, self._source.read, self._source.everything))

    def _branch(self, event: Value, path: tuple[str, ...]) -> Value:
        assert isinstance(event, Entries)  # noqa: S101  # a reader makes it of events only
        return Column(event.frame, event.read(path))

    def _body(self, function: Node, scope: _Scope, *values: tuple[Frame, Value]) -> Value:
        """Compute a lambda for the elements of sequences."""
        assert isinstance(function, Lambda)  # noqa: S101  # a reader has checked it
        bound = {
            number: _Bound(frame, lift(value, frame))
            for number, (frame, value) in zip(function.variables, values, strict=True)
        }
        return self.value(function.body, {**scope, **bound})

    def _operator(self, node: Operator, scope: _Scope) -> Value:
        source = self.value(node.source, scope)
        if node.name == "Zip":
            return zipped(source, self._frame(node, scope))
        if node.name in ("ToFourMomenta", "ToFourMomentum"):
            frame = self._frame(node, scope)
            return Column(frame, four_vectors.momenta(broadcast(source, frame)))
        if node.name in four_vectors.METHODS:
            return on_arrays(
                lambda one, other: four_vectors.method(node.name, one, other),
                source,
                self.value(node.arguments[0], scope),
            )
        if node.name == "Contains" and isinstance(source, Parts):
            return self._among(node, source, scope)
        loop = opened(source, self._frame(node, scope), node.name)
        methods: dict[str, Callable[[Operator, Loop, _Scope], Value]] = {
            "Select": self._select,
            "Where": self._where,
            "SelectMany": self._select_many,
            "First": lambda node, loop, scope: self._element(loop, 0, node, scope),
            "Last": lambda node, loop, scope: self._element(loop, -1, node, scope),
            "ElementAt": self._element_at,
            "Count": lambda _, loop, __: column(loop.frame, loop.counts()),
            "Sum": self._reduced,
            "Min": self._reduced,
            "Max": self._reduced,
            "Any": self._any_or_all,
            "All": self._any_or_all,
            "Contains": self._contains,
            "Concat": self._concat,
            "OrderBy": self._ordered,
            "OrderByDescending": self._ordered,
            "Choose": self._choose,
            "Aggregate": self._aggregate,
        }
        return methods[node.name](node, loop, scope)

    def _select(self, node: Operator, loop: Loop, scope: _Scope) -> Loop:
        function = node.arguments[0]
        if loop.origin is not None and not self._query.free[id(function)]:
            # of an element that was never chosen, the function may be impossible to compute
            with suppress(QueryTypeError):
                return carried(loop.frame, loop.inner, self._select(node, loop.origin, scope))
        return Loop(loop.frame, loop.inner, self._body(function, scope, (loop.inner, loop.element)))

    def _where(self, node: Operator, loop: Loop, scope: _Scope) -> Value:
        import numpy as np

        condition = self._body(node.arguments[0], scope, (loop.inner, loop.element))
        mask = operators.truth(array_of(condition, loop.inner))
        if is_list(mask):
            return Loop(loop.frame, loop.inner, masked(loop, mask))
        kept = np.flatnonzero(np.asarray(operators.known(mask)))
        inner = Frame(len(kept), (loop.inner, kept))
        return Loop(loop.frame, inner, lift(loop.element, inner))

    def _select_many(self, node: Operator, loop: Loop, scope: _Scope) -> Value:
        body = self._body(node.arguments[0], scope, (loop.inner, loop.element))
        if isinstance(body, Parts):
            body = zipped(body, loop.inner)
        below = opened(body, loop.inner, "SelectMany")
        return Loop(loop.frame, below.inner, below.element)

    def _element(self, loop: Loop, index: Any, node: Node, scope: _Scope) -> Value:
        del node, scope
        return taken(loop, index)

    def _element_at(self, node: Operator, loop: Loop, scope: _Scope) -> Value:
        return taken(loop, positions(self.value(node.arguments[0], scope), loop.frame))

    def _reduced(self, node: Operator, loop: Loop, scope: _Scope) -> Value:
        del scope
        return reduced(loop, _REDUCERS[node.name], node.name)

    def _any_or_all(self, node: Operator, loop: Loop, scope: _Scope) -> Value:
        body = self._body(node.arguments[0], scope, (loop.inner, loop.element))
        return reduced(Loop(loop.frame, loop.inner, body), node.name.lower(), node.name)

    def _contains(self, node: Operator, loop: Loop, scope: _Scope) -> Value:
        wanted = lift(self.value(node.arguments[0], scope), loop.frame)
        equal = on_arrays(
            lambda one, other: operators.binary("==", one, other), loop.element, wanted
        )
        return reduced(Loop(loop.frame, loop.inner, equal), "any", node.name)

    def _among(self, node: Operator, source: Parts, scope: _Scope) -> Value:
        """Compute whether a value is in a list that the query writes out."""
        wanted = self.value(node.arguments[0], scope)
        found: Value = Scalar(value=False)
        for part in source.fields.values():
            equal = on_arrays(partial(operators.binary, "=="), part.value, wanted)
            found = on_arrays(partial(operators.logical, "or"), found, equal)
        return found

    def _concat(self, node: Operator, loop: Loop, scope: _Scope) -> Value:
        import awkward as ak

        other = opened(self.value(node.arguments[0], scope), loop.frame, node.name)
        lists = operators.alike(*(array_of(one, loop.frame) for one in (loop, other)))
        return Column(loop.frame, ak.concatenate(lists, axis=1))

    def _ordered(self, node: Operator, loop: Loop, scope: _Scope) -> Value:
        import awkward as ak
        import numpy as np

        keys = array_of(
            self._body(node.arguments[0], scope, (loop.inner, loop.element)), loop.inner
        )
        if is_list(keys) or keys.fields:
            raise TypeError(f"{node.name} needs one number for each element")
        there = ~np.asarray(ak.is_none(keys, axis=0))
        found = ak.to_numpy(ak.drop_none(keys, axis=0))
        if found.dtype.kind not in "biuf":
            _, found = np.unique(found, return_inverse=True)
        if node.name == "OrderByDescending":
            found = -found if found.dtype.kind == "f" else ~found
        if there.all() and not (found.dtype.kind == "f" and np.isnan(found).any()):
            index = sorted_within(loop, found)
        else:
            # in both orders NaN comes after the numbers, and missing values come last
            order = np.zeros(len(keys), found.dtype)
            order[there] = found
            index = np.lexsort((order, ~there, loop.inner.index_to(loop.frame)))
        inner = Frame(loop.inner.length, (loop.inner, index))
        return Loop(loop.frame, inner, lift(loop.element, inner))

    def _choose(self, node: Operator, loop: Loop, scope: _Scope) -> Value:
        many = self.value(node.arguments[0], scope)
        number: Any = many.value if isinstance(many, Scalar) else None
        if not number_types.is_whole(number) or number < 1:
            raise TypeError("Choose needs a whole number, such as 2")
        return chosen(loop, number)

    def _aggregate(self, node: Operator, loop: Loop, scope: _Scope) -> Value:
        """Compute an Aggregate that is a sum, product, minimum or maximum with a seed."""
        symbol, seed, step = node.arguments
        assert isinstance(symbol, Constant)  # noqa: S101  # a reader has put it there
        body = self._body(step, scope, (loop.inner, loop.element))
        name = {"+": "sum", "-": "sum", "*": "prod"}.get(str(symbol.value), str(symbol.value))
        total = reduced(Loop(loop.frame, loop.inner, body), name, "Aggregate")
        return on_arrays(
            lambda one, other: seeded(str(symbol.value), one, other),
            self.value(seed, scope),
            total,
        )

    def _item(self, value: Value, index: Value) -> Value:
        if isinstance(index, Scalar) and isinstance(index.value, str):
            return part_of(value, index.value)
        if isinstance(index, Scalar) and is_tuple(value):
            return part_of(value, str(index.value))
        if isinstance(index, Column | Loop):
            frame = deepest((value, index))
            which = array_of(index, frame)
            if is_list(which):
                return Column(frame, picked(array_of(value, frame), which))
        frame = deepest((value, index))
        return taken(opened(value, frame, "[ ]"), positions(index, frame))

    def _call(self, name: str, values: list[Value]) -> Value:
        if name == "len":
            loop = opened(values[0], deepest(values), name)
            return column(loop.frame, loop.counts())
        if name in _REDUCERS and len(values) == 1:
            loop = opened(values[0], deepest(values), name)
            return reduced(loop, _REDUCERS[name], name)
        if name in ("min", "max"):
            result = values[0]
            for value in values[1:]:
                result = on_arrays(partial(operators.lesser, name), result, value)
            return result
        name = name.removeprefix("ak.")
        if name in _ARRAYS_IN_A_ROW and isinstance(values[0], Parts):
            row = [part.value for part in values[0].fields.values()]
            frame = deepest((*row, *values[1:]))
            arrays: list[Any] = [[array_of(one, frame) for one in row]]
            return result_of(name, arrays + [argument(one, frame) for one in values[1:]], frame)
        frame = deepest(values)
        return result_of(name, [argument(one, frame) for one in values], frame)
