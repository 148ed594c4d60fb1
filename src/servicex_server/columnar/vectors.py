"""Four-vectors in columns, by the package vector, and records that are none.

Only the names listed here are asked of an array; everything else is the name of a field.
"""

from typing import Any

from servicex_server.columnar import arithmetic

PROPERTIES = frozenset(
    (
        "px py pz E e energy x y z t pt pt2 rho rho2 eta phi theta p p2 mag mag2 mass mass2 m M "
        "m2 M2 tau tau2 Et et Mt mt rapidity beta gamma costheta cottheta"
    ).split()
)
"""What can be asked of a four-vector."""

METHODS = frozenset(("deltaR", "deltaR2", "deltaphi", "deltaeta", "deltaangle", "dot"))
"""What can be asked of two four-vectors."""

_AXES = (("px", "x"), ("py", "y")), (("pt", "rho"), ("phi",))
_LENGTH = ("pz", "z", "eta", "theta")
_TIME = ("E", "e", "energy", "t", "mass", "M", "m", "tau")


def _behavior() -> Any:
    from vector.backends import awkward

    return awkward.behavior


def momenta(array: Any) -> Any:
    """Return records as four-vectors.

    Raises
    ------
    TypeError
        Their fields are no four-momentum.
    """
    import awkward as ak

    names = set(array.fields)
    transverse = any(all(names & set(axis) for axis in pair) for pair in _AXES)
    if not (transverse and names & set(_LENGTH) and names & set(_TIME)):
        raise TypeError(
            "a four-momentum needs px, py, pz, E or pt, eta, phi, mass, and this has "
            f"{', '.join(sorted(names)) or 'no names'}"
        )
    return ak.with_name(array, "Momentum4D", behavior=_behavior())


def is_momentum(array: Any) -> bool:
    """Whether an array, or what lies in its lists, is four-vectors."""
    layout = array.layout
    while not (layout.is_numpy or layout.is_record or layout.is_union or layout.is_unknown):
        layout = layout.content
    return bool(layout.is_record and layout.parameter("__record__") == "Momentum4D")


def part(array: Any, name: str) -> Any:
    """Return a field of records or a property of four-vectors.

    Raises
    ------
    TypeError
        There is no such thing.
    """
    if name in array.fields:
        return array[name]
    if name in PROPERTIES and is_momentum(array):
        return getattr(array, name)
    there = f"its parts are {', '.join(array.fields)}" if array.fields else "it is no record"
    raise TypeError(f"there is no {name} in this, {there}")


def method(name: str, one: Any, other: Any) -> Any:
    """Return one of `METHODS` of two four-vectors."""
    if not all(hasattr(side, "layout") and is_momentum(side) for side in (one, other)):
        raise TypeError(f"{name} needs two four-vectors")
    return getattr(one, name)(other)


def binary(symbol: str, one: Any, other: Any) -> Any:
    """Apply an operator, to four-vectors as vector does, to all else as Python does."""
    sides = [hasattr(side, "layout") and is_momentum(side) for side in (one, other)]
    if not any(sides):
        return arithmetic.binary(symbol, one, other)
    if all(sides) and symbol in "+-":
        return one + other if symbol == "+" else one - other
    if symbol == "*" or (symbol == "/" and sides[0]):
        return one * other if symbol == "*" else one / other
    raise TypeError(f"four-vectors cannot be combined by {symbol}")


def unnamed(array: Any) -> Any:
    """Return an array whose four-vectors are plain records, as files hold them."""
    import awkward as ak

    return ak.with_name(array, None) if is_momentum(array) else array
