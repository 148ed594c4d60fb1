"""Finding implementations by name: ours and anyone's, by the same entry points.

Groups are ``servicex_server.languages`` and ``servicex_server.finders``. Nothing is imported
before it is asked for.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from servicex_server.errors import InternalError, RequestError, did_you_mean

Group = Literal["languages", "finders"]


def available(group: Group) -> dict[str, EntryPoint]:
    """Return what is installed of a kind, by name."""
    return {point.name: point for point in entry_points(group=f"servicex_server.{group}")}


def load(group: Group, name: str, *, wire_name: str) -> Any:
    """Return the class registered under a name.

    Parameters
    ----------
    group
        The kind of thing.
    name
        What the user asked for.
    wire_name
        What to call it in the error.

    Raises
    ------
    RequestError
        There is none of that name; says which there are.
    InternalError
        It is installed but cannot be imported.
    """
    known = available(group)
    if name not in known:
        raise RequestError(
            f"{wire_name}: {name!r} is not supported here",
            hint=did_you_mean(name, sorted(known), otherwise="supported are"),
        )
    try:
        return known[name].load()
    except ImportError as error:
        raise InternalError(
            f"{name} is installed but cannot be loaded: {error}",
            hint=f"pip install 'servicex-server[{name}]'",
        ) from error
