"""The service refuses expressions that mix events, and suggests what to write instead."""

import inspect
import json
from typing import Any

import awkward as ak
import numpy as np
import pytest

from servicex_server.columnar.event_axis import SIGNATURES
from servicex_server.columnar.expression import parse
from servicex_server.columnar.expression_evaluator import evaluate
from servicex_server.errors import QueryError, QueryTypeError
from servicex_server.languages.uproot_raw import UprootRaw
from servicex_server.model import ResultFormat

COLUMNS = {
    "x": ak.Array([3, 1]),
    "n": ak.Array([1, 0]),
    "flag": ak.Array([True, False]),
    "pt": ak.Array([[1, 3, 2], [5, 4]]),
    "eta": ak.Array([[10, 30, 20], [50, 40]]),
    "deep": ak.Array([[[1], [2, 3]], [[4]]]),
    "pair": ak.Array(np.array([[1, 2], [3, 4]])),
    "which": ak.Array(np.array([[1], [0]])),
    "objects": ak.Array([[{"pt": 1}], [{"pt": 2}, {"pt": 3}]]),
    "maybe": ak.Array([[1], None]),
    "late": ak.Array([[5], [6], None, [7]])[2:],
}


def compute(text: str) -> Any:
    """Return the value of an expression on the columns above, as lists."""
    return ak.to_list(evaluate(parse(text), COLUMNS.__getitem__, text=text))


def submit(text: str, where: str = "expressions", *, standard_axis: bool = False) -> None:
    """Compile a query with an expression, without a file."""
    subquery: dict[str, Any] = {"treename": "t", "use_standard_awkward_axis": standard_axis}
    subquery[where] = {"a": text} if where == "aliases" else text
    UprootRaw().compile(json.dumps([subquery]), ResultFormat.PARQUET)


@pytest.mark.parametrize("standard_axis", [False, True])
@pytest.mark.parametrize("where", ["expressions", "cut", "aliases"])
@pytest.mark.parametrize(
    ("text", "at", "instead"),
    [
        ("x - x[0]", 5, "firsts(x)"),
        ("x[::-1]", 1, "x[:, 1:]"),
        ("x + x[1:]", 5, "x[:, 1:]"),
        ("x - x[-1]", 5, "firsts(x)"),
        ("x[None] + x", 1, "x[:, 1]"),
        ("x[[0, 0]] + x", 1, "firsts(x)"),
        ("pt[0, :] + pt", 1, "firsts(x)"),
        ("pt['a', 0] + pt", 1, "firsts(x)"),
        ("pt[:, n] + x", 1, "keepdims=True"),
        ("pt[flag, 0] + x", 1, "keepdims=True"),
        ("pt[:, :n] + x", 1, "mask"),
        ("sort(x, axis=0) + x", 1, "axis=1"),
        ("argsort(x, axis=0) + x", 1, "axis=1"),
        ("x - max(x, axis=0)", 5, "axis=1"),
        ("x == max(x, axis=0)", 6, "axis=1"),
        ("x - mean(x, axis=None)", 5, "axis=1"),
        ("x - mean(x, 1, None)", 5, "axis=1"),
        ("x / sum(pt, 0)", 5, "axis=1"),
        ("num(pt, axis=0) + x", 1, "axis=1"),
        ("flatten(pt, axis=1) + x", 1, "axis=2"),
        ("flatten(pt, axis=None) + x", 1, "axis=2"),
        ("firsts(pt, axis=0) + x", 1, "axis=1"),
        ("pad_none(x, 9, axis=0) + x", 1, "axis=1"),
        ("drop_none(pt, axis=0) + x", 1, "axis=1"),
        ("concatenate([x, x], axis=0) + x", 1, "axis=1"),
        ("combinations(x, 2, axis=0)", 1, "axis=1"),
        ("cartesian([x, x], axis=0)", 1, "axis=1"),
        ("softmax(x, axis=0)", 1, "axis=1"),
        ("where(x > 2)[0] + x", 1, "where(condition, x, y)"),
        ("where(almost_equal(x, n), x, n)", 7, "isclose(a, b)"),
        ("where(x > 2, [1.0], x)", 1, "column"),
        ("isclose(x, [1.0])", 1, "column"),
        ("fill_none(x, n) + x", 1, "is_none(x)"),
        ("sum([x, x]) + x", 1, "column"),
    ],
)
def test_mixing_events_is_refused_at_submit(
    text: str, at: int, instead: str, where: str, *, standard_axis: bool
) -> None:
    """No file is needed. The message has the place, and the hint has a replacement."""
    with pytest.raises(QueryTypeError, match=f"at character {at}:") as error:
        submit(text, where, standard_axis=standard_axis)
    assert instead in error.value.hint


