"""The func_adl compiler: the meaning of queries, and the errors of queries without a meaning."""

import time
from itertools import combinations
from typing import Any

import awkward as ak
import pytest
import qastle

from servicex_server.columnar import operators
from servicex_server.columnar.loop_evaluator import Evaluation, Source
from servicex_server.columnar.loop_frames import array_of
from servicex_server.columnar.loop_nodes import (
    Branch,
    Node,
    common_subexpressions,
    prepare,
    shown,
    walk,
)
from servicex_server.columnar.loop_plan import LoopQuery
from servicex_server.errors import QueryError, QueryTypeError, RequestError, UnknownNameError
from servicex_server.languages.func_adl import FuncAdl
from servicex_server.languages.qastle import Form, read_forms
from servicex_server.model import ResultFormat

E = "(call EventDataset 'bogus.root' 'events')"


def compiled(selection: str) -> LoopQuery:
    """Return the compiled query."""
    (extraction,) = FuncAdl().compile(selection, ResultFormat.PARQUET).extractions
    assert isinstance(extraction, LoopQuery)
    return extraction


def node(selection: str) -> Node:
    """Return the nodes of a query."""
    return compiled(selection).node


@pytest.mark.parametrize(
    "text",
    [
        "(call f 1 -2 +3 1.5 -1.5e-3 1E5 .5 2. 12345678901234567890123 -0.0)",
        r"""(list 'it\'s "x" \\ \n' "a'b" '\u00e9é' '\x41' '' "")""",
        "( attr  e\n\t'x' )",
        "(  if (not True)  (** a -1) (subscript a_1 0) )",
        f"(Select (Where {E}  (lambda (list e) e)) (lambda (list x) (attr None 'x')) )",
        "\n(<= (- (+ y)) (% b (// c\t(<< d 1))))",
    ],
)
def test_text_is_parsed_as_by_the_package_qastle(text: str) -> None:
    """The queries have numbers, strings with all escapes, words and lists, and any spacing."""
    again = qastle.python_ast_to_text_ast(qastle.text_ast_to_python_ast(text))
    assert again != text
    assert plain(read_forms(text)) == plain(read_forms(again))


def plain(form: Form) -> Any:
    """Return a form without its place."""
    if form.parts is None:
        return form.word, repr(form.value)
    return [plain(part) for part in form.parts]


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("Select", "(lambda (list p) (* p 2))"),
        ("Where", "(lambda (list p) (> p 2))"),
        ("SelectMany", "(lambda (list p) (list p))"),
        ("First", ""),
        ("Last", ""),
        ("ElementAt", "1"),
        ("Contains", "3"),
        ("Count", ""),
        ("Sum", ""),
        ("Max", ""),
        ("Min", ""),
        ("All", "(lambda (list p) (> p 2))"),
        ("Any", "(lambda (list p) (> p 2))"),
        ("Concat", "(attr e 'y')"),
        ("OrderBy", "(lambda (list p) p)"),
        ("OrderByDescending", "(lambda (list p) p)"),
        ("Choose", "2"),
        ("Aggregate", "0 (lambda (list acc p) (+ acc p))"),
    ],
)
def test_three_spellings_of_an_operator_mean_the_same(name: str, argument: str) -> None:
    """A function, a method and a node are one operation."""
    forms = (
        f"(call {name} (attr e 'x') {argument})",
        f"(call (attr (attr e 'x') '{name}') {argument})",
        f"({name} (attr e 'x') {argument})",
    )
    found = [node(f"(call Select {E} (lambda (list e) {form}))") for form in forms]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("function", "symbol"),
    [
        ("(call (attr np 'add') (attr e 'x') 1)", "(+ (attr e 'x') 1)"),
        ("(call (attr np 'true_divide') (attr e 'x') 2)", "(/ (attr e 'x') 2)"),
        ("(call (attr np 'mod') (attr e 'x') 2)", "(% (attr e 'x') 2)"),
        ("(call (attr math 'pow') (attr e 'x') 2)", "(** (attr e 'x') 2)"),
        ("(call pow (attr e 'x') 2)", "(** (attr e 'x') 2)"),
        ("(call (attr np 'negative') (attr e 'x'))", "(- (attr e 'x'))"),
        ("(call (attr np 'invert') (attr e 'x'))", "(~ (attr e 'x'))"),
        ("(call (attr np 'logical_not') (attr e 'x'))", "(not (attr e 'x'))"),
        ("(call (attr np 'logical_or') (attr e 'x') 1)", "(or (attr e 'x') 1)"),
        ("(call (attr np 'greater_equal') (attr e 'x') 1)", "(>= (attr e 'x') 1)"),
        ("(call (attr np 'left_shift') (attr e 'x') 1)", "(<< (attr e 'x') 1)"),
        ("(call (attr np 'maximum') (attr e 'x') 1)", "(call max (attr e 'x') 1)"),
        ("(call (attr np 'where') (attr e 'x') 1 2)", "(if (attr e 'x') 1 2)"),
        ("(call (attr ak 'where') (attr e 'x') 1 2)", "(if (attr e 'x') 1 2)"),
    ],
)
def test_function_and_its_symbol_mean_the_same(function: str, symbol: str) -> None:
    """Whole numbers, truth values and missing values do not depend on the spelling."""
    assert node(of_event(function)) == node(of_event(symbol))


