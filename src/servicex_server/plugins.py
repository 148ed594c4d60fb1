"""Languages, finders, stores and clusters by name, from entry points; also those built in.

The entry point groups are ``servicex_server.languages``, ``servicex_server.finders``,
``servicex_server.stores`` (by the scheme of their URLs) and ``servicex_server.clusters`` (by the
kind of the setting ``engine``). A plug-in is imported when it is first used.
"""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from servicex_server.errors import InternalError, RequestError, StartupError
from servicex_server.text.hints import did_you_mean, install

Group = Literal["languages", "finders", "stores", "clusters"]

_Options = TypeVar("_Options", bound=BaseModel)


def available(group: Group) -> dict[str, EntryPoint]:
    """Return the installed entry points of a group, by name."""
    return {point.name: point for point in entry_points(group=f"servicex_server.{group}")}


def validated(model: type[_Options], values: Mapping[str, Any], *, setting: str) -> _Options:
    """Return the options of a plug-in, from the settings.

    Parameters
    ----------
    model
        The options that the plug-in defines.
    values
        The values that the operator has set.
    setting
        The name of the setting, for the error message: ``finders.rucio``.

    Raises
    ------
    StartupError
        An option is invalid; the message names the setting.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join((setting, *map(str, first["loc"])))
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(str(first["loc"][-1]), model.model_fields)
            raise StartupError(f"there is no setting {name}", hint=hint) from None
        said = first["msg"].removeprefix("Value error, ")
        raise StartupError(f"setting {name}: {said}") from None


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
