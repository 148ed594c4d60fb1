"""The objects for Kubernetes match the schemas of the Dask operator, and become workers.

The tests emulate the API of Kubernetes, and run pods as processes.
"""

import asyncio
import functools
import gc
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask
import jsonschema
import pytest
import yaml

from servicex_server.clusters import kubernetes as of_kubernetes
from servicex_server.clusters.contract import Repair
from servicex_server.clusters.dask_config import CONFIG
from servicex_server.clusters.kubernetes import (
    POD_CONFIG,
    SCHEDULER_PORT,
    TLS_FOLDER,
    KubernetesPods,
    cluster_spec,
)
from servicex_server.errors import StartupError
from servicex_server.settings.clusters import KubernetesOptions
from tests.integration.pods import Kubernetes, kubernetes
from tests.support import Server, copies, on_workers, until, workers_of

FILES = 2
IMAGE = "registry.example.org/servicex-server:1"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Kubernetes]:
    """Give a Kubernetes with the operator."""
    with kubernetes(tmp_path) as running:
        yield running


def options(**changes: Any) -> KubernetesOptions:
    """Return what an operator of the service chose."""
    return KubernetesOptions.model_validate({"kind": "kubernetes", "image": IMAGE} | changes)


@functools.cache
def schema(name: str) -> dict[str, Any]:
    """Return the schema of a resource as the operator installs it, without leave for more."""
    package = find_spec("dask_kubernetes")
    assert package is not None
    assert package.origin is not None
    chart = "operator/deployment/helm/dask-kubernetes-operator/crds"
    text = (Path(package.origin).parent / chart / f"{name}.yaml").read_text()
    (version,) = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    found["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}
    _forbid(found)
    return found


def _forbid(part: Any) -> None:
    """Forbid what a real API server would silently leave out."""
    if isinstance(part, dict):
        if isinstance(part.get("properties"), dict) and "additionalProperties" not in part:
            part["additionalProperties"] = False
        if part.pop("x-kubernetes-int-or-string", False):
            part.pop("type", None)
        for value in part.values():
            _forbid(value)
    elif isinstance(part, list):
        for value in part:
            _forbid(value)


def container(spec: dict[str, Any], part: str) -> dict[str, Any]:
    """Return the container of the scheduler or the worker."""
    (found,) = spec["spec"][part]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


FILE = {
    "apiVersion": "kubernetes.dask.org/v1",
    "kind": "DaskCluster",
    "metadata": {"name": "other", "labels": {"team": "columns"}},
    "spec": {
        "scheduler": {"spec": {"containers": [{"name": "scheduler"}]}},
        "worker": {
            "replicas": 7,
            "spec": {
                "containers": [
                    {
                        "name": "worker",
                        "args": ["sleep", "1"],
                        "env": [
                            {"name": "X509_USER_PROXY", "value": "/proxy/x509"},
                            {"name": "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT", "value": "60s"},
                        ],
                        "resources": {"limits": {"memory": "6Gi"}},
                        "volumeMounts": [{"name": "proxy", "mountPath": "/proxy"}],
                    }
                ],
                "volumes": [{"name": "proxy", "secret": {"secretName": "proxy"}}],
                "tolerations": [{"key": "batch", "operator": "Exists"}],
            },
        },
    },
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"service_type": "NodePort", "service_account": "columns", "cpu": "500m"},
        {"pod_memory": 6 << 30, "namespace": "physics", "name": "run-3"},
        {"spec_file": FILE},
    ],
)
def test_object_matches_the_schema_of_the_operator(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The object has all required fields, and only fields that the API keeps."""
    if "spec_file" in changes:
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump(changes["spec_file"]))
        changes = changes | {"spec_file": path}
    spec = cluster_spec(options(**changes), memory=2 << 30, mark="x")
    jsonschema.Draft7Validator(schema("daskcluster")).validate(spec)
    group = {"spec": {"cluster": spec["metadata"]["name"], "worker": spec["spec"]["worker"]}}
    jsonschema.Draft7Validator(schema("daskworkergroup")).validate(group)
    assert spec["spec"]["worker"]["replicas"] == 0
    assert " ".join(container(spec, "worker")["args"]) == (
        "dask worker --name $(DASK_WORKER_NAME) --nthreads 1 --nanny"
        " --memory-limit 2147483648 --no-dashboard --local-directory /tmp"
    )


def test_schema_rejects_a_mistake() -> None:
    """It rejects a name that the operator does not know, and a value of another type."""
    spec = cluster_spec(options(), memory=2 << 30, mark="x")
    validator = jsonschema.Draft7Validator(schema("daskcluster"))
    spec["spec"]["worker"]["spec"]["serviceAcountName"] = "x"
    assert not validator.is_valid(spec)
    del spec["spec"]["worker"]["spec"]["serviceAcountName"]
    assert validator.is_valid(spec)
    container(spec, "worker")["env"][0]["value"] = 0
    assert not validator.is_valid(spec)


def test_a_pod_has_room_for_its_worker_and_no_credential() -> None:
    """Its memory is enough for the worker and the nanny. It mounts no token of an account."""
    spec = cluster_spec(options(), memory=2 << 30, mark="x")
    room = container(spec, "worker")["resources"]
    assert room == {
        "requests": {"cpu": "1", "memory": str((2 << 30) + (512 << 20))},
        "limits": {"memory": str((2 << 30) + (512 << 20))},
    }
    for part in ("scheduler", "worker"):
        assert spec["spec"][part]["spec"]["automountServiceAccountToken"] is False
        assert container(spec, part)["image"] == IMAGE
    named = cluster_spec(options(service_account="columns"), memory=2 << 30, mark="x")
    assert named["spec"]["worker"]["spec"]["serviceAccountName"] == "columns"


def test_pods_use_tls_and_a_restricted_security_context() -> None:
    """Each part mounts its own certificates read-only. It runs as non-root on a read-only root."""
    spec = cluster_spec(options(), memory=2 << 30, mark="x")
    for part in ("scheduler", "worker"):
        pod, made = spec["spec"][part]["spec"], container(spec, part)
        env = {one["name"]: one["value"] for one in made["env"]}
        assert env["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] == "True"
        assert env[f"DASK_DISTRIBUTED__COMM__TLS__{part.upper()}__KEY"] == f"{TLS_FOLDER}/key.pem"
        assert {one["name"]: one["readOnly"] for one in made["volumeMounts"]} == {
            "servicex-tls": True,
            "servicex-scratch": False,
        }
        secrets = [one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one]
        assert secrets == [f"servicex-{part}-tls-x"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert made["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False
    assert "GuardedScheduler" in container(spec, "scheduler")["args"][-1]
    address = {one["name"]: one["value"] for one in container(spec, "worker")["env"]}
    assert address["DASK_SCHEDULER_ADDRESS"] == "tls://servicex-scheduler:8786"


def test_network_policy_matches_the_pods() -> None:
    """The documented policy selects the operator's labels, and opens only the scheduler's port."""
    page = Path(__file__).parents[2] / "docs" / "how-to" / "run-at-a-facility.md"
    text = page.read_text(encoding="utf-8").partition('yaml title="network-policy.yaml"\n')[2]
    workers, scheduler = yaml.safe_load_all(text.partition("```")[0])
    for policy, part in ((workers, "worker"), (scheduler, "scheduler")):
        assert policy["spec"]["podSelector"]["matchLabels"] == {
            "dask.org/cluster-name": "servicex",
            "dask.org/component": part,
        }
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    (ingress,) = scheduler["spec"]["ingress"]
    assert ingress["ports"] == [{"protocol": "TCP", "port": SCHEDULER_PORT}]


def test_spec_file_keeps_all_but_the_required_fields(tmp_path: Path) -> None:
    """Volumes, tolerations, limits and variables stay. Name, number and commands are ours."""
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(FILE))
    spec = cluster_spec(options(spec_file=path), memory=2 << 30, mark="x")
    assert spec["metadata"] == {"name": "servicex", "labels": {"team": "columns"}}
    worker = container(spec, "worker")
    assert worker["resources"] == {"limits": {"memory": "6Gi"}}
    assert worker["volumeMounts"][0] == {"name": "proxy", "mountPath": "/proxy"}
    assert spec["spec"]["worker"]["spec"]["volumes"][0]["name"] == "proxy"
    env = {one["name"]: one["value"] for one in worker["env"]}
    assert env["X509_USER_PROXY"] == "/proxy/x509"
    assert env["DASK_DISTRIBUTED__ADMIN__TICK__LIMIT"] == "60s"
    assert len(env) == len(CONFIG) + 6  # the proxy's, the scheduler's address, four of TLS
    assert spec["spec"]["scheduler"]["service"]["selector"] == {
        "dask.org/cluster-name": "servicex",
        "dask.org/component": "scheduler",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: [", "cannot be read"),
        ("kind: Pod", "is not a DaskCluster"),
        (yaml.safe_dump(FILE | {"kind": "Pod"}), "is not a DaskCluster"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_error_names_an_invalid_spec_file(tmp_path: Path, text: str | None, said: str) -> None:
    """The error is one line with the path of the file and the fault."""
    path = tmp_path / "cluster.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StartupError, match=said) as refusal:
        cluster_spec(options(spec_file=path), memory=2 << 30, mark="x")
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_pods_of_the_cluster_run_a_request(
    cluster: Kubernetes, new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """The service creates the cluster, runs the files on its pods, and deletes it."""
    config = tmp_path / "settings.yaml"
    engine = {"kind": "kubernetes", "image": IMAGE, "service_type": "NodePort"}
    settings = {"workers": 1, "limits": {"worker_memory": 1 << 30}, "engine": engine}
    config.write_text(yaml.safe_dump(settings))
    server = new_server(
        "--config", str(config), KUBECONFIG=str(cluster.kubeconfig), AWS_SECRET_ACCESS_KEY="hush"
    )
    assert cluster.health() == "ok"
    status = server.run(file_list=copies(tmp_path / "in", FILES))
    assert (status["status"], status["files-completed"]) == ("Complete", FILES)
    assert server.dask_processes() == []
    until(lambda: len(cluster.running("worker")) == 1, "there is a worker")
    (made,) = cluster.made
    jsonschema.Draft7Validator(schema("daskcluster")).validate(made)
    assert "hush" not in str(made)
    server.stop()
    until(lambda: not cluster.running(""), "no pod is left")


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:The URL was not found")  # kmock lists its resources elsewhere
async def test_cluster_scales_its_pods(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It replaces a cluster that an earlier process left. Its pods have our configuration."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    left = KubernetesPods(options(service_type="NodePort"), memory=1 << 30)
    await (await left.open()).close()
    before = cluster.running("scheduler")
    pods = KubernetesPods(options(service_type="NodePort"), memory=1 << 30)
    client: Any = await pods.open()
    try:
        assert len(cluster.made) == 2
        assert cluster.running("scheduler") != before
        await pods.scale(1)
        (worker,) = await workers_of(client, 1)
        assert (worker["nthreads"], worker["memory_limit"]) == (1, 1 << 30)
        assert worker["nanny"] is not None
        for name, value in POD_CONFIG.items():
            assert list((await on_workers(client, dask.config.get, name)).values()) == [value]
        await pods.scale(0)
        assert await workers_of(client, 0) == []
        assert cluster.replicas[-3:] == [0, 1, 0]
    finally:
        await client.close()
        await pods.close()
    await left.close()
    async with asyncio.timeout(20):
        while cluster.running(""):
            await asyncio.sleep(0.1)


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:The URL was not found")  # kmock lists its resources elsewhere
async def test_pod_that_hangs_is_deleted_and_replaced(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod runs, but its worker is not at the scheduler. A pod whose worker is there stays."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    monkeypatch.setattr(of_kubernetes, "LISTING", 0.0)
    pods = KubernetesPods(options(service_type="NodePort"), memory=1 << 30)
    client: Any = await pods.open()
    try:
        await pods.scale(2)
        named = sorted(one["name"] for one in await workers_of(client, 2))
        assert set(named) == set(cluster.running("worker"))
        assert await pods.repair(named) == Repair()
        hung, well = named
        assert await pods.repair([well]) == Repair()  # it may be starting
        monkeypatch.setattr(of_kubernetes, "HUNG_SECONDS", -1.0)
        assert await pods.repair([well]) == Repair(replaced=1)
        async with asyncio.timeout(60):
            while len(now := cluster.running("worker")) < 2 or hung in now:
                await asyncio.sleep(0.1)
        assert well in now
    finally:
        await client.close()
        await pods.close()


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:The URL was not found")  # kmock lists its resources elsewhere
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
async def test_former_leader_leaves_the_pods_of_the_next_leader(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next leader has replaced the object of the same name, and its pods stay."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    made = [KubernetesPods(options(service_type="NodePort"), memory=1 << 30) for _ in range(2)]
    last, following = made
    clients: list[Any] = [await last.open(), await following.open()]
    before = cluster.running("scheduler")
    last.disown()
    await clients[0].close()
    await last.close()
    # Dask's client loses the socket with which it was about to reach the former scheduler
    clients[0] = None
    gc.collect()
    assert cluster.running("scheduler") == before
    assert len(list(cluster._objects("daskclusters"))) == 1
    await clients[1].close()
    await following.close()
    async with asyncio.timeout(60):
        while cluster.running(""):
            await asyncio.sleep(0.1)


@pytest.mark.anyio
async def test_missing_operator_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is limited, the hint names the Dask operator, and no object is left."""
    with kubernetes(tmp_path, works=False) as bare:
        monkeypatch.setenv("KUBECONFIG", str(bare.kubeconfig))
        pods = KubernetesPods(options(start_seconds=3), memory=1 << 30)
        with pytest.raises(StartupError, match="check that the Dask operator runs"):
            await pods.open()
        assert list(bare._objects("daskclusters")) == []


@pytest.mark.anyio
async def test_unreachable_api_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service does not wait for a server that refuses connections."""
    with kubernetes(tmp_path) as gone:
        monkeypatch.setenv("KUBECONFIG", str(gone.kubeconfig))
    pods = KubernetesPods(options(start_seconds=10), memory=1 << 30)
    with pytest.raises(StartupError) as refusal:
        await pods.open()
    assert "\n" not in str(refusal.value)
    assert "cannot be created" in str(refusal.value)
