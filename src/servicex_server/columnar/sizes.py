"""Sizes of the results of functions that return more elements than they are given.

``cartesian`` and ``combinations`` return an element for each combination, ``pad_none`` as many
elements as the query says. The size is computed before the call, because a worker that runs out of
memory is killed. If it is too large for a range of events, the range is split
(`servicex_server.columnar.plan`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from servicex_server.columnar.limits import MAX_BYTES

_ELEMENT = 8
"""Bytes of an element, or of its index."""


_room: ContextVar[float] = ContextVar("room", default=math.inf)


class RangeTooLargeError(MemoryError):
    """The result of a function would be too large for the events that are computed together.

    Parameters
    ----------
    pieces
        How many sub-ranges the events have to be split into.
    """

    def __init__(self, pieces: int) -> None:
        super().__init__(f"these events need {pieces} pieces")
        self.pieces = pieces


@contextmanager
def bounded(room: float) -> Iterator[None]:
    """Limit the bytes of a result of one function within this context.

    A function whose result would be larger raises `RangeTooLargeError`.
    """
    token = _room.set(room)
    try:
        yield
    finally:
        _room.reset(token)


def check_size(name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Refuse a call whose result would be too large for the events computed together.

    Parameters
    ----------
    name
        The function. Only functions that multiply elements are checked.
    arguments, keywords
        Its arguments.

    Raises
    ------
    RangeTooLargeError
        The result would be small enough if fewer events were computed together.
    ValueError
        The result is too large in any case; the message names its size and the limit.
    """
    match name:
        case "pad_none":
            elements = _padded(*_three(arguments, keywords, "target", 1))
            _check_most(name, elements * _ELEMENT)  # splitting would not make it smaller
        case "combinations" | "argcombinations":
            n, axis = _three(arguments, keywords, "n", 1)[1:]
            with_replacement = bool(keywords.get("replacement", False))
            elements = combined(_counts(arguments[0], axis), n, with_replacement=with_replacement)
        case "cartesian" | "argcartesian":
            elements = _multiplied(arguments, keywords)
        case _:
            return
    check_bytes(name, elements * _ELEMENT)


def check_bytes(name: str, size: float) -> None:
    """Refuse a result that is larger than `MAX_BYTES`, or than `bounded` allows.

    Raises
    ------
    RangeTooLargeError
        The result would be small enough if fewer events were computed together.
    ValueError
        The result is larger than `MAX_BYTES`; the message names its size and the limit.
    """
    if size > (room := _room.get()):
        raise RangeTooLargeError(math.ceil(min(size / room, 2**31)))
    _check_most(name, size)


def _check_most(name: str, size: float) -> None:
    if size > MAX_BYTES:
        raise ValueError(
            f"{name} would make {size / 2**30:.3g} GiB of the events computed together; "
            f"at most {MAX_BYTES >> 30} GiB"
        )


def combined(counts: Any, many: Any, *, with_replacement: bool = False) -> float:
    """Return the number of elements of all combinations of ``many`` elements of each list."""
    import numpy as np

    if not isinstance(many, int) or many < 1:
        return 0.0  # awkward raises the error
    lengths, lists = np.unique(np.asarray(counts), return_counts=True)
    ways = 0.0
    for length, times in zip(lengths.tolist(), lists.tolist(), strict=True):
        of = length + many - 1 if with_replacement and length else length
        # computed as a logarithm, because the number itself may have thousands of digits
        if of >= many:
            log = math.lgamma(of + 1) - math.lgamma(many + 1) - math.lgamma(of - many + 1)
            ways += times * (math.exp(log) if log < 300 else math.inf)  # noqa: PLR2004
    return ways * many


def _three(
    arguments: Sequence[Any], keywords: Mapping[str, Any], name: str, position: int
) -> tuple[Any, Any, Any]:
    """Return the array, the number, given by name or by position, and the axis."""
    value = keywords.get(name, arguments[position] if len(arguments) > position else None)
    return arguments[0], value, keywords.get("axis", 1)


def _padded(array: Any, target: Any, axis: Any) -> float:
    if not isinstance(target, int) or target < 0 or not hasattr(array, "layout"):
        return 0.0
    lists = _counts(array, axis)
    return float(lists.size) * target


def _multiplied(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> float:
    import numpy as np

    arrays = arguments[0]
    arrays = list(arrays.values()) if isinstance(arrays, dict) else arrays
    if not isinstance(arrays, list | tuple) or not all(hasattr(one, "layout") for one in arrays):
        return 0.0
    axis = keywords.get("axis", 1)
    counts = [_counts(one, axis).astype(np.float64) for one in arrays]
    if not counts or len({one.shape for one in counts}) > 1:
        return 0.0  # awkward raises the error that they do not fit
    return float(math.prod(counts).sum()) * len(arrays)


def _counts(array: Any, axis: Any) -> Any:
    """Return the lengths of the lists at an axis as a flat array; empty without such lists."""
    import awkward as ak
    import numpy as np

    nothing = np.zeros(0, np.int64)
    if not hasattr(array, "layout") or not isinstance(axis, int):
        return nothing
    try:
        counts = ak.num(array, axis=axis)
    except Exception:  # noqa: BLE001  # the call itself says what is wrong with it
        return nothing
    return np.asarray(ak.flatten(ak.fill_none(counts, 0, axis=-1), axis=None))
