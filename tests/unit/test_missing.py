"""At submit, the service refuses queries for a TTree if values may be missing without a guard."""

import time

import pytest

from servicex_server.errors import FormatError
from servicex_server.languages.func_adl import FuncAdl
from servicex_server.model import ResultFormat

E = "(call EventDataset 'bogus.root' 'events')"
X = "(attr e 'x')"
FIRST = f"(call (attr {X} 'First'))"
ANY = f"(> (call (attr {X} 'Count')) 0)"


def select(body: str, *, source: str = E, name: str = "e") -> str:
    """Return a query that computes one expression for each element of a source."""
    return f"(call Select {source} (lambda (list {name}) {body}))"


def where(condition: str, *, source: str = E, name: str = "e") -> str:
    """Return the elements of a source that fulfil a condition."""
    return f"(call Where {source} (lambda (list {name}) {condition}))"


def in_stages(later: str) -> str:
    """Return a query whose second stage names parts of a record of the first."""
    record = f"(dict (list 'x' 'n' 'lead') (list {X} (attr e 'n') {FIRST}))"
    return select(later, source=select(record), name="r")


ZIPPED = f"(call Zip (dict (list 'px' 'n') (list {X} (attr e 'y'))))"
PADDED = f"(call fill_none (call pad_none {X} 2) 0)"

REFUSED = {
    "First": select(FIRST),
    "First as a function": select(f"(call First {X})"),
    "Last": select(f"(call (attr {X} 'Last'))"),
    "ElementAt": select(f"(call (attr {X} 'ElementAt') 1)"),
    "Max": select(f"(call (attr {X} 'Max'))"),
    "Min": select(f"(call Min {X})"),
    "max": select(f"(call max {X})"),
    "index": select(f"(subscript {X} 0)"),
    "column of a record": select(f"(dict (list 'n' 'lead') (list (attr e 'n') {FIRST}))"),
    "part of a tuple": select(f"(list (attr e 'n') {FIRST})"),
    "arithmetic": select(f"(/ (+ {FIRST} 1) 1000.0)"),
    "function": select(f"(call (attr np 'sqrt') {FIRST})"),
    "comparison": select(f"(> {FIRST} 3)"),
    "not": select(f"(not (> {FIRST} 3))"),
    "part of an object": select("(attr (call First (attr e 'jets')) 'pt')"),
    "of what a condition leaves": select(
        f"(call First (call Where {X} (lambda (list p) (> p 3))))"
    ),
    "of what is computed of each": select(
        f"(call Max (call Select {X} (lambda (list p) (* p 3))))"
    ),
    "of a sorted list": select(f"(call First (call OrderBy {X} (lambda (list p) p)))"),
    "of a list in other units": select(f"(call Max (/ {X} 1000))"),
    "of records": select(f"(call First {ZIPPED})"),
    "of four-vectors": select(f"(attr (call First (call (attr {ZIPPED} 'ToFourMomenta'))) 'pt')"),
    "of pairs": select(f"(call First (call First (call Choose {X} 2)))"),
    "in a later stage": in_stages("(call First (attr r 'x'))"),
    "of an earlier stage": in_stages("(+ (attr r 'lead') (attr r 'n'))"),
    "a record that goes through": in_stages("r"),
}


@pytest.mark.parametrize("query", REFUSED.values(), ids=REFUSED)
def test_value_that_may_be_missing_is_refused_for_a_ttree(query: str) -> None:
    """The message has the place, and the hint has ways out. Other formats accept the query."""
    with pytest.raises(FormatError, match="a TTree cannot hold that, at character") as caught:
        FuncAdl().compile(query, ResultFormat.TTREE)
    assert "Where(lambda e: e.x.Count() > 0)" in caught.value.hint
    assert "root-rntuple" in caught.value.hint
    FuncAdl().compile(query, ResultFormat.PARQUET)
    FuncAdl().compile(query, ResultFormat.RNTUPLE)


def test_error_names_the_column_and_the_expression() -> None:
    """The error shows the one of several columns whose values may be missing."""
    query = select(f"(dict (list 'n' 'lead') (list (attr e 'n') (+ {FIRST} 1)))")
    with pytest.raises(FormatError) as caught:
        FuncAdl().compile(query, ResultFormat.TTREE)
    assert caught.value.message.startswith("selection: column lead has no value")
    assert caught.value.message.endswith(f"at character {query.index(FIRST) + 1}: {FIRST}")