@pytest.mark.parametrize(
    ("source", "tree"),
    [
        (E, "events"),
        ("(call EventDataset)", ""),
        ("(call EventDataset 'ServiceXDatasetSource')", ""),
        ("(call EventDataset 'bogus.root' 'None')", ""),
        ("(call EventDataset 'bogus.root' None)", ""),
        ("(call EventDataset 'bogus.root' 'dir/tree;3')", "dir/tree;3"),
        (f"(call MetaData {E} (dict (list 'metadata_type') (list 'x')))", "events"),
    ],
)
def test_source_names_the_tree(source: str, tree: str) -> None:
    """The compiler ignores the first argument of the source, and looks through MetaData."""
    rows = compiled(f"(call Select {source} (lambda (list e) (attr e 'x')))")
    assert (rows.tree, rows.output) == (tree, "servicex")


def test_whole_event_needs_all_branches() -> None:
    """The query reads all branches only if the event itself is in the result."""
    assert compiled(f"(call Select {E} (lambda (list e) e))").whole
    assert not compiled(f"(call Select {E} (lambda (list e) (attr e 'x')))").whole


def of_event(expression: str) -> str:
    """Return a query that computes one expression for each event."""
    return f"(call Select {E} (lambda (list e) {expression}))"


WRONG = {
    "": "selection is empty",
    "   ": "selection is empty",
    "[{'treename': 'events'}]": "not qastle.*at character 1",
    "(call Select": "parenthesis is not closed.*at character 1",
    "(call Select))": "text after the end|closed that was not opened",
    "()": "nothing between the parentheses",
    "(call Select 'abc)": "a text has no end.*at character 14",
    "(attr e 'x')": "there is no name e",
    "3": "this does not give a column",
    E: "",
    of_event("(attr e '')"): "a name is empty",
    of_event("(attr f 'x')"): "there is no name f, at character",
    of_event("None"): "None is not a value",
    of_event("(call __import__ 'os')"): "there is no function __import__",
    of_event("(call open '/etc/passwd')"): "there is no function open",
    of_event("(call getattr (attr e 'x') 'y')"): "there is no function getattr",
    of_event("(call eval 'x')"): "there is no function eval",
    of_event("(call (attr os 'system') 'x')"): "there is no",
    of_event("(call (attr np 'load') 'x')"): r"there is no function np\.load",
    of_event("(call (attr np '__class__') 1)"): "there is no function",
    of_event("(attr np 'random')"): "is not a value",
    of_event("(call (attr (attr e 'x') 'Frist'))"): "there is no operator Frist",
    of_event("(call (attr (attr e 'x') 'Average'))"): "there is no operator Average",
    of_event("(call sqrt (attr e 'x') 2)"): "sqrt takes 1; got 2, at character 73",
    of_event("(call (attr math 'log') (attr e 'x') 10)"): "log takes 1; got 2",
    of_event("(call (attr np 'arctan2') (attr e 'x'))"): "arctan2 takes 2; got 1",
    of_event("(call (attr np 'add') (attr e 'x'))"): "add takes 2; got 1",
    of_event("(call (attr np 'negative') 1 2)"): "negative takes 1; got 2",
    of_event("(call (attr np 'where') (attr e 'x') 2)"): "where takes 3; got 2",
    of_event("(call (attr np 'max') (attr e 'x') (attr e 'y'))"): "np.max works on one list",
    of_event("(call sum 1 2)"): "sum takes 1; got 2",
    of_event("(call sqrt)"): "sqrt takes 1; got 0",
    of_event("(call max)"): "max needs an argument",
    of_event("(call Contains (list 1 (list 2 3)) (attr e 'x'))"): "looks for single values",
    of_event("(call Contains (list 1 2))"): "Contains takes 1 argument; got 0",
    of_event("(@ 1 2)"): "not qastle",
    of_event("(<> 1 2)"): "there is no operator <>",
    of_event("(dict (list 'a' 'a') (list 1 2))"): "the key 'a' is given twice",
    of_event("(dict (list 'a') (list 1 2))"): "1 keys and 2 values",
    of_event("(dict (list 3) (list 1))"): "a key of a dict is a text",
    of_event("(list)"): "an empty list is not a column",
    of_event("(call (attr (attr e 'x') 'Select') (lambda (list a b) a))"): "has 2 names",
    of_event("(call (attr (attr e 'x') 'Select') (lambda (list) 1))"): "has 0 names",
    of_event("(call (attr (attr e 'x') 'Select') (lambda (list True) 1))"): "different words",
    of_event("(call (attr (attr e 'x') 'Select') (lambda (list (list a)) 1))"): "different words",
    of_event("(call (attr (attr e 'x') 'Select') 3)"): "Select needs a lambda",
    of_event("(call (attr (attr e 'x') 'First') 3)"): "First takes no argument; got 1",
    of_event("(call (attr (attr e 'x') 'Aggregate') 0 (lambda (list a v) (+ v v)))"): "Aggregate",
    of_event("(+ (dict (list 'a') (list 1)) 1)"): r"\+ cannot work on a record, at character 76",
    of_event("(if (> 1 2) (list 1 2) 3)"): "if cannot work on a record, at character 85",
    of_event("(* (attr e 'x') 'GeV')"): "texts can only be compared.*at character 89: 'GeV'",
    of_event("(- 'GeV')"): "texts can only be compared.*at character 76",
    of_event("(call First 3)"): "First needs a list, and this is the constant 3, at character 73",
    of_event("(call Max 'abc')"): "Max needs a list, and this is the constant 'abc'",
    of_event("(call First (list (attr e 'x') 1))"): "First needs a list, and this is a record",
    of_event("(call ElementAt (attr e 'x') 1.5)"): "ElementAt takes a whole number",
    of_event("(call ElementAt (attr e 'x') 'a')"): "ElementAt takes a whole number",
    of_event("(call Choose (attr e 'x') 'b')"): "Choose takes a whole number, such as 2",
    of_event("(call Choose (attr e 'x') 0)"): "Choose takes a whole number, such as 2",
    of_event("(call round (list 1 2))"): "round cannot work on a record",
    of_event(
        "(call (attr (attr e 'x') 'Where') (lambda (list p) e))"
    ): "event itself is not a value",
    of_event("(call e 3)"): "there is no function e",
    of_event("(call (lambda (list x) (call x x)) 3)"): "only operators and functions can be called",
    of_event("(lambda (list x) x)"): "a lambda can only be an argument",
    f"(call Count {E})": "all events of all files together",
    f"(call First {E})": "all events of all files together",
    f"(call Select {E} (lambda (list e) {E}))": "only at the beginning",
    f"(call Where {E} (lambda (list e) e))": "a condition is a truth value",
    f"(call SelectMany {E} (lambda (list e) e))": "SelectMany needs a list for each event",
    f"(call SelectMany {E} (lambda (list e) (list e 1)))": "SelectMany needs a list for each",
}