@pytest.mark.parametrize("text", ["sum(pt)", "x - mean(x)", "flatten(pt)", "concatenate([x, x])"])
def test_default_axis_of_awkward_is_refused_if_it_mixes_events(text: str) -> None:
    """The flag selects that axis; without the flag, the expression is accepted."""
    with pytest.raises(QueryTypeError, match="at character"):
        submit(text, standard_axis=True)
    submit(text)


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("sort(x)", "axis=1"),
        ("argsort(x) + x", "axis=1"),
        ("x - max(x, axis=-1)", "axis=1"),
        ("sum(pt, axis=-2)", "axis=1"),
        ("flatten(pt, axis=-1)", "axis=2"),
        ("eta[argmax(pt)]", "keepdims=True"),
        ("x[flag] + x", "where(condition, x, y)"),
        ("x[n]", "keepdims=True"),
        ("objects[0]", "firsts(x)"),
        ("fType[0]", "firsts(x)"),
        ("drop_none(maybe)", "axis=1"),
    ],
)
def test_mixing_events_is_refused_once_types_are_known(text: str, instead: str) -> None:
    """The dry run on a file finds mixing that depends on the types of columns."""
    columns = {**COLUMNS, "fType": COLUMNS["pt"]}
    with pytest.raises(QueryTypeError) as error:
        evaluate(parse(text), columns.__getitem__, text=text)
    assert instead in error.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eta[argmax(pt, keepdims=True)]", [[30], [50]]),
        ("eta[argsort(pt)]", [[10, 20, 30], [40, 50]]),
        ("eta[pt > 2]", [[30], [50, 40]]),
        ("pt - max(pt, keepdims=True)", [[-2, 0, -1], [0, -1]]),
        ("max(pt, axis=-1)", [3, 5]),
        ("sort(pt)", [[1, 2, 3], [4, 5]]),
        ("pt[:, 0]", [1, 5]),
        ("pt[:, -1]", [2, 4]),
        ("pt[:, ::-1]", [[2, 3, 1], [4, 5]]),
        ("pt[:, [1, 0]]", [[3, 1], [4, 5]]),
        ("pt[:] * x", [[3, 9, 6], [5, 4]]),
        ("deep[:, 0, 0]", [1, 4]),
        ("flatten(deep)", [[1, 2, 3], [4]]),
        ("is_none(maybe)", [False, True]),
        ("pad_none(maybe, 2)", [[1, None], None]),
        ("pad_none(late, 2)", [None, [7, None]]),
        ("drop_none(pad_none(pt, 3, clip=True))", [[1, 3, 2], [5, 4]]),
        ("broadcast_arrays(x, pt)[0]", [[3, 3, 3], [1, 1]]),
        ("combinations(objects, 1)['0'].pt", [[1], [2, 3]]),
        ("mean(pt, pt)", [14 / 6, 41 / 9]),
        ("where(True, x, n)", [3, 1]),
        # in NumPy the last axes of these are aligned, which are events here and elements there
        ("pair * x", [[3, 6], [3, 4]]),
        ("where(flag, pair, -pair)", [[1, 2], [-3, -4]]),
        ("hypot(x * 0, pair)", [[1, 2], [3, 4]]),
        ("broadcast_arrays(x, pair)[0]", [[3, 3], [1, 1]]),
        # and these take whole events, or join those that a mask leaves
        ("softmax(pair * 0)", [[0.5, 0.5], [0.5, 0.5]]),
        ("std(pair)", [0.5, 0.5]),
        ("pair[which]", [[2], [3]]),
        ("eta[which]", [[30], [50]]),
        ("pair[pair > 1]", [[2], [3, 4]]),
        ("pair[pair > x]", [[], [3, 4]]),
    ],
)
def test_expression_within_events_is_accepted(text: str, expected: Any) -> None:
    """The values are those of a loop over events."""
    assert compute(text) == expected


def test_element_that_some_event_lacks_is_named() -> None:
    """The message says what is missing, and not where a library noticed it."""
    for text in ("pt[:, 2]", "pt[:, -3]", "pt[:, [0, 2]]"):
        with pytest.raises(QueryTypeError, match=r"some event has no element -?[23]") as error:
            compute(text)
        assert "firsts(x)" in error.value.hint
        assert "pad_none" in error.value.hint
        assert "http" not in str(error.value)


def test_member_with_brackets_in_its_name_is_accepted_at_submit() -> None:
    """A branch of a split object may have a name that looks like an element."""
    submit("fType[20]")
    submit("evt.fMatrix[4][4]")
    with pytest.raises(QueryError):
        submit("fType[20] * 2")


@pytest.mark.parametrize("name", sorted(set(SIGNATURES) - {"where", "broadcast_arrays"}))
def test_signature_equals_that_of_awkward(name: str) -> None:
    """The table has the names, the order and the default axis of the library."""
    parameters = inspect.signature(getattr(ak, name)).parameters
    signature = SIGNATURES[name]
    positional = [
        one.name
        for one in parameters.values()
        if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        and one.name not in ("highlevel", "behavior", "attrs")
    ]
    assert list(signature.positional) == positional
    assert set(signature.named) <= set(parameters)
    assert signature.has_axis == ("axis" in parameters)
    if signature.has_axis:
        assert signature.standard == parameters["axis"].default
