"""Writes columns: Parquet row groups, ROOT TTrees and RNTuples, one range at a time.

A writer takes the arrays of one range at a time and releases them, so its memory does not grow
with the result. If a format cannot hold a column, the error names the column.
"""

import errno
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from servicex_server.errors import (
    DiskFullError,
    FormatError,
    InternalError,
    ScratchFullError,
    ServiceXError,
)

if TYPE_CHECKING:
    from servicex_server.columnar.writing.parquet_file import ParquetFile

Format = Literal["parquet", "root-file", "root-rntuple"]

CLUSTER = 16 << 20
"""Bytes that are buffered before a row group or a cluster is written.

Smaller ones cost more to write and to read: uproot takes milliseconds for each cluster it writes,
and 0.1 ms for each basket it reads. With larger ones, ranges without a cut, which have 32 MB each,
would be copied to be concatenated: a fifth more time, and twice the memory.
"""

_MANY = 20
"""Most columns that an error lists after the first one."""

TREE_COLUMN = "treename"
"""Name of the column with the tree of a Parquet row, if there are several trees."""


class Writer(ABC):
    """A file that is being written. Use as a context manager; an error leaves no valid file.

    It buffers small ranges, so that row groups and clusters have a reasonable size even if a cut
    leaves few events of each range. `ParquetWriter`, `TTreeWriter` and `RNTupleWriter` implement
    it.
    """

    kind: ClassVar[str]
    """What errors call the format."""

    way_out: ClassVar[str] = ""
    """Hint that names another format, for a column that this one cannot hold."""

    def __init__(self) -> None:
        self._tree = ""
        self._types: dict[str, Any] | None = None
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Finish the file, or drop it if there was an error."""
        try:
            try:
                if error is None:
                    self._flush()
            except Exception:
                self._finish(complete=False)
                raise
            self._finish(complete=error is None)
        except ServiceXError:
            raise
        except Exception as failed:
            if error is None:
                raise classified(failed) from failed

    def write(self, tree: str, columns: Mapping[str, Any]) -> None:
        """Append a range of entries to a tree; all ranges have the same columns.

        Raises
        ------
        FormatError
            The format cannot hold a column; the message names it.
        ScratchFullError, DiskFullError
            No space is left on the disk, or within the limit of the process.
        """
        try:
            self._gather(tree, columns)
        except ServiceXError:
            raise
        except Exception as error:
            raise classified(error) from error

    def flush(self) -> None:
        """Write the buffered entries; raise the errors of `write`."""
        try:
            self._flush()
        except ServiceXError:
            raise
        except Exception as error:
            raise classified(error) from error

    @abstractmethod
    def unheld(self, layouts: Mapping[str, Any]) -> dict[str, str]:
        """Return the columns that the format cannot hold, each with the reason.

        Parameters
        ----------
        layouts
            Layouts of awkward by the names of columns.
        """

    def copy(self, path: str, found: Any) -> None:
        """Write a ROOT object as it was read.

        Raises
        ------
        FormatError
            The format cannot hold ROOT objects, or not this one. The error never concerns the
            trees, because `flush` writes them before.
        """
        raise FormatError(
            f"a Parquet file cannot hold {path}, a {found.classname}",
            hint="ask for ROOT output to copy histograms",
        )

    def _gather(self, tree: str, columns: Mapping[str, Any]) -> None:
        from servicex_server.columnar.writing.buffering import packed

        layouts = {name: packed(array) for name, array in columns.items()}
        types = {name: layout.form.type for name, layout in layouts.items()}
        if tree != self._tree or types != self._types:
            self._flush()
            self._refuse(layouts)
            self._begin(tree, layouts, types)
            self._tree, self._types = tree, types
        self._pending.append(layouts)
        self._pending_bytes += sum(layout.nbytes for layout in layouts.values())
        if self._pending_bytes >= CLUSTER:
            self._flush()

    def _refuse(self, layouts: dict[str, Any]) -> None:
        """Raise if there are columns that the format cannot hold, and name them all."""
        reasons = self.unheld(layouts)
        if not reasons:
            return
        (name, why), *others = reasons.items()
        said = f"{self.kind} cannot hold column {name} of type {layouts[name].form.type}: {why}"
        if others:
            named = ", ".join(other for other, _ in others[:_MANY])
            more = f" and {len(others) - _MANY} more" if len(others) > _MANY else ""
            said += f"; nor {named}{more}"
        raise FormatError(said, hint=self.way_out)

    def _flush(self) -> None:
        from servicex_server.columnar.writing.buffering import joined

        pending, self._pending, self._pending_bytes = self._pending, [], 0
        if pending:
            # one column at a time, so that at most one column is in memory twice
            names = list(pending[0])
            whole = {name: joined([part.pop(name) for part in pending]) for name in names}
            self._append(self._tree, whole)

    @abstractmethod
    def _begin(self, tree: str, layouts: dict[str, Any], types: dict[str, Any]) -> None:
        """Prepare for columns of these types; raise if they do not fit the columns before."""

    @abstractmethod
    def _append(self, tree: str, layouts: dict[str, Any]) -> None:
        """Write a row group or a cluster."""

    @abstractmethod
    def _finish(self, *, complete: bool) -> None:
        """Close the file."""


def open_writer(path: Path, result_format: Format, *, tree_column: bool = False) -> Writer:
    """Begin a file.

    Parameters
    ----------
    path
        The target; an existing file is overwritten.
    result_format
        Its format.
    tree_column
        Whether Parquet rows have a column with the name of their tree.
    """
    if result_format == "parquet":
        return ParquetWriter(path, tree_column=tree_column)
    from servicex_server.columnar.writing.root_writer import RNTupleWriter, TTreeWriter

    return TTreeWriter(path) if result_format == "root-file" else RNTupleWriter(path)


def classified(error: Exception) -> ServiceXError:
    """Return the error of this service for an exception of a library while writing."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ScratchFullError(f"no space is left to write the result ({error.strerror})")
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return DiskFullError(f"no space is left to write the result ({error.strerror})")
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return InternalError(f"the result could not be written: {type(error).__name__}: {first}")


