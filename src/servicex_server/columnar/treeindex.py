"""Trees of thousands of branches, of which a few are parsed.

uproot makes a Python object of every branch when it reads a tree, a millisecond for each two. On
disk each branch is preceded by its byte count, so those that nobody asks for can be stepped over
(`servicex_server.columnar.branchbytes`). Here only the array of branches is ours: it notes where
each begins, and uproot's own models read those that are wanted, when they are. Whatever looks
different is parsed by uproot as ever.
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from servicex_server.columnar import branchbytes
from servicex_server.columnar.branchbytes import Glance, OddError, Places

_MAP_OFFSET = 2  # kMapOffset


def classes() -> dict[str, Any]:
    """Return uproot's classes with an array of branches that steps over them.

    To be given to uproot as ``custom_classes``, anew for each file: it adds those that the file
    describes, and two files may describe one class differently.
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
                # uproot's models look at the names of all branches when they are made
                return iter(data.stubs())
            return iter(data[at] for at in range(len(data)))

    return Model_TObjArray


class _Stub:
    """The name of a branch that is not parsed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def member(self, which: str) -> str:
        """Return the name, which is all that is asked for."""
        assert which == "fName"  # noqa: S101  # nothing else is known
        return self._name


class _Elements(Sequence[Any]):
    """The elements of an array of branches, each parsed when it is first asked for."""

    def __init__(self, places: Places, reading: tuple[Any, ...], refs: "_Refs") -> None:
        self.places = places
        self.settled = False
        self._reading = reading
        self._refs = refs
        self._made: dict[int, Any] = {}
        self._seen: dict[int, Glance] = {}
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
        """Take note that uproot has made the tree, and needs no more than names no longer."""
        self._refs.depth = 0
        self._refs.settle()

    def parse_holder(self, place: int) -> bool:
        """Parse the element that a place lies in, if that is one and was not parsed."""
        begins = self.places.begins
        at = bisect.bisect_right(begins, place) - 1
        if at < 0 or place >= self.places.end or at in self._made or at in self._under_way:
            return False
        _ = self[at]
        return True

    def stubs(self) -> Iterator[_Stub]:
        """Yield the names of all, without parsing any that is laid out as expected."""
        for at in range(len(self)):
            yield _Stub(self.glance(at).name)

    def glance(self, at: int) -> Glance:
        """Return what is known of an element; by a look at its bytes if they are as expected."""
        if (seen := self._seen.get(at)) is None:
            begin, class_name = self.places.begins[at], self._refs.class_name
            seen = branchbytes.glance(self.places.data, begin, class_name) or _parsed(self[at])
            self._seen[at] = seen
        return seen


class _Refs(dict[int, Any]):
    """What uproot remembers of a buffer by its place, found in the bytes where it was stepped over.

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
        """Return the name of the class that was introduced at a place."""
        if (name := self._class_names.get(key)) is None:
            name = branchbytes.introduced(self.data, key + self.shift)
            self._class_names[key] = name
        return name

    def _found(self, key: int) -> bool:
        try:
            self[key] = self._file.class_named(self.class_name(key))
        except OddError:
            at = key + self.shift
            return any(self._parsed_for(key, at, array) for array in list(self.arrays))
        return True

    def _parsed_for(self, key: int, at: int, array: Any) -> bool:
        if not array._data.parse_holder(at):  # noqa: SLF001  # the array is ours
            return False
        return super().__contains__(key) or self._found(key)

    def settle(self) -> None:
        """Let uproot find branches by name in the arrays that were made since the last time."""
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
            self._at.setdefault(elements.glance(at).name, at)

    def __getitem__(self, name: str) -> Any:
        return self._elements[self._at[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


def _refs(chunk: Any, cursor: Any, file: Any) -> _Refs:
    """Return the memory of a cursor, made one that finds what was stepped over."""
    if not isinstance(cursor.refs, _Refs):
        data = bytes(memoryview(chunk.raw_data))
        shift = cursor.origin - chunk.start - _MAP_OFFSET
        cursor._refs = _Refs(cursor.refs, data, shift, file)  # noqa: SLF001  # it has no setter
    found: _Refs = cursor.refs
    return found


def _places(array: Any, chunk: Any, cursor: Any, file: Any) -> Places | None:
    """Return where the elements begin, if they are branches, or the leaves of a tree."""
    of_tree = array._parent is not None and array._parent.is_instance("TTree")  # noqa: SLF001
    of_branch = array._parent is not None and array._parent.is_instance("TBranch")  # noqa: SLF001
    if not (of_tree or of_branch):
        return None
    refs = _refs(chunk, cursor, file)
    at = cursor.index - chunk.start
    return branchbytes.places(refs.data, at, refs.class_name, of_tree=of_tree)


def _parsed(branch: Any) -> Glance:
    inside = branch.member("fBranches")._data  # noqa: SLF001  # it has no other way in
    if isinstance(inside, _Elements):
        children = tuple(inside.glance(at) for at in range(len(inside)))
    else:
        children = tuple(_parsed(child) for child in inside)
    return Glance(str(branch.member("fName")), children)


def _parsed_whole(tree: Any) -> Any:
    """Return a tree as uproot reads it, with all its branches."""
    import uproot

    key = tree.parent
    key.file.custom_classes = dict(uproot.classes)
    return key.get()


class BranchIndex(Mapping[str, Any]):
    """The branches of a tree by name and by path, parsed when they are asked for.

    Of several with one name the first in the order of the tree counts, as in uproot; a path is
    the names from the outermost branch to this, joined by ``/``.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._is_whole = False
        self.paths: list[tuple[str, str]] = []
        """Path and name of every branch, outer ones before those in them."""

        self._chains: dict[str, tuple[int, ...]] = {}
        array = tree.member("fBranches")
        data = array._data  # noqa: SLF001  # it has no other way in
        if isinstance(data, _Elements):
            data.tree_is_made()
            glances = [data.glance(at) for at in range(len(data))]
        else:
            glances = [_parsed(branch) for branch in array]
        self._add(glances, "", ())

    def _add(self, glances: Sequence[Glance], above: str, chain: tuple[int, ...]) -> None:
        for at, glance in enumerate(glances):
            path, place = f"{above}{glance.name}", (*chain, at)
            self.paths.append((path, glance.name))
            self._chains.setdefault(glance.name, place)
            self._chains.setdefault(path, place)
            self._add(glance.inside, f"{path}/", place)

    def is_first(self, name: str, path: str) -> bool:
        """Whether a name alone stands for the branch of a path."""
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
            # uproot tries all of a tree again with the classes that the file itself describes
            self._is_whole = True
            self._tree = _parsed_whole(self._tree)
            return self._walk(chain)

    def _walk(self, chain: Sequence[int]) -> Any:
        branch, cache_key = self._tree, self._tree.cache_key
        for at in chain:
            branch = branch.member("fBranches")[at]
            cache_key = f"{cache_key}/{at}"
            # uproot would look for the branch among all others to make a key for it
            branch._cache_key = cache_key  # noqa: SLF001  # as uproot keeps it
        return branch

    def __contains__(self, key: object) -> bool:
        return key in self._chains

    def __iter__(self) -> Iterator[str]:
        return iter(self._chains)

    def __len__(self) -> int:
        return len(self._chains)
