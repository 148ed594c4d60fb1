"""Whether every column of every sample file comes out as uproot reads it, in every format.

``make files`` writes what is found to ``docs/reference/files.md``; a test holds files against their
rows there.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import awkward as ak
import uproot

from servicex_server.columnar.plan import chunks
from servicex_server.columnar.reading.trees import Tree, open_root
from servicex_server.columnar.writing.writer import Format, open_writer
from servicex_server.errors import ServiceXError
from servicex_server.languages.uproot_raw import UprootRaw
from servicex_server.model import ResultFormat
from servicex_server.worker.extraction import readable
from tests.samples import coffea_samples
from tests.support import sample

PAGE = Path(__file__).parent.parent / "docs/reference/files.md"
FORMATS: tuple[Format, ...] = ("parquet", "root-file", "root-rntuple")
PACKAGES = {"scikit-hep-testdata 0.3.12": lambda: sample(""), "coffea 2026.9.0": coffea_samples}
"""Where the files come from, and how to have them."""


ALL = 1 << 20

MOST = {"uproot-issue371.root": 700}
"""Branches of a tree that are all looked at, where more would take half an hour."""

TOGETHER = 150
"""Leaves of a file: uproot takes a time that grows as their square to begin a TTree."""


@dataclass
class Found:
    """What became of the columns of a file."""

    trees: int = 0
    branches: int = 0
    by_uproot: int = 0
    """Branches that uproot has an array of."""
    columns: int = 0
    """Of these, what ``filter_name="*"`` gives: a split object is its members."""
    held: Counter[str] = field(default_factory=Counter)
    """Columns by the format that holds them."""
    limits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often a format, or reading, refused a column, by what it said of it."""
    whole: bool = True
    """Whether all branches were looked at."""
    wrong: list[str] = field(default_factory=list)
    """Columns that are not what uproot reads; there must be none."""

    def row(self, name: str) -> str:
        """Return a row of the table."""
        counts = [self.trees, self.branches, self.by_uproot, self.columns]
        cells = [name, *map(str, counts), *(str(self.held[kind]) for kind in FORMATS)]
        return f"| {' | '.join(cells)} |"


def files(package: str) -> list[Path]:
    """Return the ROOT files of a package."""
    return sorted(PACKAGES[package]().glob("*.root"))


def examine(path: Path, most: int = ALL) -> Found:
    """Hold the columns of a file against uproot, as they are read and in every format.

    Parameters
    ----------
    path
        The file.
    most
        Branches of a tree that are all looked at; of more, a fifth as many.
    """
    found = Found()
    with tempfile.TemporaryDirectory() as scratch:
        for name, plain in _trees(path):
            found.trees += 1
            with open_root(str(path)) as opened:
                tree = opened.tree(name)
                columns = _read(found, name, plain, tree, most)
            # the whole query on a thousand columns takes a minute
            asked = 0 < len(columns) <= most
            if asked and (lacking := columns.keys() - _by_query(path, name)):
                found.wrong.append(f"{name}: the query gives no {', '.join(sorted(lacking)[:9])}")
            for some in _batches(columns):
                _write(found, Path(scratch), some)
    return found


def _by_query(path: Path, tree: str) -> set[str]:
    """Return the columns that ``filter_name="*"`` gives of a tree, when all of it is read."""
    text = json.dumps([{"treename": tree, "filter_name": "*"}])
    query = UprootRaw().compile(text, ResultFormat.PARQUET)
    with open_root(str(path)) as file:
        return readable(
            query,
            file,
            lambda plans: {
                name
                for one in plans
                for _, _, arrays in chunks(one.plan, one.tree, budget=32 << 20)
                for name in arrays
            },
        )


