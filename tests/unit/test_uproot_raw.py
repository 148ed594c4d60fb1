"""The language uproot-raw: every wrong query raises an error that names the place."""

import json
from typing import Any

import pytest

from servicex_server.columnar.column_plan import ColumnQuery
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
        (["t;1", "nominal/t"], [("t;1", "t"), ("nominal/t", "nominal/t")]),
        ("/nominal/t;2", [("/nominal/t;2", "nominal/t")]),
    ],
)
def test_trees_may_be_named_in_three_ways(treename: Any, expected: list[tuple[str, str]]) -> None:
    """A query names a tree, a list of trees, or an object that renames trees."""
    found = compiled([{"treename": treename}]).extractions
    assert [(e.tree, e.output) for e in found] == expected


def test_query_of_the_published_client_is_understood() -> None:
    """The client sends null for every key that the user has not set."""
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
                "some_future_key": None,
            },
            {"copy_histograms": "CutBook*"},
        ]
    )
    (extraction,) = query.extractions
    assert isinstance(extraction, ColumnQuery)
    assert extraction.columns is None
    assert extraction.filter_name == ("lep_pt", "met*")
    assert extraction.required is None
    assert list(extraction.aliases) == ["x"]
    assert query.copies == ("CutBook*",)


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ("", "selection is empty"),
        ("{", "selection is not JSON: .* line 1, column 2"),
        ("{}", "selection is not a list but an object"),
        ("null", "selection is not a list but null"),
        ("[]", "empty list"),
        ("[3]", "subquery 1 is not an object but a number"),
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
        ('[{"treename": "t", "expressions": [1]}]', "expressions must be a text or a list"),
        ('[{"treename": "t", "aliases": []}, {"treename": "t"}]', "two subqueries write the tree"),
        ('[{"treename": "t", "aliases": ["a"]}]', "aliases must be an object"),
        ('[{"treename": "t", "aliases": {"a": "("}}]', "alias a has a syntax error"),
        ('[{"treename": "t", "filter_name": "/(/"}]', "is not a regular expression"),
        ('[{"treename": "t", "fail_on_missing_trees": "yes"}]', "must be true or false"),
        ('[{"treename": "t"}, {"treename": {"u": "t"}}]', "two subqueries write the tree t"),
        ('[{"tree_name": "t"}]', "did you mean tree_name"),
        ('[{"treename": "t", "Cut": "x > 1"}]', "unknown key Cut .did you mean cut"),
        ('[{"treename": "t", "cuts": "x > 1"}]', "unknown key cuts .did you mean cut"),
        ('[{"treename": "t", "copy_histograms": "h"}]', "write them as two subqueries"),
        ('[{"copy_histograms": "h", "cut": "x > 1"}]', "write them as two subqueries"),
        ('[{"copy_histograms": "h", "fliter_name": "x"}]', "unknown key fliter_name"),
        ('[{"treename": "t", "filter_name": ""}]', "filter_name has an empty name"),
        ('[{"treename": "t", "filter_name": ["a", ""]}]', "filter_name has an empty name"),
        (
            '[{"treename": "t", "filter_name": "a", "expressions": "b"}]',
            "has filter_name beside expressions",
        ),
        ('[{"treename": "t", "missing": "zero"}]', "missing must be one of error, null, false"),
        ('[{"treename": "t", "missing": false}]', "missing must be one of error, null, false"),
        ('[{"treename": "/"}]', "treename has an empty name"),
        ('[{"treename": ";1"}]', "treename has an empty name"),
        ('[{"treename": {"t": "u;2"}}]', "u;2 is not a name .*.write u, without a cycle"),
        ('[{"treename": {"t": "/u/"}}]', "/u/ is not a name .*.write u, without a cycle"),
        ('[{"treename": {"t": "a//b"}}]', "has a folder ''"),
        ('[{"treename": {"t": "../b"}}]', "has a folder '..'"),
        ('[{"treename": ["t", "t;1"]}]', "two subqueries write the tree t"),
        ('[{"treename": ["t", "/t"]}]', "two subqueries write the tree t"),
        ('[{"treename": ["a/b", "a"]}]', "a cannot be an object of the result and the folder of"),
        ('[{"treename": {"x": "a", "y": "a/b/c"}}]', "a cannot be an object .* folder of a/b/c"),
        ("[" * 100_000, "selection"),
    ],
)
def test_wrong_query_is_refused_with_the_place(selection: str, words: str) -> None:
    """The error names the mistake, the subquery and the key."""
    with pytest.raises(QueryError, match=words):
        UprootRaw().compile(selection, ResultFormat.TTREE)


def test_histograms_need_root_output() -> None:
    """At submit, the compiler refuses to copy histograms into Parquet."""
    with pytest.raises(FormatError, match="needs ROOT output"):
        compiled([{"copy_histograms": "h*"}], ResultFormat.PARQUET)