def loop(body: str) -> str:
    """Return a query that computes something for each element of a list."""
    return select(f"(call (attr {X} 'Select') (lambda (list p) {body}))")


ACCEPTED = {
    "a condition on events": select(FIRST, source=where(ANY)),
    "any condition, for it may be one": select(FIRST, source=where("(> (attr e 'trigger') 0)")),
    "a condition two stages before": select(
        "(call First (attr r 'x'))",
        source=select(f"(dict (list 'x') (list {X}))", source=where(ANY)),
        name="r",
    ),
    "a condition after": where("(> v 3)", source=select(FIRST), name="v"),
    "a condition between": select(
        "(attr r 'lead')",
        source=where(
            "(> (attr r 'lead') 3)", source=select(f"(dict (list 'lead') (list {FIRST}))"), name="r"
        ),
        name="r",
    ),
    "if": select(f"(if {ANY} {FIRST} 0)"),
    "in the test of if": select(f"(if (> {FIRST} 3) 1 0)"),
    "and": select(f"(and {ANY} (> {FIRST} 3))"),
    "or": select(f"(or (not {ANY}) (> {FIRST} 3))"),
    "bits": select(f"(& {ANY} (> {FIRST} 3))"),
    "filled": select(f"(call (attr ak 'fill_none') {FIRST} 0)"),
    "of a list that was filled up": select(f"(subscript {PADDED} 0)"),
    "of records of one that was": select(
        f"(attr (call First (call Zip (list {PADDED} (attr e 'n')))) '0')"
    ),
    "Count of such": select(f"(call Count (call Where {X} (lambda (list p) (> p {FIRST}))))"),
    "not in the result": in_stages("(attr r 'n')"),
    "in a loop over the list": loop(f"(/ p (call (attr {X} 'Max')))"),
    "in a condition on elements": select(
        f"(call (attr {X} 'Where') (lambda (list p) (== p (call (attr {X} 'Max')))))"
    ),
    "of groups that are never empty": loop(
        f"(call First (call Where {X} (lambda (list q) (>= q p))))"
    ),
    "a row for each element": f"(call SelectMany {E} (lambda (list e) (call Select {X} "
    f"(lambda (list p) (/ p (call Max {X}))))))",
    "the greater of two": select("(call max (attr e 'a') (attr e 'b'))"),
    "a part of a tuple by its number": select(f"(subscript (list {X} (attr e 'n')) 1)"),
    "a part of a pair": select(
        f"(call Select (call Choose {X} 2) (lambda (list p) (subscript p 0)))"
    ),
    "Sum, which has a value": select(f"(call Sum {X})"),
    "a sum with a seed": select(
        f"(call (attr {X} 'Aggregate') 0 (lambda (list total p) (+ total p)))"
    ),
    "elements by a mask": select(f"(subscript {X} (> {X} 3))"),
}


@pytest.mark.parametrize("query", ACCEPTED.values(), ids=ACCEPTED)
def test_value_that_may_be_guarded_is_accepted(query: str) -> None:
    """The compiler does not refuse a value that the query itself may guard."""
    FuncAdl().compile(query, ResultFormat.TTREE)


def test_stages_that_repeat_values_are_checked_in_linear_time() -> None:
    """The compiler checks each stage once, although each stage names the one before it twice."""
    query = select(f"(dict (list 'a') (list {X}))")
    for _ in range(40):
        query = select(
            "(dict (list 'a') (list (+ (attr r 'a') (attr r 'a'))))", source=query, name="r"
        )
    began = time.monotonic()
    FuncAdl().compile(query, ResultFormat.TTREE)
    FuncAdl().compile(where("(> (attr r 'a') 3)", source=query, name="r"), ResultFormat.TTREE)
    with pytest.raises(FormatError):
        FuncAdl().compile(
            select("(call First (attr r 'a'))", source=query, name="r"), ResultFormat.TTREE
        )
    assert time.monotonic() - began < 30
