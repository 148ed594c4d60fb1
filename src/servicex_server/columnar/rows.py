"""Rows of nested loops: a func_adl query held against a tree, and run on a range of entries.

A query names branches by words, and ``e.a.b`` may be the branch ``a.b`` or the part ``b`` of the
branch ``a``: which, only the tree tells.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servicex_server.columnar import vectors
from servicex_server.columnar.frames import Entries, Frame, Parts, Value, array_of, lift
from servicex_server.columnar.loops import Evaluation, Source
from servicex_server.columnar.plan import Extraction, Plan
from servicex_server.columnar.sequences import Events, Node, paths, place
from servicex_server.errors import (
    FormatError,
    QueryError,
    QueryTypeError,
    UnknownNameError,
    did_you_mean,
)

if TYPE_CHECKING:
    from servicex_server.columnar.read import Tree

COLUMN = "branch"
"""Name of the column of a value that has no names, as upstream's python codegen has it."""

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rows(Extraction):
    """A sequence over the events of a tree, one row for each of its elements.

    ``text`` is the query as the user wrote it, for errors. ``whole`` tells that the events
    themselves are in the result, so that all branches are needed; ``dense`` that nothing may be
    missing, because the format does not hold that.
    """

    node: Node = Events()  # noqa: RUF009  # it is frozen
    text: str = ""
    whole: bool = False
    dense: bool = False

    def bind(self, tree: "Tree") -> "RowsPlan":
        """Hold the query against the names of a tree.

        Raises
        ------
        UnknownNameError
            A branch is not there; the place in the query is shown and the nearest are offered.
        """
        deciding, others = paths(self.node)
        found = {path: self._found(path, at, tree) for path, at in {**deciding, **others}.items()}
        first = tuple(dict.fromkeys(found[path][0] for path in deciding))
        rest = dict.fromkeys(found[path][0] for path in others)
        everything = tuple(tree.select((), ())) if self.whole else ()
        rest.update(dict.fromkeys(everything))
        return RowsPlan(
            first=first,
            rest=tuple(name for name in rest if name not in first),
            rows=self,
            found=found,
            everything=everything,
        )

    def _found(self, path: Path, at: int, tree: "Tree") -> tuple[str, Path]:
        """Return the branch that the words name, and the words that follow it."""
        for end in range(len(path), 0, -1):
            name = ".".join(path[:end])
            if name in tree.names:
                return name, path[end:]
        name = ".".join(path)
        raise UnknownNameError(
            f"tree {self.tree or 'of this file'} has no branch {name}, {place(self.text, at)}",
            hint=did_you_mean(name, list(tree.names), otherwise="the branches are"),
        )


@dataclass(frozen=True, slots=True)
class RowsPlan(Plan):
    """A query on a tree that is known: which branch each name in it stands for."""

    rows: Rows
    found: dict[Path, tuple[str, Path]]
    everything: tuple[str, ...]

    def compute(
        self, tree: "Tree", start: int, stop: int, *, typed: bool
    ) -> tuple[int, dict[str, Any]]:
        """Read and compute one range; the branches of the conditions on events first."""
        values: dict[str, Any] = dict(tree.read(self.first, start, stop))

        def read(path: Path) -> Any:
            name, words = self.found[path]
            if name not in values:
                values.update(tree.read(self.rest, start, stop))
            array = values[name]
            for word in words:
                array = vectors.part(array, word)
            return array

        def everything() -> dict[str, Any]:
            values.update(tree.read([n for n in self.everything if n not in values], start, stop))
            return {name: values[name] for name in self.everything}

        source = Source(stop - start, read, everything)
        count, columns = _computed(self.rows.node, source, self.rows.text, typed=typed)
        if self.rows.dense:
            columns = {name: _dense(name, array) for name, array in columns.items()}
        return count, columns


def _dense(name: str, array: Any) -> Any:
    """Return an array without options, where the values that may be missing are all there."""
    import awkward as ak

    def without(layout: Any, **_: Any) -> Any:
        if not layout.is_option:
            return None
        if layout.mask_as_bool(valid_when=False).any():
            raise FormatError(
                f"in column {name} values are missing, and a TTree cannot hold that",
                hint="drop such events with Where(lambda e: e.x.Count() > 0), or ask for parquet "
                "or RNTuple output",
            )
        return ak.transform(without, layout.project(), highlevel=False)

    return ak.transform(without, array)


def _computed(node: Node, source: Source, text: str, *, typed: bool) -> tuple[int, dict[str, Any]]:
    """Compute a query on a range of entries.

    Parameters
    ----------
    node
        A sequence over the events.
    source
        The range.
    text
        The query as the user wrote it, for errors.
    typed
        Whether empty columns are wanted where there is no row, for their types.

    Returns
    -------
    How many rows there are, and the columns by name: the names of a record, 0, 1, … of a tuple,
    and ``branch`` for a value without names.
    """
    import numpy as np

    try:
        loop = Evaluation(node, source, text).loop()
        if not typed and loop.inner.length == 0:
            return 0, {}
        element = lift(loop.element, loop.inner)
        with np.errstate(all="ignore"):
            return loop.inner.length, _named(element, loop.inner)
    except RecursionError:
        raise QueryError("the query is nested too deeply") from None
    except TypeError as error:
        raise QueryTypeError(f"cannot compute this: {error}, {place(text, node.at)}") from error


def _named(element: Value, frame: Frame) -> dict[str, Any]:
    if isinstance(element, Parts):
        return {
            name: vectors.unnamed(array_of(part.value, frame))
            for name, part in element.fields.items()
        }
    if isinstance(element, Entries):
        return dict(element.everything())
    array = vectors.unnamed(array_of(element, frame))
    return {name: array[name] for name in array.fields} or {COLUMN: array}
