"""A stand-in for Kubernetes with the Dask operator: an emulated API, and pods that are processes.

The API is kmock's, which keeps objects and serves them by HTTP. What the operator and the kubelet
would do with a DaskCluster is done here, as far as the service can tell: its scheduler and workers
are started with the arguments and the environment of their containers, on loopback.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import kmock
import yaml

from tests.integration.servers import free_port

GROUP = "kubernetes.dask.org/v1"
NAMESPACE = "physics"


@dataclass
class Kubernetes:
    """A running stand-in.

    Attributes
    ----------
    kubeconfig
        File by which clients find it.
    made
        Every DaskCluster that was made, as it was sent.
    replicas
        How many workers were wanted, one number for each change.
    pods
        The processes that stand for pods, by name; also those that have ended.
    """

    kubeconfig: Path
    works: bool = True
    """Whether an operator runs."""
    made: list[dict[str, Any]] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    pods: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _api: Any = None
    _ports: tuple[int, int] = (0, 0)

    def running(self, word: str) -> list[str]:
        """Return the pods that run and have a word in their name."""
        return [name for name, pod in self.pods.items() if word in name and pod.poll() is None]

    async def serve(self, ready: threading.Event, ended: threading.Event) -> None:
        """Answer, and do what the operator does, until it is over."""
        async with kmock.KubernetesEmulator() as self._api, kmock.Server(self._api) as server:
            for plural, kind in (
                (f"{GROUP}/daskclusters", "DaskCluster"),
                (f"{GROUP}/daskworkergroups", "DaskWorkerGroup"),
                (f"{GROUP}/daskautoscalers", "DaskAutoscaler"),
                ("v1/pods", "Pod"),
                ("v1/secrets", "Secret"),
                ("v1/services", "Service"),
                ("v1/nodes", "Node"),
            ):
                self._api.resources[plural] = {"kind": kind, "namespaced": kind != "Node"}
            # kmock knows it without the slash only
            self._api["get /version/"] << {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
            self.kubeconfig.write_text(yaml.safe_dump(_kubeconfig(str(server.url))))
            ready.set()
            while not ended.is_set():
                if self.works:
                    self._operate()
                await asyncio.sleep(0.05)
            for pod in self.pods.values():
                pod.kill()
                pod.wait()

    def _objects(self, resource: str) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        for key, found in list(self._api.objects.items()):
            if str(key[0].plural) == resource and not found.deleted:
                yield key, found.raw

    def _put(
        self, resource: str, name: str, labels: Mapping[str, str] | None = None, **parts: Any
    ) -> None:
        meta = {"name": name, "namespace": NAMESPACE, "uid": name, "labels": dict(labels or {})}
        self._api.objects[resource, NAMESPACE, name] = {"metadata": meta, **parts}

    def _operate(self) -> None:
        clusters = list(self._objects("daskclusters"))
        for key, cluster in clusters:
            # a pod waits for the Secrets that it mounts
            if "status" not in cluster and _mounted(cluster) <= self._secrets().keys():
                self._start(cluster)
                self._api.objects[key].patch({"status": {"phase": "Running"}})
        for _, group in self._objects("daskworkergroups"):
            wanted = group["spec"]["worker"]["replicas"]
            if not self.replicas or self.replicas[-1] != wanted:
                self.replicas.append(wanted)
            there = {key[-1] for key, _ in self._objects("pods")}
            for name in set(self.running("worker")) - there:
                self.pods[name].kill()  # somebody has deleted the pod
            workers = [name for name in self.running("worker") if name in there]
            for _ in range(len(workers), wanted):
                self._run(f"worker-{len(self.pods)}", group["spec"]["worker"]["spec"])
            for name in workers[wanted:]:
                self.pods[name].terminate()
        if not clusters:
            for resource in ("daskworkergroups", "pods", "services", "secrets"):
                for key, _ in self._objects(resource):
                    self._api.objects[key].delete()
            for name in self.running(""):
                self.pods[name].terminate()

    def _secrets(self) -> dict[str, dict[str, str]]:
        """Return the contents of the Secrets that there are."""
        return {
            secret["metadata"]["name"]: secret["stringData"]
            for _, secret in self._objects("secrets")
        }

    def _start(self, cluster: dict[str, Any]) -> None:
        """Do what the operator does with a new cluster."""
        name, spec = cluster["metadata"]["name"], cluster["spec"]
        self.made.append(deepcopy(cluster))
        self._ports = (free_port(), free_port())
        self._run(f"{name}-scheduler-{len(self.made)}", spec["scheduler"]["spec"])
        ports = zip(spec["scheduler"]["service"]["ports"], self._ports, strict=True)
        service = spec["scheduler"]["service"] | {
            "ports": [port | {"nodePort": number} for port, number in ports]
        }
        ready = [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]
        self._put("v1/nodes", "node", status={"addresses": [{"address": "127.0.0.1"}]})
        self._put("v1/pods", f"{name}-scheduler", status={"phase": "Running", "conditions": ready})
        self._put("v1/services", f"{name}-scheduler", spec=service, status={"loadBalancer": {}})
        group = {"cluster": name, "worker": spec["worker"]}
        self._put(f"{GROUP}/daskworkergroups", f"{name}-default", spec=group)

    def _run(self, name: str, pod: Mapping[str, Any]) -> None:
        """Do what a kubelet does, but for the image and the limits."""
        (container,) = pod["containers"]
        given = {one["name"]: one["value"] for one in container["env"]}
        given["DASK_WORKER_NAME"] = name
        if "worker" in name:
            labels = {
                "dask.org/cluster-name": self.made[-1]["metadata"]["name"],
                "dask.org/component": "worker",
            }
            env = [{"name": "DASK_WORKER_NAME", "value": name}]
            self._put(
                "v1/pods",
                name,
                labels,
                spec={"containers": [{"name": "worker", "env": env}]},
                status={"phase": "Running"},
            )
        # the name of a service is its address, and a volume is a folder
        places = {"servicex-scheduler:8786": f"127.0.0.1:{self._ports[0]}"}
        places |= self._volumes(name, pod, container)
        for place, here in places.items():
            given = {key: value.replace(place, here) for key, value in given.items()}
        program, *arguments = container["args"]
        arguments = [one.replace("$(DASK_WORKER_NAME)", name) for one in arguments]
        if arguments[0] == "spec":
            # a pod has an address of its own, with all ports free
            spec = json.loads(arguments[-1])
            spec["opts"] |= {"host": "127.0.0.1", "port": self._ports[0]}
            spec["opts"]["dashboard_address"] = f"127.0.0.1:{self._ports[1]}"
            arguments[-1] = json.dumps(spec)
        else:
            arguments += ["--host", "127.0.0.1"]
        self.pods[name] = subprocess.Popen(
            [str(Path(sys.executable).with_name(program)), *arguments],
            env={name: os.environ[name] for name in ("PATH", "HOME")} | given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _volumes(
        self, name: str, pod: Mapping[str, Any], container: Mapping[str, Any]
    ) -> dict[str, str]:
        """Put Secrets into folders; return where each mount is."""
        secrets = self._secrets()
        sources = {one["name"]: one.get("secret") for one in pod["volumes"]}
        places = {}
        for mount in container["volumeMounts"]:
            if (source := sources[mount["name"]]) is None or source["secretName"] not in secrets:
                continue
            folder = self.kubeconfig.parent / name / mount["name"]
            folder.mkdir(parents=True)
            for file, content in secrets[source["secretName"]].items():
                (folder / file).write_text(content)
            places[mount["mountPath"]] = str(folder)
        return places

    def health(self) -> str:
        """Return what the probes of the scheduler's pod see."""
        (path,) = {
            self.made[-1]["spec"]["scheduler"]["spec"]["containers"][0][probe]["httpGet"]["path"]
            for probe in ("livenessProbe", "readinessProbe")
        }
        with urlopen(f"http://127.0.0.1:{self._ports[1]}{path}", timeout=10) as answer:
            return str(answer.read().decode())


def _mounted(cluster: Mapping[str, Any]) -> set[str]:
    """Return the Secrets of ours that the pods of a cluster mount."""
    return {
        volume["secret"]["secretName"]
        for part in ("scheduler", "worker")
        for volume in cluster["spec"][part]["spec"]["volumes"]
        if volume["name"] == "servicex-tls"
    }


def _kubeconfig(url: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [
            {"name": "test", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}
        ],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "none"}}],
    }


@contextlib.contextmanager
def kubernetes(folder: Path, *, works: bool = True) -> Iterator[Kubernetes]:
    """Run a stand-in in a thread of its own."""
    running = Kubernetes(folder / "kubeconfig", works)
    ready, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(running.serve(ready, ended)))
    thread.start()
    assert ready.wait(20)
    try:
        yield running
    finally:
        ended.set()
        thread.join(20)
