"""``uproot-raw``: a JSON list of what to read from which tree, with uproot's own parameters.

::

    query      := [subquery, ...]
    subquery   := {"treename": text | [text, ...] | {input: output, ...},
                   "filter_name"?, "filter_typename"?, "expressions"?: text | [text, ...],
                   "cut"?: text, "aliases"?: {name: text}, "missing"?: "error" | "null" | "false",
                   "fail_on_missing_trees"?, "use_standard_awkward_axis"?: true | false}
                | {"copy_histograms": text | [text, ...]}

Keys that are null count as absent, as upstream does. Keys not named here are rejected.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, get_args

from servicex_server.columnar.column_plan import Column, ColumnQuery, Missing
from servicex_server.columnar.event_check import check_events
from servicex_server.columnar.expression import parse
from servicex_server.columnar.limits import MAX_REPEATED, check_columns, check_words, is_text
from servicex_server.columnar.plan import Query, add_patterns, wild_patterns
from servicex_server.columnar.tree_paths import check_paths, checked_path, plain_path
from servicex_server.errors import FormatError, QueryError
from servicex_server.languages.contract import Language
from servicex_server.model import ResultFormat
from servicex_server.text.hints import did_you_mean
from servicex_server.text.patterns import Sources

_TREE_KEYS = (
    "treename expressions cut filter_name filter_typename aliases fail_on_missing_trees "
    "use_standard_awkward_axis missing"
).split()
_COPY_KEYS = ["copy_histograms"]

_LIKE_A_MEMBER = re.compile(r"[\w./]+(\[\w+\])+")
"""A name that may be a branch of a split object, such as ``fType[20]``; only a file can tell."""


class UprootRaw(Language):
    """Branches, expressions and cuts in uproot's expression language."""

    name: ClassVar[str] = "uproot-raw"
    description: ClassVar[str] = "branches, expressions and cuts of TTrees and RNTuples, as JSON"

    def compile(self, selection: str, result_format: ResultFormat) -> Query:
        """Read the JSON text, and every expression in it."""
        subqueries = _loads(selection)
        extractions: list[ColumnQuery] = []
        copies: list[str] = []
        wild = Sources()
        for number, subquery in enumerate(subqueries, 1):
            where = f"selection, subquery {number}"
            if not isinstance(subquery, dict):
                raise QueryError(
                    f"{where} is not an object but {_kind(subquery)}",
                    hint='write {"treename": ..., ...}',
                )
            given = {key: value for key, value in subquery.items() if value is not None}
            if given.get("treename"):
                _check_keys(given, _TREE_KEYS, where)
                extractions += _tree_query(given, where, wild)
            elif given.get("copy_histograms"):
                _check_keys(given, _COPY_KEYS, where)
                copies += _patterns(given, "copy_histograms", where, wild)
            else:
                others = [key for key in given if key not in _TREE_KEYS + _COPY_KEYS]
                near = did_you_mean("treename", others)
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
        if result_format is not ResultFormat.PARQUET:
            check_paths([extraction.output for extraction in extractions])
        check_columns(len(copies) + sum(map(_size, extractions)))
        _check_repeated(extractions)
        try:
            wild_patterns(wild)
        except QueryError as error:
            raise QueryError(f"selection: {error.message}") from None
        return Query(tuple(extractions), tuple(copies))


