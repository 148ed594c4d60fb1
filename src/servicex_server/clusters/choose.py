"""Choice of the cluster by the settings."""

from pathlib import Path

from servicex_server.clusters.contract import Cluster
from servicex_server.clusters.local import LocalProcesses
from servicex_server.errors import StartupError
from servicex_server.settings.clusters import (
    AddressOptions,
    EngineOptions,
    GatewayOptions,
    JobQueueOptions,
    KubernetesOptions,
    LocalOptions,
)
from servicex_server.worker.scratch import name_of_account, private_folder


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
        The cluster needs a package or a program that is missing; the hint says how to get it.
    """
    if isinstance(options, AddressOptions):
        from servicex_server.clusters.existing import ExistingScheduler

        return ExistingScheduler(options)
    if isinstance(options, JobQueueOptions):
        from servicex_server.clusters.jobqueue import JobQueue

        return JobQueue(options, memory=memory, folder=folder)
    if isinstance(options, KubernetesOptions):
        from servicex_server.clusters.kubernetes import KubernetesPods

        return KubernetesPods(options, memory=memory)
    if isinstance(options, GatewayOptions):
        from servicex_server.clusters.gateway import GatewayWorkers

        return GatewayWorkers(options, folder=folder)
    return LocalProcesses(memory=memory, scratch=_scratch_of(options, folder))


def _scratch_of(options: LocalOptions, folder: Path) -> Path:
    """Return the private folder for temporary files of workers on this machine.

    Raises
    ------
    StartupError
        The folder cannot be created.
    """
    chosen = options.scratch_folder
    try:
        if chosen is None:
            return private_folder(folder, "scratch").absolute()
        return private_folder(chosen, name_of_account()).absolute()
    except OSError as error:
        raise StartupError(
            f"the scratch folder cannot be created: {error}",
            hint="choose another with engine.scratch_folder",
        ) from error
