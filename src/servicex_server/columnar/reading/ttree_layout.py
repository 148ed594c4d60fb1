"""The byte layout of a tree and its branches: where each branch begins, and its name.

On disk each object is preceded by its byte count, so an object can be skipped without being parsed.
The layout is that of ROOT's TBufferFile::ReadObjectAny and of TBranch versions 11 to 13. Any other
layout is left to uproot.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

_COUNTED = 0x40000000  # kByteCountMask
_NEW_CLASS = 0xFFFFFFFF  # kNewClassTag
_CLASS = 0x80000000  # kClassMask
_COUNTED_OBJECT = 0x4000  # kByteCountVMask
_REFERENCED = 1 << 4  # kIsReferenced
_U32 = struct.Struct(">I")
_I32 = struct.Struct(">i")
_U16 = struct.Struct(">H")
_BEGIN = struct.Struct(">IHIHHII")
"""The first bytes of a TBranch: its byte count and version, those of its TNamed, the TObject."""

_BEFORE_BRANCHES = {11: ((68,), ()), 12: ((68,), ()), 13: ((24,), (44,))}
"""Bytes of the numbers in a TBranch between TAttFill and fBranches, by version. In version 13
fIOFeatures lies between the two groups."""


ClassName = Callable[[int], str]
"""Returns the name of a class from the place of its tag, as ROOT counts places."""


class UnexpectedLayoutError(Exception):
    """The bytes are not laid out as expected here."""


_UNEXPECTED = (UnexpectedLayoutError, struct.error, IndexError, ValueError)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the elements of an array begin, and where the last one ends; indices into ``data``.

    The elements are branches, or the leaves of a tree, which are references to objects read before.
    """

    data: bytes
    begins: list[int]
    end: int
    are_branches: bool


@dataclass(frozen=True, slots=True)
class BranchOutline:
    """The name of a branch, and the outlines of the branches in it."""

    name: str
    inside: tuple["BranchOutline", ...] = ()


def places(data: bytes, at: int, class_name: ClassName, *, of_tree: bool) -> Places | None:
    """Return where the elements of an array begin, if they are branches or the leaves of a tree.

    Parameters
    ----------
    data, at
        The bytes, and the place of the array's TObject.
    class_name
        Returns the names of classes.
    of_tree
        Whether the array belongs to a tree, and not to a branch.
    """
    try:
        at, count = _array_head(data, at)
        if count == 0:
            return None
        reference = not _U32.unpack_from(data, at)[0] & _COUNTED
        are_branches = not reference and _class_at(data, at, class_name).startswith("TBranch")
        if not (of_tree or are_branches):
            return None
        return Places(data, *_step(data, at, count), are_branches)
    except _UNEXPECTED:
        return None


def peek_branch(data: bytes, at: int, class_name: ClassName) -> BranchOutline | None:
    """Return the outline of the branch whose byte count is at a place; None if it is unexpected."""
    try:
        return _outline(data, at, class_name)
    except _UNEXPECTED:
        return None


def class_name_at(data: bytes, at: int) -> str:
    """Return the name of the class whose tag is at a place.

    Raises
    ------
    UnexpectedLayoutError
        There is no class tag at this place.
    """
    if not 0 <= at < len(data) - 4 or _U32.unpack_from(data, at)[0] != _NEW_CLASS:
        raise UnexpectedLayoutError
    return _name_at(data, at + 4)


def _name_at(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def _array_head(data: bytes, at: int) -> tuple[int, int]:
    """Return the place of the first element of a TObjArray, and the number of elements.

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
            raise UnexpectedLayoutError  # an object without its byte count
        at += 4 + (head & ~_COUNTED if head & _COUNTED else 0)
    if at > len(data):
        raise UnexpectedLayoutError
    return begins, at


def _class_at(data: bytes, at: int, class_name: ClassName) -> str:
    """Return the class name of the object at a place."""
    if not _U32.unpack_from(data, at)[0] & _COUNTED:
        raise UnexpectedLayoutError
    tag = _U32.unpack_from(data, at + 4)[0]
    if tag == _NEW_CLASS:
        return _name_at(data, at + 8)
    if not tag & _CLASS:
        raise UnexpectedLayoutError
    return class_name(tag & ~_CLASS)


def _outline(data: bytes, at: int, class_name: ClassName) -> BranchOutline:
    kind = _class_at(data, at, class_name)
    at += 8 + (len(kind) + 1 if _U32.unpack_from(data, at + 4)[0] == _NEW_CLASS else 0)
    if kind == "TBranchElement":
        at += 6  # skip its own byte count and version: it begins with its TBranch
    elif kind != "TBranch":
        raise UnexpectedLayoutError
    _, version, named, _, object_version, _, bits = _BEGIN.unpack_from(data, at)
    if version not in _BEFORE_BRANCHES or not named & _COUNTED or object_version & _COUNTED_OBJECT:
        raise UnexpectedLayoutError
    name = _text(data, at + _BEGIN.size + (2 if bits & _REFERENCED else 0))
    before, after = _BEFORE_BRANCHES[version]
    at = _after_counted(data, at + 10 + (named & ~_COUNTED)) + before[0]
    if after:
        at = _after_counted(data, at) + after[0]
    first, count = _array_head(data, at + 6)
    if not count:
        return BranchOutline(name)
    begins, _ = _step(data, first, count)
    return BranchOutline(name, tuple(_outline(data, begin, class_name) for begin in begins))


def _after_counted(data: bytes, at: int) -> int:
    count = _U32.unpack_from(data, at)[0]
    if not count & _COUNTED:
        raise UnexpectedLayoutError
    return int(at + 4 + (count & ~_COUNTED))


def _after_object(data: bytes, at: int) -> int:
    """Return where a TObject ends: version, unique id and bits, and a process id if referenced."""
    if _U16.unpack_from(data, at)[0] & _COUNTED_OBJECT:
        raise UnexpectedLayoutError
    bits = _U32.unpack_from(data, at + 6)[0]
    return at + (12 if bits & _REFERENCED else 10)


def _after_text(data: bytes, at: int) -> int:
    return at + 5 + _U32.unpack_from(data, at + 1)[0] if data[at] == 0xFF else at + 1 + data[at]  # noqa: PLR2004


def _text(data: bytes, at: int) -> str:
    begin = at + (5 if data[at] == 0xFF else 1)  # noqa: PLR2004
    return data[begin : _after_text(data, at)].decode(errors="surrogateescape")
