"""Reads the operators of func_adl and their lambdas.

The `Kind` of a value is what is known of it before a file is opened. It tells which values are the
event itself, because only the names of an event are branches. It also lets the reader refuse
operators that need all events together, such as a ``Count`` of events.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from servicex_server.columnar.limits import MAX_CHOSEN
from servicex_server.columnar.loop_nodes import (
    SHOWN,
    Constant,
    Lambda,
    Node,
    Operator,
    Record,
    place,
)
from servicex_server.errors import QueryError, UnknownNameError
from servicex_server.languages import func_adl_functions as functions
from servicex_server.languages.qastle import Form, refused
from servicex_server.text.hints import did_you_mean

OPERATORS: Mapping[str, tuple[int | None, ...]] = {
    "Where": (1,),
    "Select": (1,),
    "SelectMany": (1,),
    "First": (),
    "Last": (),
    "ElementAt": (None,),
    "Contains": (None,),
    "Aggregate": (None, 2),
    "Count": (),
    "Max": (),
    "Min": (),
    "Sum": (),
    "All": (1,),
    "Any": (1,),
    "Concat": (None,),
    "Zip": (),
    "OrderBy": (1,),
    "OrderByDescending": (1,),
    "Choose": (None,),
    "ToFourMomenta": (),
    "ToFourMomentum": (),
}
"""The arguments of each operator: the number of names of a lambda, or None for a value."""

_ON_RECORDS = frozenset(("Zip", "ToFourMomenta", "ToFourMomentum"))
_ON_EVENTS = ("Where", "Select", "SelectMany")


@dataclass(frozen=True)
class Kind:
    """What a value is, as far as known without a file: the event, all events, a record, a column.

    A record may contain another one several times, so there can be far more columns than kinds.
    """

    what: str = "column"
    fields: Mapping[str, "Kind"] = field(default_factory=dict)
    element: "Kind | None" = None

    @cached_property
    def holds_event(self) -> bool:
        """Whether the value contains the event itself."""
        return self.what in ("event", "events") or any(
            kind.holds_event for kind in self.fields.values()
        )

    @cached_property
    def columns(self) -> int:
        """The number of columns, including those of nested records."""
        return sum(kind.columns for kind in self.fields.values()) or 1


COLUMN = Kind()
EVENT = Kind("event")


@dataclass(frozen=True, slots=True)
class Name:
    """The meaning of a name that a lambda binds: a variable and its kind."""

    number: int
    kind: Kind


Scope = Mapping[str, Name]


class Operators(ABC):
    """Reads operators; a subclass reads the expressions within them.

    Parameters
    ----------
    text
        The query, for errors.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._variables = 0

    @abstractmethod
    def read(self, form: Form, scope: Scope, depth: int) -> tuple[Node, Kind]:
        """Read any expression."""

    def refuse(self, form: Form, why: str, hint: str = "") -> QueryError:
        """Return the error for a form that has no meaning."""
        return refused(self.text, form.at, why, hint)

    def unknown(self, form: Form, what: str, name: str, known: Collection[str]) -> UnknownNameError:
        """Return the error for a name that is not known."""
        return UnknownNameError(
            f"selection: there is no {what} {name[:SHOWN]}, {place(self.text, form.at)}",
            hint=did_you_mean(name, sorted(known), otherwise=f"each {what} is one of"),
        )

    def single(self, form: Form, scope: Scope, depth: int, what: str) -> Node:
        """Read an operand, which must be a column or a constant, not a record."""
        node, kind = self._value_and_kind(form, scope, depth)
        if kind.what == "record":
            raise self.refuse(form, f"{what} cannot work on a record", "name a part of it")
        return node

    def value(self, form: Form, scope: Scope, depth: int) -> Node:
        """Read a value, which must be a column, a record or a constant, not the event."""
        return self._value_and_kind(form, scope, depth)[0]

    def _value_and_kind(self, form: Form, scope: Scope, depth: int) -> tuple[Node, Kind]:
        node, kind = self.read(form, scope, depth)
        if kind.what in ("event", "events"):
            which = "the event itself" if kind.what == "event" else "the sequence of all events"
            raise self.refuse(form, f"{which} is not a value here", "name a branch of it")
        return node, kind

    def exactly(self, form: Form, count: int) -> tuple[Form, ...]:
        """Return the parts of a list after its first word; refuse another number than ``count``."""
        assert form.parts is not None  # noqa: S101  # only of lists
        parts = form.parts[1:]
        if len(parts) != count:
            raise self.refuse(form, f"{form.head} takes {count}; got {len(parts)}")
        return parts

    def operator(
        self, form: Form, name: str, parts: tuple[Form, ...], scope: Scope, depth: int
    ) -> tuple[Node, Kind]:
        """Read an operator, given the forms of its sequence and of its arguments."""
        if not parts:
            raise self.refuse(form, f"{name} needs a sequence to work on")
        source, kind = self.read(parts[0], scope, depth)
        if name == "MetaData":
            return source, kind
        given = parts[1:]
        if kind.what == "events":
            return self._on_events(form, name, source, kind, given, scope, depth)
        if kind.what == "event":
            raise self.refuse(form, f"{name} works on a list, and this is an event")
        if name == "Contains" and isinstance(source, Record) and source.is_tuple:
            # as in [1, 2].Contains(x)
            if any(part != COLUMN for part in kind.fields.values()):
                raise self.refuse(form, "Contains looks for single values")
        elif name not in _ON_RECORDS and (kind.what == "record" or isinstance(source, Constant)):
            found = "a record" if kind.what == "record" else f"the constant {parts[0].value!r}"
            raise self.refuse(form, f"{name} needs a list, and this is {found}")
        wanted = self._wanted(form, name, given)
        if name == "Aggregate":
            return self._aggregate(form, source, given, scope, depth), COLUMN
        arguments = []
        for one, names in zip(given, wanted, strict=True):
            if names is None:
                arguments.append(self.single(one, scope, depth, name))
                self._check_number(one, name)
            else:
                function, body = self._lambda(one, name, (COLUMN,), scope, depth)
                if body.holds_event:
                    raise self.refuse(
                        one, "the event itself is not a value here", "name a branch of it"
                    )
                arguments.append(function)
        return Operator(name, source, tuple(arguments), at=form.at), COLUMN

    def _on_events(
        self,
        form: Form,
        name: str,
        source: Node,
        kind: Kind,
        given: tuple[Form, ...],
        scope: Scope,
        depth: int,
    ) -> tuple[Node, Kind]:
        """Read an operator on all events, or on a sequence with one element for each event."""
        if name not in _ON_EVENTS:
            raise self.refuse(
                form,
                f"{name} would need all events of all files together",
                f"on events there are {', '.join(_ON_EVENTS)}; "
                "inside their lambdas everything works on the lists of one event",
            )
        self._wanted(form, name, given)
        assert kind.element is not None  # noqa: S101  # it is a sequence
        function, body = self._lambda(given[0], name, (kind.element,), scope, depth)
        node = Operator(name, source, (function,), at=form.at)
        if name == "Where":
            if body.what != "column":
                raise self.refuse(given[0], "a condition is a truth value")
            return node, kind
        if body.what == "events":
            raise self.refuse(given[0], "the sequence of all events is not a value here")
        if name == "SelectMany" and body.holds_event:
            raise self.refuse(given[0], "SelectMany needs a list for each event")
        # SelectMany turns a record of lists into records
        return node, Kind("events", element=body)

    def _wanted(self, form: Form, name: str, given: tuple[Form, ...]) -> tuple[int | None, ...]:
        """Return the arguments that an operator takes; refuse another number of them."""
        wanted = OPERATORS[name]
        if len(given) != len(wanted):
            many = ("no argument", "1 argument", "2 arguments")[len(wanted)]
            raise self.refuse(form, f"{name} takes {many}; got {len(given)}")
        return wanted

    def _check_number(self, form: Form, name: str) -> None:
        """Refuse a constant that is not a valid position or number of elements."""
        value = form.value
        if value is None or name not in ("ElementAt", "Choose"):
            return
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or (name == "Choose" and int(value) < 1):
            raise self.refuse(form, f"{name} takes a whole number, such as 2")
        if name == "Choose" and int(value) > MAX_CHOSEN:
            raise self.refuse(form, f"Choose takes at most {MAX_CHOSEN}")

    def _lambda(
        self, form: Form, name: str, kinds: tuple[Kind, ...], scope: Scope, depth: int
    ) -> tuple[Lambda, Kind]:
        if form.head != "lambda":
            raise self.refuse(form, f"{name} needs a lambda")
        listed, body = self.exactly(form, 2)
        if listed.head != "list" and not (listed.word == "list" and listed.parts is None):
            raise self.refuse(form, "a lambda begins with the list of its names")
        names = [one.word if one.value is None else "" for one in (listed.parts or ())[1:]]
        if not all(names) or len(set(names)) < len(names):
            raise self.refuse(form, "the names of a lambda are different words")
        if len(names) != len(kinds):
            raise self.refuse(
                form,
                f"the lambda of {name} has {len(names)} names, and it must have {len(kinds)}",
            )
        bound = {}
        for one, kind in zip(names, kinds, strict=True):
            bound[one] = Name(self._variables, kind)
            self._variables += 1
        node, kind = self.read(body, {**scope, **bound}, depth + 1)
        return Lambda(tuple(name.number for name in bound.values()), node, at=form.at), kind

    def _aggregate(
        self, form: Form, source: Node, given: tuple[Form, ...], scope: Scope, depth: int
    ) -> Node:
        """Read a fold; the value that it adds or compares becomes a lambda of the element."""
        seed = self.value(given[0], scope, depth)
        function, kind = self._lambda(given[1], "Aggregate", (COLUMN, COLUMN), scope, depth)
        found = functions.fold(function) if kind.what == "column" else None
        if found is None:
            raise self.refuse(
                given[1],
                "this Aggregate cannot be computed on columns",
                "its lambda adds to, subtracts from or multiplies the first name, or takes min or "
                "max with it; Sum, Count, Min, Max, Any and All need no lambda",
            )
        symbol, step = found
        return Operator("Aggregate", source, (Constant(symbol, at=form.at), seed, step), at=form.at)
