"""The language uproot-raw: every way to be wrong is an error that names the place."""

import json
from typing import Any

import pytest

from servicex_server.columnar.columns import Columns
from servicex_server.columnar.plan import Query
from servicex_server.errors import FormatError, QueryError
from servicex_server.languages.uproot_raw import UprootRaw
from servicex_server.model import ResultFormat


def compiled(query: Any, result_format: ResultFormat = ResultFormat.TTREE) -> Query:
    """Compile a query given as Python data."""
    return UprootRaw().compile(json.dumps(query), result_format)


@pytest.mark.parametrize(
    ("treename", "expected"),
    [
        ("t", [("t", "t")]),
        (["a", "b"], [("a", "a"), ("b", "b")]),
        ({"a": "x", "b": "y"}, [("a", "x"), ("b", "y")]),
    ],
)
def test_trees_may_be_named_in_three_ways(treename: Any, expected: list[tuple[str, str]]) -> None:
    """A tree, a list of trees, and an object that renames them are all understood."""
    found = compiled([{"treename": treename}]).extractions
    assert [(e.tree, e.output) for e in found] == expected


def test_what_the_published_client_sends_is_understood() -> None:
    """The client sends every key that was not set as null, and some that others ignore."""
    query = compiled(
        [
            {
                "treename": "nominal",
                "expressions": None,
                "cut": "met_et>1000",
                "filter_name": ["lep_pt", "met*"],
                "filter_typename": None,
                "aliases": {"x": "lep_pt/1000"},
                "fail_on_missing_trees": None,
                "use_standard_awkward_axis": None,
                "some_future_key": 3,
            },
            {"copy_histograms": "CutBook*"},
        ]
    )
    (extraction,) = query.extractions
    assert isinstance(extraction, Columns)
    assert extraction.columns is None
    assert extraction.filter_name == ("lep_pt", "met*")
    assert extraction.required is None
    assert list(extraction.aliases) == ["x"]
    assert query.copies == ("CutBook*",)


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ("", "selection is empty"),
        ("{", "selection is no JSON: .* line 1, column 2"),
        ("{}", "selection is no list but an object"),
        ("null", "selection is no list but null"),
        ("[]", "empty list"),
        ("[3]", "subquery 1 is no object but a number"),
        ('[{"cut": "x > 1"}]', "subquery 1 names neither treename nor copy_histograms"),
        ('[{"treename": ""}]', "names neither treename"),
        ('[{"treename": 5}]', "treename must be a text"),
        ('[{"treename": ["a", 5]}]', "treename must be a text"),
        ('[{"treename": " "}]', "treename has an empty name"),
        ('[{"treename": "t", "cut": 5}]', "cut must be a text, not a number"),
        ('[{"treename": "t", "cut": "x >"}]', "cut has a syntax error .* at character 4"),
        ('[{"treename": "t", "cut": "__import__(1)"}]', "__import__ is not allowed"),
        ('[{"treename": "t", "cut": "x.__class__"}]', "__class__ is not allowed"),
        ('[{"treename": "t", "cut": "foo(x)"}]', "there is no function foo"),
        ('[{"treename": "t", "expressions": []}]', "expressions is empty"),
        ('[{"treename": "t", "expressions": ["x", "x"]}]', "is there twice"),
        ('[{"treename": "t", "expressions": [1]}]', "expressions must be a text or a list"),
        ('[{"treename": "t", "aliases": []}, {"treename": "t"}]', "two subqueries write the tree"),
        ('[{"treename": "t", "aliases": ["a"]}]', "aliases must be an object"),
        ('[{"treename": "t", "aliases": {"a": "("}}]', "alias a has a syntax error"),
        ('[{"treename": "t", "filter_name": "/(/"}]', "is no regular expression"),
        ('[{"treename": "t", "fail_on_missing_trees": "yes"}]', "must be true or false"),
        ('[{"treename": "t"}, {"treename": {"u": "t"}}]', "two subqueries write the tree t"),
        ('[{"tree_name": "t"}]', "did you mean tree_name"),
        ("[" * 100_000, "selection"),
    ],
)
def test_a_wrong_query_is_refused_with_the_place(selection: str, words: str) -> None:
    """Every mistake is named, with the subquery and the key it is in."""
    with pytest.raises(QueryError, match=words):
        UprootRaw().compile(selection, ResultFormat.TTREE)


def test_histograms_need_root_output() -> None:
    """Copying histograms into Parquet is refused when the request is submitted."""
    with pytest.raises(FormatError, match="needs ROOT output"):
        compiled([{"copy_histograms": "h*"}], ResultFormat.PARQUET)
