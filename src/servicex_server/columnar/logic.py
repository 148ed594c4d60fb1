"""Conditions with three values: true, false and missing (Kleene's logic).

A missing value stays undecided: ``any`` of a true and a missing value is true, ``any`` of a false
and a missing value is missing. Only a cut, at the very end, treats missing as false.
"""

from typing import Any

from servicex_server.columnar import number_types, operators


def quantified(name: str, array: Any, keywords: dict[str, Any]) -> Any:
    """Return whether ``any`` or ``all`` values of lists are true; missing where undecided.

    Parameters
    ----------
    name
        ``any`` or ``all``.
    array
        Numbers or truth values in lists.
    keywords
        What awkward's function of that name takes.

    Raises
    ------
    TypeError
        The values are texts or records.
    """
    import awkward as ak

    array = operators.truth(array)
    reduce = getattr(ak, name)
    if not operators.may_miss(array):
        return reduce(array, **keywords)
    neutral = name == "all"
    result = reduce(ak.fill_none(array, neutral, axis=-1), **keywords)
    keywords = {key: value for key, value in keywords.items() if key != "mask_identity"}
    unknown = ak.any(ak.is_none(array, axis=-1), **keywords)
    return ak.mask(result, (result != neutral) | ~unknown)


def either(test: Any, yes: Any, no: Any) -> Any:
    """Choose between two values element by element; missing where the test is missing.

    Raises
    ------
    TypeError
        The two outcomes do not fit into one column.
    """
    import awkward as ak
    import numpy as np

    if any(one is None for one in (test, yes, no)):
        raise TypeError("None is not a value here; mask(x, condition) leaves values out")
    given = [one for one in (test, yes, no) if isinstance(one, ak.Array)]
    kinds = {number_types.primitive(yes), number_types.primitive(no)}
    if "S" in kinds:
        if len(kinds) > 1:
            raise TypeError("the two outcomes of a condition have different types")
        yes, no = (_text(one, given) for one in (yes, no))
    else:
        yes, no = operators.alike(yes, no)
    if not isinstance(test, ak.Array):
        if not given:
            return yes if test else no
        test = ak.Array(np.full(len(given[0]), bool(test)))
    test = operators.truth(test)
    deepest = max(given, key=lambda one: one.ndim)
    if deepest.ndim > test.ndim and kinds <= set("biuf"):
        # awkward would replace a whole list by a constant
        test = ak.broadcast_arrays(test, deepest)[0]
    result = ak.where(operators.known(test), yes, no)
    return ak.mask(result, ~ak.is_none(test, axis=-1)) if operators.may_miss(test) else result


def _text(value: Any, given: list[Any]) -> Any:
    """Return a constant text as a column as long as the given columns, if there are any."""
    import awkward as ak
    import numpy as np

    if not isinstance(value, str) or not given:
        return value
    return ak.Array([value])[np.zeros(len(given[0]), np.int64)]
