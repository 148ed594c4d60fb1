"""Choice of the cluster by the settings."""

from pathlib import Path

from pydantic import BaseModel

from servicex_server import plugins
from servicex_server.clusters.contract import Cluster
from servicex_server.errors import StartupError
from servicex_server.settings.clusters import EngineOptions, PluginOptions


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
        checked = plugins.validated(kind.Options, options.model_dump(), setting="engine")
    return kind.from_settings(checked, memory=memory, folder=folder)
