"""Pods of a Kubernetes cluster: a DaskCluster, which the Dask operator turns into pods."""

import asyncio
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from distributed import Client
from tornado.ioloop import IOLoop

from servicex_server.engines.clusters import (
    CONFIG,
    NANNY_MEMORY,
    Managed,
    extra,
    first_cause,
    variables,
)
from servicex_server.engines.options import KubernetesOptions
from servicex_server.errors import StartupError

POD_CONFIG = CONFIG | {
    # by which Kubernetes knows that the scheduler lives
    "distributed.scheduler.http.routes": ["distributed.http.health"],
}
"""What scheduler and workers in pods are told."""

_PARTS = ("scheduler", "worker")


class KubernetesPods(Managed):
    """A scheduler and workers in pods of their own.

    Parameters
    ----------
    options
        Which image, and where.
    memory
        Bytes that one worker may use before it is restarted.

    Raises
    ------
    StartupError
        dask-kubernetes is not there.
    """

    def __init__(self, options: KubernetesOptions, *, memory: int) -> None:
        super().__init__()
        self._options = options
        self._memory = memory
        self._library = extra("dask_kubernetes.operator", "kubernetes")
        self._objects = extra("dask_kubernetes.operator._objects", "kubernetes")
        self._api: Any = None
        self._ours = False

    async def open(self) -> Client:
        """Make a DaskCluster, and wait until its scheduler runs."""
        options = self._options
        spec = cluster_spec(options, memory=self._memory)
        try:
            async with asyncio.timeout(options.start_seconds):
                # held here, for without that kr8s makes one anew, with connections, for each object
                self._api = await extra("kr8s.asyncio", "kubernetes").api()
                await self._delete(wait=True)
                self._ours = True
                self._cluster = self._library.KubeCluster(
                    custom_cluster_spec=spec,
                    namespace=options.namespace,
                    resource_timeout=int(options.start_seconds),
                    shutdown_on_close=False,
                    asynchronous=True,
                    loop=IOLoop.current(),
                    quiet=True,
                )
                await self._cluster
                client: Client = await Client(self._cluster, asynchronous=True)
        except TimeoutError:
            await self.close()
            raise StartupError(
                f"the DaskCluster {options.name} did not start in {options.start_seconds:g} s",
                hint="does the Dask operator run, and can the image be pulled?",
            ) from None
        except Exception as error:
            await self.close()
            raise StartupError(
                f"the DaskCluster {options.name} cannot be made: {first_cause(error)}"
            ) from error
        return client

    async def _delete(self, *, wait: bool) -> None:
        """Delete the DaskCluster, ours or one that a killed service has left."""
        kind = self._objects.DaskCluster
        # it may be gone since it was looked at
        with suppress(extra("kr8s", "kubernetes").NotFoundError):
            found = await kind.get(self._options.name, namespace=self._options.namespace, timeout=1)
            await found.delete()
            while wait and await found.exists():  # noqa: ASYNC110  # nobody announces it
                await asyncio.sleep(0.5)

    async def _end(self) -> None:
        if self._cluster is not None:
            await self._cluster.close()
        if self._ours and not self.disowned:
            await self._delete(wait=False)  # its pods go with it
        if self._api is not None and self._api._session is not None:  # noqa: SLF001
            await self._api._session.aclose()  # noqa: SLF001  # it has no close of its own


def cluster_spec(options: KubernetesOptions, *, memory: int) -> dict[str, Any]:
    """Return the DaskCluster to be made.

    Parameters
    ----------
    options
        What the operator of the service chose.
    memory
        Bytes that one worker may use.

    Raises
    ------
    StartupError
        The file to start from cannot be read, or is no DaskCluster.
    """
    plain = extra("dask_kubernetes.operator", "kubernetes").make_cluster_spec(
        name=options.name,
        image=options.image,
        n_workers=0,
        scheduler_service_type=options.service_type,
    )
    made = _from_file(options.spec_file) if options.spec_file else deepcopy(plain)
    made.setdefault("metadata", {})["name"] = options.name
    scheduler, worker = made["spec"]["scheduler"], made["spec"]["worker"]
    scheduler["service"] = plain["spec"]["scheduler"]["service"]
    worker["replicas"] = 0
    asked = str(options.pod_memory or memory + NANNY_MEMORY)
    # dask-kubernetes calls `dask-scheduler` and `dask-worker`, which newer versions of Dask lack
    serve = ["dask", "scheduler", "--host", "0.0.0.0"]  # noqa: S104  # all addresses of a pod
    work = ["dask", "worker", "--name", "$(DASK_WORKER_NAME)", "--nthreads", "1", "--nanny"]
    work += ["--memory-limit", str(memory), "--no-dashboard"]
    room = {"requests": {"cpu": options.cpu, "memory": asked}, "limits": {"memory": asked}}
    of_pods = (
        (scheduler, "scheduler", serve, {"requests": {"cpu": "1", "memory": "1Gi"}}),
        (worker, "worker", work, room),
    )
    for part, name, arguments, resources in of_pods:
        pod = part["spec"]
        container = next((c for c in pod["containers"] if c["name"] == name), pod["containers"][0])
        container["args"] = arguments
        if options.image:
            container["image"] = options.image
        container["resources"] = container.get("resources") or resources
        env = {one["name"]: one for one in container.get("env") or ()}
        for key, value in variables(POD_CONFIG).items():
            env.setdefault(key, {"name": key, "value": value})
        container["env"] = list(env.values())
        if options.service_account:
            pod["serviceAccountName"] = options.service_account
        else:
            # users' functions run there
            pod.setdefault("automountServiceAccountToken", False)
    return made


def _from_file(path: Path) -> dict[str, Any]:
    """Return the DaskCluster that the operator of the service gave."""
    import yaml

    try:
        given: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise StartupError(f"{path} cannot be read: {first_cause(error)}") from error
    try:
        kind = given["kind"]
        named = [given["spec"][part]["spec"]["containers"][0]["name"] for part in _PARTS]
    except (KeyError, IndexError, TypeError):
        kind, named = "", []
    if kind != "DaskCluster" or not all(named):
        raise StartupError(
            f"{path} is no DaskCluster whose {' and '.join(_PARTS)} have a container with a name"
        )
    return given
