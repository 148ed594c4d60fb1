"""The rule that an expression must not mix events.

A file is read in ranges of events, and the ranges depend on its baskets and on the memory of the
worker. The first axis of every column is that of the events. An operation keeps it if the value of
an event depends on that event alone; any other operation would give another result for another
range, so it is refused. `check_call` and `check_subscript` decide this from the `Kind` of each
operand. The depth of a column is unknown until a file is opened; until then an operation passes
whose check needs the depth. The evaluator checks it again with the arrays of the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from servicex_server.columnar import number_types


class EventsMixedError(TypeError):
    """An operation would combine values of several events.

    Parameters
    ----------
    message
        What the operation does.
    hint
        What to write instead.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class _Unknown:
    """A constant whose value has not been computed."""


UNKNOWN: Final = _Unknown()


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is the same for all events."""

    value: Any = UNKNOWN


@dataclass(frozen=True, slots=True)
class Column:
    """One value, list or record for each event.

    ``depth`` is the least number of axes, with that of the events; None while no file is known.
    ``optional`` is true if the value of an event may be missing.
    """

    depth: int | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Several:
    """A list of values: arguments, field names, or the results of ``broadcast_arrays``."""

    items: tuple["Kind", ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A slice; ``whole`` if it takes everything."""

    whole: bool
    constant: bool = True


Kind: TypeAlias = Constant | Column | Several | Stretch


def kind_of(value: Any) -> Kind:
    """Return the kind of a computed value."""
    import awkward as ak

    match value:
        case ak.Array():
            return Column(value.layout.minmax_depth[0], _is_optional(value.layout))
        case tuple() | list():
            return Several(tuple(map(kind_of, value)))
        case dict():
            return Several(tuple(map(kind_of, value.values())))
        case slice():
            parts = (value.start, value.stop, value.step)
            constant = not any(isinstance(part, ak.Array) for part in parts)
            return Stretch(constant and parts in ((None,) * 3, (None, None, 1)), constant)
        case _:
            return Constant(value)


def _is_optional(layout: Any) -> bool:
    while layout.is_indexed and not layout.is_option:
        layout = layout.content
    return bool(layout.is_option)


@dataclass(frozen=True, slots=True)
class Signature:
    """The parameters of a function that is not elementwise.

    ``positional`` are the names of its parameters in order, ``named`` those of the parameters that
    are given by name only, and ``columns`` the names of those that may be columns. ``default`` is
    the axis without ``axis=``, and ``standard`` that of awkward. ``least`` is the lowest axis along
    which the events stay apart.
    """

    positional: tuple[str, ...]
    named: tuple[str, ...] = ()
    columns: frozenset[str] = field(default=frozenset(("array", "x")))
    default: int | None = 1
    standard: int | None = 1
    least: int = 1

    @property
    def has_axis(self) -> bool:
        """Whether the function works along an axis."""
        return "axis" in self.positional or "axis" in self.named


def _signature(positional: str, named: str = "", **more: Any) -> Signature:
    if columns := more.pop("columns", ""):
        more["columns"] = frozenset(columns.split())
    return Signature(tuple(positional.split()), tuple(named.split()), **more)


_KEEP = "keepdims mask_identity"
_WEIGHTED = {"standard": None, "columns": "x weight"}
_ROWS = {"columns": "arrays"}
ROW_OF_ARRAYS = frozenset(
    ("concatenate", "cartesian", "argcartesian", "broadcast_arrays", "broadcast_fields")
)
"""Parameters of functions that take several columns as a list."""

SIGNATURES: Mapping[str, Signature] = {
    **dict.fromkeys(
        "count count_nonzero sum nansum prod nanprod any all".split(),
        _signature("array axis", _KEEP, standard=None),
    ),
    **dict.fromkeys(
        "argmin nanargmin argmax nanargmax".split(),
        _signature("array axis", _KEEP, standard=None),
    ),
    **dict.fromkeys(
        "min nanmin max nanmax".split(),
        _signature("array axis", f"{_KEEP} initial", standard=None),
    ),
    **dict.fromkeys("mean nanmean".split(), _signature("x weight axis", _KEEP, **_WEIGHTED)),
    **dict.fromkeys(
        "var nanvar std nanstd".split(), _signature("x weight ddof axis", _KEEP, **_WEIGHTED)
    ),
    "moment": _signature("x n weight axis", _KEEP, **_WEIGHTED),
    "softmax": _signature("x axis", _KEEP, standard=-1),
    **dict.fromkeys(
        ("sort", "argsort"),
        _signature("array axis", "ascending stable", default=-1, standard=-1),
    ),
    "num": _signature("array axis"),
    "flatten": _signature("array axis", default=2, least=2),
    "firsts": _signature("array axis"),
    "pad_none": _signature("array target axis", "clip"),
    "fill_none": _signature("array value axis", default=-1, standard=-1, least=0),
    "is_none": _signature("array axis", default=0, standard=0, least=0),
    "singletons": _signature("array axis", default=0, standard=0, least=0),
    "drop_none": _signature("array axis", default=None, standard=None),
    "concatenate": _signature("arrays axis", "mergebool", standard=0, **_ROWS),
    **dict.fromkeys(("cartesian", "argcartesian"), _signature("arrays axis", "nested", **_ROWS)),
    **dict.fromkeys(
        ("combinations", "argcombinations"), _signature("array n", "replacement axis fields")
    ),
    "mask": _signature("array mask", "valid_when", columns="array mask"),
    "where": _signature("condition x y", "mergebool", columns="condition x y"),
    "isclose": _signature("a b rtol atol equal_nan", columns="a b"),
    "almost_equal": _signature("left right", "rtol atol", columns="left right"),
    "broadcast_arrays": _signature("", **_ROWS),
    "broadcast_fields": _signature("", **_ROWS),
}
"""All functions that are not elementwise."""


