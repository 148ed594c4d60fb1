"""Reads columns of TTrees and RNTuples: only the needed branches, range by range.

uproot parses the file; this module chooses what is read, and names a branch that cannot be read.
"""

import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from servicex_server.columnar.plan import Selected, is_name, matcher
from servicex_server.columnar.reading.access import PLAIN, Access
from servicex_server.columnar.reading.error_mapping import classify, reading
from servicex_server.columnar.reading.folders import DEEPEST, FOLDERS, classes_of
from servicex_server.columnar.reading.lazy_branches import BranchIndex
from servicex_server.columnar.reading.rntuple_pages import PageReader
from servicex_server.columnar.reading.sources import open_source
from servicex_server.columnar.reading.ttree_baskets import BasketReader
from servicex_server.columnar.tree_paths import plain_path
from servicex_server.errors import CorruptError, ServiceXError, UnknownNameError, UnreadableError
from servicex_server.text.hints import did_you_mean

LEAVE_OUT = "leave it out of the query"
"""Hint for a branch or an object that cannot be read."""


@contextmanager
def open_root(url: str, access: Access = PLAIN, *, at: Path | None = None) -> Iterator["RootFile"]:
    """Open a ROOT file by path or URL.

    Parameters
    ----------
    url
        Its path or URL, which errors name.
    access
        How the file is read.
    at
        Path of a local copy, if the file has been downloaded.

    Raises
    ------
    ReplicaError
        The file cannot be opened; the class of the error says why.
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
        self.unreadable: dict[str, dict[str, str]] = {}
        """By tree: the columns that proved unreadable so far, with the reason."""

    @cached_property
    def _classes(self) -> dict[str, str]:
        """Classes of all objects by path; two reads for each folder in the file."""
        with reading(self.url):
            return classes_of(self.url, self._file)

    def _key(self, name: str) -> Any:
        """Return the TKey of an object by its path, or None; read only the folders on the path."""
        path = plain_path(name)
        if path.count("/") > DEEPEST:
            return None
        if path not in self._keys:
            folder, (*above, last) = self._file, path.split("/")
            with reading(self.url):
                for step in above:
                    key = _key_in(folder, step)
                    if key is None or key.fClassName not in FOLDERS:
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
        """Whether the file has an object at this path."""
        return self._key(name) is not None

    def tree(self, name: str) -> "Tree":
        """Return a tree by its path.

        Raises
        ------
        UnknownNameError
            The file has no object at this path, or the object is not a tree.
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
                f"{name} is not a tree but a {'folder' if 'Directory' in kind else kind}",
                hint=did_you_mean(name, self.trees, otherwise="the trees of this file are"),
            )
        if name not in self._trees:
            with reading(self.url):
                found = self._file[name.strip("/")] if ";" in name else key.get()
                made = RNTupleTree if "RNTuple" in kind else TTreeTree
                self._trees[name] = made(self.url, found)
                self._trees[name].unreadable = self.unreadable.setdefault(name, {})
        return self._trees[name]

    def objects(self, patterns: Sequence[str]) -> list[str]:
        """Return the paths of the objects that match any pattern and are neither trees nor folders.

        Raises
        ------
        UnknownNameError
            The file does not have a named object, or no object matches the patterns; the hint
            suggests the nearest names.
        """
        others = [path for path, kind in self._classes.items() if not _is_container(kind)]
        wanted = tuple(plain_path(one) if is_name(one) else one for one in patterns)
        for name in filter(is_name, wanted):
            if name not in others:
                kind = self._classes.get(name)
                what = f"{name} is a {kind}, which is not copied" if kind else f"no object {name}"
                raise self._no_object(f"copy_histograms: {what}", name, others)
        fits = matcher(wanted)
        if not (found := [path for path in others if fits(path)]):
            shown = ", ".join(patterns)
            raise self._no_object(f"copy_histograms: no object matches {shown}", shown, others)
        return found

    def _no_object(self, what: str, name: str, others: list[str]) -> UnknownNameError:
        near = did_you_mean(name, others, otherwise="the objects of this file are")
        return UnknownNameError(f"{what} in this file", hint=near)

    def object(self, path: str) -> Any:
        """Read an object, given a path that `objects` has returned.

        Raises
        ------
        UnreadableError
            uproot does not understand its class.
        """
        try:
            return self._file[path]
        except Exception as error:
            raise _of_part(error, f"object {path}", self.url) from error


def _key_in(folder: Any, name: str) -> Any:
    """Return the TKey of a name with the highest cycle, or None.

    If there is none, uproot would search all keys to suggest a name.
    """
    there = name in folder.keys(recursive=False, cycle=False)
    return folder.key(name) if there else None


