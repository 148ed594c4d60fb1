"""``uproot-raw``: a JSON list of what to take from which tree, in uproot's own words.

::

    query      := [subquery, ...]
    subquery   := {"treename": text | [text, ...] | {input: output, ...},
                   "filter_name"?, "filter_typename"?, "expressions"?: text | [text, ...],
                   "cut"?: text, "aliases"?: {name: text},
                   "fail_on_missing_trees"?, "use_standard_awkward_axis"?: true | false}
                | {"copy_histograms": text | [text, ...]}

Keys that are null count as absent and keys not named here are ignored, as upstream does.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from servicex_server.columnar.columns import Column, Columns
from servicex_server.columnar.expression import parse
from servicex_server.columnar.plan import Query
from servicex_server.errors import FormatError, QueryError, did_you_mean
from servicex_server.languages.contract import Language
from servicex_server.model import ResultFormat

_KEYS = (
    "treename expressions cut filter_name filter_typename aliases fail_on_missing_trees "
    "use_standard_awkward_axis copy_histograms"
).split()


class UprootRaw(Language):
    """Branches, expressions and cuts in uproot's expression language."""

    name: ClassVar[str] = "uproot-raw"
    description: ClassVar[str] = "branches, expressions and cuts of TTrees and RNTuples, as JSON"

    def compile(self, selection: str, result_format: ResultFormat) -> Query:
        """Read the JSON text, and every expression in it."""
        subqueries = _loads(selection)
        extractions: list[Columns] = []
        copies: list[str] = []
        for number, subquery in enumerate(subqueries, 1):
            where = f"selection, subquery {number}"
            if not isinstance(subquery, dict):
                raise QueryError(
                    f"{where} is no object but {_kind(subquery)}",
                    hint='write {"treename": ..., ...}',
                )
            given = {key: value for key, value in subquery.items() if value is not None}
            if given.get("treename"):
                extractions += _tree_query(given, where)
            elif given.get("copy_histograms"):
                copies += _texts(given, "copy_histograms", where)
            else:
                near = did_you_mean("treename", [key for key in given if key not in _KEYS])
                raise QueryError(
                    f"{where} names neither treename nor copy_histograms",
                    hint=near if near.startswith("did") else "say which tree to read",
                )
        if copies and result_format is ResultFormat.PARQUET:
            raise FormatError(
                "selection: copy_histograms needs ROOT output, and result-format is parquet",
                hint="ask for root-file or root-rntuple, or leave the histograms out",
            )
        _distinct(extractions)
        return Query(tuple(extractions), tuple(copies))


def _loads(selection: str) -> list[Any]:
    if not selection.strip():
        raise QueryError("selection is empty", hint="send a JSON list of subqueries")
    try:
        parsed = json.loads(selection)
    except json.JSONDecodeError as error:
        raise QueryError(
            f"selection is no JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise QueryError("selection is nested too deeply") from None
    if not isinstance(parsed, list):
        raise QueryError(
            f"selection is no list but {_kind(parsed)}", hint="put the subquery into [ ]"
        )
    if not parsed:
        raise QueryError("selection is an empty list", hint="ask for at least one tree")
    return parsed


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return names.get(type(value), "null" if value is None else "a number")


def _tree_query(given: Mapping[str, Any], where: str) -> list[Columns]:
    aliases = _aliases(given, where)
    expressions = _texts(given, "expressions", where)
    columns = None
    if "expressions" in given:
        if not expressions:
            raise QueryError(f"{where}: expressions is empty", hint="leave it out to get branches")
        for text in expressions:
            if expressions.count(text) > 1:
                raise QueryError(f"{where}: expression {text!r} is there twice")
        columns = tuple(_column(text, text, f"{where}, expressions") for text in expressions)
    cut = given.get("cut")
    if cut is not None and not isinstance(cut, str):
        raise QueryError(f"{where}: cut must be a text, not {_kind(cut)}")
    filters = {}
    for key in ("filter_name", "filter_typename"):
        filters[key] = tuple(_texts(given, key, where))
        for pattern in filters[key]:
            _check_pattern(pattern, f"{where}, {key}")
    return [
        Columns(
            tree=tree,
            output=output,
            columns=columns,
            cut=_column("cut", cut, f"{where}, cut") if cut else None,
            aliases=aliases,
            filter_name=filters["filter_name"],
            filter_typename=filters["filter_typename"],
            required=_flag(given, "fail_on_missing_trees", where),
            standard_axis=bool(_flag(given, "use_standard_awkward_axis", where)),
        )
        for tree, output in _trees(given["treename"], where)
    ]


def _trees(treename: Any, where: str) -> list[tuple[str, str]]:
    if isinstance(treename, str):
        pairs = [(treename, treename)]
    elif isinstance(treename, list) and all(isinstance(name, str) for name in treename):
        pairs = [(name, name) for name in treename]
    elif isinstance(treename, dict) and all(isinstance(out, str) for out in treename.values()):
        pairs = list(treename.items())
    else:
        raise QueryError(
            f"{where}: treename must be a text, a list of texts or an object of texts",
            hint='such as "events", ["a", "b"] or {"input": "output"}',
        )
    for tree, output in pairs:
        if not tree.strip() or not output.strip():
            raise QueryError(f"{where}: treename has an empty name")
    return pairs


def _aliases(given: Mapping[str, Any], where: str) -> dict[str, Column]:
    aliases = given.get("aliases") or {}
    if not isinstance(aliases, dict) or not all(isinstance(v, str) for v in aliases.values()):
        raise QueryError(
            f"{where}: aliases must be an object of texts", hint='such as {"pt": "lep_pt/1000"}'
        )
    return {name: _column(name, text, f"{where}, alias {name}") for name, text in aliases.items()}


def _column(name: str, text: str, what: str) -> Column:
    return Column(name, text, parse(text, what=what))


def _texts(given: Mapping[str, Any], key: str, where: str) -> list[str]:
    value = given.get(key)
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise QueryError(f"{where}: {key} must be a text or a list of texts, not {_kind(value)}")


def _flag(given: Mapping[str, Any], key: str, where: str) -> bool | None:
    value = given.get(key)
    if value is not None and not isinstance(value, bool):
        raise QueryError(f"{where}: {key} must be true or false, not {_kind(value)}")
    return value


def _check_pattern(pattern: str, what: str) -> None:
    if regex := re.fullmatch(r"/(.*)/i?", pattern, re.DOTALL):
        try:
            re.compile(regex[1])
        except re.error as error:
            raise QueryError(f"{what}: {pattern} is no regular expression: {error}") from None


def _distinct(extractions: list[Columns]) -> None:
    """Refuse two subqueries that would write one tree: the second would replace the first."""
    seen: set[str] = set()
    for extraction in extractions:
        if extraction.output in seen:
            raise QueryError(
                f"selection: two subqueries write the tree {extraction.output}",
                hint='rename one, as in {"treename": {"' + extraction.tree + '": "other"}}',
            )
        seen.add(extraction.output)