@pytest.mark.parametrize("selection", WRONG)
def test_query_without_a_meaning_is_refused(selection: str) -> None:
    """The message states the fault and its place; the status 400 says that the user can mend it."""
    if not WRONG[selection]:
        assert compiled(selection).whole
        return
    with pytest.raises(QueryError, match=WRONG[selection]) as caught:
        compiled(selection)
    assert isinstance(caught.value, RequestError)
    assert caught.value.status == 400


def test_nearest_names_are_suggested() -> None:
    """The hint for a misspelt operator or function has the name that was meant."""
    with pytest.raises(UnknownNameError) as caught:
        compiled(of_event("(call (attr (attr e 'x') 'Frist'))"))
    assert "did you mean First" in caught.value.hint
    with pytest.raises(UnknownNameError) as caught:
        compiled(of_event("(call sqr (attr e 'x'))"))
    assert "did you mean sqrt" in caught.value.hint


@pytest.mark.parametrize("deep", ["(" * 10_000, "(call abs " * 10_000 + "1" + ")" * 10_000])
def test_deep_nesting_is_refused_at_once(deep: str) -> None:
    """Ten thousand parentheses neither overflow the stack nor keep other users waiting."""
    with pytest.raises(QueryError, match=r"nothing between|is nested more than"):
        compiled(of_event(deep))


def test_nesting_does_not_multiply_the_nodes_of_a_query() -> None:
    """Each of forty levels adds a ``Contains`` or a tuple, and does not double the work."""
    searched = tuples = "(attr e 'x')"
    for _ in range(40):
        searched = f"(call (attr (list 0 1) 'Contains') {searched})"
        tuples = f"(list {tuples})"
    for _ in range(40):
        tuples = f"(subscript {tuples} 0)"
    began = time.monotonic()
    for text in (searched, tuples):
        assert len(list(walk(node(of_event(text))))) < 300
    assert time.monotonic() - began < 30


