"""``uproot``: func_adl as clients send it, qastle text, turned into loops over sequences.

::

    expression := (Operator source argument*)
                | (call Operator source argument*)
                | (call (attr source 'Operator') argument*)
                | (call function argument*) | (call (attr np 'function') argument*)
                | (lambda (list name*) expression)
                | (attr value 'name') | (subscript value index)
                | (list value*) | (dict (list 'key'*) (list value*)) | (if test yes no)
                | (symbol value*) | name | number | 'text'

The three ways to write an operator mean the same. Two things are found out here, before any file
is there: which values are the event itself, for only of these a name is a branch; and that what
needs all events together, as a ``Count`` of events does, is not asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from servicex_server.columnar import arithmetic
from servicex_server.columnar.functions import FUNCTIONS
from servicex_server.columnar.missing import unguarded
from servicex_server.columnar.plan import Query
from servicex_server.columnar.rows import Rows
from servicex_server.columnar.sequences import (
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
    Record,
    Unary,
    Variable,
    place,
    walk,
)
from servicex_server.columnar.vectors import METHODS
from servicex_server.errors import FormatError, QueryError, UnknownNameError, did_you_mean
from servicex_server.languages.contract import Language
from servicex_server.languages.qastle import Form, read_forms, refused
from servicex_server.model import ResultFormat

OUTPUT = "servicex"
"""Name of the tree in the result, as upstream has it."""

MAX_DEPTH = 150
"""Nesting beyond which a query is refused; a chain of ``and`` counts once."""

_OPERATORS: Mapping[str, tuple[int | None, ...]] = {
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
"""What each takes: the number of names of a lambda, or None for a value."""

_ON_RECORDS = frozenset(("Zip", "ToFourMomenta", "ToFourMomentum"))
_ON_EVENTS = ("Where", "Select", "SelectMany")
_MODULES = ("np", "numpy", "math", "ak", "awkward")
_PLAIN = frozenset(("len", "sum", "any", "all", "abs", "min", "max", "round"))
_RENAMED = {
    "amax": "max",
    "amin": "min",
    "degrees": "degrees",
    "fabs": "absolute",
    "pow": "power",
}
_NUMBERS = {
    "pi": 3.141592653589793,
    "e": 2.718281828459045,
    "inf": float("inf"),
    "nan": float("nan"),
    "tau": 6.283185307179586,
}
_SYMBOLS = (arithmetic.BINARY | arithmetic.UNARY) | {"and", "or"}
_FORMS = ("attr", "subscript", "call", "lambda", "list", "dict", "if")


class FuncAdl(Language):
    """func_adl on TTrees and RNTuples."""

    name: ClassVar[str] = "uproot"
    description: ClassVar[str] = "func_adl queries of TTrees and RNTuples, as qastle text"

    def compile(self, selection: str, result_format: ResultFormat) -> Query:
        """Read the text, and find out which branches it names."""
        dense = result_format is ResultFormat.TTREE
        try:
            node, kind, tree = _Reader(selection).query()
            for name, missing in unguarded(node) if dense else ():
                raise FormatError(
                    f"selection: {f'column {name}' if name else 'the column'} has no value in an "
                    f"event where this list is empty, and a TTree cannot hold that, "
                    f"{place(selection, missing.at)}",
                    hint="drop such events before it, as Where(lambda e: e.x.Count() > 0) does, "
                    "or ask for parquet or root-rntuple",
                )
        except RecursionError:
            raise QueryError("selection: it is nested too deeply") from None
        rows = Rows(
            tree=tree,
            output=OUTPUT,
            required=True,
            node=node,
            text=selection,
            whole=kind.holds_event(),
            dense=dense,
        )
        return Query((rows,))


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is known of a value without a file: the event, all events, a record, or a column."""

    what: str = "column"
    fields: Mapping[str, "_Kind"] = field(default_factory=dict)
    element: "_Kind | None" = None

    def holds_event(self) -> bool:
        """Whether the event itself is in it."""
        return self.what in ("event", "events") or any(
            kind.holds_event() for kind in self.fields.values()
        )


_COLUMN = _Kind()
_EVENT = _Kind("event")


@dataclass(frozen=True, slots=True)
class _Name:
    """What a lambda's name stands for."""

    number: int
    kind: _Kind


_Scope = Mapping[str, _Name]


