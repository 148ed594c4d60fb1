"""Reading columns of TTrees and RNTuples: needed branches only, range by range.

uproot does the reading; this module chooses what is read and names the branch that could not be.
"""

import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from servicex_server.columnar.baskets import Baskets
from servicex_server.columnar.clusters import Clusters
from servicex_server.columnar.faults import classify, reading
from servicex_server.columnar.plan import matcher
from servicex_server.columnar.source import PLAIN, Access, open_source
from servicex_server.columnar.treeindex import BranchIndex
from servicex_server.errors import (
    CorruptError,
    ServiceXError,
    UnknownNameError,
    UnreadableError,
    did_you_mean,
)


@contextmanager
def open_root(url: str, access: Access = PLAIN, *, at: Path | None = None) -> Iterator["RootFile"]:
    """Open a ROOT file by path or URL.

    Parameters
    ----------
    url
        What it is called by.
    access
        How it is read.
    at
        Where its bytes are, if they have been fetched.

    Raises
    ------
    ReplicaError
        It cannot be opened; the class says why.
    """
    with reading(url):
        file = open_source(str(at or url), PLAIN if at else access)
    with file:
        with reading(url):
            opened = RootFile(url, file)
        yield opened


class RootFile:
    """An open ROOT file: its trees and its other objects."""

    def __init__(self, url: str, file: Any) -> None:
        self.url = url
        self._file = file
        self._keys: dict[str, Any] = {}
        self._trees: dict[str, Tree] = {}

    @cached_property
    def _classes(self) -> dict[str, str]:
        """Classes of all objects by path; two reads for each folder in the file."""
        with reading(self.url):
            classes: dict[str, str] = self._file.classnames(cycle=False)
        return classes

    def _key(self, name: str) -> Any:
        """Return the TKey of an object by its path, or None; only folders on the way are read."""
        path = name.split(";", maxsplit=1)[0]
        if path not in self._keys:
            folder, (*above, last) = self._file, path.split("/")
            with reading(self.url):
                for step in above:
                    key = _key_in(folder, step)
                    if key is None or key.fClassName not in ("TDirectory", "TDirectoryFile"):
                        return None
                    folder = key.get()
                self._keys[path] = _key_in(folder, last)
        return self._keys[path]

    @property
    def trees(self) -> list[str]:
        """Paths of all TTrees and RNTuples."""
        return [key for key, kind in self._classes.items() if _is_tree(kind)]

    @property
    def bytes_read(self) -> int:
        """Bytes fetched from the source so far."""
        return int(getattr(self._file.file.source, "num_requested_bytes", 0))

    def has(self, name: str) -> bool:
        """Whether there is anything of this name."""
        return self._key(name) is not None

    def tree(self, name: str) -> "Tree":
        """Return a tree by its path.

        Raises
        ------
        UnknownNameError
            There is no such tree, or it is something else.
        """
        key = self._key(name)
        if key is None:
            raise UnknownNameError(
                f"there is no tree {name} in this file",
                hint=did_you_mean(name, self.trees, otherwise="its trees are"),
            )
        kind = key.fClassName
        if not _is_tree(kind):
            raise UnknownNameError(
                f"{name} is no tree but a {'folder' if 'Directory' in kind else kind}",
                hint=did_you_mean(name, self.trees, otherwise="the trees of this file are"),
            )
        if name not in self._trees:
            with reading(self.url):
                found = self._file[name] if ";" in name else key.get()
                made = RNTupleTree if "RNTuple" in kind else TTreeTree
                self._trees[name] = made(self.url, found)
        return self._trees[name]

    def objects(self, pattern: str) -> Iterator[tuple[str, Any]]:
        """Yield paths and objects that fit a pattern and are neither trees nor folders."""
        fits = matcher((pattern,))
        for key, kind in self._classes.items():
            if fits(key) and not _is_tree(kind) and "Directory" not in kind:
                with reading(self.url):
                    found = self._file[key]
                yield key, found


