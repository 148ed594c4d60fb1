"""Made-up func_adl queries that func-adl-uproot may know: those of the property tests, less some.

What it does not know at all, or does otherwise for a reason that `func_adl_cases.DIFFERENT` gives,
is left out: whole numbers of less than 64 bits, truth values in arithmetic, functions of Python and
of other modules than numpy, records in records, constants where a column could be, and lambdas
that do not name what they get.
"""

from collections.abc import Iterator
from itertools import islice
from random import Random

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.property.event_loop import OPERATORS, Form, read
from tests.property.typed_trees import Many, Number, Tree, trees
from tests.property.written_queries import Scope, Writer

_UNKNOWN = frozenset("Aggregate len num sum min max any all round math ak".split())
_RECORDS = ("dict", "list")
_CONDITIONS = frozenset("Where Contains == != < <= > >=".split())
_MAY_MISS = ("Max", "Min", "'Max'", "'Min'")


class _Writer(Writer):
    """Writes truth values in arithmetic as 1 and 0."""

    def _plain(self, scope: Scope, depth: int) -> tuple[str, Number]:
        text, kind = super()._plain(scope, depth)
        return (f"(if {text} 1 0)", Number("i")) if kind.kind == "b" else (text, kind)

    def _equally_long(self, scope: Scope) -> list[tuple[str, Many]]:
        return [one for one in super()._equally_long(scope) if one[1].element != Number("b")]


def made_up(number: int, many_trees: int, many_queries: int) -> Iterator[tuple[Tree, list[str]]]:
    """Yield TTrees, each with queries; the same ones for the same number."""
    random = Random(number)

    def texts(tree: Tree) -> Iterator[str]:
        while True:
            yield _Writer(random, tree).query().text

    for tree in _trees(number, many_trees):
        known = (text for text in texts(tree) if _known(read(text), frozenset()))
        yield tree, list(islice(known, many_queries))


def _trees(number: int, many: int) -> list[Tree]:
    """Return TTrees that have events, whose lists have elements."""
    found: list[Tree] = []

    @seed(number)
    @settings(
        max_examples=4 * many,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(tree=trees(whole_types=("int64",), least=1, kinds_of_tree=1))
    def collect(tree: Tree) -> None:
        if sum(tree.steps) > 2:
            found.append(tree)

    collect()
    return found[:many]


def _known(form: Form, bound: frozenset[str], *, in_record: bool = False) -> bool:
    """Whether a form has nothing in it that func-adl-uproot is known to refuse or to mistake."""
    if isinstance(form, str):
        return True
    head, *parts = _spelled(form)
    if head in _UNKNOWN:
        return False
    if head == "lambda":
        (name,) = parts[0][1:]
        return name not in bound and _names(parts[1], name) and _known(parts[1], bound | {name})
    if head in _RECORDS:
        values = parts[1][1:] if head == "dict" else parts
        constant = any(map(_is_constant, values))
        inside = all(_known(one, bound, in_record=True) for one in values)
        return inside and not in_record and not constant
    return _is_sound(head, parts) and all(_known(one, bound) for one in parts)


def _is_sound(head: str, parts: list[Form]) -> bool:
    if head in ("and", "or"):
        return len(parts) > 1 and not any(map(_is_constant, parts))
    if head == "subscript":
        # of a list it is no element, and of a record in one it is a part
        by_number = isinstance(parts[1], str) and not parts[1].startswith("'")
        return not by_number or isinstance(parts[0], str)
    if head == "SelectMany" and parts[1][2][0] in _RECORDS:
        return False
    if head in _CONDITIONS and any(_names(parts, one) for one in _MAY_MISS):
        return False
    return not parts or not _is_constant(parts[0])


def _spelled(form: Form) -> list[Form]:
    """Return a call as a list that begins with the name of what is called, or its module."""
    if form[0] != "call":
        return list(form)
    called, *given = form[1:]
    if isinstance(called, str):
        return ["EventDataset"] if called == "EventDataset" else [called, *given]
    _, source, name = called
    return [name[1:-1], source, *given] if name[1:-1] in OPERATORS else [source, *given]


def _is_constant(form: Form) -> bool:
    return isinstance(form, str) and (form in ("True", "False") or form[0] in "'-.0123456789")


def _names(form: Form, name: str) -> bool:
    if isinstance(form, str):
        return bool(form == name)
    return any(_names(one, name) for one in form)
