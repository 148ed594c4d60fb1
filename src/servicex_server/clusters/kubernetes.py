"""Workers in pods of Kubernetes: the Dask operator creates the pods of a DaskCluster."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Collection
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

from distributed import Client, Security

from servicex_server.clusters.contract import Managed, Repair, first_cause
from servicex_server.clusters.dask_config import CONFIG, NANNY_MEMORY, extra, variables
from servicex_server.clusters.tls import cluster_security
from servicex_server.errors import StartupError
from servicex_server.settings.clusters import KubernetesOptions

log = logging.getLogger(__name__)

POD_CONFIG = CONFIG | {
    # for the liveness probe of the scheduler's pod
    "distributed.scheduler.http.routes": ["distributed.http.health"],
}
"""The Dask configuration of schedulers and workers in pods."""

LISTING = 30.0
"""Seconds between two listings of the pods while workers are missing."""

HUNG_SECONDS = 180.0
"""Seconds that a pod may run while its worker is absent, as it starts or restarts; then the pod is
deleted."""

TLS_FOLDER = "/etc/servicex-tls"
"""The folder of the certificates in a pod."""

TLS_FILES = ("ca.pem", "certificate.pem", "key.pem")
"""Authority, certificate and key."""

SCHEDULER_PORT = 8786

GUARDED = "servicex_server.clusters.scheduler.GuardedScheduler"
"""The scheduler class that the scheduler's pod runs."""

_PARTS = ("scheduler", "worker")

_ROUND, _CONNECT = 0.5, 5
"""Seconds between two polls of the operator's progress, and seconds of one attempt to connect."""

