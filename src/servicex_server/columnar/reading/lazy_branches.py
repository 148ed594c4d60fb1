"""Trees of thousands of branches, of which only the needed ones are parsed.

uproot makes a Python object of every branch when it reads a tree; that takes about 0.5 ms for each.
On disk each branch is preceded by its byte count, so branches that no query needs can be skipped
(`servicex_server.columnar.reading.ttree_layout`). This module replaces only uproot's array of
branches. The array notes where each branch begins, and uproot's own models parse a branch when it
is first used. Bytes with an unexpected layout are left to uproot.
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from servicex_server.columnar.reading import ttree_layout
from servicex_server.columnar.reading.ttree_layout import (
    BranchOutline,
    Places,
    UnexpectedLayoutError,
)

_MAP_OFFSET = 2  # kMapOffset


def classes() -> dict[str, Any]:
    """Return uproot's classes with an array of branches that skips them.

    Pass the result to uproot as ``custom_classes``, a new one for each file: uproot adds the
    classes that the file describes, and two files may describe one class differently.
    """
    import uproot

    return {**uproot.classes, "TObjArray": _branch_array()}


@cache
def _branch_array() -> Any:
    import uproot

    base: Any = uproot.models.TObjArray.Model_TObjArray

    # uproot reads the name of the C++ class from the name of the model
    class Model_TObjArray(base):  # type: ignore[misc]  # noqa: N801  # uproot has no types
        """A TObjArray; if it holds the branches of a tree or branch, they are parsed late."""

        def read_members(self, chunk: Any, cursor: Any, context: Any, file: Any) -> None:
            begun = cursor.copy()
            places = _places(self, chunk, cursor, file)
            if places is None:
                super().read_members(chunk, begun, context, file)
                cursor.move_to(begun.index)
                return
            head = begun
            self._bases.append(
                uproot.models.TObject.Model_TObject.read(
                    chunk, head, context, file, self._file, self._parent, concrete=self.concrete
                )
            )
            self._members["fName"] = head.string(chunk, context)
            self._members["fSize"], self._members["fLowerBound"] = len(places.begins), 0
            refs = _refs(chunk, cursor, file)
            reading = (chunk, cursor.copy(), context, file, self._file, self._parent)
            self._data = _Elements(places, reading, refs)
            refs.arrays.append(self)
            cursor.move_to(places.end + chunk.start)

        def __iter__(self) -> Iterator[Any]:
            data: Any = self._data
            if isinstance(data, _Elements) and not data.settled and data.places.are_branches:
                # when uproot's models are made, they read the names of all branches
                return iter(data.stubs())
            return iter(data[at] for at in range(len(data)))

    return Model_TObjArray


class _Stub:
    """The name of a branch that is not parsed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def member(self, which: str) -> str:
        """Return the name, the only member that uproot reads."""
        assert which == "fName"  # noqa: S101  # nothing else is known
        return self._name


class _Elements(Sequence[Any]):
    """The elements of an array of branches; each is parsed when it is first used."""

    def __init__(self, places: Places, reading: tuple[Any, ...], refs: "_Refs") -> None:
        self.places = places
        self.settled = False
        self._reading = reading
        self._refs = refs
        self._made: dict[int, Any] = {}
        self._seen: dict[int, BranchOutline] = {}
        self._under_way: set[int] = set()

    def __len__(self) -> int:
        return len(self.places.begins)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        at = at + len(self) if at < 0 else at
        if at >= len(self):
            raise IndexError(at)
        if at not in self._made:
            self._made[at] = self._parse(at)
            self._refs.settle()
        return self._made[at]

    def _parse(self, at: int) -> Any:
        import uproot

        chunk, cursor, context, file, selffile, parent = self._reading
        cursor = cursor.copy()
        cursor.move_to(self.places.begins[at] + chunk.start)
        self._under_way.add(at)
        self._refs.depth += 1
        try:
            return uproot.deserialization.read_object_any(
                chunk, cursor, context, file, selffile, parent
            )
        finally:
            self._refs.depth -= 1
            self._under_way.discard(at)

    def tree_is_made(self) -> None:
        """Note that uproot has made the tree: from now on it also looks up branches by name."""
        self._refs.depth = 0
        self._refs.settle()

    def parse_holder(self, place: int) -> bool:
        """Parse the element that contains a place, if there is one and it is not parsed yet."""
        begins = self.places.begins
        at = bisect.bisect_right(begins, place) - 1
        if at < 0 or place >= self.places.end or at in self._made or at in self._under_way:
            return False
        _ = self[at]
        return True

    def stubs(self) -> Iterator[_Stub]:
        """Yield a stub for each element; parse only elements with an unexpected layout."""
        for at in range(len(self)):
            yield _Stub(self.outline(at).name)

    def outline(self, at: int) -> BranchOutline:
        """Return the outline of an element; parse it only if its layout is unexpected."""
        if (seen := self._seen.get(at)) is None:
            begin, class_name = self.places.begins[at], self._refs.class_name
            seen = ttree_layout.peek_branch(self.places.data, begin, class_name) or _parsed(
                self[at]
            )
            self._seen[at] = seen
        return seen


