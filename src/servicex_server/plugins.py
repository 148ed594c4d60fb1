"""Languages, finders, stores and clusters by name, from entry points; also those built in.

The entry point groups are ``servicex_server.languages``, ``servicex_server.finders``,
``servicex_server.stores`` (by the scheme of their URLs) and ``servicex_server.clusters`` (by the
kind of the setting ``engine``). A plug-in is imported when it is first used.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from servicex_server.errors import InternalError, RequestError
from servicex_server.text.hints import did_you_mean, install

Group = Literal["languages", "finders", "stores", "clusters"]


def available(group: Group) -> dict[str, EntryPoint]:
    """Return the installed entry points of a group, by name."""
    return {point.name: point for point in entry_points(group=f"servicex_server.{group}")}


def load(group: Group, name: str, *, wire_name: str) -> Any:
    """Return the class registered under a name.

    Parameters
    ----------
    group
        The entry point group.
    name
        The name that the user asked for.
    wire_name
        The field of the request, for the error message.

    Raises
    ------
    RequestError
        The name is not installed; the hint lists the installed names.
    InternalError
        The plug-in is installed, but cannot be imported.
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
            f"{name} is installed, but cannot be imported: {error}",
            hint=install(name),
        ) from error
