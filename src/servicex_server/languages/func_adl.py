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

The three ways to write an operator mean the same.
"""

from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

from servicex_server.columnar import number_types, operators
from servicex_server.columnar.four_vectors import METHODS
from servicex_server.columnar.limits import MAX_COLUMNS
from servicex_server.columnar.loop_nodes import (
    Binary,
    Branch,
    Conditional,
    Constant,
    Events,
    Field,
    Item,
    Logical,
    Node,
    Operator,
    Record,
    Unary,
    Variable,
    place,
)
from servicex_server.columnar.loop_plan import LoopQuery
from servicex_server.columnar.nullability import unguarded
from servicex_server.columnar.plan import Query
from servicex_server.errors import FormatError, QueryError
from servicex_server.languages import func_adl_functions as functions
from servicex_server.languages.contract import Language
from servicex_server.languages.func_adl_operators import (
    COLUMN,
    EVENT,
    OPERATORS,
    Kind,
    Operators,
    Scope,
)
from servicex_server.languages.qastle import Form, read_forms
from servicex_server.model import ResultFormat

OUTPUT = "servicex"
"""Name of the tree in the result, as upstream has it."""

MAX_DEPTH = 150
"""Nesting beyond which a query is refused; a chain of ``and`` counts once."""

_SYMBOLS = (operators.BINARY | operators.UNARY) | {"and", "or"}
_FORMS = ("attr", "subscript", "call", "lambda", "list", "dict", "if")


class FuncAdl(Language):
    """func_adl on TTrees and RNTuples."""

    name: ClassVar[str] = "uproot"
    description: ClassVar[str] = "func_adl queries of TTrees and RNTuples, as qastle text"

    def compile(self, selection: str, result_format: ResultFormat) -> Query:
        """Read the text into loops over sequences, and find the branches that it names."""
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
        extraction = LoopQuery(
            tree=tree,
            output=OUTPUT,
            required=True,
            node=node,
            text=selection,
            whole=kind.holds_event,
            dense=dense,
        )
        return Query((extraction,))


class _Reader(Operators):
    """Turns forms into nodes; refuses every form that it does not know."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._tree = ""

    def query(self) -> tuple[Node, Kind, str]:
        """Return the query, the kind of its rows, and the name of its tree or an empty name."""
        form = read_forms(self.text)
        node, kind = self.read(form, {}, 0)
        if kind.what != "events" or kind.element is None:
            raise self.refuse(
                form,
                "this does not give a column",
                "begin with EventDataset() and end with Select or SelectMany",
            )
        return node, kind.element, self._tree

    def read(self, form: Form, scope: Scope, depth: int) -> tuple[Node, Kind]:
        """Read any expression."""
        if depth > MAX_DEPTH:
            raise self.refuse(form, f"this is nested more than {MAX_DEPTH} deep")
        if form.parts is None:
            return self._word(form, scope)
        head, depth = form.head, depth + 1
        if head in OPERATORS or head == "MetaData":
            return self.operator(form, head, form.parts[1:], scope, depth)
        if head in _SYMBOLS:
            return self._symbol(form, scope, depth), COLUMN
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
                parts = self.exactly(form, 3)
                three = (self.single(one, scope, depth, "if") for one in parts)
                return Conditional(*three, at=form.at), COLUMN
            case "lambda":
                raise self.refuse(
                    form, "a lambda can only be an argument of an operator such as Select"
                )
            case "":
                raise self.refuse(form, "an expression begins with a word, such as (call or (attr")
            case _:
                raise self.unknown(form, "operator", head, {*OPERATORS, *_FORMS, *_SYMBOLS})

    def _word(self, form: Form, scope: Scope) -> tuple[Node, Kind]:
        if form.value is not None:
            return Constant(form.value, at=form.at), COLUMN
        if name := scope.get(form.word):
            return Variable(name.number, at=form.at), name.kind
        if form.word == "None":
            raise self.refuse(form, "None is not a value of a column")
        raise self.unknown(form, "name", form.word, scope)

    def _symbol(self, form: Form, scope: Scope, depth: int) -> Node:
        symbol = form.head
        if symbol in ("and", "or"):
            chain = self._operands(form, symbol)
            operands = tuple(self.single(one, scope, depth, symbol) for one in chain)
            return Logical(symbol, operands, at=form.at)
        assert form.parts is not None  # noqa: S101  # it has a head
        parts = tuple(self.single(one, scope, depth, symbol) for one in form.parts[1:])
        texts = [isinstance(one, Constant) and isinstance(one.value, str) for one in parts]
        if any(texts) and symbol not in ("==", "!="):
            raise self.refuse(
                form.parts[1 + texts.index(True)],
                "texts can only be compared, with == and !=",
            )
        if len(parts) == 1 and symbol in operators.UNARY:
            return Unary(symbol, parts[0], at=form.at)
        if len(parts) == 2 and symbol in operators.BINARY:  # noqa: PLR2004
            return Binary(symbol, *parts, at=form.at)
        wanted = 1 if symbol not in operators.BINARY else 2
        raise self.refuse(form, f"{symbol} takes {wanted}; got {len(parts)}")

    def _operands(self, form: Form, symbol: str) -> Iterator[Form]:
        """Yield the operands of a chain of one symbol, in any nesting."""
        waiting = [form]
        while waiting:
            one = waiting.pop()
            if one.head == symbol and one.parts is not None:
                if len(one.parts) < 3:  # noqa: PLR2004
                    raise self.refuse(one, f"{symbol} takes at least 2")
                waiting += reversed(one.parts[1:])
            else:
                yield one

    def _text_of(self, form: Form, what: str) -> str:
        if not isinstance(form.value, str):
            raise self.refuse(form, f"{what} is a text in quotes")
        return form.value

    def _attribute(self, form: Form, scope: Scope, depth: int) -> tuple[Node, Kind]:
        value, name = self.exactly(form, 2)
        word = self._text_of(name, "a name after a dot")
        if (module := self._module(value, scope)) is not None:
            if module not in ("ak", "awkward") and word in functions.NUMBERS:
                return Constant(functions.NUMBERS[word], at=form.at), COLUMN
            raise self.refuse(form, f"{module}.{word} is not a value")
        return self._part(form, *self.read(value, scope, depth), word)

    def _part(self, form: Form, node: Node, kind: Kind, name: str) -> tuple[Node, Kind]:
        if not name:
            raise self.refuse(form, "a name is empty")
        if kind.what == "event":
            return Branch(node, (name,), at=form.at), COLUMN
        if kind.what == "events":
            raise self.refuse(
                form,
                f"the sequence of all events has no {name}",
                "name branches in the lambda of a Select or Where",
            )
        if kind.what == "record":
            if name not in kind.fields:
                raise self.unknown(form, "part of this record called", name, kind.fields)
            return Field(node, name, at=form.at), kind.fields[name]
        if isinstance(node, Branch) and form.head == "attr":
            return Branch(node.event, (*node.path, name), at=form.at), COLUMN
        return Field(node, name, at=form.at), COLUMN

    def _subscript(self, form: Form, scope: Scope, depth: int) -> tuple[Node, Kind]:
        value, index = self.exactly(form, 2)
        node, kind = self.read(value, scope, depth)
        if isinstance(index.value, str):
            return self._part(form, node, kind, index.value)
        if kind.what in ("event", "events"):
            raise self.refuse(form, "an event is not numbered; its branches have names")
        if kind.what == "record" and number_types.is_whole(index.value):
            return self._part(form, node, kind, str(index.value))
        return Item(node, self.value(index, scope, depth), at=form.at), COLUMN

    def _record(self, form: Form, scope: Scope, depth: int) -> tuple[Node, Kind]:
        assert form.parts is not None  # noqa: S101  # it has a head
        if form.head == "list":
            names = [str(at) for at in range(len(form.parts) - 1)]
            values = form.parts[1:]
        else:
            keys, given = self.exactly(form, 2)
            if keys.head != "list" or given.head != "list":
                raise self.refuse(form, "dict takes two lists, of keys and of values")
            assert keys.parts is not None  # noqa: S101  # it has a head
            assert given.parts is not None  # noqa: S101  # it has a head
            names = [self._text_of(key, "a key of a dict") for key in keys.parts[1:]]
            values = given.parts[1:]
            if len(names) != len(values):
                raise self.refuse(form, f"dict has {len(names)} keys and {len(values)} values")
            for name, many in Counter(names).items():
                if not name or many > 1:
                    raise self.refuse(
                        form, f"the key {name!r} is {'given twice' if name else 'empty'}"
                    )
        if not names:
            raise self.refuse(form, f"an empty {form.head} is not a column")
        read = [self.read(value, scope, depth) for value in values]
        for value, (_, kind) in zip(values, read, strict=True):
            if kind.what == "events":
                raise self.refuse(value, "the sequence of all events is not a value here")
        items = tuple((name, node) for name, (node, _) in zip(names, read, strict=True))
        kinds = {name: kind for name, (_, kind) in zip(names, read, strict=True)}
        record = Kind("record", kinds)
        if record.columns > MAX_COLUMNS:
            raise self.refuse(
                form,
                f"this record has {record.columns:.3g} columns, with those of the records in it; "
                f"at most {MAX_COLUMNS}",
            )
        return Record(items, form.head == "list", at=form.at), record

    def _module(self, form: Form, scope: Scope) -> str | None:
        return form.word if form.word in functions.MODULES and form.word not in scope else None

    def _call(self, form: Form, scope: Scope, depth: int) -> tuple[Node, Kind]:
        assert form.parts is not None  # noqa: S101  # it has a head
        if len(form.parts) == 1:
            raise self.refuse(form, "call needs a function")
        called, arguments = form.parts[1], form.parts[2:]
        if called.head == "attr":
            source, name = self.exactly(called, 2)
            word = self._text_of(name, "a name after a dot")
            if (module := self._module(source, scope)) is not None:
                return self._function(form, word, arguments, scope, depth, module), COLUMN
            if word in METHODS:
                return self._method(form, word, (source, *arguments), scope, depth), COLUMN
            if word not in OPERATORS and word != "MetaData":
                raise self.unknown(form, "operator", word, {*OPERATORS, *METHODS})
            return self.operator(form, word, (source, *arguments), scope, depth)
        if not called.word or called.parts is not None:
            raise self.refuse(form, "only operators and functions can be called, by their names")
        if called.word == "EventDataset":
            return self._dataset(form, arguments, scope)
        if called.word in OPERATORS or called.word == "MetaData":
            return self.operator(form, called.word, arguments, scope, depth)
        return self._function(form, called.word, arguments, scope, depth), COLUMN

    def _dataset(self, form: Form, arguments: tuple[Form, ...], scope: Scope) -> tuple[Node, Kind]:
        if scope:
            why = "EventDataset is allowed only at the beginning, not in a lambda"
            raise self.refuse(form, why)
        if len(arguments) > 2:  # noqa: PLR2004
            raise self.refuse(form, "EventDataset takes a file, which is ignored, and a tree")
        named = len(arguments) > 1 and arguments[1].word != "None"
        tree = self._text_of(arguments[1], "a tree's name") if named else ""
        # the client writes 'None' in quotes if a YAML query does not name a tree
        self._tree = "" if tree == "None" else tree
        return Events(at=form.at), Kind("events", element=EVENT)

    def _function(
        self,
        form: Form,
        word: str,
        arguments: tuple[Form, ...],
        scope: Scope,
        depth: int,
        module: str = "",
    ) -> Node:
        known = functions.known(module)
        if word not in known:
            raise self.unknown(form, "function", f"{module}.{word}".strip("."), known)
        if functions.is_elementwise(word):
            values = tuple(self.single(one, scope, depth, word) for one in arguments)
        else:
            values = tuple(self.value(one, scope, depth) for one in arguments)
        try:
            return functions.called(word, module, values, form.at)
        except ValueError as error:
            raise self.refuse(form, str(error)) from None

    def _method(
        self, form: Form, name: str, parts: tuple[Form, ...], scope: Scope, depth: int
    ) -> Node:
        if len(parts) != 2:  # noqa: PLR2004
            raise self.refuse(form, f"{name} takes one four-vector besides the first")
        one, other = (self.value(part, scope, depth) for part in parts)
        return Operator(name, one, (other,), at=form.at)