_HARDENED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""Restrictions of a container. It can write to the volume of `_SCRATCH` only."""

_USER = {"runAsNonRoot": True, "runAsUser": 65534, "runAsGroup": 65534, "fsGroup": 65534}
"""The user of a pod: nobody, unless ``spec_file`` names another."""

_SCRATCH = "/tmp"  # noqa: S108  # a volume of the pod's own

_TLS_VARIABLES = {
    "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
    "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": f"{TLS_FOLDER}/{TLS_FILES[0]}",
}


class KubernetesPods(Managed):
    """A scheduler and workers in pods, which communicate by TLS.

    The certificates are created at each start. Pods get them from Secrets that belong to the
    DaskCluster and are deleted with it.

    Parameters
    ----------
    options
        The image, the namespace, and the resources of pods.
    memory
        Bytes that one worker may use before it is restarted.

    Raises
    ------
    StartupError
        dask-kubernetes is not installed.
    """

    Options = KubernetesOptions

    @classmethod
    def from_settings(cls, options: KubernetesOptions, *, memory: int, folder: Path) -> Self:
        """Return the cluster of the settings."""
        del folder
        return cls(options, memory=memory)

    def __init__(self, options: KubernetesOptions, *, memory: int) -> None:
        super().__init__()
        self._options = options
        self._memory = memory
        self._objects = extra("dask_kubernetes.operator._objects", "kubernetes")
        self._networking = extra("dask_kubernetes.operator.networking", "kubernetes")
        self._kr8s = extra("kr8s.asyncio.objects", "kubernetes")
        self._api: Any = None
        self._ours = False
        self._absent_since: dict[str, float] = {}
        self._list_at = 0.0
        self._pending = 0
        self._address = ""

    async def open(self) -> Client:
        """Create a DaskCluster, and wait until its scheduler runs."""
        options = self._options
        mark = secrets.token_hex(4)
        spec = cluster_spec(options, memory=self._memory, mark=mark)
        try:
            async with asyncio.timeout(options.start_seconds):
                # keep a reference: else kr8s creates one, with connections, for each object
                self._api = await extra("kr8s.asyncio", "kubernetes").api()
                await self._delete(wait=True)
                self._ours = True
                made = await self._objects.DaskCluster(spec, namespace=options.namespace)
                await made.create()
                security = cluster_security()
                await self._hand_out(made, "scheduler", mark, security.service)
                await self._hand_out(made, "worker", mark, security.worker)
                while not await made.ready():  # noqa: ASYNC110  # there is no event
                    await asyncio.sleep(_ROUND)
                self._cluster = await self._objects.DaskWorkerGroup(
                    f"{options.name}-default", namespace=made.namespace
                )
                client = await self._connect(made.namespace, security.service)
        except TimeoutError:
            await self.close()
            raise StartupError(
                f"the DaskCluster {options.name} did not start within {options.start_seconds:g} s",
                hint="check that the Dask operator runs, and that the image can be pulled",
            ) from None
        except Exception as error:
            await self.close()
            raise StartupError(
                f"the DaskCluster {options.name} cannot be created: {first_cause(error)}"
            ) from error
        return client

    async def repair(self, present: Collection[str]) -> Repair:
        """Delete pods that run without a worker; their deployments create new ones."""
        if len(present) >= self._wanted:
            self._pending = 0
            return Repair()
        at = time.monotonic()
        if at < self._list_at:
            return Repair(pending=self._pending)
        self._list_at = at + LISTING
        selector = f"dask.org/cluster-name={self._options.name},dask.org/component=worker"
        listing = self._kr8s.Pod.list(
            label_selector=selector, namespace=self._options.namespace or self._cluster.namespace
        )
        pods = {pod.metadata.uid: pod async for pod in listing if _worker_of(pod)}
        phases = {uid: pod.status.phase for uid, pod in pods.items()}
        self._pending = list(phases.values()).count("Pending")
        absent = [
            uid
            for uid, pod in pods.items()
            if phases[uid] == "Running" and _worker_of(pod) not in present
        ]
        self._absent_since = {uid: self._absent_since.get(uid, at) for uid in absent}
        hung = [uid for uid in absent if at - self._absent_since[uid] > HUNG_SECONDS]
        for uid in hung:
            log.error("deleting pod %s, which runs without a worker", pods[uid].name)
            await pods[uid].delete()
        return Repair(replaced=len(hung), pending=self._pending)

    async def _hand_out(self, cluster: Any, part: str, mark: str, security: Security) -> None:
        """Create the Secret with the certificates for the scheduler's or the workers' pods."""
        role: Any = security
        contents = (
            role.tls_ca_file,
            getattr(role, f"tls_{part}_cert"),
            getattr(role, f"tls_{part}_key"),
        )
        owner = {
            "apiVersion": cluster.version,
            "kind": cluster.kind,
            "name": cluster.name,
            "uid": cluster.metadata.get("uid", ""),
        }
        made = await self._kr8s.Secret(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": _secret_name(self._options.name, part, mark),
                    "ownerReferences": [owner],
                },
                "type": "Opaque",
                "stringData": dict(zip(TLS_FILES, contents, strict=True)),
            },
            namespace=cluster.namespace,
        )
        await made.create()

    async def _connect(self, namespace: str, security: Security) -> Client:
        """Connect to the scheduler, which may still be starting."""
        found = await self._networking.get_scheduler_address(
            f"{self._options.name}-scheduler", namespace
        )
        self._address = found.replace("tcp://", "tls://")
        while True:
            with suppress(OSError):
                client: Client = await Client(
                    self._address, security=security, asynchronous=True, timeout=_CONNECT
                )
                return client
            await asyncio.sleep(_ROUND)

    @property
    def address(self) -> str:
        """The address of the scheduler, for display."""
        return self._address

    async def _delete(self, *, wait: bool) -> None:
        """Delete the DaskCluster, that of this process or one that a killed service left."""
        kind = self._objects.DaskCluster
        # it may have been deleted meanwhile
        with suppress(extra("kr8s", "kubernetes").NotFoundError):
            found = await kind.get(self._options.name, namespace=self._options.namespace, timeout=1)
            await found.delete()
            while wait and await found.exists():  # noqa: ASYNC110  # there is no event
                await asyncio.sleep(_ROUND)

    async def _end(self) -> None:
        if self._ours and not self.disowned:
            await self._delete(wait=False)  # its pods and Secrets go with it
        if self._api is not None and self._api._session is not None:  # noqa: SLF001
            await self._api._session.aclose()  # noqa: SLF001  # kr8s has no close method


def _worker_of(pod: Any) -> str:
    """Return the name of the worker in a pod, which the operator sets as a variable."""
    containers = pod.raw.get("spec", {}).get("containers", ())
    variables = [one for container in containers for one in container.get("env") or ()]
    return next((one["value"] for one in variables if one["name"] == "DASK_WORKER_NAME"), "")


def _secret_name(name: str, part: str, mark: str) -> str:
    return f"{name}-{part}-tls-{mark}"


def cluster_spec(options: KubernetesOptions, *, memory: int, mark: str) -> dict[str, Any]:
    """Return the DaskCluster to create.

    Parameters
    ----------
    options
        The settings of the operator of the service.
    memory
        Bytes that one worker may use.
    mark
        Makes the names of the Secrets with the certificates unique.

    Raises
    ------
    StartupError
        ``spec_file`` cannot be read, or is not a DaskCluster.
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
    # not `dask scheduler`, which accepts all calls of workers too
    guarded = {"host": "0.0.0.0", "port": SCHEDULER_PORT, "protocol": "tls://"}  # noqa: S104
    guarded |= {"dashboard_address": ":8787"}
    serve = ["dask", "spec", "--spec", json.dumps({"cls": GUARDED, "opts": guarded})]
    work = ["dask", "worker", "--name", "$(DASK_WORKER_NAME)", "--nthreads", "1", "--nanny"]
    work += ["--memory-limit", str(memory), "--no-dashboard", "--local-directory", _SCRATCH]
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
        _encrypt(options, pod, container, name, mark)
        _harden(pod, container)
        if options.service_account:
            pod["serviceAccountName"] = options.service_account
        # pods do not call the API of Kubernetes, and user code runs in workers
        pod.setdefault("automountServiceAccountToken", False)
    return made


