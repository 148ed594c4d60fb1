"""Joins the results of the splits of a file to one result, in their order.

The row groups of Parquet files are copied unchanged, and one new footer tells where they are. A
ROOT file is written only once: the result of a split is stored as arrays (`PartWriter`), and the
worker that joins the splits writes these arrays, range by range.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from servicex_server.columnar.writing.writer import Format, Writer, open_writer
from servicex_server.errors import FormatError, InternalError

_WORD = 8
"""Bytes of the number that is the length of the head of a range; 0 ends the file."""


def join(
    parts: Iterable[AbstractContextManager[Path]], output: Path, result_format: Format
) -> None:
    """Join the results of splits to one result.

    Parameters
    ----------
    parts
        Provides the file of each split while it is read, in order.
    output
        The target; an existing file is overwritten.
    result_format
        The format of the splits and of the result.

    Raises
    ------
    FormatError
        The splits do not have the same columns.
    """
    if result_format == "parquet":
        _join_parquet(parts, output)
        return
    with open_writer(output, result_format) as writer:
        for part in parts:
            with part as path:
                for tree, columns in ranges_of(path):
                    writer.write(tree, columns)


def _join_parquet(parts: Iterable[AbstractContextManager[Path]], output: Path) -> None:
    from servicex_server.columnar.writing.parquet_file import MAGIC
    from servicex_server.columnar.writing.parquet_footer import Footer

    whole: Footer | None = None
    with output.open("wb") as file:
        for part in parts:
            with part as path, path.open("rb") as content:
                footer = Footer.read(content, path.stat().st_size)
                if whole is not None and not whole.fits(footer):
                    raise FormatError(
                        "the parts of this file have columns of different types",
                        hint="ask for ROOT output, or for columns of the same type",
                    )
                if whole is None:
                    whole = footer
                    file.write(MAGIC)
                else:
                    whole.append(footer, file.tell() - len(MAGIC))
                content.seek(len(MAGIC))
                _copy(content, file, footer.begin - len(MAGIC))
        if whole is None:
            raise InternalError("a file without parts was to be joined")
        file.write(whole.encoded())


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    while size > 0:
        piece = source.read(min(size, 1 << 20))
        if not piece:
            raise InternalError("the result of a part ends too early")
        target.write(piece)
        size -= len(piece)


class PartWriter(Writer):
    """Stores the arrays of a split, until they are written together with those of all splits."""

    kind = "a part"

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        super().__init__()
        self._codec = pa.Codec("zstd", compression_level=1)
        self._file = path.open("wb")

    def unheld(self, layouts: Mapping[str, Any]) -> dict[str, str]:
        """Return an empty dict: a split can hold any column; the joined result may refuse it."""
        del layouts
        return {}

    def _begin(self, tree: str, layouts: dict[str, Any], types: dict[str, Any]) -> None:
        """Accept columns of any types, because each range is stored with its types."""

    def _append(self, tree: str, layouts: dict[str, Any]) -> None:
        import awkward as ak

        columns: list[dict[str, Any]] = []
        contents = []
        for name, layout in layouts.items():
            form, length, buffers = ak.to_buffers(layout)
            sizes = {}
            for key, buffer in buffers.items():
                sizes[key] = (0, 0)
                if raw := buffer.nbytes:
                    contents.append(self._codec.compress(memoryview(buffer).cast("B")))
                    sizes[key] = (raw, contents[-1].size)
            columns.append({"name": name, "form": form.to_dict(), "length": length, "sizes": sizes})
        head = json.dumps({"tree": tree, "columns": columns}).encode()
        self._file.write(len(head).to_bytes(_WORD, "little") + head)
        for packed in contents:
            self._file.write(packed)

    def _finish(self, *, complete: bool) -> None:
        with self._file:
            if complete:
                self._file.write(bytes(_WORD))


def ranges_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tree and the columns of each range that a `PartWriter` has stored, in order."""
    import awkward as ak
    import pyarrow as pa

    codec = pa.Codec("zstd")
    with path.open("rb") as file:
        while size := int.from_bytes(_exactly(file, _WORD), "little"):
            head = json.loads(_exactly(file, size))
            columns = {}
            for column in head["columns"]:
                buffers = {
                    key: codec.decompress(_exactly(file, packed), raw) if raw else b""
                    for key, (raw, packed) in column["sizes"].items()
                }
                form = ak.forms.from_dict(column["form"])
                columns[column["name"]] = ak.from_buffers(form, column["length"], buffers)
            yield head["tree"], columns


def _exactly(file: IO[bytes], size: int) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise InternalError("the result of a part ends too early")
    return content