class _Refs(dict[int, Any]):
    """The references of uproot's cursor by place; parses a skipped object when it is referenced.

    Keys are places relative to the origin of the cursor, plus two, as in ROOT.
    """

    def __init__(self, known: Mapping[int, Any], data: bytes, shift: int, file: Any) -> None:
        super().__init__(known)
        self.arrays: list[Any] = []
        self._class_names: dict[int, str] = {}
        self.depth = 1  # models that are being made, the tree among them
        self.data = data
        self.shift = shift  # of a key to an index into data
        self._file = file

    def __contains__(self, key: object) -> bool:
        known = super().__contains__(key)
        return known or (isinstance(key, int) and self._found(key))

    def __missing__(self, key: int) -> Any:
        if self._found(key):
            return super().__getitem__(key)
        raise KeyError(key)

    def class_name(self, key: int) -> str:
        """Return the name of the class whose tag is at a place."""
        if (name := self._class_names.get(key)) is None:
            name = ttree_layout.class_name_at(self.data, key + self.shift)
            self._class_names[key] = name
        return name

    def _found(self, key: int) -> bool:
        try:
            self[key] = self._file.class_named(self.class_name(key))
        except UnexpectedLayoutError:
            at = key + self.shift
            return any(self._parsed_for(key, at, array) for array in list(self.arrays))
        return True

    def _parsed_for(self, key: int, at: int, array: Any) -> bool:
        if not array._data.parse_holder(at):  # noqa: SLF001  # the array is ours
            return False
        return super().__contains__(key) or self._found(key)

    def settle(self) -> None:
        """Make branches available by name in the arrays that were made since the last call."""
        if self.depth:
            return
        for array in self.arrays:
            elements, parent = array._data, array._parent  # noqa: SLF001  # the array is ours
            if not elements.settled:
                elements.settled = True
                if elements.places.are_branches:
                    parent._lookup = _Lookup(elements)  # noqa: SLF001  # as uproot keeps it


class _Lookup(Mapping[str, Any]):
    """Branches by name, as uproot's models keep them."""

    def __init__(self, elements: _Elements) -> None:
        self._elements = elements
        self._at: dict[str, int] = {}
        for at in range(len(elements)):
            self._at.setdefault(elements.outline(at).name, at)

    def __getitem__(self, name: str) -> Any:
        return self._elements[self._at[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


def _refs(chunk: Any, cursor: Any, file: Any) -> _Refs:
    """Replace the references of a cursor by `_Refs`, which finds skipped objects; return them."""
    if not isinstance(cursor.refs, _Refs):
        data = bytes(memoryview(chunk.raw_data))
        shift = cursor.origin - chunk.start - _MAP_OFFSET
        cursor._refs = _Refs(cursor.refs, data, shift, file)  # noqa: SLF001  # it has no setter
    found: _Refs = cursor.refs
    return found


def _places(array: Any, chunk: Any, cursor: Any, file: Any) -> Places | None:
    """Return where the elements begin, if they are branches or the leaves of a tree, else None."""
    of_tree = array._parent is not None and array._parent.is_instance("TTree")  # noqa: SLF001
    of_branch = array._parent is not None and array._parent.is_instance("TBranch")  # noqa: SLF001
    if not (of_tree or of_branch):
        return None
    refs = _refs(chunk, cursor, file)
    at = cursor.index - chunk.start
    return ttree_layout.places(refs.data, at, refs.class_name, of_tree=of_tree)


def _parsed(branch: Any) -> BranchOutline:
    inside = branch.member("fBranches")._data  # noqa: SLF001  # it has no other way in
    if isinstance(inside, _Elements):
        children = tuple(inside.outline(at) for at in range(len(inside)))
    else:
        children = tuple(_parsed(child) for child in inside)
    return BranchOutline(str(branch.member("fName")), children)


def _parsed_whole(tree: Any) -> Any:
    """Return a tree as uproot reads it, with all branches parsed."""
    import uproot

    key = tree.parent
    key.file.custom_classes = dict(uproot.classes)
    return key.get()


class BranchIndex(Mapping[str, Any]):
    """The branches of a tree by name and by path, each parsed when it is first used.

    If several branches have one name, it means the first in the order of the tree, as in uproot. A
    path consists of the names from the outermost branch to the branch itself, joined by ``/``.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._is_whole = False
        self.paths: list[tuple[str, str]] = []
        """Path and name of every branch; a branch comes before its members."""

        self._chains: dict[str, tuple[int, ...]] = {}
        array = tree.member("fBranches")
        data = array._data  # noqa: SLF001  # it has no other way in
        if isinstance(data, _Elements):
            data.tree_is_made()
            outlines = [data.outline(at) for at in range(len(data))]
        else:
            outlines = [_parsed(branch) for branch in array]
        self._add(outlines, "", ())

    def _add(self, outlines: Sequence[BranchOutline], above: str, chain: tuple[int, ...]) -> None:
        for at, outline in enumerate(outlines):
            path, place = f"{above}{outline.name}", (*chain, at)
            self.paths.append((path, outline.name))
            self._chains.setdefault(outline.name, place)
            self._chains.setdefault(path, place)
            self._add(outline.inside, f"{path}/", place)

    def is_first(self, name: str, path: str) -> bool:
        """Whether a name alone means the branch at a path."""
        return self._chains[name] == self._chains[path]

    def __getitem__(self, key: str) -> Any:
        chain = self._chains[key]
        try:
            return self._walk(chain)
        except (OSError, MemoryError):
            raise
        except Exception:
            if self._is_whole:
                raise
            # uproot then reads the whole tree again, with the classes that the file describes
            self._is_whole = True
            self._tree = _parsed_whole(self._tree)
            return self._walk(chain)

    def _walk(self, chain: Sequence[int]) -> Any:
        branch, cache_key = self._tree, self._tree.cache_key
        for at in chain:
            branch = branch.member("fBranches")[at]
            cache_key = f"{cache_key}/{at}"
            # otherwise uproot would search all branches to make this key
            branch._cache_key = cache_key  # noqa: SLF001  # as uproot keeps it
        return branch

    def __contains__(self, key: object) -> bool:
        return key in self._chains

    def __iter__(self) -> Iterator[str]:
        return iter(self._chains)

    def __len__(self) -> int:
        return len(self._chains)
