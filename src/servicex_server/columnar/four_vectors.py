"""Momenta of two and four dimensions in columns, by the package vector, and plain records.

They are computed in 64 bits: a mass is a small difference of large numbers.
Only the names listed here are properties of a momentum; every other name is that of a field.
"""

from typing import Any

from servicex_server.columnar import operators

PROPERTIES = frozenset(
    (
        "px py pz E e energy x y z t pt pt2 rho rho2 eta phi theta p p2 mag mag2 mass mass2 m M "
        "m2 M2 tau tau2 Et et Mt mt rapidity beta gamma costheta cottheta"
    ).split()
)
"""Properties of a four-vector."""

METHODS = frozenset(("deltaR", "deltaR2", "deltaphi", "deltaeta", "deltaangle", "dot"))
"""Methods that take two four-vectors."""

_AXES = (("px", "x"), ("py", "y")), (("pt", "rho"), ("phi",))
_LENGTH = ("pz", "z", "eta", "theta")
_TIME = ("E", "e", "energy", "t", "mass", "M", "m", "tau")
_COORDINATES = frozenset((*_AXES[0][0], *_AXES[0][1], *_AXES[1][0], *_AXES[1][1], *_LENGTH, *_TIME))
_NAMES = ("Momentum2D", "Momentum4D")


def _behavior() -> Any:
    from vector.backends import awkward

    return awkward.behavior


def momenta(array: Any) -> Any:
    """Return records as momenta: of two dimensions if they have no length, else of four.

    Raises
    ------
    TypeError
        The fields are not those of a momentum.
    """
    import awkward as ak

    names = set(array.fields)
    transverse = any(all(names & set(axis) for axis in pair) for pair in _AXES)
    length, time = bool(names & set(_LENGTH)), bool(names & set(_TIME))
    if not transverse or length != time:
        raise TypeError(
            "a four-momentum needs px, py, pz, E or pt, eta, phi, mass, one of two dimensions "
            f"px, py or pt, phi; this record has {', '.join(sorted(names)) or 'no names'}"
        )
    name = "Momentum4D" if length else "Momentum2D"
    return ak.with_name(_of_64_bits(array), name, behavior=_behavior())


def _of_64_bits(array: Any) -> Any:
    """Return records whose coordinates have 64 bits."""
    import awkward as ak

    def widened(layout: Any, **_: Any) -> Any:
        if not layout.is_record:
            return None
        contents = [
            ak.values_astype(content, "float64", highlevel=False)
            if name in _COORDINATES
            else content
            for name, content in zip(layout.fields, layout.contents, strict=True)
        ]
        return layout.copy(contents=contents)

    return ak.transform(widened, array)


def is_momentum(array: Any) -> bool:
    """Whether the values of an array, or of the lists in it, are momenta."""
    layout = array.layout
    while not (layout.is_numpy or layout.is_record or layout.is_union or layout.is_unknown):
        layout = layout.content
    return bool(layout.is_record and layout.parameter("__record__") in _NAMES)


def components(array: Any) -> dict[str, Any] | None:
    """Return the Cartesian components of momenta as numbers of 64 bits; None if some are missing.

    They are those that vector adds up: t, z, x, y, of two dimensions x, y.
    """
    import awkward as ak

    momenta_of_4 = array.layout.purelist_parameter("__record__") == _NAMES[1]
    values = {name: getattr(array, name) for name in ("tzxy" if momenta_of_4 else "xy")}
    if any(ak.any(ak.is_none(one)) for one in values.values()):
        return None
    return {name: ak.to_numpy(ak.drop_none(one)).astype("f8") for name, one in values.items()}


def from_components(values: dict[str, Any]) -> Any:
    """Return momenta that have these of the `components`."""
    import awkward as ak

    return ak.zip(values, with_name=_NAMES["t" in values], behavior=_behavior())


def part(array: Any, name: str) -> Any:
    """Return a field of records or a property of four-vectors.

    Raises
    ------
    TypeError
        The array has neither a field nor a property of this name.
    """
    if name in array.fields:
        return array[name]
    if name in PROPERTIES and is_momentum(array):
        try:
            return getattr(array, name)
        except AttributeError:
            raise TypeError(f"a momentum of two dimensions has no {name}") from None
    there = f"its parts are {', '.join(array.fields)}" if array.fields else "it is not a record"
    raise TypeError(f"this value has no {name}; {there}")


def method(name: str, one: Any, other: Any) -> Any:
    """Return one of `METHODS` of two four-vectors."""
    if not all(hasattr(side, "layout") and is_momentum(side) for side in (one, other)):
        raise TypeError(f"{name} needs two four-vectors")
    try:
        return getattr(one, name)(other)
    except AttributeError:
        raise TypeError(f"{name} needs four-vectors, and one has two dimensions") from None


def binary(symbol: str, one: Any, other: Any) -> Any:
    """Apply an operator: to four-vectors as vector does, to other values as Python does."""
    sides = [hasattr(side, "layout") and is_momentum(side) for side in (one, other)]
    if not any(sides):
        return operators.binary(symbol, one, other)
    if all(sides) and symbol in "+-":
        return one + other if symbol == "+" else one - other
    if symbol == "*" or (symbol == "/" and sides[0]):
        return one * other if symbol == "*" else one / other
    raise TypeError(f"four-vectors cannot be combined by {symbol}")


def unnamed(array: Any) -> Any:
    """Return an array whose four-vectors are plain records, as files hold them."""
    import awkward as ak

    return ak.with_name(array, None) if is_momentum(array) else array