def _is_container(kind: str) -> bool:
    return _is_tree(kind) or "Directory" in kind


def _is_tree(kind: str) -> bool:
    return kind in ("TTree", "TNtuple", "TNtupleD", "TChain") or "RNTuple" in kind


class Tree:
    """Base class of trees, whose columns are read by name and by range of entries."""

    url: str
    entries: int
    names: Mapping[str, Any]
    aliases: Mapping[str, str] = MappingProxyType({})
    """Expressions in ROOT's syntax by name of the alias, as ``TTree::SetAlias`` stores them."""
    following: tuple[int, int] | None = None
    """The range of entries after the one that is read next, if it is known."""

    def __init__(self, url: str, entries: int) -> None:
        self.url = url
        self.entries = entries
        self.unreadable: dict[str, str] = {}
        """Columns that proved unreadable so far, with the reason."""

    def select(self, by_name: Sequence[str], by_type: Sequence[str]) -> Selected:
        """Return the columns that match any pattern of each list; an empty list matches all.

        A column that only a pattern selects is left out if it cannot be read.
        """
        raise NotImplementedError

    def has(self, name: str) -> bool:
        """Return whether `select` would select any column by this name."""
        raise NotImplementedError

    def boundaries(self, branches: Iterable[str]) -> list[int]:
        """Return the entries at which clusters or common baskets begin, ascending."""
        raise NotImplementedError

    def bytes_per_entry(self, branches: Iterable[str]) -> float:
        """Return the mean size of an entry of these branches in memory; 0 while unknown."""
        raise NotImplementedError

    def read(self, branches: Sequence[str], start: int, stop: int) -> dict[str, Any]:
        """Return awkward arrays of a range of entries, by the requested names.

        Raises
        ------
        ReplicaError
            The bytes cannot be fetched, or are corrupt.
        UnreadableError
            uproot does not understand the type of a branch; the message names the branch.
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
        """Return an error that names the branch, if a single branch causes it."""
        found = classify(error, self.url)
        if not isinstance(found, CorruptError) or found is error:  # it names its branch already
            return found
        first: ServiceXError | None = None
        for name in branches:
            try:
                self._read([name], start, stop)
            except Exception as alone:  # noqa: BLE001  # this is the search for the culprit
                of_branch = _of_part(alone, f"branch {name}", self.url)
                if not isinstance(of_branch, UnreadableError):
                    return of_branch
                self.unreadable[name] = of_branch.message
                first = first or of_branch
        return first or found


def _of_part(error: Exception, name: str, url: str) -> ServiceXError:
    """Return an error that names the branch or the object."""
    why = next((line for line in str(error).splitlines() if line.strip()), "")[:200]
    what = f"{type(error).__name__}: {why}"
    found = classify(error, url)
    if not isinstance(found, CorruptError):
        return found
    if isinstance(error, zlib.error | lzma.LZMAError) or "ecompress" in what or "checksum" in what:
        return CorruptError(f"{name} of {url} is corrupt: {what}")
    return UnreadableError(f"{name} cannot be read ({what})", hint=LEAVE_OUT)


class TTreeTree(Tree):
    """A TTree."""

    names: BranchIndex

    def __init__(self, url: str, tree: Any) -> None:
        super().__init__(url, int(tree.num_entries))
        self._tree = tree
        self.names = BranchIndex(tree)
        self.aliases = tree.aliases

    def select(self, by_name: Sequence[str], by_type: Sequence[str]) -> Selected:
        """Return the branches that match; for a split object its members, unless it is named."""
        fits, fits_type = matcher(tuple(by_name)), matcher(tuple(by_type))
        asked = {name.removeprefix("/") for name in by_name}
        names, by_pattern, left_out = [], set(), {}
        for path, leaf in self.names.paths:
            named = leaf in asked or path in asked
            # like uproot, match the name, the path, and the path from the top
            if by_name and not (named or fits(leaf) or fits(path) or fits(f"/{path}")):
                continue
            name = leaf if self.names.is_first(leaf, path) else path
            with reading(self.url):
                branch = self.names[name]
            if by_type and not fits_type(branch.typename):
                continue
            if not named:
                if _is_group(branch):
                    continue  # its members match on their own
                if why := self.unreadable.get(name) or self._unreadable(name, branch):
                    left_out[name] = why
                    continue
                by_pattern.add(name)
            names.append(name)
        return Selected(names, frozenset(by_pattern), left_out)

    def _unreadable(self, name: str, branch: Any) -> str:
        """Return why a branch cannot be read, if that is known without its data; else ``""``."""
        if not _can_be_read(branch.interpretation):
            return f"branch {name} has the type {branch.typename}, which cannot be read"
        if (there := int(branch.num_entries)) != self.entries:
            return f"branch {name} has {there} entries, but its tree has {self.entries}"
        return ""

    def has(self, name: str) -> bool:
        """Return whether a branch has this name, or this path."""
        return name.removeprefix("/") in self.names

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
        models = {name: self.names[name] for name in branches}
        for name, branch in models.items():
            if _is_unknown(branch.interpretation) or int(branch.num_entries) != self.entries:
                raise UnreadableError(self._unreadable(name, branch), hint=LEAVE_OUT)
        return self._baskets.read(models, start, stop, self.following)

    @cached_property
    def _baskets(self) -> BasketReader:
        return BasketReader(self.url)


def _is_group(branch: Any) -> bool:
    """Return whether a branch is a split object, whose data are in its members only."""
    import uproot

    return isinstance(branch.interpretation, uproot.interpretation.grouped.AsGrouped)


def _is_unknown(interpretation: Any) -> bool:
    import uproot

    return isinstance(interpretation, uproot.interpretation.identify.UnknownInterpretation)


def _can_be_read(interpretation: Any) -> bool:
    """Return whether uproot can read a branch and an awkward array can hold its values."""
    import uproot

    if isinstance(interpretation, uproot.interpretation.objects.AsObjects):
        try:
            interpretation.awkward_form(None)
        except uproot.interpretation.objects.CannotBeAwkward:
            return False
    return not _is_unknown(interpretation)


class RNTupleTree(Tree):
    """An RNTuple."""

    def __init__(self, url: str, ntuple: Any) -> None:
        super().__init__(url, int(ntuple.num_entries))
        self._top = list(ntuple.keys(recursive=False))
        # not .items(): for each field it walks all fields, which takes 18 s for 2,300 of them
        self.names = {field.path: field for field in ntuple.all_fields if field.path}
        self._page_reader = PageReader(url, ntuple)

    def select(self, by_name: Sequence[str], by_type: Sequence[str]) -> Selected:
        """Return the fields that match; without name patterns the top-level fields."""
        fits, fits_type = matcher(tuple(by_name)), matcher(tuple(by_type))
        asked = {name.removeprefix(".") for name in by_name}
        fitting = {}
        for name in self.names if by_name else self._top:
            leaf = name.rpartition(".")[2]
            named = name in asked or leaf in asked
            # like uproot, match the name, the path, and the path from the top
            if by_name and not (named or fits(leaf) or fits(name) or fits(f".{name}")):
                continue
            if by_type and not fits_type(str(self.names[name].typename)):
                continue
            fitting[name] = named
        left_out = {}
        for name, named in fitting.items():
            if not named and (why := self.unreadable.get(name) or self._unreadable(name)):
                left_out[name] = why
        kept = {name: None for name in fitting if name not in left_out}
        # a selected parent includes its members
        names = [name for name in kept if not _is_below(name, kept)]
        by_pattern = frozenset(name for name in names if not fitting[name])
        return Selected(names, by_pattern, left_out)

    def _unreadable(self, name: str) -> str:
        """Return why a field cannot be read, if that is known without its data; else ``""``."""
        if self._page_reader.has_variant(self.names[name]):
            return f"field {name} holds a std::variant, which cannot be read reliably"
        return ""

    def has(self, name: str) -> bool:
        """Return whether a field has this name, or this path."""
        return name.removeprefix(".") in self._known

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names).union(name.rpartition(".")[2] for name in self.names)

    def boundaries(self, branches: Iterable[str]) -> list[int]:
        """Return the entries at which clusters begin, the same for all fields."""
        del branches
        return self._page_reader.edges

    def bytes_per_entry(self, branches: Iterable[str]) -> float:
        """Return the mean size of an entry of these fields in memory."""
        with reading(self.url):
            total = self._page_reader.bytes_of(self.names[name] for name in branches)
        return max(total / self.entries, 1.0) if self.entries else 1.0

    def _read(self, branches: Sequence[str], start: int, stop: int) -> dict[str, Any]:
        for name in branches:
            if why := self._unreadable(name):
                raise UnreadableError(why, hint=LEAVE_OUT)
        fields = {name: self.names[name] for name in branches}
        return self._page_reader.read(fields, start, stop, self.following)


def _is_below(name: str, others: Mapping[str, Any]) -> bool:
    """Return whether a field is a member, at any depth, of another one."""
    parts = name.split(".")
    return any(".".join(parts[:depth]) in others for depth in range(1, len(parts)))
