"""Columns of expressions: the branches to read, what to compute from them, and a cut.

``uproot-raw`` compiles to these. The branches of the cut are read first, and the other branches of
a range only if some of its events pass the cut.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from servicex_server.columnar import number_types, operators
from servicex_server.columnar.event_arrays import picked
from servicex_server.columnar.expression import MAX_DEPTH, parse
from servicex_server.columnar.expression_evaluator import evaluate
from servicex_server.columnar.expression_nodes import Name, Node, depth_of, names
from servicex_server.columnar.plan import (
    NOTHING,
    Extraction,
    HeldRange,
    Plan,
    Selected,
    is_name,
    matcher,
)
from servicex_server.errors import QueryError, QueryTypeError, UnknownNameError
from servicex_server.text.hints import did_you_mean

if TYPE_CHECKING:
    from servicex_server.columnar.reading.trees import Tree

Missing = Literal["error", "null", "false"]
"""How to treat a branch that a query names and a file does not have: error, null, or false."""

_EXPLAINED = 30
"""If a query has more patterns, they are not checked one by one for whether each matches."""

MAX_ALIASES = 60
"""Most aliases in a chain in which each uses the next; each takes stack space."""


@dataclass(frozen=True, slots=True)
class Column:
    """One output column: its name, the text the user wrote, and what to compute."""

    name: str
    text: str
    node: Node

    @classmethod
    def named(cls, name: str) -> "Column":
        """Return the column of a branch or an alias."""
        return cls(name, name, Name(name))


@dataclass(frozen=True, slots=True)
class ColumnQuery(Extraction):
    """The columns to extract from one tree.

    ``columns`` None means all branches that match ``filter_name`` and ``filter_typename``.
    ``missing`` says how to treat a name that the file does not have.
    """

    columns: tuple[Column, ...] | None = None
    cut: Column | None = None
    aliases: Mapping[str, Column] = field(default_factory=dict)
    filter_name: tuple[str, ...] = ()
    filter_typename: tuple[str, ...] = ()
    missing: Missing = "error"
    standard_axis: bool = False

    def bind(self, tree: "Tree") -> "ColumnPlan":
        """Resolve the names of the extraction in a tree.

        Raises
        ------
        UnknownNameError
            A name is neither a branch nor an alias; the hint suggests the nearest ones.
        QueryError
            Nothing is left to read, or an alias is defined by itself or has the name of a branch.
        """
        for name in self.aliases:
            if name in tree.names:
                raise QueryError(
                    f"aliases: {name} is a branch of tree {self.tree}, which the alias would hide",
                    hint="give the alias another name",
                )
        selected = NOTHING
        columns = self.columns
        if columns is None:
            selected = self._selected(tree)
            columns = tuple(map(Column.named, selected.names))
        needs = Needs(self.tree, tree, self.aliases, missing=self.missing)
        cut = needs.add(self.cut) if self.cut is not None else None
        cut_branches = tuple(needs.branches)
        columns = tuple(map(needs.add, columns))
        return ColumnPlan(
            first=cut_branches,
            rest=tuple(needs.branches)[len(cut_branches) :],
            by_pattern=selected.by_pattern.difference(cut_branches),
            left_out=selected.left_out,
            columns=columns,
            cut=cut,
            aliases=needs.aliases,
            absent=frozenset(needs.absent),
            missing=self.missing,
            standard_axis=self.standard_axis,
        )

    def _selected(self, tree: "Tree") -> Selected:
        """Return the columns that the filters select, and the aliases that they name."""
        selected = tree.select(self.filter_name, self.filter_typename)
        others = []
        for name in filter(is_name, self.filter_name):
            if tree.has(name):
                self._check_type(name, tree)
            elif name in self.aliases or name in tree.aliases or self.missing != "error":
                others.append(name)
            else:
                what = f"filter_name: tree {self.tree} has no branch"
                raise unknown(name, tree, self.aliases, what)
        names = list(dict.fromkeys((*selected.names, *others)))
        if not names:
            raise self._nothing(tree, selected.left_out)
        unmatched = dict.fromkeys(self._unmatched(selected), "no branch matches it")
        return Selected(names, selected.by_pattern, {**selected.left_out, **unmatched})

    def _check_type(self, name: str, tree: "Tree") -> None:
        if self.filter_typename and not tree.select((name,), self.filter_typename).names:
            raise QueryError(
                f"filter_typename does not select the branch {name} that filter_name names",
                hint="leave the name out, or add its type to filter_typename",
            )

    def _unmatched(self, selected: Selected) -> list[str]:
        """Return the patterns of ``filter_name`` that select nothing; none if they are too many."""
        wild = [pattern for pattern in self.filter_name if not is_name(pattern)]
        if len(wild) > _EXPLAINED:
            return []
        names = (*selected.names, *selected.left_out)
        leaves = {one: re.split("[/.]", one)[-1] for one in names}
        return [
            pattern
            for pattern, fits in ((pattern, matcher((pattern,))) for pattern in wild)
            if not any(fits(name) or fits(leaf) for name, leaf in leaves.items())
        ]

    def _nothing(self, tree: "Tree", left_out: Mapping[str, str]) -> UnknownNameError:
        filters = (*self.filter_name, *self.filter_typename)
        wanted = ", ".join(one or "''" for one in filters) or "*"
        if left_out:
            return UnknownNameError(
                f"no branch of tree {self.tree} that matches {wanted} can be read: "
                f"{next(iter(left_out.values()))}"
            )
        plain = re.sub(r"[*?/]", "", wanted)
        return UnknownNameError(
            f"no branch of tree {self.tree} matches {wanted}",
            hint=did_you_mean(plain, list(tree.names), otherwise="the branches are"),
        )


class Needs:
    """The branches and aliases that columns depend on.

    Parameters
    ----------
    name, tree
        The tree.
    aliases
        The aliases of the query. They take precedence over the aliases that the tree stores
        (``TTree::SetAlias``); branches take precedence over both.
    missing
        How to treat a name that the file does not have.

    Attributes
    ----------
    branches, aliases
        What the columns added so far depend on.
    absent
        Names that the file does not have.
    """

    def __init__(
        self,
        name: str,
        tree: "Tree",
        aliases: Mapping[str, Column],
        *,
        missing: Missing = "error",
    ) -> None:
        self.branches: dict[str, None] = {}
        self.aliases: dict[str, Column] = {}
        self.absent: set[str] = set()
        self._name = name
        self._tree = tree
        self._given = aliases
        self._missing = missing

    def add(self, column: Column) -> Column:
        """Add what a column depends on, and return the column to compute.

        Raises
        ------
        UnknownNameError
            A name is neither a branch nor an alias; the hint suggests the nearest ones.
        QueryError
            An alias is defined by itself, or the chain of aliases is too deep.
        """
        return self._added(column, (), 0)

    def _added(self, column: Column, within: tuple[str, ...], depth: int) -> Column:
        """Add a column; ``within`` is the chain of aliases that led to it, ``depth`` nodes deep."""
        if column.text in self._tree.names or self._is_alias(column.text, within):
            # a plain name, or a name that looks like an expression, such as a-b
            column = replace(column, node=Name(column.text))
        depth += depth_of(column.node)
        if len(within) > MAX_ALIASES or depth > 2 * MAX_DEPTH:
            raise QueryError(
                f"aliases: {within[0]} depends on {within[-1]} through {len(within)} aliases, "
                f"{depth} levels deep; at most {MAX_ALIASES} aliases and {2 * MAX_DEPTH} levels"
            )
        for one in names(column.node):
            self._add_name(one.name, within, depth)
        return column

    def _is_alias(self, text: str, within: tuple[str, ...]) -> bool:
        return text in self._given and text not in within

    def _add_name(self, name: str, within: tuple[str, ...], depth: int) -> None:
        if name in self._tree.names:
            self.branches[name] = None
            return
        alias = self._given.get(name) or self._stored(name)
        if alias is None and self._missing != "error":
            self.absent.add(name)
            return
        if alias is None:
            raise unknown(name, self._tree, self._given, f"tree {self._name} has no branch")
        if name in within:
            circle = " -> ".join((*within, name))
            raise QueryError(f"aliases: {name} is defined by itself ({circle[:300]})")
        if name not in self.aliases:
            added = self._added(alias, (*within, name), depth)
            self.aliases[name] = added

    def _stored(self, name: str) -> Column | None:
        """Return an alias that the tree stores, if it means the same here as in ROOT."""
        text = self._tree.aliases.get(name)
        if text is None:
            return None
        what = f"alias {name}, which tree {self._name} stores"
        if "^" in text:
            raise QueryError(
                f"{what}, is {text[:200]!r}, where ROOT reads ^ as a power",
                hint=f"give an alias of another name with the query, such as my_{name}",
            )
        return Column(name, text, parse(text, what=what))


def unknown(name: str, tree: "Tree", aliases: Mapping[str, Column], what: str) -> UnknownNameError:
    """Return the error for a name that is neither a branch nor an alias."""
    known = [*tree.names, *aliases, *tree.aliases]
    near = did_you_mean(name, known, otherwise="the branches are")
    return UnknownNameError(
        f"{what} {name}",
        hint=f'{near}; "missing": "null" or "false" fills in what a file does not have',
    )


class _Values:
    """The columns of a range of events by name: branches that were read, and computed aliases.

    Parameters
    ----------
    compute
        Computes an alias from these values.
    count
        The number of events.
    """

    def __init__(self, compute: Callable[[str, "_Values"], Any], count: int) -> None:
        self.count = count
        self._compute = compute
        self._arrays: dict[str, Any] = {}
        self._uncut: dict[str, Any] = {}
        self._mask: Any = None

    def add(self, arrays: Mapping[str, Any]) -> None:
        """Add branches that were read."""
        self._arrays.update(arrays)

    def keep(self, mask: Any) -> None:
        """Drop the events where a mask is false; each column is cut when it is first used."""
        import awkward as ak
        import numpy as np

        self.count = int(np.count_nonzero(mask))
        if self.count < len(mask):
            self._uncut, self._arrays, self._mask = self._arrays, {}, ak.Array(mask)

    def __getitem__(self, name: str) -> Any:
        """Return a column; an alias is computed when it is first used."""
        import awkward as ak

        if name in self._uncut:
            # packed: otherwise each operation would gather the lists again
            self._arrays[name] = ak.to_packed(self._uncut.pop(name)[self._mask])
        elif name not in self._arrays:
            self._arrays[name] = self._compute(name, self)
        return self._arrays[name]


def _filled(missing: Missing, count: int) -> Any:
    """Return the column that stands in for a branch that the file does not have."""
    import awkward as ak
    import numpy as np

    if missing == "false":
        return ak.Array(np.zeros(count, np.bool_))
    nothing = ak.index.Index64(np.full(count, -1, np.int64))
    return ak.Array(ak.contents.IndexedOptionArray(nothing, ak.contents.EmptyArray()))


@dataclass(frozen=True, slots=True)
class ColumnPlan(Plan):
    """A `ColumnQuery` bound to a tree.

    A cut on events comes first; the columns are computed from the events that it keeps.
    """

    columns: tuple[Column, ...]
    cut: Column | None
    aliases: Mapping[str, Column]
    absent: frozenset[str]
    missing: Missing
    standard_axis: bool

    def compute(
        self, tree: "Tree | HeldRange", start: int, stop: int, *, typed: bool
    ) -> tuple[int, dict[str, Any]]:
        """Read and compute one range; the branches of the cut first."""
        import awkward as ak

        values = _Values(lambda name, values: self._of(self.aliases[name], values), stop - start)
        values.add({name: _filled(self.missing, stop - start) for name in self.absent})
        mask = None
        if self.cut is not None:
            values.add(tree.read(self.first, start, stop))
            # a missing value, such as the max of an empty list, does not pass the cut
            mask = operators.known(_truth(self._of(self.cut, values), self.cut))
            if mask.ndim == 1 and not typed and not ak.any(mask, axis=None):
                return 0, {}
        values.add(tree.read(self.rest, start, stop))
        if mask is not None and mask.ndim == 1:
            # before the columns are computed: they may rely on the cut, such as on a list element
            values.keep(mask)
            mask = None
        result: dict[str, Any] = {}
        for wanted in self.columns:
            array = self._of(wanted, values)
            result[wanted.name] = array if mask is None else self._cut(array, mask, wanted)
        kept = min((len(array) for array in result.values()), default=0)
        return kept, result

    def _of(self, column: Column, values: _Values) -> Any:
        return compute_column(
            column, values.__getitem__, values.count, standard_axis=self.standard_axis
        )

    def _cut(self, array: Any, mask: Any, column: Column) -> Any:
        try:
            return picked(array, mask)
        except (ValueError, IndexError) as error:
            assert self.cut is not None  # noqa: S101  # a mask comes from a cut
            raise QueryTypeError(
                f"the cut {self.cut.text!r} does not fit column {column.name}",
                hint="a cut on the objects of an event only fits columns with the same objects; "
                "any(...) makes it a cut on events",
            ) from error


def compute_column(
    column: Column, get: Callable[[str], Any], count: int, *, standard_axis: bool = False
) -> Any:
    """Compute a column and check that it has one value or list per event.

    Parameters
    ----------
    column
        What to compute.
    get
        Returns the array of a branch or an alias by name.
    count
        The number of events.
    standard_axis
        Whether functions work along awkward's own default axis instead of within each event.

    Raises
    ------
    QueryTypeError
        The result is not a column, or has another number of events.
    """
    import awkward as ak
    import numpy as np

    result = evaluate(column.node, get, standard_axis=standard_axis, text=column.text)
    if isinstance(result, bool | int | float | np.generic):
        if not list(names(column.node)):
            return ak.Array(np.full(count, number_types.number(result)))
        raise QueryTypeError(
            f"{column.text!r} gives one number for all events together",
            hint="give axis=1 to work within each event",
        )
    if isinstance(result, str) or result is None:
        raise QueryTypeError(f"{column.text!r} gives {result!r}, not a column")
    if isinstance(result, tuple | list | dict):
        raise QueryTypeError(f"{column.text!r} gives several columns", hint="write one for each")
    array = ak.Array(result)
    if len(array) != count:
        raise QueryTypeError(
            f"{column.text!r} gives {len(array)} values for {count} events",
            hint="the number of events must stay; give axis=1 to work within each event",
        )
    return array


def _truth(values: Any, cut: Column) -> Any:
    """Return a mask that is true where the values of a cut are true."""
    try:
        return operators.truth(values)
    except TypeError as error:
        raise QueryTypeError(
            f"the cut {cut.text!r} is neither true nor false",
            hint=f"its values are {str(values.type.content)[:200]}; compare them",
        ) from error