def _encrypt(
    options: KubernetesOptions, pod: dict[str, Any], container: dict[str, Any], part: str, mark: str
) -> None:
    """Have a container use TLS, with the certificates of its Secret."""
    env = {one["name"]: one for one in container.get("env") or ()}
    ours = _TLS_VARIABLES | {
        f"DASK_DISTRIBUTED__COMM__TLS__{part.upper()}__{kind}": f"{TLS_FOLDER}/{file}"
        for kind, file in zip(("CERT", "KEY"), TLS_FILES[1:], strict=True)
    }
    if part == "worker":
        # the operator would set a tcp:// address
        where = f"{options.name}-scheduler"
        ours |= {"DASK_SCHEDULER_ADDRESS": f"tls://{where}:{SCHEDULER_PORT}"}
    for key, value in variables(POD_CONFIG).items():
        env.setdefault(key, {"name": key, "value": value})
    env |= {key: {"name": key, "value": value} for key, value in ours.items()}
    container["env"] = list(env.values())
    _mount(pod, container, "servicex-tls", TLS_FOLDER, read_only=True)["secret"] = {
        "secretName": _secret_name(options.name, part, mark),
        "defaultMode": 0o440,
    }


def _harden(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """Have a container run as the user nobody, which can write to scratch volumes only."""
    container["securityContext"] = _HARDENED | (container.get("securityContext") or {})
    given = pod.get("securityContext") or {}
    pod["securityContext"] = _USER | {"seccompProfile": {"type": "RuntimeDefault"}} | given
    _mount(pod, container, "servicex-scratch", _SCRATCH, read_only=False)["emptyDir"] = {}


def _mount(
    pod: dict[str, Any], container: dict[str, Any], name: str, path: str, *, read_only: bool
) -> dict[str, Any]:
    """Mount a volume unless one is mounted there; return it, for the caller to set its source."""
    mounts = container.setdefault("volumeMounts", [])
    volume: dict[str, Any] = {"name": name}
    if all(one["mountPath"] != path for one in mounts):
        mounts.append({"name": name, "mountPath": path, "readOnly": read_only})
        pod.setdefault("volumes", []).append(volume)
    return volume


def _from_file(path: Path) -> dict[str, Any]:
    """Return the DaskCluster of ``spec_file``."""
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
            f"{path} is not a DaskCluster in which {' and '.join(_PARTS)} have a container with a "
            "name"
        )
    return given
