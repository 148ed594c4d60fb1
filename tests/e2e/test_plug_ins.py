"""A real service with the store and the cluster of a third party, from the page on plug-ins."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from servicex_server.clusters.dask_config import CONFIG, variables
from tests.support import Server, copies, plug_in, refused, until

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-plug-in.md"


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """Install the store and the cluster of the page; return the environment that has them."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (store,) = [block for block in blocks if "def open_eos" in block]
    (cluster,) = [block for block in blocks if "class LabScheduler" in block]
    mounted = store.replace("file:///eos/", f"{(tmp_path / 'eos').as_uri()}/")
    assert mounted != store
    environment = plug_in(tmp_path / "installed", "eos", "open_eos", mounted, group="stores")
    environment |= plug_in(tmp_path / "installed", "lab", "LabScheduler", cluster, group="clusters")
    return environment


def test_request_runs_on_cluster_and_store_of_plug_ins(
    new_server: Callable[..., Server], installed: dict[str, str], tmp_path: Path
) -> None:
    """The store of the plug-in has the results, and the cluster of the plug-in has the workers."""
    address = tmp_path / "scheduler.json"
    commands = [
        ["scheduler", "--scheduler-file", str(address), "--host", "127.0.0.1", "--port", "0"],
        ["worker", "--scheduler-file", str(address), "--host", "127.0.0.1", "--name", "of-the-lab"],
    ]
    commands[0] += ["--dashboard-address", "127.0.0.1:0"]
    commands[1] += ["--nthreads", "1", "--memory-limit", "1GiB", "--no-dashboard"]
    with ExitStack() as ending:
        for command in commands:
            started = subprocess.Popen(
                [str(Path(sys.executable).with_name("dask")), *command],
                env=os.environ | variables(CONFIG),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            ending.callback(started.wait, 20)
            ending.callback(started.terminate)
            until(address.exists, "the scheduler has written its address")
        server = new_server(
            "--workers",
            "1",
            **installed,
            SERVICEX_SERVER_ENGINE__KIND="lab",
            SERVICEX_SERVER_ENGINE__SCHEDULER_FILE=str(address),
            SERVICEX_SERVER_STORAGE__OBJECTS_URL="eos://atlas/results",
        )
        ended = server.run(file_list=copies(tmp_path / "in", 2))
        assert (ended["status"], ended["files-completed"]) == ("Complete", 2)
        folder = tmp_path / "eos" / "atlas" / "results" / ended["request_id"]
        assert len([path for path in folder.rglob("*.parquet") if path.stat().st_size]) == 2
        assert server.rows("select distinct worker from tasks") != [("",)]
        server.stop()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ENGINE__KIND": "lap"}, "one of local, address, jobqueue, kubernetes, gateway, lab is"),
        ({"ENGINE__KIND": "lab"}, "setting engine.scheduler_file: Field required"),
        (
            {"ENGINE__KIND": "lab", "ENGINE__SCHEDULER_FILE": "f", "ENGINE__SCHEDULER_FLIE": "f"},
            "there is no setting engine.scheduler_flie (did you mean scheduler_file?)",
        ),
        ({"STORAGE__OBJECTS_URL": "eso://atlas/results"}, "or s3://bucket or eos://…"),
    ],
)
def test_wrong_setting_of_a_plug_in_stops_the_start(
    installed: dict[str, str], tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    """One line names the setting and the installed plug-ins."""
    environment = {f"SERVICEX_SERVER_{name}": value for name, value in settings.items()}
    assert said in refused("--data-dir", str(tmp_path / "data"), **installed, **environment)
