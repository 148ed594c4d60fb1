"""How a tree and its branches lie in bytes: where each begins, and what it is called.

On disk each object is preceded by its byte count, so one can be stepped over without being parsed.
Places are as in ROOT's TBufferFile::ReadObjectAny and TBranch version 11 to 13; whatever looks
different is left to uproot.
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
"""How a TBranch begins: count and version of its own, those of its TNamed, and the TObject."""

_BEFORE_BRANCHES = {11: ((68,), ()), 12: ((68,), ()), 13: ((24,), (44,))}
"""Bytes of numbers in a TBranch between TAttFill and fBranches, by version; 13 has fIOFeatures
between the two groups."""


ClassName = Callable[[int], str]
"""Gives the name of a class that was introduced before, by its place as ROOT counts them."""


class OddError(Exception):
    """The bytes are not laid out as expected here."""


_ODD = (OddError, struct.error, IndexError, ValueError)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the elements of an array begin, and where the last one ends; indices into ``data``.

    Besides branches those of the leaves of a tree, which are but references to what was read.
    """

    data: bytes
    begins: list[int]
    end: int
    are_branches: bool


@dataclass(frozen=True, slots=True)
class Glance:
    """What a look tells of a branch: its name, and those of the branches in it."""

    name: str
    inside: tuple["Glance", ...] = ()


def places(data: bytes, at: int, class_name: ClassName, *, of_tree: bool) -> Places | None:
    """Return where the elements of an array begin, if they are branches, or the leaves of a tree.

    Parameters
    ----------
    data, at
        The bytes, and the place of the array's TObject.
    class_name
        Gives the names of classes.
    of_tree
        Whether the array is a tree's own, and not a branch's.
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
    except _ODD:
        return None


def glance(data: bytes, at: int, class_name: ClassName) -> Glance | None:
    """Look at a branch that begins at a place with its byte count; None if it is odd."""
    try:
        return _glance(data, at, class_name)
    except _ODD:
        return None


def introduced(data: bytes, at: int) -> str:
    """Return the name of the class that is introduced at a place.

    Raises
    ------
    OddError
        None is.
    """
    if not 0 <= at < len(data) - 4 or _U32.unpack_from(data, at)[0] != _NEW_CLASS:
        raise OddError
    return _name_at(data, at + 4)


def _name_at(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


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
            raise OddError  # an object without its byte count
        at += 4 + (head & ~_COUNTED if head & _COUNTED else 0)
    if at > len(data):
        raise OddError
    return begins, at


def _class_at(data: bytes, at: int, class_name: ClassName) -> str:
    """Return the class of an object that is written at a place."""
    if not _U32.unpack_from(data, at)[0] & _COUNTED:
        raise OddError
    tag = _U32.unpack_from(data, at + 4)[0]
    if tag == _NEW_CLASS:
        return _name_at(data, at + 8)
    if not tag & _CLASS:
        raise OddError
    return class_name(tag & ~_CLASS)


def _glance(data: bytes, at: int, class_name: ClassName) -> Glance:
    kind = _class_at(data, at, class_name)
    at += 8 + (len(kind) + 1 if _U32.unpack_from(data, at + 4)[0] == _NEW_CLASS else 0)
    if kind == "TBranchElement":
        at += 6  # its own count and version; the TBranch comes first in it
    elif kind != "TBranch":
        raise OddError
    _, version, named, _, object_version, _, bits = _BEGIN.unpack_from(data, at)
    if version not in _BEFORE_BRANCHES or not named & _COUNTED or object_version & _COUNTED_OBJECT:
        raise OddError
    name = _text(data, at + _BEGIN.size + (2 if bits & _REFERENCED else 0))
    before, after = _BEFORE_BRANCHES[version]
    at = _after_counted(data, at + 10 + (named & ~_COUNTED)) + before[0]
    if after:
        at = _after_counted(data, at) + after[0]
    first, count = _array_head(data, at + 6)
    if not count:
        return Glance(name)
    begins, _ = _step(data, first, count)
    return Glance(name, tuple(_glance(data, begin, class_name) for begin in begins))


def _after_counted(data: bytes, at: int) -> int:
    count = _U32.unpack_from(data, at)[0]
    if not count & _COUNTED:
        raise OddError
    return int(at + 4 + (count & ~_COUNTED))


def _after_object(data: bytes, at: int) -> int:
    """Return where a TObject ends: version, unique id and bits, and a process id if referenced."""
    if _U16.unpack_from(data, at)[0] & _COUNTED_OBJECT:
        raise OddError
    bits = _U32.unpack_from(data, at + 6)[0]
    return at + (12 if bits & _REFERENCED else 10)


def _after_text(data: bytes, at: int) -> int:
    return at + 5 + _U32.unpack_from(data, at + 1)[0] if data[at] == 0xFF else at + 1 + data[at]  # noqa: PLR2004


def _text(data: bytes, at: int) -> str:
    begin = at + (5 if data[at] == 0xFF else 1)  # noqa: PLR2004
    return data[begin : _after_text(data, at)].decode(errors="surrogateescape")