def _key_in(folder: Any, name: str) -> Any:
    """Return the TKey with the highest cycle of a name; uproot would search all for "not found"."""
    there = name in folder.keys(recursive=False, cycle=False)
    return folder.key(name) if there else None


def _is_tree(kind: str) -> bool:
    return kind in ("TTree", "TNtuple", "TNtupleD", "TChain") or "RNTuple" in kind


class Tree:
    """Columns by name over a range of entries. ``TTreeTree`` and ``RNTupleTree`` fill it in."""

    url: str
    entries: int
    names: Mapping[str, Any]
    following: tuple[int, int] | None = None
    """The range of entries after the one that is read next, if somebody knows it."""

    def select(self, by_name: Sequence[str], by_type: Sequence[str]) -> list[str]:
        """Return the readable columns that fit any pattern of each list; empty means all."""
        raise NotImplementedError

    def boundaries(self, branches: Iterable[str]) -> list[int]:
        """Return the entries at which clusters or common baskets begin, ascending."""
        raise NotImplementedError

    def bytes_per_entry(self, branches: Iterable[str]) -> float:
        """Return the mean size of an entry of these branches in memory; 0 while unknown."""
        raise NotImplementedError

    def read(self, branches: Sequence[str], start: int, stop: int) -> dict[str, Any]:
        """Return awkward arrays of a range of entries, by the names that were asked for.

        Raises
        ------
        ReplicaError
            The bytes could not be had, or cannot be right.
        UnreadableError
            A branch has a type that uproot does not understand; it is named.
        """
        if not branches:
            return {}
        try:
            return self._read(branches, start, stop)
        except Exception as error:
            raise self._blamed(error, branches, start, stop) from error

    def _read(self, branches: Sequence[str], start: int, stop: int) -> dict[str, Any]:
        raise NotImplementedError

    def _blamed(
        self, error: Exception, branches: Sequence[str], start: int, stop: int
    ) -> ServiceXError:
        """Find which branch it was, when it was one branch's fault."""
        found = classify(error, self.url)
        if not isinstance(found, CorruptError) or found is error:  # which names its branch
            return found
        for name in branches:
            try:
                self._read([name], start, stop)
            except Exception as alone:  # noqa: BLE001  # this is the search for the culprit
                return _of_branch(alone, name, self.url)
        return found


def _of_branch(error: Exception, name: str, url: str) -> ServiceXError:
    why = next((line for line in str(error).splitlines() if line.strip()), "")[:200]
    what = f"{type(error).__name__}: {why}"
    found = classify(error, url)
    if not isinstance(found, CorruptError):
        return found
    if isinstance(error, zlib.error | lzma.LZMAError) or "ecompress" in what or "checksum" in what:
        return CorruptError(f"branch {name} of {url} is corrupt: {what}")
    return UnreadableError(
        f"branch {name} cannot be read ({what})", hint="leave it out of the query"
    )


