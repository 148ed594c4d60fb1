"""Functions and operators on the values of loops, element by element in the innermost frame."""

from collections.abc import Callable
from typing import Any

from servicex_server.columnar import functions, logic, number_types, operators
from servicex_server.columnar.loop_frames import (
    Column,
    Entries,
    Frame,
    Later,
    Parts,
    Scalar,
    Value,
    array_of,
    described,
    is_list,
)


def column(frame: Frame, array: Any) -> Column:
    """Return an array as a column of a frame."""
    import awkward as ak

    return Column(frame, ak.Array(array))


def deepest(values: Any) -> Frame:
    """Return the innermost frame of some values; the outermost for constants alone."""
    frames = [value.frame for value in values if not isinstance(value, Scalar)]
    return max(frames, key=lambda frame: frame.depth, default=Frame(1))


def argument(value: Value, frame: Frame) -> Any:
    """Return an argument as a function takes it: constants unchanged, others as arrays."""
    return value.value if isinstance(value, Scalar) else array_of(value, frame)


def result_of(name: str, arguments: list[Any], frame: Frame) -> Value:
    """Call a function and return its result, which must have one value for every turn."""
    import awkward as ak
    import numpy as np

    if name == "round" and number_types.primitive(arguments[0]) in ("i", "u"):
        result = arguments[0]
    else:
        result = functions.call(name, arguments, {}, standard_axis=False)
    if isinstance(result, bool | int | float | np.generic | np.ndarray):
        if any(isinstance(one, ak.Array | list) for one in arguments):
            raise TypeError(f"{name} gives one number for all events together")
        return Scalar(result if isinstance(result, bool | int | float) else result.item())
    if isinstance(result, tuple | list):
        fields = {str(at): ready(_sized(name, one, frame)) for at, one in enumerate(result)}
        return Parts(frame, fields, is_tuple=True)
    return _sized(name, result, frame)


def ready(value: Value) -> Later:
    """Return a value that is already computed as a `Later`."""
    return Later(lambda: value)


def _sized(name: str, result: Any, frame: Frame) -> Column:
    import awkward as ak

    array = ak.Array(result)
    if len(array) != frame.length:
        raise TypeError(f"{name} gives {len(array)} values for {frame.length}")
    return Column(frame, array)


def on_arrays(function: Callable[..., Any], *values: Value) -> Value:
    """Apply a function element by element, in the innermost frame of its arguments."""
    import numpy as np

    for value in values:
        if isinstance(value, Parts | Entries):
            raise TypeError(f"an operator cannot work on {described(value)}")
    frame = deepest(values)
    result = function(*(plain(argument(value, frame)) for value in values))
    if isinstance(result, bool | int | float | str | np.generic):
        return Scalar(result.item() if isinstance(result, np.generic) else result)
    return Column(frame, result)


def plain(array: Any) -> Any:
    """Return an array with lists of fixed length turned into lists of any length.

    Both kinds then broadcast in the same way.
    """
    import awkward as ak

    if not isinstance(array, ak.Array) or not is_list(array):
        return array
    return ak.from_regular(array, axis=None)


def seeded(symbol: str, seed: Any, total: Any) -> Any:
    """Combine a sum, product, minimum or maximum with the value that it starts from."""
    import awkward as ak

    if symbol in ("min", "max"):
        # where there is nothing to compare with, the result is the seed itself
        missing = ak.is_none(total, axis=0)
        filled = ak.fill_none(total, 0, axis=0)
        return logic.either(missing, seed, operators.lesser(symbol, seed, filled))
    return operators.binary(symbol, seed, total)