class _Reader:
    """Turns forms into nodes; whatever is not named here is refused."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tree = ""
        self._variables = 0

    def query(self) -> tuple[Node, "_Kind", str]:
        """Return the query, what its rows are, and the name of its tree, empty for the only one."""
        form = read_forms(self._text)
        node, kind = self._read(form, {}, 0)
        if kind.what != "events" or kind.element is None:
            raise self._refuse(
                form,
                "this gives no column",
                "begin with EventDataset() and end with Select or SelectMany",
            )
        return node, kind.element, self._tree

    def _refuse(self, form: Form, why: str, hint: str = "") -> QueryError:
        return refused(self._text, form.at, why, hint)

    def _unknown(self, form: Form, what: str, name: str, known: Any) -> UnknownNameError:
        return UnknownNameError(
            f"selection: there is no {what} {name}, {place(self._text, form.at)}",
            hint=did_you_mean(name, sorted(known), otherwise=f"each {what} is one of"),
        )

    def _read(self, form: Form, scope: _Scope, depth: int) -> tuple[Node, _Kind]:
        if depth > MAX_DEPTH:
            raise self._refuse(form, f"this is nested more than {MAX_DEPTH} deep")
        if form.parts is None:
            return self._word(form, scope)
        head, depth = form.head, depth + 1
        if head in _OPERATORS or head == "MetaData":
            return self._operator(form, head, form.parts[1:], scope, depth)
        if head in _SYMBOLS:
            return self._symbol(form, scope, depth), _COLUMN
        match head:
            case "attr":
                return self._attribute(form, scope, depth)
            case "subscript":
                return self._subscript(form, scope, depth)
            case "call":
                return self._call(form, scope, depth)
            case "list" | "dict":
                return self._record(form, scope, depth)
            case "if":
                parts = self._exactly(form, 3)
                three = (self._single(one, scope, depth, "if") for one in parts)
                return Conditional(*three, at=form.at), _COLUMN
            case "lambda":
                raise self._refuse(
                    form, "a lambda stands only where an operator such as Select has one"
                )
            case "":
                raise self._refuse(form, "an expression begins with a word, such as (call or (attr")
            case _:
                raise self._unknown(form, "operator", head, {*_OPERATORS, *_FORMS, *_SYMBOLS})

    def _single(self, form: Form, scope: _Scope, depth: int, what: str) -> Node:
        """Read what must be a column or a constant, and no record: what an operator works on."""
        node, kind = self._value_and_kind(form, scope, depth)
        if kind.what == "record":
            raise self._refuse(form, f"{what} cannot work on a record", "name a part of it")
        return node

    def _value(self, form: Form, scope: _Scope, depth: int) -> Node:
        """Read what must be a column, a record or a constant, not the event."""
        return self._value_and_kind(form, scope, depth)[0]

    def _value_and_kind(self, form: Form, scope: _Scope, depth: int) -> tuple[Node, _Kind]:
        node, kind = self._read(form, scope, depth)
        if kind.what in ("event", "events"):
            which = "the event itself" if kind.what == "event" else "the sequence of all events"
            raise self._refuse(form, f"{which} is no value here", "name a branch of it")
        return node, kind

    def _exactly(self, form: Form, count: int) -> tuple[Form, ...]:
        assert form.parts is not None  # noqa: S101  # only of lists
        parts = form.parts[1:]
        if len(parts) != count:
            raise self._refuse(form, f"{form.head} takes {count}, and here are {len(parts)}")
        return parts

    def _word(self, form: Form, scope: _Scope) -> tuple[Node, _Kind]:
        if form.value is not None:
            return Constant(form.value, at=form.at), _COLUMN
        if name := scope.get(form.word):
            return Variable(name.number, at=form.at), name.kind
        if form.word == "None":
            raise self._refuse(form, "None is no value of a column")
        raise self._unknown(form, "name", form.word, scope)

    def _symbol(self, form: Form, scope: _Scope, depth: int) -> Node:
        symbol = form.head
        if symbol in ("and", "or"):
            chain = self._operands(form, symbol)
            operands = tuple(self._single(one, scope, depth, symbol) for one in chain)
            return Logical(symbol, operands, at=form.at)
        assert form.parts is not None  # noqa: S101  # it has a head
        parts = tuple(self._single(one, scope, depth, symbol) for one in form.parts[1:])
        texts = [isinstance(one, Constant) and isinstance(one.value, str) for one in parts]
        if any(texts) and symbol not in ("==", "!="):
            raise self._refuse(
                form.parts[1 + texts.index(True)],
                "texts can only be compared, with == and !=",
            )
        if len(parts) == 1 and symbol in arithmetic.UNARY:
            return Unary(symbol, parts[0], at=form.at)
        if len(parts) == 2 and symbol in arithmetic.BINARY:  # noqa: PLR2004
            return Binary(symbol, *parts, at=form.at)
        wanted = 1 if symbol not in arithmetic.BINARY else 2
        raise self._refuse(form, f"{symbol} takes {wanted}, and here are {len(parts)}")

    def _operands(self, form: Form, symbol: str) -> Iterator[Form]:
        """Yield the operands of a chain of one symbol, however it is nested."""
        waiting = [form]
        while waiting:
            one = waiting.pop()
            if one.head == symbol and one.parts is not None:
                if len(one.parts) < 3:  # noqa: PLR2004
                    raise self._refuse(one, f"{symbol} takes at least 2")
                waiting += reversed(one.parts[1:])
            else:
                yield one

    def _text_of(self, form: Form, what: str) -> str:
        if not isinstance(form.value, str):
            raise self._refuse(form, f"{what} is a text in quotes")
        return form.value

    def _attribute(self, form: Form, scope: _Scope, depth: int) -> tuple[Node, _Kind]:
        value, name = self._exactly(form, 2)
        word = self._text_of(name, "a name after a dot")
        if (module := self._module(value, scope)) is not None:
            if module not in ("ak", "awkward") and word in _NUMBERS:
                return Constant(_NUMBERS[word], at=form.at), _COLUMN
            raise self._refuse(form, f"{module}.{word} is no value")
        return self._part(form, value, word, scope, depth)

    def _part(
        self, form: Form, value: Form, name: str, scope: _Scope, depth: int
    ) -> tuple[Node, _Kind]:
        if not name:
            raise self._refuse(form, "a name is empty")
        node, kind = self._read(value, scope, depth)
        if kind.what == "event":
            return self._branch(form, node, kind, name), _COLUMN
        if kind.what == "events":
            raise self._refuse(
                form,
                f"the sequence of all events has no {name}",
                "name branches in the lambda of a Select or Where",
            )
        if kind.what == "record":
            if name not in kind.fields:
                raise self._unknown(form, "part of this record called", name, kind.fields)
            return Field(node, name, at=form.at), kind.fields[name]
        if isinstance(node, Branch) and form.head == "attr":
            return Branch(node.event, (*node.path, name), at=form.at), _COLUMN
        return Field(node, name, at=form.at), _COLUMN

    def _branch(self, form: Form, node: Node, kind: _Kind, name: str) -> Node:
        del kind
        if not isinstance(node, Variable):
            # an event within a record of an earlier stage
            return Field(node, name, at=form.at)
        return Branch(node.number, (name,), at=form.at)

    def _subscript(self, form: Form, scope: _Scope, depth: int) -> tuple[Node, _Kind]:
        value, index = self._exactly(form, 2)
        if isinstance(index.value, str):
            return self._part(form, value, index.value, scope, depth)
        node, kind = self._read(value, scope, depth)
        if kind.what in ("event", "events"):
            raise self._refuse(form, "an event is not numbered; its branches have names")
        if kind.what == "record" and arithmetic.is_whole(index.value):
            return self._part(form, value, str(index.value), scope, depth)
        return Item(node, self._value(index, scope, depth), at=form.at), _COLUMN

    def _record(self, form: Form, scope: _Scope, depth: int) -> tuple[Node, _Kind]:
        assert form.parts is not None  # noqa: S101  # it has a head
        if form.head == "list":
            names = [str(at) for at in range(len(form.parts) - 1)]
            values = form.parts[1:]
        else:
            keys, given = self._exactly(form, 2)
            if keys.head != "list" or given.head != "list":
                raise self._refuse(form, "dict takes two lists, of keys and of values")
            assert keys.parts is not None  # noqa: S101  # it has a head
            assert given.parts is not None  # noqa: S101  # it has a head
            names = [self._text_of(key, "a key of a dict") for key in keys.parts[1:]]
            values = given.parts[1:]
            if len(names) != len(values):
                raise self._refuse(form, f"dict has {len(names)} keys and {len(values)} values")
            for name in names:
                if not name or names.count(name) > 1:
                    raise self._refuse(
                        form, f"the key {name!r} is {'twice there' if name else 'empty'}"
                    )
        if not names:
            raise self._refuse(form, f"an empty {form.head} is no column")
        read = [self._read(value, scope, depth) for value in values]
        for value, (_, kind) in zip(values, read, strict=True):
            if kind.what == "events":
                raise self._refuse(value, "the sequence of all events is no value here")
        items = tuple((name, node) for name, (node, _) in zip(names, read, strict=True))
        kinds = {name: kind for name, (_, kind) in zip(names, read, strict=True)}
        return Record(items, form.head == "list", at=form.at), _Kind("record", kinds)

    def _module(self, form: Form, scope: _Scope) -> str | None:
        return form.word if form.word in _MODULES and form.word not in scope else None

    def _call(self, form: Form, scope: _Scope, depth: int) -> tuple[Node, _Kind]:
        assert form.parts is not None  # noqa: S101  # it has a head
        if len(form.parts) == 1:
            raise self._refuse(form, "call takes what to call")
        called, arguments = form.parts[1], form.parts[2:]
        if called.head == "attr":
            source, name = self._exactly(called, 2)
            word = self._text_of(name, "a name after a dot")
            if (module := self._module(source, scope)) is not None:
                return self._function(form, word, arguments, scope, depth, module), _COLUMN
            if word in METHODS:
                return self._method(form, word, (source, *arguments), scope, depth), _COLUMN
            if word not in _OPERATORS and word != "MetaData":
                raise self._unknown(form, "operator", word, {*_OPERATORS, *METHODS})
            return self._operator(form, word, (source, *arguments), scope, depth)
        if not called.word or called.parts is not None:
            raise self._refuse(form, "only operators and functions can be called, by their names")
        if called.word == "EventDataset":
            return self._dataset(form, arguments, scope)
        if called.word in _OPERATORS or called.word == "MetaData":
            return self._operator(form, called.word, arguments, scope, depth)
        return self._function(form, called.word, arguments, scope, depth), _COLUMN

    def _dataset(
        self, form: Form, arguments: tuple[Form, ...], scope: _Scope
    ) -> tuple[Node, _Kind]:
        if scope:
            raise self._refuse(form, "EventDataset stands only at the beginning, not in a lambda")
        if len(arguments) > 2:  # noqa: PLR2004
            raise self._refuse(form, "EventDataset takes a file, which is ignored, and a tree")
        tree = self._text_of(arguments[1], "a tree's name") if len(arguments) > 1 else ""
        # the client writes 'None' where a YAML query names no tree
        self._tree = "" if tree == "None" else tree
        return Events(at=form.at), _Kind("events", element=_EVENT)

    def _function(
        self,
        form: Form,
        word: str,
        arguments: tuple[Form, ...],
        scope: _Scope,
        depth: int,
        module: str = "",
    ) -> Node:
        name = _RENAMED.get(word, word)
        known = FUNCTIONS | _PLAIN if not module else FUNCTIONS
        if module in ("np", "numpy", "math"):
            known = known | {"round", "abs", "power"}
        if name not in known:
            raise self._unknown(form, "function", f"{module}.{word}".strip("."), known | _PLAIN)
        if not arguments:
            raise self._refuse(form, f"{word} needs an argument")
        values = tuple(self._value(one, scope, depth) for one in arguments)
        # awkward's own min, max, sum, any and all do the same on lists
        prefix = "ak." if module in ("ak", "awkward") and len(values) > 1 else ""
        return Call(prefix + name, values, at=form.at)

    def _method(
        self, form: Form, name: str, parts: tuple[Form, ...], scope: _Scope, depth: int
    ) -> Node:
        if len(parts) != 2:  # noqa: PLR2004
            raise self._refuse(form, f"{name} takes one four-vector besides the first")
        one, other = (self._value(part, scope, depth) for part in parts)
        return Operator(name, one, (other,), at=form.at)

    def _operator(
        self, form: Form, name: str, parts: tuple[Form, ...], scope: _Scope, depth: int
    ) -> tuple[Node, _Kind]:
        if not parts:
            raise self._refuse(form, f"{name} needs a sequence to work on")
        source, kind = self._read(parts[0], scope, depth)
        if name == "MetaData":
            return source, kind
        if kind.what == "event":
            raise self._refuse(form, f"{name} works on a list, and this is an event")
        whole = kind.what == "events"
        if whole and name not in _ON_EVENTS:
            raise self._refuse(
                form,
                f"{name} would need all events of all files together",
                f"on events there are {', '.join(_ON_EVENTS)}; "
                "inside their lambdas everything works on the lists of one event",
            )
        if name not in _ON_RECORDS and (kind.what == "record" or isinstance(source, Constant)):
            found = "a record" if kind.what == "record" else f"the constant {parts[0].value!r}"
            raise self._refuse(form, f"{name} needs a list, and this is {found}")
        wanted, given = _OPERATORS[name], parts[1:]
        if len(given) != len(wanted):
            many = ("no argument", "1 argument", "2 arguments")[len(wanted)]
            raise self._refuse(form, f"{name} takes {many}, and here are {len(given)}")
        if name == "Aggregate":
            return self._aggregate(form, source, given, scope, depth), _COLUMN
        element = kind.element if whole and kind.element is not None else _COLUMN
        arguments = []
        for one, names in zip(given, wanted, strict=True):
            if names is None:
                arguments.append(self._single(one, scope, depth, name))
                self._check_number(one, name)
            else:
                function, body = self._lambda(one, name, (element,), scope, depth)
                arguments.append(function)
        node = Operator(name, source, tuple(arguments), at=form.at)
        if whole:
            return node, self._rows(name, given[0], kind, body)
        if name in ("Select", "SelectMany") and body.holds_event():
            raise self._refuse(given[0], "the event itself is no value here", "name a branch of it")
        return node, _COLUMN

    def _check_number(self, form: Form, name: str) -> None:
        """Refuse a constant that is no position and no number of elements."""
        value = form.value
        if value is None or name not in ("ElementAt", "Choose"):
            return
        if not arithmetic.is_whole(value):
            raise self._refuse(form, f"{name} takes a whole number, such as 2")

    def _rows(self, name: str, function: Form, before: _Kind, body: _Kind) -> _Kind:
        """Return what an operator on all events gives, by what its lambda gives."""
        if name == "Where":
            if body.what != "column":
                raise self._refuse(function, "a condition is a truth value")
            return before
        if name == "SelectMany":
            if body.what != "column":
                raise self._refuse(function, "SelectMany needs a list for each event")
            return _Kind("events", element=_COLUMN)
        if body.what == "events":
            raise self._refuse(function, "the sequence of all events is no value here")
        return _Kind("events", element=body)

    def _lambda(
        self, form: Form, name: str, kinds: tuple[_Kind, ...], scope: _Scope, depth: int
    ) -> tuple[Lambda, _Kind]:
        if form.head != "lambda":
            raise self._refuse(form, f"{name} needs a lambda")
        listed, body = self._exactly(form, 2)
        if listed.head != "list" and not (listed.word == "list" and listed.parts is None):
            raise self._refuse(form, "a lambda begins with the list of its names")
        names = [one.word for one in (listed.parts or ())[1:]]
        if not all(names) or len(set(names)) < len(names):
            raise self._refuse(form, "the names of a lambda are different words")
        if len(names) != len(kinds):
            raise self._refuse(
                form,
                f"the lambda of {name} has {len(names)} names, and it must have {len(kinds)}",
            )
        bound = {}
        for one, kind in zip(names, kinds, strict=True):
            bound[one] = _Name(self._variables, kind)
            self._variables += 1
        node, kind = self._read(body, {**scope, **bound}, depth + 1)
        return Lambda(tuple(name.number for name in bound.values()), node, at=form.at), kind

    def _aggregate(
        self, form: Form, source: Node, given: tuple[Form, ...], scope: _Scope, depth: int
    ) -> Node:
        """Read a fold whose step is one that columns have: ``+ - * min max`` with the sum so far.

        The step without the sum so far becomes a lambda of the element.
        """
        seed = self._value(given[0], scope, depth)
        function, kind = self._lambda(given[1], "Aggregate", (_COLUMN, _COLUMN), scope, depth)
        total, element = function.variables
        symbol, step = "", function.body
        match function.body:
            case Binary(symbol="+" | "*" as found, left=left, right=right):
                symbol, step = found, right if left == Variable(total) else left
                simple = Variable(total) in (left, right)
            case Binary(symbol="-", left=left, right=right):
                symbol, step, simple = "-", right, left == Variable(total)
            case Call(
                function="min" | "max" | "minimum" | "maximum" as found, arguments=(one, two)
            ):
                symbol = found[:3]
                step = two if one == Variable(total) else one
                simple = Variable(total) in (one, two)
            case _:
                simple = False
        if not simple or Variable(total) in walk(step) or kind.what != "column":
            raise self._refuse(
                given[1],
                "this Aggregate cannot be computed on columns",
                "its lambda adds to, subtracts from or multiplies the first name, or takes min or "
                "max with it; Sum, Count, Min, Max, Any and All need no lambda",
            )
        reduced = Lambda((element,), step, at=function.at)
        return Operator(
            "Aggregate", source, (Constant(symbol, at=form.at), seed, reduced), at=form.at
        )
