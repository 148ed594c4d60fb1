"""The service on a real Dask Gateway with its proxy, whose clusters are local processes."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from servicex_server.clusters.gateway import GatewayWorkers
from servicex_server.errors import StartupError
from servicex_server.settings.clusters import GatewayOptions
from tests.integration.servers import free_port
from tests.support import Server, copies, needed, until

FILES = 2
BIN = Path(sys.executable).parent
CONFIG = """\
from dask_gateway_server.options import Options, Integer
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.address = "127.0.0.1:{api}"
c.Proxy.address = "127.0.0.1:{web}"
c.Proxy.tcp_address = "127.0.0.1:{tcp}"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.SimpleAuthenticator.password = "open sesame"
c.LocalBackend.clusters_directory = "{folder}"
# the commands that it calls by default are gone from newer versions of Dask
c.ClusterConfig.scheduler_cmd = ["{dask}", "scheduler"]
c.ClusterConfig.worker_cmd = ["{dask}", "worker"]
c.ClusterConfig.worker_memory = "1 G"
c.Backend.cluster_options = Options(
    Integer("worker_cores", default=1, min=1, max=1),
    handler=lambda options: {{"worker_cores": options.worker_cores}},
)
"""


@dataclass
class Gateway:
    """A running gateway."""

    url: str
    proxy: str

    def options(self, **changes: Any) -> dict[str, Any]:
        """Return the settings that choose this gateway."""
        return {
            "kind": "gateway",
            "address": self.url,
            "proxy_address": self.proxy,
            "username": "columns",
            "password": "open sesame",
        } | changes

    def clusters(self) -> list[str]:
        """Return the waiting and running clusters."""
        answer = httpx.get(f"{self.url}/api/v1/clusters/", auth=("columns", "open sesame"))
        answer.raise_for_status()
        return list(answer.json())


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Give a gateway."""
    with running(tmp_path_factory.mktemp("gateway")) as found:
        yield found


@contextmanager
def running(folder: Path) -> Iterator[Gateway]:
    """Run a gateway, and end it with its proxy and its clusters."""
    program = needed("dask-gateway-server", "pip install dask-gateway-server[local]", beside=BIN)
    api, web, tcp = free_port(), free_port(), free_port()
    config = folder / "config.py"
    clusters = folder / "clusters"
    config.write_text(CONFIG.format(api=api, web=web, tcp=tcp, folder=clusters, dask=BIN / "dask"))
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "-f", str(config)], stdout=output, stderr=subprocess.STDOUT, cwd=folder
        )
    below: list[psutil.Process] = []
    try:
        found = Gateway(f"http://127.0.0.1:{web}", f"tls://127.0.0.1:{tcp}")
        until(lambda: _answers(found), f"the gateway answers: {log.read_text()}", seconds=60)
        yield found
    finally:
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        finally:
            process.kill()
            for left in psutil.wait_procs(below, timeout=5)[1]:
                left.kill()


def _answers(gateway: Gateway) -> bool:
    try:
        return gateway.clusters() == []
    except httpx.HTTPError:
        return False


def test_request_runs_on_a_cluster_of_the_gateway(
    gateway: Gateway, new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """The service starts a cluster, which does the work, and stops it when it ends."""
    config = tmp_path / "settings.yaml"
    options = gateway.options(cluster_options={"worker_cores": 1})
    del options["password"]
    config.write_text(yaml.safe_dump({"workers": 1, "engine": options}))
    server = new_server("--config", str(config), SERVICEX_SERVER_ENGINE__PASSWORD="open sesame")
    (name,) = gateway.clusters()
    status = server.run(file_list=copies(tmp_path / "in", FILES))
    assert (status["status"], status["files-completed"]) == ("Complete", FILES)
    assert server.dask_processes() == []
    assert "open sesame" not in server.output
    # a killed service leaves its cluster, which the next start replaces
    server.stop(signal.SIGKILL)
    assert gateway.clusters() == [name]
    server.start()
    until(lambda: name not in gateway.clusters(), "the former cluster is gone")
    assert len(gateway.clusters()) == 1
    assert server.run(file_list=copies(tmp_path / "more", FILES))["status"] == "Complete"
    assert server.stop() < 10
    until(lambda: not gateway.clusters(), "no cluster is left")
    assert not (server.data_dir / "gateway-cluster").exists()


@pytest.mark.anyio
async def test_former_leader_leaves_the_cluster_of_the_next_leader(
    gateway: Gateway, tmp_path: Path
) -> None:
    """The next leader, on the same folder, has ended the old cluster, and keeps its own."""
    options = GatewayOptions.model_validate(gateway.options())
    last, following = (GatewayWorkers(options, folder=tmp_path) for _ in range(2))
    clients = [await last.open(), await following.open()]
    (name,) = gateway.clusters()
    last.disown()
    await clients[0].close()
    await last.close()
    assert gateway.clusters() == [name]
    await clients[1].close()
    await following.close()
    assert gateway.clusters() == []
    assert listed(tmp_path) == []


def listed(folder: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return [path.name for path in folder.iterdir()]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"password": "hush"}, "401"),
        ({"cluster_options": {"worker_cores": 2}}, "<= 1"),
        ({"cluster_options": {"worker_kores": 1}}, "worker_kores"),
        ({"address": "http://127.0.0.1:9"}, "111"),
    ],
)
async def test_refusal_of_the_gateway_is_one_line(
    gateway: Gateway, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """The service starts nothing, and gives the reason of the gateway."""
    options = GatewayOptions.model_validate(gateway.options(**changes))
    began = time.monotonic()
    with pytest.raises(StartupError) as refusal:
        await GatewayWorkers(options, folder=tmp_path).open()
    assert said in str(refusal.value)
    assert "hush" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert time.monotonic() - began < 10
    assert gateway.clusters() == []
    assert listed(tmp_path) == []