def compares(name: str, arguments: Sequence[Kind], keywords: Mapping[str, Kind]) -> bool:
    """Whether ``min`` or ``max`` compares values; a whole number as second argument is an axis."""
    if name not in ("min", "max") or keywords or len(arguments) < 2:  # noqa: PLR2004
        return False
    second = arguments[1]
    axis = isinstance(second, Constant) and (
        second.value is None or number_types.is_whole(second.value)
    )
    return len(arguments) > 2 or not axis  # noqa: PLR2004


def bound(name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a function by the names of its parameters.

    Raises
    ------
    TypeError
        There are too many arguments, an argument is given twice, or the function has no such
        parameter.
    """
    signature = SIGNATURES[name]
    if not signature.positional:  # broadcast_arrays(x, y)
        if keywords:
            raise TypeError(f"{name} takes no argument {next(iter(keywords))}")
        row = arguments[0] if len(arguments) == 1 else None
        return {"arrays": row if isinstance(row, Several) else Several(tuple(arguments))}
    if len(arguments) > len(signature.positional):
        raise TypeError(
            f"{name} takes {len(signature.positional)} arguments at most: "
            f"{', '.join(signature.positional)}"
        )
    given = dict(zip(signature.positional, arguments, strict=False))
    for key, value in keywords.items():
        if key in given:
            raise TypeError(f"{name} has the argument {key} twice")
        if key not in signature.positional and key not in signature.named:
            raise TypeError(
                f"{name} takes no argument {key}, but "
                f"{', '.join((*signature.positional, *signature.named))}"
            )
        given[key] = value
    return given


def axis_of(name: str, given: Mapping[str, Any], *, standard_axis: bool) -> Any:
    """Return the axis along which a function works, given or by default."""
    signature = SIGNATURES[name]
    return given.get("axis", signature.standard if standard_axis else signature.default)


def check_call(
    name: str,
    arguments: Sequence[Kind],
    keywords: Mapping[str, Kind],
    *,
    standard_axis: bool,
) -> Kind:
    """Return the kind of the result of a function of `SIGNATURES`, if it keeps events apart.

    Raises
    ------
    EventsMixedError
        The call would mix events.
    TypeError
        The function does not take these arguments.
    """
    given = bound(name, arguments, keywords)
    signature = SIGNATURES[name]
    for parameter, kind in given.items():
        _check_argument(name, parameter, kind, signature)
    if name == "almost_equal":
        raise EventsMixedError(
            "almost_equal gives one truth value for all events together",
            "isclose(a, b) compares number by number",
        )
    if name == "where" and len(given) - ("mergebool" in given) != len(signature.positional):
        raise EventsMixedError(
            "where with a condition alone gives positions of events in a range of the file",
            "where(condition, x, y) chooses between two values",
        )
    if signature.has_axis:
        subject = given.get(signature.positional[0], Constant())
        axis = axis_of(name, given, standard_axis=standard_axis)
        axis = axis.value if isinstance(axis, Constant) else axis
        _check_axis(name, axis, subject, signature)
    if name in ("broadcast_arrays", "broadcast_fields"):
        row = given["arrays"]
        assert isinstance(row, Several)  # noqa: S101  # made above
        return Several(tuple(Column() for _ in row.items))
    return Column()


def _check_argument(name: str, parameter: str, kind: Kind, signature: Signature) -> None:
    if parameter not in signature.columns:
        if not _is_constant(kind):
            why = f"{parameter} of {name} must be a constant, not a column"
            if parameter == "value":
                raise EventsMixedError(why, "where(is_none(x), y, x) takes y where x is missing")
            raise EventsMixedError(why, "a function works in the same way on each event")
        return
    if parameter == "arrays":
        if not isinstance(kind, Several) or any(isinstance(one, Several) for one in kind.items):
            raise TypeError(f"{name} takes several columns, as in {name}([x, y])")
    elif isinstance(kind, Several | Stretch):
        raise EventsMixedError(
            f"{parameter} of {name} cannot be a list: its items would be taken for events",
            f"{name} takes a column of the file or what is computed of one",
        )


def _is_constant(kind: Kind) -> bool:
    if isinstance(kind, Several):
        return all(map(_is_constant, kind.items))
    return isinstance(kind, Constant)


def _check_axis(name: str, axis: Any, subject: Kind, signature: Signature) -> None:
    if axis is UNKNOWN:
        return  # the axis is known only when it is computed
    least = signature.least
    columns = [one for one in _parts(subject) if isinstance(one, Column)]
    if axis is None:
        if least == 0 or (name == "drop_none" and not any(one.optional for one in columns)):
            return
        what = "would drop events" if name == "drop_none" else "combines all events"
        raise EventsMixedError(f"{name} with axis=None {what}", _axis_hint(name, least))
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(f"axis of {name} must be a whole number, not {axis!r}")
    if least == 0 or axis >= least:
        return
    if axis >= 0:
        what = "joins the lists of several events" if axis else "works across events"
        raise EventsMixedError(f"{name} with axis={axis} {what}", _axis_hint(name, least))
    for one in columns:
        if one.depth is not None and one.depth + axis < least:
            lists = "one value" if one.depth == 1 else f"lists of depth {one.depth - 1}"
            raise EventsMixedError(
                f"{name} with axis={axis} works across events here: the column has {lists} per "
                "event",
                _axis_hint(name, least),
            )


def _parts(kind: Kind) -> Sequence[Kind]:
    return kind.items if isinstance(kind, Several) else (kind,)


def _axis_hint(name: str, least: int) -> str:
    if name == "flatten":
        return "axis=2 joins the lists of lists of each event"
    if name == "drop_none":
        return "axis=1 drops missing elements of lists; ~is_none(x) as a cut drops events"
    if name in ("min", "max"):
        return f"axis=1 works within each event, and f{name}(x, 0) compares with a number"
    if name == "firsts":
        return "axis=1 takes the first element of each event"
    return f"axis={least} works within each event"


def check_subscript(value: Kind, index: Kind) -> Kind:
    """Return the kind of ``value[index]``, if it keeps events apart.

    Raises
    ------
    EventsMixedError
        The subscript would take some of the events, or values of other events.
    TypeError
        The value has no elements to take.
    """
    if isinstance(value, Several):
        at = index.value if isinstance(index, Constant) else None
        if at is UNKNOWN:
            return Column()
        if not isinstance(at, int) or not -len(value.items) <= at < len(value.items):
            raise TypeError(f"there are {len(value.items)} columns here; [0] is the first")
        return value.items[at]
    if not isinstance(value, Column):
        raise TypeError("a constant has no elements")
    parts = [one for one in _parts(index) if not _is_field(one)]
    for part in parts:
        if isinstance(part, Stretch) and not part.constant:
            raise EventsMixedError(
                "the ends of a slice must be constants, not columns",
                "x[mask] with a mask of the same lists takes other elements in each event",
            )
    if any(isinstance(part, Column) for part in parts):
        _check_array(value, parts)
    elif parts:
        _check_first(value, parts)
    return Column()


def _is_field(part: Kind) -> bool:
    if isinstance(part, Several):
        return bool(part.items) and all(map(_is_field, part.items))
    return isinstance(part, Constant) and isinstance(part.value, str)


_KEEPDIMS = "x[argmax(y, keepdims=True)] takes one element per event, x[y > 0] some of them"


def _check_array(value: Column, parts: Sequence[Kind]) -> None:
    """Refuse an index array that does not select within each event."""
    if len(parts) > 1:
        raise EventsMixedError(
            "a column beside other positions takes values across events", _KEEPDIMS
        )
    index = parts[0]
    if isinstance(index, Column) and index.depth == 1:
        raise EventsMixedError(
            "an index with one value per event takes events, not elements of an event",
            f"{_KEEPDIMS}; a cut takes events, and where(condition, x, y) keeps them all",
        )
    if value.depth == 1:
        raise TypeError("an index with lists does not fit a column with one value per event")


def _check_first(value: Column, parts: Sequence[Kind]) -> None:
    """Check constant positions and slices: the first must keep all events."""
    first = parts[0]
    ellipsis = [
        at for at, one in enumerate(parts) if isinstance(one, Constant) and one.value is Ellipsis
    ]
    if ellipsis:
        taken = sum(
            not (isinstance(one, Constant) and one.value is None)
            for one in parts[ellipsis[0] + 1 :]
        )
        if value.depth is not None and ellipsis[0] == 0 and taken >= value.depth:
            raise EventsMixedError(
                "positions after ... reach the axis of events here: the column has "
                f"{value.depth - 1} axes in each event",
                "x[:, 0] takes the first element of each event",
            )
        if ellipsis[0] == 0:
            return
    if isinstance(first, Stretch):
        if not first.whole:
            raise EventsMixedError(
                "a slice takes some events, or another order of them",
                "x[:, 1:] slices the list of each event; a cut takes events",
            )
    elif isinstance(first, Constant) and first.value is UNKNOWN:
        return
    else:
        raise EventsMixedError(
            "a position takes one event, or the same events for all",
            "firsts(x) takes the first element of each event, x[:, 1] the second",
        )
    if sum(isinstance(one, Several) for one in parts) > 1:
        raise EventsMixedError(
            "several lists of positions in one subscript change the order of axes",
            "write one subscript after the other",
        )
