"""Trees of thousands of branches, of which a few are parsed.

uproot makes a Python object of every branch when it reads a tree, a millisecond for each two. On
disk each branch is preceded by its byte count, so those that nobody asks for can be stepped over.
Here only the array of branches is ours: it notes where each begins, and uproot's own models read
those that are wanted, when they are. Places are as in ROOT's TBufferFile::ReadObjectAny and
TBranch version 11 to 13; whatever looks different is parsed by uproot as ever.
"""

import bisect
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

_COUNTED = 0x40000000  # kByteCountMask
_NEW_CLASS = 0xFFFFFFFF  # kNewClassTag
_CLASS = 0x80000000  # kClassMask
_MAP_OFFSET = 2  # kMapOffset
_COUNTED_OBJECT = 0x4000  # kByteCountVMask
_REFERENCED = 1 << 4  # kIsReferenced
_U32 = struct.Struct(">I")
_I32 = struct.Struct(">i")
_U16 = struct.Struct(">H")
_BEGIN = struct.Struct(">IHIHHII")
"""How a TBranch begins: count and version of its own, those of its TNamed, and the TObject."""

_BEFORE_BRANCHES = {11: ((68,), ()), 12: ((68,), ()), 13: ((24,), (44,))}
"""Bytes of numbers in a TBranch between TAttFill and fBranches, by version; 13 has fIOFeatures
between the two groups."""


class _OddError(Exception):
    """The bytes are not laid out as expected here."""


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


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the elements of an array begin, and where the last one ends; indices into ``data``.

    Besides branches those of the leaves of a tree, which are but references to what was read.
    """

    data: bytes
    begins: list[int]
    end: int
    are_branches: bool


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

    def __init__(self, places: _Places, reading: tuple[Any, ...], refs: "_Refs") -> None:
        self.places = places
        self.settled = False
        self._reading = reading
        self._refs = refs
        self._made: dict[int, Any] = {}
        self._seen: dict[int, _Glance] = {}
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

    def glance(self, at: int) -> "_Glance":
        """Return what is known of an element; by a look at its bytes if they are as expected."""
        if (seen := self._seen.get(at)) is None:
            try:
                seen = _glance(self.places.data, self.places.begins[at], self._refs)
            except (_OddError, struct.error, IndexError, ValueError):
                seen = _parsed(self[at])
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
            at = key + self.shift
            if not 0 <= at < len(self.data) - 4 or _U32.unpack_from(self.data, at)[0] != _NEW_CLASS:
                raise _OddError
            name = self.data[at + 4 : self.data.index(b"\0", at + 4)].decode()
            self._class_names[key] = name
        return name

    def _found(self, key: int) -> bool:
        try:
            self[key] = self._file.class_named(self.class_name(key))
        except _OddError:
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


def _places(array: Any, chunk: Any, cursor: Any, file: Any) -> _Places | None:
    """Return where the elements begin, if they are branches, or the leaves of a tree."""
    of_tree = array._parent is not None and array._parent.is_instance("TTree")  # noqa: SLF001
    of_branch = array._parent is not None and array._parent.is_instance("TBranch")  # noqa: SLF001
    if not (of_tree or of_branch):
        return None
    refs = _refs(chunk, cursor, file)
    data = refs.data
    try:
        at, count = _array_head(data, cursor.index - chunk.start)
        if count == 0:
            return None
        reference = not _U32.unpack_from(data, at)[0] & _COUNTED
        are_branches = not reference and _class_at(data, at, refs).startswith("TBranch")
        if not (of_tree or are_branches):
            return None
        return _Places(data, *_step(data, at, count), are_branches)
    except (_OddError, struct.error, IndexError, ValueError):
        return None


def _array_head(data: bytes, at: int) -> tuple[int, int]:
    """Return where the first element of a TObjArray is, and how many there are.

    ``at`` is the place of its TObject.
    """
    at = _after_text(data, _after_object(data, at))
    return at + 8, _I32.unpack_from(data, at)[0]


def _step(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    begins = []
    read = _U32.unpack_from
    for _ in range(count):
        begins.append(at)
        head = read(data, at)[0]
        if head & _CLASS:
            raise _OddError  # an object without its byte count
        at += 4 + (head & ~_COUNTED if head & _COUNTED else 0)
    if at > len(data):
        raise _OddError
    return begins, at


def _class_at(data: bytes, at: int, refs: _Refs) -> str:
    """Return the class of an object that is written at a place."""
    if not _U32.unpack_from(data, at)[0] & _COUNTED:
        raise _OddError
    tag = _U32.unpack_from(data, at + 4)[0]
    if tag == _NEW_CLASS:
        return data[at + 8 : data.index(b"\0", at + 8)].decode()
    if not tag & _CLASS:
        raise _OddError
    return refs.class_name(tag & ~_CLASS)


@dataclass(frozen=True, slots=True)
class _Glance:
    """What a look tells of a branch: its name, and those of the branches in it."""

    name: str
    inside: tuple["_Glance", ...] = ()


def _parsed(branch: Any) -> _Glance:
    inside = branch.member("fBranches")._data  # noqa: SLF001  # it has no other way in
    if isinstance(inside, _Elements):
        children = tuple(inside.glance(at) for at in range(len(inside)))
    else:
        children = tuple(_parsed(child) for child in inside)
    return _Glance(str(branch.member("fName")), children)


def _glance(data: bytes, at: int, refs: _Refs) -> _Glance:
    """Look at a branch that begins at a place with its byte count."""
    kind = _class_at(data, at, refs)
    at += 8 + (len(kind) + 1 if _U32.unpack_from(data, at + 4)[0] == _NEW_CLASS else 0)
    if kind == "TBranchElement":
        at += 6  # its own count and version; the TBranch comes first in it
    elif kind != "TBranch":
        raise _OddError
    _, version, named, _, object_version, _, bits = _BEGIN.unpack_from(data, at)
    if version not in _BEFORE_BRANCHES or not named & _COUNTED or object_version & _COUNTED_OBJECT:
        raise _OddError
    name = _text(data, at + _BEGIN.size + (2 if bits & _REFERENCED else 0))
    before, after = _BEFORE_BRANCHES[version]
    at = _after_counted(data, at + 10 + (named & ~_COUNTED)) + before[0]
    if after:
        at = _after_counted(data, at) + after[0]
    first, count = _array_head(data, at + 6)
    if not count:
        return _Glance(name)
    begins, _ = _step(data, first, count)
    return _Glance(name, tuple(_glance(data, begin, refs) for begin in begins))


def _after_counted(data: bytes, at: int) -> int:
    count = _U32.unpack_from(data, at)[0]
    if not count & _COUNTED:
        raise _OddError
    return int(at + 4 + (count & ~_COUNTED))


def _after_object(data: bytes, at: int) -> int:
    """Return where a TObject ends: version, unique id and bits, and a process id if referenced."""
    if _U16.unpack_from(data, at)[0] & _COUNTED_OBJECT:
        raise _OddError
    bits = _U32.unpack_from(data, at + 6)[0]
    return at + (12 if bits & _REFERENCED else 10)


def _after_text(data: bytes, at: int) -> int:
    return at + 5 + _U32.unpack_from(data, at + 1)[0] if data[at] == 0xFF else at + 1 + data[at]  # noqa: PLR2004


def _text(data: bytes, at: int) -> str:
    begin = at + (5 if data[at] == 0xFF else 1)  # noqa: PLR2004
    return data[begin : _after_text(data, at)].decode(errors="surrogateescape")


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

    def _add(self, glances: Sequence[_Glance], above: str, chain: tuple[int, ...]) -> None:
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