def test_unknown_name_among_many_keys_is_refused_quickly() -> None:
    """The dict has ten thousand keys, and the unknown name has ten thousand characters."""
    keys = " ".join(f"'k{number}'" for number in range(10_000))
    begun = of_event(f"(dict (list {keys} '{'ab' * 5_000}') (list {'1 ' * 10_001}))")
    began = time.monotonic()
    with pytest.raises(UnknownNameError):
        compiled(f"(Select {begun} (lambda (list r) (attr r '{'ba' * 5_000}')))")
    assert time.monotonic() - began < 30


def test_long_chain_of_or_is_accepted() -> None:
    """Clients fold a list of triggers into nested pairs."""
    chain = "(attr e 't0')"
    for number in range(1, 400):
        chain = f"(or {chain} (attr e 't{number}'))"
    found = node(f"(call Where {E} (lambda (list e) {chain}))")
    assert len([one for one in walk(found) if isinstance(one, Branch)]) == 400


@pytest.mark.parametrize(
    ("body", "computed"),
    [
        ("(+ (* x 2) (* x 2))", {"(* x 2)": 2}),
        ("(+ (+ (* x 2) 1) (+ (* x 2) 1))", {"(+ (* x 2) 1)": 2}),  # what is within is not counted
        ("(+ (+ (* x 2) 1) (+ (* x 2) (* x 2)))", {"(* x 2)": 3}),
        ("(+ (+ x 1) (+ x 1.0))", {}),
        ("(+ (+ x 1) (+ x True))", {}),
        ("(+ (+ x 0.0) (+ x -0.0))", {}),
        ("(+ (+ x 1) (- x 1))", {}),
        ("(+ (/ x 2) (/ 2 x))", {}),
    ],
)
def test_common_subexpressions_are_found(body: str, computed: dict[str, int]) -> None:
    """Numbers are equal only if they have the same type and sign."""
    query = f"(Select (Select {E} (lambda (list e) (attr e 'x'))) (lambda (list x) {body}))"
    nodes = node(query)
    found = common_subexpressions(nodes)
    texts = {shown(query, one.at): found[id(one)][1] for one in walk(nodes) if id(one) in found}
    assert texts == computed


def test_equal_text_on_different_variables_is_not_a_common_subexpression() -> None:
    """Two variables may have the same name and different meanings."""
    query = (
        f"(Select {E} (lambda (list e) (+ (Count (Where (attr e 'x') (lambda (list j) (> j 1)))) "
        "(Count (Where (attr e 'y') (lambda (list j) (> j 1)))))))"
    )
    assert common_subexpressions(node(query)) == {}


def test_repeated_subexpression_is_computed_once() -> None:
    """A branch stands for any expensive computation."""
    asked: list[tuple[str, ...]] = []

    def read(path: tuple[str, ...]) -> Any:
        asked.append(path)
        return ak.Array([1.0, 2.0, 3.0])

    query = (
        f"(Select (Where {E} (lambda (list e) (> (attr e 'x') (- 5 (attr e 'x'))))) "
        "(lambda (list e) (* (call sqrt (attr e 'x')) (call sqrt (attr e 'x')))))"
    )
    source = Source(3, read, dict)
    result = Evaluation(prepare(node(query), query), source).loop()
    assert array_of(result.element, result.inner).tolist() == [pytest.approx(3.0)]
    assert asked == [("x",), ("x",)]  # once for each of the two lambdas


CHOSEN = "(Select (Choose (attr e 'x') 2) (lambda (list c) (Select c (lambda (list v) {}))))"


def squares(body: str, values: ak.Array) -> list[list[list[Any]]]:
    """Return the values of a body in the pairs of lists, event by event."""
    query = f"(Select {E} (lambda (list e) {CHOSEN.format(body)}))"
    source = Source(len(values), lambda _: values, dict)
    result = Evaluation(prepare(node(query), query), source).loop()
    found: list[list[list[Any]]] = array_of(result.element, result.inner).tolist()
    return found


def test_element_of_many_combinations_is_computed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nine elements are in 36 pairs."""
    sizes: list[int] = []
    unary = operators.unary

    def counted(symbol: str, value: Any) -> Any:
        sizes.append(len(value))
        return unary(symbol, value)

    monkeypatch.setattr(operators, "unary", counted)
    pairs = [[-float(a), -float(b)] for a, b in combinations(range(9), 2)]
    assert squares("(- v)", ak.Array([[float(n) for n in range(9)]])) == [pairs]
    assert sizes == [9]


def test_element_of_no_combination_is_not_computed() -> None:
    """The square of the first element does not fit into 64 bits, and no pair contains it."""
    values = ak.Array([[2**40], [3, 4], [5, 6, 7]])
    wanted = [[], [[9, 16]], [[25, 36], [25, 49], [36, 49]]]
    assert squares("(* v v)", values) == wanted
    with pytest.raises(QueryTypeError, match="64 bits"):
        squares("(* v v)", ak.Array([[2**40, 1]]))
