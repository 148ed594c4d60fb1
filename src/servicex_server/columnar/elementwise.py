"""Functions and operators on the values of loops, element by element in the innermost frame."""

from collections.abc import Callable
from typing import Any

from servicex_server.columnar import arithmetic, functions
from servicex_server.columnar.frames import (
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
    """Return what a function gets: a constant as it is, everything else as an array."""
    return value.value if isinstance(value, Scalar) else array_of(value, frame)


def result_of(name: str, arguments: list[Any], frame: Frame) -> Value:
    """Return what a function of the list gives, which has to be one value for every turn."""
    import awkward as ak
    import numpy as np

    if name == "round" and arithmetic.primitive(arguments[0]) in ("i", "u"):
        result = arguments[0]
    else:
        if name in functions.ELEMENTWISE:
            arguments = _of_64_bits(arguments)
        result = functions.call(name, arguments, {}, standard_axis=False)
    if isinstance(result, bool | int | float | np.generic | np.ndarray):
        if any(isinstance(one, ak.Array | list) for one in arguments):
            raise TypeError(f"{name} gives one number for all events together")
        return Scalar(result if isinstance(result, bool | int | float) else result.item())
    if isinstance(result, tuple | list):
        fields = {str(at): ready(_sized(name, one, frame)) for at, one in enumerate(result)}
        return Parts(frame, fields, is_tuple=True)
    return _sized(name, result, frame)


def _of_64_bits(arguments: list[Any]) -> list[Any]:
    """Return what numpy's functions do not make floats of 16 bits of, which no format holds."""
    import awkward as ak

    columns = any(isinstance(one, ak.Array) for one in arguments)
    # beside a column a constant has no width
    return [
        arithmetic.widened(one) if isinstance(one, ak.Array) or not columns else one
        for one in arguments
    ]


def ready(value: Value) -> Later:
    """Return a value that need not be computed as one that may."""
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
    """Return an array whose lists are lists also where all are as long: they broadcast alike."""
    import awkward as ak

    if not isinstance(array, ak.Array) or not is_list(array):
        return array
    return ak.from_regular(array, axis=None)


def either(test: Any, yes: Any, no: Any) -> Any:
    """Choose element by element; where the test is missing, the result is."""
    import awkward as ak
    import numpy as np

    given = [one for one in (test, yes, no) if isinstance(one, ak.Array)]
    kinds = {arithmetic.primitive(yes), arithmetic.primitive(no)}
    if "S" in kinds:
        if len(kinds) > 1:
            raise TypeError("the two outcomes of a condition have different types")
        yes, no = (_text(one, given) for one in (yes, no))
    else:
        yes, no = arithmetic.alike(yes, no)
    if not isinstance(test, ak.Array):
        if not given:
            return yes if test else no
        test = ak.Array(np.full(len(given[0]), bool(test)))
    test = arithmetic.truth(test)
    missing = arithmetic.may_miss(test)
    result = ak.where(ak.fill_none(test, False, axis=-1) if missing else test, yes, no)  # noqa: FBT003
    return ak.mask(result, ~ak.is_none(test, axis=-1)) if missing else result


def _text(value: Any, given: list[Any]) -> Any:
    """Return a constant text as a column as long as those that are given, if there are any."""
    import awkward as ak
    import numpy as np

    if not isinstance(value, str) or not given:
        return value
    return ak.Array([value])[np.zeros(len(given[0]), np.int64)]


def lesser(name: str, one: Any, other: Any) -> Any:
    """Return the lesser or greater of two values, element by element."""
    import numpy as np

    one, other = arithmetic.alike(one, other)
    return (np.minimum if name == "min" else np.maximum)(one, other)


def seeded(symbol: str, seed: Any, total: Any) -> Any:
    """Return a sum, product or extreme together with the value it starts from."""
    import awkward as ak

    if symbol in ("min", "max"):
        # nothing to compare with is the seed itself
        missing = ak.is_none(total, axis=0)
        filled = ak.fill_none(total, 0, axis=0)
        return either(missing, seed, lesser(symbol, seed, filled))
    return arithmetic.binary(symbol, seed, total)