def _trees(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the TTrees and RNTuples that uproot can open."""
    try:
        file = uproot.open(path)
        kinds = file.classnames(cycle=False)
    except (OSError, ValueError, KeyError, uproot.DeserializationError):
        return
    with file:
        for name, kind in kinds.items():
            if kind in ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple"):
                try:
                    tree = file[name]
                    tree.keys()
                except (ValueError, NotImplementedError, KeyError, uproot.DeserializationError):
                    continue
                yield name, tree


def _branches(plain: Any) -> dict[str, Any]:
    """Return uproot's branches or fields by their paths."""
    if hasattr(plain, "all_fields"):
        return {one.path: one for one in plain.all_fields if one.path}
    branches: dict[str, Any] = {}
    for path, branch in plain.iteritems(recursive=True, full_paths=True):
        branches.setdefault(path, branch)  # some files have two of one path
    return branches


def _read(found: Found, name: str, plain: Any, tree: Tree, most: int) -> dict[str, Any]:
    """Compare all branches; return what ``*`` chooses of them, in two ranges and as uproot's."""
    branches, chosen = _branches(plain), set(tree.select([], []).names)
    found.branches += len(branches)
    columns = {}
    step = 1 if len(branches) <= most else 5 * len(branches) // most
    found.whole &= step == 1
    for path, branch in list(branches.items())[::step]:
        try:
            expected = branch.array()
        except Exception:  # noqa: BLE001  # what uproot cannot read is not looked at
            continue
        found.by_uproot += 1
        leaf = branch.name if "/" in path else path
        try:
            parts = [tree.read([path], start, stop)[path] for start, stop in _ranges(tree.entries)]
        except ServiceXError as error:
            if leaf not in error.message:
                found.wrong.append(f"{name}: {path} is not named in: {error.message}")
            found.limits["reading", _general(error.message, leaf)] += 1
            continue
        for part, (start, stop) in zip(parts, _ranges(tree.entries), strict=True):
            if not same(part, expected[start:stop]):
                found.wrong.append(f"{name}: {path} is read as {part.type}, not {expected.type}")
        # the first branch of a name is called by it, others by their paths
        for column in {path, leaf} & chosen:
            columns[column] = parts, expected
            chosen.remove(column)
    found.columns += len(columns)
    return columns


def _ranges(entries: int) -> list[tuple[int, int]]:
    """Return two ranges of entries, or the one there is."""
    middle = entries // 2
    return [(0, middle), (middle, entries)] if middle else [(0, entries)]


def _batches(columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Share the columns out, so that no file gets many leaves."""
    some: dict[str, Any] = {}
    leaves = 0
    for name, column in columns.items():
        more = _leaves(column[1].type.content)
        if some and leaves + more > TOGETHER:
            yield some
            some, leaves = {}, 0
        some[name], leaves = column, leaves + more
    if some:
        yield some


def _leaves(kind: Any) -> int:
    if isinstance(kind, ak.types.RecordType | ak.types.UnionType):
        return sum(map(_leaves, kind.contents))
    return _leaves(kind.content) if hasattr(kind, "content") else 1


def _general(message: str, column: str) -> str:
    """Return a message without the name and the numbers of one case."""
    said = re.sub(r"branch \S*…", "branch …", message.replace(column, "…"))
    return re.sub(r"\d+", "N", re.sub(r"^.* of type .*: |(of type|has the type) .*?, ", "", said))


def _write(found: Found, scratch: Path, columns: dict[str, Any]) -> None:
    """Write all columns in two ranges, in each format, and read them back."""
    for kind in FORMATS:
        path = scratch / f"x.{kind}"
        with open_writer(path, kind) as writer:
            layouts = {name: ak.to_layout(parts[0]) for name, (parts, _) in columns.items()}
            refused = writer.unheld(layouts)
            for why in refused.values():
                found.limits[kind, _general(why, "\0")] += 1
            kept = {name: column for name, column in columns.items() if name not in refused}
            if not kept:
                continue
            for number in range(len(next(iter(kept.values()))[0])):
                writer.write("t", {name: parts[number] for name, (parts, _) in kept.items()})
        got = _read_back(path, kind)
        for name, (_, array) in kept.items():
            bad = [b for b, expected in _delivered(name, array, kind) if not same(got(b), expected)]
            found.wrong += [f"{kind}: {branch} of {name}: {array.type}" for branch in bad]
            found.held[kind] += not bad


def _read_back(path: Path, kind: Format) -> Any:
    """Return the columns of a result as a function of their names."""
    if kind == "parquet":
        return ak.from_parquet(path).__getitem__
    arrays = uproot.open(path)["t"].arrays(ak_add_doc=False, how=dict)
    return arrays.__getitem__


def _delivered(name: str, array: Any, kind: Format) -> Iterator[tuple[str, Any]]:
    """Return what a column becomes in a format, by the rules of ``docs/reference/formats.md``."""
    if kind == "parquet":
        yield name, array
    elif kind == "root-rntuple":
        yield re.sub(r"[./\\\s]", "_", name), array
    elif array.fields:
        for member in array.fields:
            yield from _delivered(f"{name}_{member}", array[member], kind)
    else:
        yield re.sub(r"[][/]", "_", name), array


def same(got: Any, expected: Any) -> bool:
    """Whether two arrays have the same types and values, bit for bit but for what is no number.

    A list of a fixed length is one of any length here, for not all formats tell them apart.
    """
    if shape(got.type.content) != shape(expected.type.content):
        return False
    got, expected = (ak.transform(_fields, array) for array in (got, expected))
    return bool(
        ak.array_equal(got, expected, equal_nan=True, check_parameters=False, check_regular=False)
    )


def _fields(layout: Any, **_: Any) -> Any:
    """Give the members of a tuple the names that the members of a record would have."""
    if layout.is_record and layout.is_tuple:
        contents = [ak.transform(_fields, content, highlevel=False) for content in layout.contents]
        return layout.copy(contents=contents, fields=layout.fields)
    return None


def shape(kind: Any) -> str:
    """Return a type as text, without what only documents it, or how long lists are."""
    types = ak.types
    if isinstance(kind, types.OptionType):
        return f"?{shape(kind.content)}"
    if isinstance(kind, types.RecordType):
        inner = zip(kind.fields or count(), kind.contents, strict=False)
        return str({re.sub(r"[./\\\s]", "_", str(name)): shape(one) for name, one in inner})
    if isinstance(kind, types.ListType | types.RegularType):
        text = kind.parameter("__array__")
        is_text = text in ("string", "bytestring")
        return str(text) if is_text else f"var * {shape(kind.content)}"
    return kind.primitive if isinstance(kind, types.NumpyType) else type(kind).__name__


WORDS = {
    "parquet": "Parquet",
    "root-file": "TTree",
    "root-rntuple": "RNTuple",
    "reading": "reading",
}

HEAD = """# Files that were tried

Every TTree and RNTuple of the ROOT files in two published packages, 2021 and later, of ATLAS, CMS,
Delphes, DUNE, EDM4hep, FCC and many an issue of uproot: each branch that uproot reads was read by
the service and compared with it, and each column was written in each format, read back by pyarrow
or uproot, and compared again. The page is written by `make files`, and
`make test-all` holds every third file against its row.

*branches* are all that a file has, *by uproot* those that uproot makes an array of. *columns* are
what `filter_name="*"` gives of these: objects that are split into members are their members, and
the few branches that cannot be read are left out. Of `uproot-issue371.root`, whose objects have
thousands of members, every tenth branch was looked at. Last comes how many columns each format
holds, all equal to uproot's array; [Formats](formats.md) has the rules.
"""

TABLE = """
| file | trees | branches | by uproot | columns | Parquet | TTree | RNTuple |
| --- | --: | --: | --: | --: | --: | --: | --: |
"""

LIMITS = """
## What was refused

Each by an error that names the column.

| by | because |
| --- | --- |
"""


def limit(what: tuple[str, str]) -> str:
    """Return a row of the table of what was refused."""
    by, why = what
    return f"| {WORDS.get(by, by)} | {why} |"


def page() -> str:
    """Examine all files, and return the page about them.

    Raises
    ------
    ValueError
        A column is not what uproot reads.
    """
    parts, limits = [HEAD], set[tuple[str, str]]()
    for package in PACKAGES:
        parts.append(f"\n## {package}\n{TABLE}")
        for path in files(package):
            found = examine(path, MOST.get(path.name, ALL))
            if found.wrong:
                raise ValueError(f"{path.name}: {found.wrong}")
            limits |= set(found.limits)
            parts.append(f"{found.row(path.name)}\n")
    parts += [LIMITS, *(f"{limit(what)}\n" for what in sorted(limits))]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
