"""Generated func_adl queries that have a type, as qastle text.

Every query that is written here has a meaning for every tree of its types. Where rounding may
decide, nothing is compared, ordered or rounded, so that an expected value is known within a bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from hypothesis import strategies as st

from tests.property.typed_trees import Kind, Many, Number, Row, Text, Tree

Scope = dict[str, Kind]
Written = tuple[str, Kind]
T = TypeVar("T")

NAMES = ("x", "y", "z", "e")
WHOLE = (-300, -2, -1, 0, 1, 2, 3, 100, 255, 70_000, 2**40)
FLOATS = (-2.25, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 40.75)
LARGEST = 90
"""Binary digits before the point that floats may have."""
WIDEST = 62
"""Binary digits of what is computed with whole numbers; with more the service refuses to."""


@dataclass(frozen=True)
class Query:
    """A query and the type of its rows."""

    text: str
    row: Kind


@st.composite
def queries(draw: st.DrawFn, tree: Tree) -> Query:
    """Return queries of the columns of a tree."""
    return Writer(draw(st.randoms(use_true_random=False)), tree).query()


def combined(symbol: str, one: Number, other: Number) -> Number | None:
    """Return what an operator makes of two numbers, or None where too little is known of it."""
    size = {"+": 1, "-": 1, "*": min(one.size, other.size)}.get(symbol, 0)
    size += max(one.size, other.size)
    unsigned = one.unsigned or other.unsigned
    if symbol in ("&", "|", "^"):
        if "f" in (one.kind, other.kind):
            return None
        if one.kind != other.kind and "b" in (one.kind, other.kind):
            return None  # the loop cannot tell a missing truth value from a missing number
        return Number(one.kind, size, unsigned=unsigned)
    if "f" not in (one.kind, other.kind) and symbol != "/":
        fits = size <= WIDEST or (symbol == "%" and not unsigned)
        return Number("i", size, unsigned=unsigned) if fits else None
    if size > LARGEST or (symbol in ("/", "//", "%") and not other.exact):
        return None
    if symbol == "/":
        return Number("f", size + (other.places or 0), None)
    if one.places is None or other.places is None:
        return None if symbol in ("//", "%") else Number("f", size, None)
    places = one.places + other.places if symbol == "*" else max(one.places, other.places)
    if symbol in ("//", "%"):
        fine = one.size + other.size + places <= 24
        return Number("f", size + places, 0 if symbol == "//" else places) if fine else None
    return rounded(Number("f", size, places))


def rounded(one: Number) -> Number:
    """Return what is known of a number that may have more digits than fit."""
    return one if one.exact else replace(one, places=None)


def merged(numbers: Sequence[Number]) -> Number:
    """Return what is known of a number that is one of some."""
    kind = max((one.kind for one in numbers), key="bif".index)
    places = [0 if one.places is None else one.places for one in numbers]
    exact = all(one.places is not None for one in numbers)
    return rounded(
        Number(
            kind,
            max(one.size for one in numbers),
            max(places) if exact else None,
            any(one.unsigned for one in numbers),
        )
    )


def one_type(one: Number, other: Number) -> bool:
    """Whether one column can hold both as they are."""
    wide = any(side.kind == "i" and side.size > WIDEST for side in (one, other))
    return one.kind == other.kind or not wide


def comparable(one: Number, other: Number) -> bool:
    """Whether two numbers are equal or not, and not nearly so."""
    if "f" not in (one.kind, other.kind):
        return True
    return one.exact and other.exact and max(one.size, other.size) <= 24


class Writer:
    """Writes expressions of a wanted type; ``depth`` bounds how deep they are.

    Parameters
    ----------
    random
        Makes all choices.
    tree
        Has the columns.
    """

    def __init__(self, random: Random, tree: Tree) -> None:
        self._random = random
        counters = {f"n{kind.group}" for kind in tree.kinds.values() if isinstance(kind, Many)}
        kinds = dict(tree.kinds)
        if not tree.ntuple:
            kinds |= {name: Number("i", 3) for name in sorted(counters)}
        self._event = Row(tuple(kinds.items()), "event")

    def query(self) -> Query:
        """Write a query: conditions on events, what each gives, and maybe more of both."""
        text, row = "(call EventDataset 'bogus.root' 'events')", self._event
        if self._one_in(3):
            text = self._on_events("Where", text, row, self.boolean)[0]
        text, kind = self._rows(text, row)
        if self._one_in(3):
            text = self._on_events("Where", text, kind, self.boolean)[0]
        if self._one_in(4) and kind != self._event:
            text, kind = self._rows(text, kind)
        return Query(text, kind)

    def _rows(self, text: str, row: Kind) -> Written:
        if row == self._event and self._one_in(12):
            return text, row
        lists = self._has_lists({"e": row})
        if lists and self._one_in(5):
            text, kind = self._on_events("SelectMany", text, row, self._joinable)
            assert isinstance(kind, Many)
            return text, kind.element
        if lists and self._one_in(6):
            text, kind = self._on_events("Select", text, row, self._alike)
            assert isinstance(kind, Row)
            access, many = self._pick(self._parts("x", kind))
            assert isinstance(many, Many)
            mask = self._mask(access, many.element)
            fields = tuple(
                (name, replace(of, group="")) for name, of in kind.fields if isinstance(of, Many)
            )
            text = self.operator("Where", text, f"(lambda (list x) {mask})")
            return text, replace(kind, fields=fields)
        return self._on_events("Select", text, row, self.anything)

    def _on_events(
        self, name: str, text: str, row: Kind, body: Callable[[Scope, int], Written]
    ) -> Written:
        variable = self._pick(NAMES)
        written, kind = body({variable: row}, 3)
        return self.operator(name, text, f"(lambda (list {variable}) {written})"), kind

    def _alike(self, scope: Scope, depth: int) -> Written:
        """Write a record of equally long lists of numbers."""
        lists = self._equally_long(scope) or [self.many_numbers(scope, depth)]
        return self._record(lists)

    def operator(self, name: str, source: str, *given: str) -> str:
        """Write an operator in one of its three spellings."""
        head = self._pick((f"call {name} {source}", f"call (attr {source} '{name}')"))
        if self._one_in(3):
            head = f"{name} {source}"
        return f"({' '.join((head, *given))})"

    def anything(self, scope: Scope, depth: int) -> Written:
        """Write what a Select may give: a record, a tuple or a value."""
        if depth > 0 and self._one_in(2):
            number = self._random.randint(1, 3)
            return self._record([self.anything(scope, depth - 1) for _ in range(number)])
        ways = [self.number, self.boolean, self.text]
        if self._has_lists(scope):
            ways += [self.many] * 3
        return self._pick(ways)(scope, depth)

    def _record(self, parts: Sequence[Written]) -> Written:
        values = " ".join(text for text, _ in parts)
        if self._one_in(3):
            fields = tuple((str(at), kind) for at, (_, kind) in enumerate(parts))
            return f"(list {values})", Row(fields, "tuple")
        names = ("a", "b", "c")[: len(parts)]
        keys = " ".join(f"'{name}'" for name in names)
        fields = tuple((name, kind) for name, (_, kind) in zip(names, parts, strict=True))
        return f"(dict (list {keys}) (list {values}))", Row(fields)

    def text(self, scope: Scope, depth: int) -> Written:
        """Write a text."""
        found = [one for one in self._atoms(scope) if isinstance(one[1], Text)]
        if depth > 0 and self._one_in(4):
            test, _ = self.boolean(scope, depth - 1)
            yes, no = (self.text(scope, depth - 1)[0] for _ in range(2))
            return f"(if {test} {yes} {no})", Text()
        if found and not self._one_in(5):
            return self._pick(found)
        return self._pick(("'a'", "'ab'", "''")), Text()

    def boolean(self, scope: Scope, depth: int) -> Written:
        """Write a truth value."""
        atoms = [one for one in self._atoms(scope) if one[1] == Number("b")]
        if depth <= 0 or self._one_in(6):
            return self._pick([*atoms, ("True", Number("b"))])
        ways = [self._comparison, self._comparison, self._logic]
        if self._has_lists(scope):
            ways += [self._any_all, self._contains]
        return self._pick(ways)(scope, depth - 1), Number("b")

    def _comparison(self, scope: Scope, depth: int) -> str:
        if self._one_in(6):
            sides = [self.text(scope, depth)[0] for _ in range(2)]
            return f"({self._pick(('==', '!='))} {' '.join(sides)})"
        one, first = self._exact(scope, depth)
        other, second = self._exact(scope, depth)
        if not comparable(first, second):
            other = "0"
        symbol = self._pick(("<", "<=", ">", ">=", "==", "!="))
        return f"({symbol} {one} {other})"

    def _logic(self, scope: Scope, depth: int) -> str:
        many = self._random.randint(1, 3)
        parts = [self.boolean(scope, depth)[0] for _ in range(many)]
        return f"({'not' if many == 1 else self._pick(('and', 'or'))} {' '.join(parts)})"

    def _any_all(self, scope: Scope, depth: int) -> str:
        text, many = self.many(scope, depth)
        assert isinstance(many, Many)
        if isinstance(many.element, Number) and many.element.exact and self._one_in(3):
            return f"(call {self._pick(('any', 'all'))} {text})"
        condition = self._lambda(scope, depth, many.element, self.boolean)[0]
        return self.operator(self._pick(("Any", "All")), text, condition)

    def _contains(self, scope: Scope, depth: int) -> str:
        text, many = self.many_numbers(scope, depth)
        wanted, kind = self._exact(scope, depth)
        element = many.element
        assert isinstance(element, Number)
        if not element.exact:
            return "False"
        return self.operator("Contains", text, wanted if comparable(element, kind) else "1")

    def _exact(self, scope: Scope, depth: int) -> tuple[str, Number]:
        text, kind = self.number(scope, depth)
        assert isinstance(kind, Number)
        fits = kind.exact and (kind.kind != "f" or kind.size <= 24)
        return (text, kind) if fits else ("1", Number("i"))

    def number(self, scope: Scope, depth: int) -> Written:
        """Write a number."""
        if depth <= 0 or self._one_in(6):
            atoms = [one for one in self._atoms(scope) if isinstance(one[1], Number)]
            return self._pick(atoms) if atoms and not self._one_in(5) else self._constant()
        ways = [self._arithmetic, self._arithmetic, self._unary, self._function, self._either]
        if self._has_lists(scope):
            ways += [self._reduced, self._reduced, self._element, self._fold]
        return self._pick(ways)(scope, depth - 1)

    def _constant(self) -> tuple[str, Number]:
        if self._one_in(2):
            whole = self._pick(WHOLE)
            return str(whole), Number("i", max(1, abs(whole).bit_length()))
        return str(self._pick(FLOATS)), Number("f", 6, 2)

    def _arithmetic(self, scope: Scope, depth: int) -> tuple[str, Number]:
        one, first = self._plain(scope, depth)
        symbol = self._pick(("+", "-", "*", "/", "//", "%", "**", "<<", ">>", "&", "|", "^"))
        if symbol in ("<<", ">>"):
            bits = self._random.randint(0, 8)
            size = first.size + (bits if symbol == "<<" else 0)
            if first.kind == "f" or size > WIDEST:
                return one, first
            return f"({symbol} {one} {bits})", Number("i", size, 0, first.unsigned)
        if symbol == "**":
            return self._power(one, first)
        other, second = self._plain(scope, depth)
        kind = combined(symbol, first, second)
        return (one, first) if kind is None else (f"({symbol} {one} {other})", kind)

    def _power(self, one: str, kind: Number) -> tuple[str, Number]:
        exponent = self._pick(("2", "3", "0", "-1", "0.5"))
        if exponent in ("-1", "0.5"):
            if not kind.exact:
                return one, kind
            return f"(** {one} {exponent})", Number("f", kind.size + (kind.places or 0), None)
        found: Number | None = kind
        for _ in range(int(exponent) - 1):
            found = found and combined("*", found, kind)
        if found is None:
            return one, kind
        found = replace(found, kind="i") if found.kind == "b" else found
        return f"(** {one} {exponent})", found

    def _unary(self, scope: Scope, depth: int) -> tuple[str, Number]:
        text, kind = self._plain(scope, depth)
        symbol = self._pick(("-", "+", "~"))
        if symbol == "~":
            if kind.kind == "f":
                return text, kind
            kind = kind if kind.kind == "b" else replace(kind, size=min(kind.size + 1, 64))
            return f"(~ {text})", kind
        if kind.kind == "i" and kind.size > WIDEST:
            return text, kind
        kind = replace(kind, kind="i") if kind.kind == "b" else kind
        return f"({symbol} {text})", kind

    def _function(self, scope: Scope, depth: int) -> tuple[str, Number]:
        name = self._pick(("abs", "sqrt", "sin", "cos", "hypot", "arctan2", "min", "max", "round"))
        one, first = self._plain(scope, depth)
        if name == "abs":
            if first.kind == "i" and first.size > WIDEST:
                return one, first
            kind = replace(first, kind="i") if first.kind == "b" else first
            called = self._pick(("abs", "(attr np 'abs')", "(attr np 'absolute')"))
            return f"(call {called} {one})", kind
        if name == "round":
            if first.kind == "b" or not first.exact:
                return one, first
            return f"(call round {one})", replace(first, places=0, size=first.size + 1)
        if name in ("min", "max"):
            other, second = self._plain(scope, depth)
            if not one_type(first, second):
                return one, first
            return f"(call {name} {one} {other})", merged((first, second))
        if not first.exact or first.size > 64:
            return one, first
        module = "np" if name in ("hypot", "arctan2") else self._pick(("np", "math"))
        called = f"(call (attr {module} '{name}') {one}"
        if name in ("hypot", "arctan2"):
            other, second = self._exact(scope, depth)
            size = max(first.size, second.size) + 1 if name == "hypot" else 2
            return f"{called} {other})", Number("f", size, None)
        return f"{called})", Number("f", first.size if name == "sqrt" else 1, None)

    def _either(self, scope: Scope, depth: int) -> tuple[str, Number]:
        test, _ = self.boolean(scope, depth)
        one, first = self._plain(scope, depth)
        other, second = self._plain(scope, depth)
        if not one_type(first, second):
            return one, first
        return f"(if {test} {one} {other})", merged((first, second))

    def _plain(self, scope: Scope, depth: int) -> tuple[str, Number]:
        text, kind = self.number(scope, depth)
        assert isinstance(kind, Number)
        return text, kind

    def _reduced(self, scope: Scope, depth: int) -> tuple[str, Number]:
        name = self._pick(("Count", "Sum", "Max", "Min", "len", "sum", "max", "min", "num"))
        if name in ("Count", "len", "num"):
            text, counted = self.many(scope, depth)
            assert isinstance(counted, Many)
            number = Number("i", counted.most)
            if name == "Count":
                return self.operator(name, text), number
            called = "len" if name == "len" else "(attr ak 'num')"
            return f"(call {called} {text})", number
        text, many = self.many_numbers(scope, depth)
        element = many.element
        assert isinstance(element, Number)
        written = f"(call {name} {text})" if name.islower() else self.operator(name, text)
        if name.lower() != "sum":
            return written, element
        size = element.size + many.most
        if size > (LARGEST if element.kind == "f" else WIDEST):
            return text.join(("(call len ", ")")), Number("i", many.most)
        if element.kind == "f":
            return self._float(written), rounded(replace(element, size=size))
        return written, Number("i", size, unsigned=element.unsigned)

    def _element(self, scope: Scope, depth: int) -> tuple[str, Number]:
        text, many = self.many(scope, depth)
        assert isinstance(many, Many)
        found = [
            one
            for one in self._parts(self._at(text, scope, depth), many.element)
            if isinstance(one[1], Number)
        ]
        text, kind = self._pick(found) if found else self._constant()
        assert isinstance(kind, Number)
        return text, kind

    def _at(self, text: str, scope: Scope, depth: int) -> str:
        how = self._pick(("First", "Last", "ElementAt", "subscript"))
        if how in ("First", "Last"):
            return self.operator(how, text)
        index = str(self._random.randint(-3, 3))
        if self._one_in(4):
            columns = [
                name
                for name, kind in self._atoms(scope)
                if isinstance(kind, Number) and kind.kind == "i"
            ]
            index = self._pick([*columns, index])
        if how == "ElementAt":
            return self.operator(how, text, index)
        return f"(subscript {text} {index})"

    def _fold(self, scope: Scope, depth: int) -> tuple[str, Number]:
        text, many = self.many(scope, depth)
        assert isinstance(many, Many)
        name = self._pick([one for one in NAMES if self._has_lists({**scope, one: many.element})])
        body, kind = self._plain({**scope, name: many.element}, depth)
        symbol = self._pick(("+", "-", "*", "min", "max"))
        if kind.kind == "f" and symbol not in ("+", "-"):
            return "1", Number("i")
        seed = self._pick(WHOLE)
        size = max(kind.size, abs(seed).bit_length()) + many.most + 1
        if symbol == "*":
            size = abs(seed).bit_length() + kind.size * 2**many.most
        if size > (LARGEST if kind.kind == "f" else WIDEST):
            return "1", Number("i")
        head = f"call {symbol}" if symbol in ("min", "max") else symbol
        function = f"(lambda (list total {name}) ({head} total {body}))"
        written = self.operator("Aggregate", text, str(seed), function)
        if kind.kind == "f":
            return self._float(written), rounded(replace(kind, size=size))
        return written, Number("i", size, 0, kind.unsigned)

    def _float(self, text: str) -> str:
        """Write a sum of floats that is a float also if nothing is added up.

        The loop over events does not know what the elements of an empty list would be.
        """
        return f"(+ {text} 0.0)"

    def many(self, scope: Scope, depth: int) -> Written:
        """Write a list."""
        atoms = [one for one in self._atoms(scope) if isinstance(one[1], Many)]
        if depth <= 0 or self._one_in(5):
            return self._pick(atoms)
        ways = [
            self._where,
            self._where,
            self._select,
            self._select,
            self._select_many,
            self._concat,
            self._order,
            self._choose,
            self._zip,
            self._broadcast,
            self._masked,
        ]
        return self._pick(ways)(scope, depth - 1)

    def many_numbers(self, scope: Scope, depth: int) -> tuple[str, Many]:
        """Write a list of numbers."""
        text, many = self.many(scope, depth)
        assert isinstance(many, Many)
        if isinstance(many.element, Number):
            return text, many
        function, kind = self._lambda(scope, depth, many.element, self.number)
        return self.operator("Select", text, function), replace(many, element=kind)

    def _lambda(
        self, scope: Scope, depth: int, element: Kind, body: Callable[[Scope, int], Written]
    ) -> Written:
        # a name may hide another, but not the only one that has lists
        name = self._pick([one for one in NAMES if self._has_lists({**scope, one: element})])
        text, kind = body({**scope, name: element}, depth)
        return f"(lambda (list {name}) {text})", kind

    def _where(self, scope: Scope, depth: int) -> Written:
        text, many = self.many(scope, depth)
        assert isinstance(many, Many)
        condition, _ = self._lambda(scope, depth, many.element, self.boolean)
        return self.operator("Where", text, condition), replace(many, group="")

    def _select(self, scope: Scope, depth: int) -> Written:
        text, many = self.many(scope, depth)
        assert isinstance(many, Many)
        function, kind = self._lambda(scope, depth, many.element, self.anything)
        return self.operator("Select", text, function), replace(many, element=kind)

    def _select_many(self, scope: Scope, depth: int) -> Written:
        text, many = self.many(scope, depth)
        assert isinstance(many, Many)
        function, below = self._lambda(scope, depth, many.element, self._joinable)
        assert isinstance(below, Many)
        most = many.most + below.most
        if most > 6:
            return text, many
        return self.operator("SelectMany", text, function), Many(below.element, most)

    def _concat(self, scope: Scope, depth: int) -> Written:
        one, first = self.many_numbers(scope, depth)
        other, second = self.many_numbers(scope, depth)
        numbers = [of.element for of in (first, second) if isinstance(of.element, Number)]
        if len({of.kind == "b" for of in numbers}) > 1 or not one_type(*numbers):
            return one, first
        most = max(first.most, second.most) + 1
        return self.operator("Concat", one, other), Many(merged(numbers), most)

    def _order(self, scope: Scope, depth: int) -> Written:
        text, many = self.many(scope, depth)
        assert isinstance(many, Many)
        key, _ = self._lambda(scope, depth, many.element, self._exact)
        name = self._pick(("OrderBy", "OrderByDescending"))
        return self.operator(name, text, key), replace(many, group="")

    def _choose(self, scope: Scope, depth: int) -> Written:
        text, many = self.many(scope, depth)
        assert isinstance(many, Many)
        number = self._random.randint(1, 3)
        if many.most > 3:
            return text, many
        groups = Many(Many(many.element), min(2 * many.most, 6))
        return self.operator("Choose", text, str(number)), groups

    def _joinable(self, scope: Scope, depth: int) -> Written:
        """Write what SelectMany joins: a list, or a record of which the parts are."""
        lists = self._equally_long(scope)
        if not lists or self._one_in(2):
            return self.many(scope, depth)
        return self._of_records(lists, scope)

    def _zip(self, scope: Scope, depth: int) -> Written:
        lists = self._equally_long(scope)
        if not lists:
            return self.many(scope, depth)
        text, kind = self._of_records(lists, scope)
        return self.operator("Zip", text), kind

    def _of_records(self, lists: Sequence[tuple[str, Many]], scope: Scope) -> Written:
        """Write a record of lists, and maybe a number that is the same for all elements."""
        parts: list[Written] = list(lists[:2])
        if self._one_in(3):
            parts.append(self.number(scope, 0))
        text, row = self._record(parts)
        assert isinstance(row, Row)
        fields = tuple(
            (name, of.element if isinstance(of, Many) else of) for name, of in row.fields
        )
        return text, Many(Row(fields, row.what), lists[0][1].most)

    def _equally_long(self, scope: Scope) -> list[tuple[str, Many]]:
        lists = [
            (text, kind)
            for text, kind in self._atoms(scope)
            if isinstance(kind, Many) and kind.group and isinstance(kind.element, Number)
        ]
        if not lists:
            return []
        group = self._pick(lists)[1].group
        return [one for one in lists if one[1].group == group][:3]

    def _broadcast(self, scope: Scope, depth: int) -> Written:
        lists = self._equally_long(scope)
        if not lists:
            return self.many(scope, depth)
        one, many = self._pick(lists)
        other, second = self._constant() if self._one_in(2) else self._pick(lists)
        number = second.element if isinstance(second, Many) else second
        assert isinstance(number, Number)
        assert isinstance(many.element, Number)
        kind = combined(symbol := self._pick(("+", "-", "*", "/")), many.element, number)
        if kind is None:
            return one, many
        return f"({symbol} {one} {other})", replace(many, element=kind)

    def _masked(self, scope: Scope, depth: int) -> Written:
        lists = self._equally_long(scope)
        if not lists:
            return self.many(scope, depth)
        one, many = self._pick(lists)
        other, by = self._pick(lists)
        return f"(subscript {one} {self._mask(other, by.element)})", replace(many, group="")

    def _mask(self, text: str, element: Kind) -> str:
        if not isinstance(element, Number) or not element.exact:
            return f"(== {text} {text})"
        return f"({self._pick(('<', '>', '!='))} {text} {self._pick(('0', '2', '0.5'))})"

    def _atoms(self, scope: Scope) -> list[Written]:
        return [one for name, kind in scope.items() for one in self._parts(name, kind)]

    def _parts(self, text: str, kind: Kind) -> list[Written]:
        """Return a value and all its parts."""
        if not isinstance(kind, Row):
            return [(text, kind)]
        found: list[Written] = []
        for name, of in kind.fields:
            numbered = kind.what == "tuple"
            access = f"(subscript {text} {name if numbered else repr(name)})"
            if not numbered and len(found) % 2:
                access = f"(attr {text} '{name}')"
            found += self._parts(access, of)
        return found

    def _pick(self, values: Sequence[T]) -> T:
        return self._random.choice(values)

    def _has_lists(self, scope: Scope) -> bool:
        return any(isinstance(kind, Many) for _, kind in self._atoms(scope))

    def _one_in(self, many: int) -> bool:
        return self._random.randint(1, many) == many
