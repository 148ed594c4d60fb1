"""Choice of the cluster by the settings."""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from servicex_server import plugins
from servicex_server.clusters.contract import Cluster
from servicex_server.errors import StartupError
from servicex_server.settings.clusters import EngineOptions, PluginOptions
from servicex_server.text.hints import did_you_mean


def cluster_of(options: EngineOptions, *, memory: int, folder: Path) -> Cluster:
    """Return the cluster that the settings name, without starting it.

    Parameters
    ----------
    options
        The setting ``engine``.
    memory
        Bytes that one worker may use.
    folder
        The data folder of the service.

    Raises
    ------
    StartupError
        An option of a plug-in is invalid, or the cluster needs a package or a program that is
        missing; the hint says how to get it.
    """
    known = plugins.available("clusters")
    if options.kind not in known:  # the source is newer than the installation
        raise StartupError(
            f"engine.kind: {options.kind} is not registered", hint="install the package again"
        )
    kind: type[Cluster] = known[options.kind].load()
    checked: BaseModel = options
    if isinstance(options, PluginOptions):
        try:
            checked = kind.Options.model_validate(options.model_dump())
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                hint = did_you_mean(name, kind.Options.model_fields)
                raise StartupError(f"there is no setting engine.{name}", hint=hint) from None
            said = first["msg"].removeprefix("Value error, ")
            raise StartupError(f"setting engine.{name}: {said}") from None
    return kind.from_settings(checked, memory=memory, folder=folder)