class TTreeTree(Tree):
    """A TTree."""

    names: BranchIndex

    def __init__(self, url: str, tree: Any) -> None:
        self.url = url
        self._tree = tree
        self.entries = int(tree.num_entries)
        self.names = BranchIndex(tree)

    def select(self, by_name: Sequence[str], by_type: Sequence[str]) -> list[str]:
        """Return the readable branches that fit; of a split object its members."""
        import uproot

        grouped = uproot.interpretation.grouped.AsGrouped
        fits, fits_type = matcher(tuple(by_name)), matcher(tuple(by_type))
        chosen = []
        for path, leaf in self.names.paths:
            if by_name and not (fits(leaf) or fits(path)):
                continue
            name = leaf if self.names.is_first(leaf, path) else path
            with reading(self.url):
                branch = self.names[name]
            if by_type and not fits_type(branch.typename):
                continue
            exact = leaf in by_name or path in by_name
            interpretation = branch.interpretation
            if not exact and not (
                _can_be_read(interpretation) and int(branch.num_entries) == self.entries
            ):
                continue
            if isinstance(interpretation, grouped) and (not exact or len(by_name) > 1):
                # its members come by themselves, or were not asked for
                continue
            chosen.append(name)
        return chosen

    def boundaries(self, branches: Iterable[str]) -> list[int]:
        """Return the entries at which a basket begins in every one of the branches."""
        with reading(self.url):
            with_baskets = [b for b in map(self.names.__getitem__, branches) if b.num_baskets]
        starts = [set(map(int, branch.entry_offsets)) for branch in with_baskets]
        return sorted(set.intersection(*starts)) if starts else [0]

    def bytes_per_entry(self, branches: Iterable[str]) -> float:
        """Return the mean uncompressed size of an entry of these branches."""
        with reading(self.url):
            total = sum(int(self.names[name].uncompressed_bytes) for name in branches)
        return max(total / self.entries, 1.0) if self.entries else 1.0

    def _read(self, branches: Sequence[str], start: int, stop: int) -> dict[str, Any]:
        import uproot

        for name in branches:
            kind = self.names[name].interpretation
            if isinstance(kind, uproot.interpretation.identify.UnknownInterpretation):
                raise UnreadableError(
                    f"branch {name} has the type {self.names[name].typename}, which cannot be read",
                    hint="leave it out of the query",
                )
        models = {name: self.names[name] for name in branches}
        for name, branch in models.items():
            if (there := int(branch.num_entries)) != self.entries:
                raise UnreadableError(
                    f"branch {name} has {there} entries where its tree has {self.entries}",
                    hint="leave it out of the query",
                )
        return self._baskets.read(models, start, stop, self.following)

    @cached_property
    def _baskets(self) -> Baskets:
        return Baskets(self.url)


def _can_be_read(interpretation: Any) -> bool:
    """Whether uproot knows how to read a branch, and an awkward array can hold what it reads."""
    import uproot

    if isinstance(interpretation, uproot.interpretation.objects.AsObjects):
        try:
            interpretation.awkward_form(None)
        except uproot.interpretation.objects.CannotBeAwkward:
            return False
    return not isinstance(interpretation, uproot.interpretation.identify.UnknownInterpretation)


class RNTupleTree(Tree):
    """An RNTuple."""

    def __init__(self, url: str, ntuple: Any) -> None:
        self.url = url
        self.entries = int(ntuple.num_entries)
        self._top = list(ntuple.keys(recursive=False))
        # not .items(): it walks all fields for each of them, 18 s where there are 2,300
        self.names = {field.path: field for field in ntuple.all_fields if field.path}
        self._clusters = Clusters(url, ntuple)

    def select(self, by_name: Sequence[str], by_type: Sequence[str]) -> list[str]:
        """Return the fields that fit; without name patterns the top-level ones."""
        names: Iterable[str] = self.names if by_name else self._top
        fits, fits_type = matcher(tuple(by_name)), matcher(tuple(by_type))
        chosen = [
            name
            for name in names
            if (not by_name or fits(name))
            and (not by_type or fits_type(str(self.names[name].typename)))
        ]
        # a parent that fits brings its members along
        return [n for n in chosen if not any(n.startswith(f"{other}.") for other in chosen)]

    def boundaries(self, branches: Iterable[str]) -> list[int]:
        """Return the entries at which clusters begin, the same for all fields."""
        del branches
        return self._clusters.edges

    def bytes_per_entry(self, branches: Iterable[str]) -> float:
        """Return the mean size of an entry of these fields in memory."""
        with reading(self.url):
            total = self._clusters.bytes_of(self.names[name] for name in branches)
        return max(total / self.entries, 1.0) if self.entries else 1.0

    def _read(self, branches: Sequence[str], start: int, stop: int) -> dict[str, Any]:
        fields = {name: self.names[name] for name in branches}
        return self._clusters.read(fields, start, stop, self.following)
