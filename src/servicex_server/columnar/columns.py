"""Columns of expressions: branches by their names, what is computed of them, and a cut.

What ``uproot-raw`` asks for. The cut's branches are read first, and the rest of a range only if
something of it survives.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from servicex_server.columnar import arithmetic
from servicex_server.columnar.expression import Name, Node, evaluate, names
from servicex_server.columnar.plan import Extraction, Plan
from servicex_server.errors import QueryError, QueryTypeError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from servicex_server.columnar.read import Tree


@dataclass(frozen=True, slots=True)
class Column:
    """One output column: its name, the text the user wrote, and what to compute."""

    name: str
    text: str
    node: Node


@dataclass(frozen=True, slots=True)
class Columns(Extraction):
    """Columns of one tree.

    ``columns`` None means all branches that pass ``filter_name`` and ``filter_typename``.
    """

    columns: tuple[Column, ...] | None = None
    cut: Column | None = None
    aliases: Mapping[str, Column] = field(default_factory=dict)
    filter_name: tuple[str, ...] = ()
    filter_typename: tuple[str, ...] = ()
    standard_axis: bool = False

    def bind(self, tree: "Tree") -> "ColumnsPlan":
        """Hold the extraction against the names of a tree.

        Raises
        ------
        UnknownNameError
            A name is neither a branch nor an alias; the nearest are offered.
        QueryError
            Nothing is left to read, or an alias is defined by itself.
        """
        columns = self.columns
        if columns is None:
            columns = tuple(Column(name, name, Name(name)) for name in self._chosen(tree))
        needed: dict[str, None] = {}
        known: set[str] = set()
        if self.cut is not None:
            self._collect(self.cut, tree, needed, known)
        cut_branches = tuple(needed)
        for column in columns:
            self._collect(column, tree, needed, known)
        return ColumnsPlan(
            first=cut_branches,
            rest=tuple(needed)[len(cut_branches) :],
            columns=columns,
            cut=self.cut,
            aliases=self.aliases,
            standard_axis=self.standard_axis,
        )

    def _chosen(self, tree: "Tree") -> list[str]:
        chosen = tree.select(self.filter_name, self.filter_typename)
        if not chosen:
            wanted = ", ".join((*self.filter_name, *self.filter_typename)) or "*"
            plain = re.sub(r"[*?/]", "", wanted)
            raise UnknownNameError(
                f"no branch of tree {self.tree} matches {wanted}",
                hint=did_you_mean(plain, list(tree.names), otherwise="the branches are"),
            )
        return chosen

    def _collect(
        self,
        column: Column,
        tree: "Tree",
        needed: dict[str, None],
        known: set[str],
        within: tuple[str, ...] = (),
    ) -> None:
        """Add the branches that a column stands on, through aliases, each of them once."""
        if column.text in tree.names:
            # a branch with a name like an expression, and every plain branch
            needed[column.text] = None
            return
        for name in names(column.node):
            if name.name in tree.names:
                needed[name.name] = None
            elif alias := self.aliases.get(name.name):
                if name.name in within:
                    circle = " -> ".join((*within, name.name))
                    raise QueryError(f"aliases: {name.name} is defined by itself ({circle})")
                if name.name not in known:
                    self._collect(alias, tree, needed, known, (*within, name.name))
                    known.add(name.name)
            else:
                raise UnknownNameError(
                    f"tree {self.tree} has no branch {name.name}",
                    hint=did_you_mean(
                        name.name, [*tree.names, *self.aliases], otherwise="the branches are"
                    ),
                )


@dataclass(frozen=True, slots=True)
class ColumnsPlan(Plan):
    """Columns of a tree that is known: which branches are read for what."""

    columns: tuple[Column, ...]
    cut: Column | None
    aliases: Mapping[str, Column]
    standard_axis: bool

    def compute(
        self, tree: "Tree", start: int, stop: int, *, typed: bool
    ) -> tuple[int, dict[str, Any]]:
        """Read and compute one range; the branches of the cut first."""
        import awkward as ak

        values: dict[str, Any] = {}
        count = stop - start

        def column(name: str) -> Any:
            if name not in values:
                values[name] = self._whole(self.aliases[name], column, count)
            return values[name]

        mask = None
        if self.cut is not None:
            values.update(tree.read(self.first, start, stop))
            mask = self._whole(self.cut, column, count) != 0
            if arithmetic.may_miss(mask):
                # what has no value, as the max of an empty list, does not fulfil a condition
                mask = ak.fill_none(mask, False, axis=-1)  # noqa: FBT003  # it is a value
            if mask.ndim == 1 and not typed and not ak.any(mask, axis=None):
                return 0, {}
        values.update(tree.read(self.rest, start, stop))
        result: dict[str, Any] = {}
        for wanted in self.columns:
            array = values.get(wanted.text)
            if array is None:
                array = self._whole(wanted, column, count)
            result[wanted.name] = array if mask is None else self._cut(array, mask, wanted)
        values.clear()
        kept = min((len(array) for array in result.values()), default=0)
        return kept, result

    def _whole(self, column: Column, get: Any, count: int) -> Any:
        """Compute a column and check that it has one value or list per event."""
        import awkward as ak
        import numpy as np

        result = evaluate(column.node, get, standard_axis=self.standard_axis, text=column.text)
        if isinstance(result, bool | int | float | np.generic):
            if not list(names(column.node)):
                return ak.Array(np.full(count, result))
            raise QueryTypeError(
                f"{column.text!r} gives one number for all events together",
                hint="give axis=1 to work within each event",
            )
        if isinstance(result, str) or result is None:
            raise QueryTypeError(f"{column.text!r} gives no column but {result!r}")
        if isinstance(result, tuple | dict):
            raise QueryTypeError(
                f"{column.text!r} gives several columns", hint="write one for each"
            )
        array = ak.Array(result)
        if len(array) != count:
            raise QueryTypeError(
                f"{column.text!r} gives {len(array)} values for {count} events",
                hint="the number of events must stay; give axis=1 to work within each event",
            )
        return array

    def _cut(self, array: Any, mask: Any, column: Column) -> Any:
        try:
            return array[mask]
        except (ValueError, IndexError) as error:
            assert self.cut is not None  # noqa: S101  # a mask comes from a cut
            raise QueryTypeError(
                f"the cut {self.cut.text!r} does not fit column {column.name}",
                hint="a cut on the objects of an event only fits columns with the same objects; "
                "any(...) makes it a cut on events",
            ) from error