class ParquetWriter(Writer):
    """Writes one Parquet table. With several trees, one column names the tree."""

    kind = "Parquet"

    def __init__(self, path: Path, *, tree_column: bool) -> None:
        super().__init__()
        self._path = path
        self._tree_column = tree_column
        self._file: ParquetFile | None = None

    def unheld(self, layouts: Mapping[str, Any]) -> dict[str, str]:
        """Return the columns that Parquet cannot hold, each with the reason."""
        from servicex_server.columnar.writing.parquet_file import held
        from servicex_server.columnar.writing.parquet_levels import UnheldError

        reasons = {}
        for name, layout in layouts.items():
            try:
                held(name, layout)
            except UnheldError as error:
                reasons[name] = str(error)
        return reasons

    def _begin(self, tree: str, layouts: dict[str, Any], types: dict[str, Any]) -> None:
        from servicex_server.columnar.writing.parquet_file import ParquetFile

        del types
        if self._tree_column and TREE_COLUMN in layouts:
            raise FormatError(
                f"a column is called {TREE_COLUMN}, which tells the trees apart here",
                hint="rename it with an alias, or ask for ROOT output",
            )
        layouts = self._with_tree(tree, layouts)
        if self._file is None:
            self._file = ParquetFile(self._path, layouts)
            return
        have, want = set(layouts), {node.name for node in self._file.nodes}
        if have != want:
            missing = ", ".join(sorted(want - have)) or "none"
            extra = ", ".join(sorted(have - want)) or "none"
            raise FormatError(
                f"the trees have different columns, so they cannot form one Parquet table "
                f"({tree} lacks {missing} and adds {extra})",
                hint="ask for the same columns of each tree, or for ROOT output",
            )

    def _append(self, tree: str, layouts: dict[str, Any]) -> None:
        from servicex_server.columnar.writing.parquet_levels import MismatchError

        if self._file is None:
            raise RuntimeError("nothing was begun")
        try:
            self._file.write(self._with_tree(tree, layouts))
        except MismatchError as error:
            raise FormatError(
                f"the columns of {tree} have other types than those before: {error}",
                hint="ask for ROOT output, or for columns of the same type",
            ) from error

    def _with_tree(self, tree: str, layouts: dict[str, Any]) -> dict[str, Any]:
        if not self._tree_column:
            return layouts
        import awkward as ak
        import numpy as np

        rows = len(next(iter(layouts.values()), ()))
        names = ak.to_layout([tree])[np.zeros(rows, np.int64)]
        return {**layouts, TREE_COLUMN: names}

    def _finish(self, *, complete: bool) -> None:
        from servicex_server.columnar.writing.parquet_file import ParquetFile

        if self._file is None and complete:
            self._file = ParquetFile(self._path, {})
        if self._file is not None:
            self._file.close(complete=complete)
