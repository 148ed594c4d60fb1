"""Reads a written result back and checks it, before it is delivered."""

from pathlib import Path

from servicex_server.columnar.writing.writer import Format
from servicex_server.errors import InternalError


def read_back(path: Path, result_format: Format, rows: int | None) -> None:
    """Open a result and count its rows; read the last row of each tree of a ROOT file.

    Parameters
    ----------
    path
        The file.
    result_format
        The format in which the file was written.
    rows
        The number of rows, over all trees; None if unknown.

    Raises
    ------
    InternalError
        The file cannot be opened or read, or has another number of rows.
    """
    try:
        found = _rows_of_parquet(path) if result_format == "parquet" else _rows_of_root(path)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise InternalError(
            f"the result cannot be read back: {type(error).__name__}: {first}",
            hint="please report this with the query; another output format may work",
        ) from error
    if rows is not None and found != rows:
        raise InternalError(
            f"the result has {found} rows when it is read back, but {rows} were written",
            hint="please report this with the query; another output format may work",
        )


def _rows_of_parquet(path: Path) -> int:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        _ = file.schema_arrow
        return int(file.metadata.num_rows)


def _rows_of_root(path: Path) -> int:
    import uproot

    total = 0
    with uproot.open(path) as file:
        kinds = file.classnames(recursive=True, cycle=False)
        for name in [one for one, kind in kinds.items() if kind in ("TTree", "ROOT::RNTuple")]:
            tree = file[name]
            entries = int(tree.num_entries)
            tree.arrays(entry_start=max(0, entries - 1), entry_stop=entries)
            total += entries
    return total
