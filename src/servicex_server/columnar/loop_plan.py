"""Rows of nested loops: a func_adl query is bound to a tree, and run on a range of entries.

A query names branches by words: ``e.a.b`` may be the branch ``a.b`` or the part ``b`` of the branch
``a``. Only the tree tells which.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servicex_server.columnar import four_vectors
from servicex_server.columnar.column_plan import Column, Needs, compute_column
from servicex_server.columnar.loop_evaluator import Evaluation, Source
from servicex_server.columnar.loop_frames import Entries, Frame, Parts, Value, array_of, lift
from servicex_server.columnar.loop_nodes import Events, Node, PreparedQuery, paths, place, prepare
from servicex_server.columnar.plan import NOTHING, Extraction, HeldRange, Plan
from servicex_server.errors import FormatError, QueryError, QueryTypeError, UnknownNameError
from servicex_server.text.hints import did_you_mean

if TYPE_CHECKING:
    from servicex_server.columnar.reading.trees import Tree

COLUMN = "branch"
"""Name of the column of a value without a name, as in upstream's python codegen."""

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoopQuery(Extraction):
    """A sequence over the events of a tree, with one row for each of its elements.

    ``text`` is the query as the user wrote it, for errors. ``whole`` is true if the events
    themselves are in the result, so that all branches are read. ``dense`` is true if the format
    cannot hold missing values, so that they are an error.
    """

    node: Node = Events()  # noqa: RUF009  # it is frozen
    text: str = ""
    whole: bool = False
    dense: bool = False

    def bind(self, tree: "Tree") -> "LoopPlan":
        """Resolve the branches of the query in a tree.

        Raises
        ------
        UnknownNameError
            The tree does not have a branch; the error shows the place in the query and the
            nearest names.
        """
        deciding, others = paths(self.node)
        found = {path: self._found(path, at, tree) for path, at in {**deciding, **others}.items()}
        needs = Needs(self.tree, tree, {})
        for path in deciding:
            needs.add(Column.named(found[path][0]))
        first = tuple(needs.branches)
        for path in others:
            needs.add(Column.named(found[path][0]))
        selected = tree.select((), ()) if self.whole else NOTHING
        rest = dict.fromkeys((*needs.branches, *selected.names))
        return LoopPlan(
            first=first,
            rest=tuple(name for name in rest if name not in first),
            query=self,
            prepared=prepare(self.node, self.text),
            by_pattern=selected.by_pattern.difference(name for name, _ in found.values()),
            left_out=selected.left_out,
            found=found,
            aliases=needs.aliases,
            everything=tuple(selected.names),
        )

    def _found(self, path: Path, at: int, tree: "Tree") -> tuple[str, Path]:
        """Return the branch or alias that the first words name, and the words after it."""
        for end in range(len(path), 0, -1):
            name = ".".join(path[:end])
            if name in tree.names or name in tree.aliases:
                return name, path[end:]
        name = ".".join(path)
        raise UnknownNameError(
            f"tree {self.tree or 'of this file'} has no branch {name}, {place(self.text, at)}",
            hint=did_you_mean(name, [*tree.names, *tree.aliases], otherwise="the branches are"),
        )


@dataclass(frozen=True, slots=True)
class LoopPlan(Plan):
    """A `LoopQuery` bound to a tree: each path in it is resolved to a branch or an alias."""

    query: LoopQuery
    prepared: PreparedQuery
    found: dict[Path, tuple[str, Path]]
    aliases: Mapping[str, Column]
    everything: tuple[str, ...]

    def compute(
        self, tree: "Tree | HeldRange", start: int, stop: int, *, typed: bool
    ) -> tuple[int, dict[str, Any]]:
        """Read and compute one range; read the branches of the conditions on events first."""
        values: dict[str, Any] = dict(tree.read(self.first, start, stop))

        def column(name: str) -> Any:
            if name not in values and name in self.aliases:
                values[name] = compute_column(self.aliases[name], column, stop - start)
            elif name not in values:
                values.update(tree.read(self.rest, start, stop))
            return values[name]

        def read(path: Path) -> Any:
            name, words = self.found[path]
            array = column(name)
            for word in words:
                array = four_vectors.part(array, word)
            return array

        def everything() -> dict[str, Any]:
            values.update(tree.read([n for n in self.everything if n not in values], start, stop))
            return {name: values[name] for name in self.everything}

        source = Source(stop - start, read, everything)
        count, columns = _computed(self.prepared, source, typed=typed)
        if self.query.dense:
            columns = {name: _dense(name, array) for name, array in columns.items()}
        return count, columns


def _dense(name: str, array: Any) -> Any:
    """Return an array whose type allows no missing values; refuse it if a value is missing."""
    import awkward as ak

    def without(layout: Any, **_: Any) -> Any:
        if not layout.is_option:
            return None
        if layout.mask_as_bool(valid_when=False).any():
            raise FormatError(
                f"column {name} has missing values, which a TTree cannot hold",
                hint="drop such events with Where(lambda e: e.x.Count() > 0), or ask for parquet "
                "or RNTuple output",
            )
        return ak.transform(without, layout.project(), highlevel=False)

    return ak.transform(without, array)


def _computed(query: PreparedQuery, source: Source, *, typed: bool) -> tuple[int, dict[str, Any]]:
    """Compute a query on a range of entries.

    Parameters
    ----------
    query
        A sequence over the events.
    source
        The range.
    typed
        Whether to return empty columns, which tell the types, when there is no row.

    Returns
    -------
    The number of rows, and the columns by name: the names of a record, 0, 1, … of a tuple, and
    ``branch`` for a value without names.
    """
    import numpy as np

    try:
        loop = Evaluation(query, source).loop()
        if not typed and loop.inner.length == 0:
            return 0, {}
        element = lift(loop.element, loop.inner)
        with np.errstate(all="ignore"):
            return loop.inner.length, _named(element, loop.inner)
    except RecursionError:
        raise QueryError("the query is nested too deeply") from None
    except TypeError as error:
        raise QueryTypeError(
            f"cannot compute this: {error}, {place(query.text, query.node.at)}"
        ) from error


def _named(element: Value, frame: Frame) -> dict[str, Any]:
    if isinstance(element, Parts):
        return {
            name: four_vectors.unnamed(array_of(part.value, frame))
            for name, part in element.fields.items()
        }
    if isinstance(element, Entries):
        return dict(element.everything())
    array = four_vectors.unnamed(array_of(element, frame))
    return {name: array[name] for name in array.fields} or {COLUMN: array}