def _loads(selection: str) -> list[Any]:
    if not selection.strip():
        raise QueryError("selection is empty", hint="send a JSON list of subqueries")
    check_words(selection, "selection")
    try:
        parsed = json.loads(selection)
    except json.JSONDecodeError as error:
        raise QueryError(
            f"selection is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise QueryError("selection is nested too deeply") from None
    except ValueError:
        raise QueryError("selection: a number has more digits than can be read") from None
    _check_texts(parsed)
    if not isinstance(parsed, list):
        raise QueryError(
            f"selection is not a list but {_kind(parsed)}", hint="put the subquery into [ ]"
        )
    if not parsed:
        raise QueryError("selection is an empty list", hint="ask for at least one tree")
    return parsed


def _check_texts(value: Any) -> None:
    """Refuse texts anywhere in a value that files and databases cannot hold."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, str) and not is_text(one):
            raise QueryError(f"selection: {one[:80]!r} holds a NUL character or a lone surrogate")


def _check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse unknown keys of a subquery, which would otherwise be ignored."""
    for key in given:
        if key in known:
            continue
        if key in _TREE_KEYS + _COPY_KEYS:
            raise QueryError(
                f"{where} has {key} beside {known[0]}", hint="write them as two subqueries"
            )
        near = did_you_mean(key, known, otherwise="the keys are")
        raise QueryError(f"{where} has an unknown key {key[:80]}", hint=near)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return names.get(type(value), "null" if value is None else "a number")


def _tree_query(given: Mapping[str, Any], where: str, wild: Sources) -> list[ColumnQuery]:
    standard_axis = bool(_flag(given, "use_standard_awkward_axis", where))

    def column(name: str, text: str, what: str) -> Column:
        return _column(name, text, what, standard_axis=standard_axis)

    aliases = _aliases(given, where, column)
    expressions = _texts(given, "expressions", where)
    columns = None
    if "expressions" in given:
        if not expressions:
            raise QueryError(f"{where}: expressions is empty", hint="leave it out to get branches")
        # an expression that is given twice is one column, as in uproot
        columns = tuple(
            column(text, text, f"{where}, expressions") for text in dict.fromkeys(expressions)
        )
    cut = given.get("cut")
    if cut is not None and not isinstance(cut, str):
        raise QueryError(f"{where}: cut must be a text, not {_kind(cut)}")
    filters = {
        key: tuple(_patterns(given, key, where, wild)) for key in ("filter_name", "filter_typename")
    }
    for key, patterns in filters.items():
        if patterns and columns is not None:
            raise QueryError(
                f"{where} has {key} beside expressions, which already say what to return",
                hint="leave one of them out, or write two subqueries",
            )
    return [
        ColumnQuery(
            tree=tree,
            output=output,
            columns=columns,
            cut=column("cut", cut, f"{where}, cut") if cut else None,
            aliases=aliases,
            filter_name=filters["filter_name"],
            filter_typename=filters["filter_typename"],
            missing=_missing(given, where),
            required=_flag(given, "fail_on_missing_trees", where),
            standard_axis=standard_axis,
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
    named = isinstance(treename, dict)
    return [(tree, _output(tree, output, where, named=named)) for tree, output in pairs]


def _output(tree: str, output: str, where: str, *, named: bool) -> str:
    """Return the path of a tree in the result, without a cycle, which ROOT assigns itself."""
    path = plain_path(output)
    if not plain_path(tree).strip() or not path.strip():
        raise QueryError(f"{where}: treename has an empty name")
    if named and path != output:
        raise QueryError(
            f"{where}: {output[:200]} is not a name for a tree of the result",
            hint=f"write {path[:200]}, without a cycle and without slashes around it",
        )
    return checked_path(path, where)


def _missing(given: Mapping[str, Any], where: str) -> Missing:
    value = given.get("missing", "error")
    if value not in get_args(Missing):
        raise QueryError(
            f"{where}: missing must be one of {', '.join(get_args(Missing))}",
            hint="it says how to treat a branch that a file does not have",
        )
    found: Missing = value
    return found


def _aliases(
    given: Mapping[str, Any], where: str, column: Callable[[str, str, str], Column]
) -> dict[str, Column]:
    aliases = given.get("aliases") or {}
    if not isinstance(aliases, dict) or not all(isinstance(v, str) for v in aliases.values()):
        raise QueryError(
            f"{where}: aliases must be an object of texts", hint='such as {"pt": "lep_pt/1000"}'
        )
    return {name: column(name, text, f"{where}, alias {name}") for name, text in aliases.items()}


def _column(name: str, text: str, what: str, *, standard_axis: bool) -> Column:
    node = parse(text, what=what)
    if not _LIKE_A_MEMBER.fullmatch(text):
        check_events(node, standard_axis=standard_axis, text=text, what=what)
    return Column(name, text, node)


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


def _patterns(given: Mapping[str, Any], key: str, where: str, wild: Sources) -> list[str]:
    """Return names, globs and regular expressions; add those that are not names to ``wild``."""
    patterns = _texts(given, key, where)
    if not all(patterns):
        raise QueryError(f"{where}: {key} has an empty name", hint="leave it out")
    try:
        add_patterns(wild, patterns)
    except QueryError as error:
        raise QueryError(f"{where}, {key}: {error.message}", hint=error.hint) from None
    return patterns


def _size(extraction: ColumnQuery) -> int:
    """Return the number of columns, aliases and patterns of an extraction."""
    filters = len(extraction.filter_name) + len(extraction.filter_typename)
    return 1 + len(extraction.columns or ()) + len(extraction.aliases) + filters


def _check_repeated(extractions: list[ColumnQuery]) -> None:
    """Refuse long texts for many trees, because all of the texts are repeated for each tree."""
    trees = Counter(id(one.aliases) for one in extractions)  # trees of a subquery share them
    several = {id(one.aliases): one for one in extractions if trees[id(one.aliases)] > 1}
    total = sum(trees[key] * _characters(one) for key, one in several.items())
    if total > MAX_REPEATED:
        raise QueryError(
            f"selection: what is asked of several trees at once has {total} characters, counted "
            f"for each of them; at most {MAX_REPEATED}",
            hint="ask for less at once, in several requests",
        )


def _characters(extraction: ColumnQuery) -> int:
    cut = () if extraction.cut is None else (extraction.cut,)
    columns = (*(extraction.columns or ()), *extraction.aliases.values(), *cut)
    texts = (*(column.text for column in columns), *extraction.filter_name)
    return sum(map(len, (*texts, *extraction.filter_typename)))


def _distinct(extractions: list[ColumnQuery]) -> None:
    """Refuse two subqueries that write the same tree: the second would replace the first."""
    seen: set[str] = set()
    for extraction in extractions:
        if extraction.output in seen:
            raise QueryError(
                f"selection: two subqueries write the tree {extraction.output}",
                hint='rename one, as in {"treename": {"' + extraction.tree + '": "other"}}',
            )
        seen.add(extraction.output)
