"""Choosing where the workers are: by file and variables, with one line for whatever is wrong."""

import os
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml

from servicex_server.engines.clusters import CONFIG, cluster_of, variables
from servicex_server.engines.options import GatewayOptions, JobQueueOptions, kinds
from servicex_server.errors import StartupError
from servicex_server.settings import PREFIX, Settings, load


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def loaded(folder: Path, **engine: Any) -> Settings:
    """Return the settings of a file."""
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump({"engine": engine}))
    return load(path)


SLURM = {"kind": "jobqueue", "system": "slurm"}
HTCONDOR = {"kind": "jobqueue", "system": "htcondor"}
GATEWAY = {"kind": "gateway", "address": "https://gateway.example.org"}


def test_without_a_choice_it_is_this_machine() -> None:
    assert load().engine.kind == "local"


def test_a_variable_adds_to_the_file_and_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{PREFIX}ENGINE__QUEUE", "short")
    monkeypatch.setenv(f"{PREFIX}ENGINE__DIRECTIVES", '["--constraint=el9"]')
    engine = loaded(tmp_path, **SLURM, queue="long", account="hep").engine
    assert isinstance(engine, JobQueueOptions)
    assert (engine.queue, engine.account) == ("short", "hep")
    assert engine.directives == ("--constraint=el9",)


def test_variables_alone_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}ENGINE__KIND", "gateway")
    monkeypatch.setenv(f"{PREFIX}ENGINE__ADDRESS", "https://gateway.example.org")
    monkeypatch.setenv(f"{PREFIX}ENGINE__PASSWORD", "hush")
    engine = load().engine
    assert isinstance(engine, GatewayOptions)
    assert engine.password is not None
    assert engine.password.get_secret_value() == "hush"
    assert "hush" not in repr(load())


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"kind": "slrum"}, "engine.kind (or {E}KIND): one of local, address, jobqueue"),
        ({"system": "slurm"}, "engine.kind (or {E}KIND): one of local, address, jobqueue"),
        ({"kind": "local", "queue": "x"}, "there is no setting engine.queue (there is kind)"),
        ({"kind": "jobqueue"}, "engine.system (or {E}SYSTEM): Field required"),
        (SLURM | {"kueue": "x"}, "there is no setting engine.kueue (did you mean queue?)"),
        (SLURM | {"walltime": "a while"}, "engine.walltime (or {E}WALLTIME): String should match"),
        (SLURM | {"scheduler_port": 70000}, "engine.scheduler_port (or {E}SCHEDULER_PORT)"),
        (SLURM | {"directives": ["constraint=el9"]}, "each directive is one line, an option of"),
        (SLURM | {"directives": ["--a\n--b"]}, "each directive is one line, an option of sbatch"),
        (HTCONDOR | {"directives": ["longlunch"]}, "each directive is one line, name = value"),
        (HTCONDOR | {"queue": "short"}, "HTCondor has no queues; requirements go into directives"),
        ({"kind": "address", "scheduler": "http://a:1"}, "engine.scheduler (or {E}SCHEDULER)"),
        ({"kind": "address", "scheduler": "tls://a:1"}, "a tls:// scheduler needs all three files"),
        (
            {"kind": "address", "scheduler": "tcp://a:1", "tls_ca_file": "ca.pem"},
            "engine.tls_ca_file (or {E}TLS_CA_FILE): a tcp:// scheduler takes no certificates",
        ),
        ({"kind": "kubernetes"}, "engine.image (or {E}IMAGE): needed, unless spec_file names one"),
        ({"kind": "kubernetes", "image": "x", "name": "My Own"}, "engine.name (or {E}NAME)"),
        (GATEWAY | {"auth": "magic"}, "engine.auth (or {E}AUTH): Input should be 'basic', "),
        (GATEWAY | {"password": 1234}, "engine.password (or {E}PASSWORD): Input should be a valid"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, engine: dict[str, Any], said: str) -> None:
    with pytest.raises(StartupError) as refusal:
        loaded(tmp_path, **engine)
    assert said.replace("{E}", f"{PREFIX}ENGINE__") in str(refusal.value)
    assert "1234" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "engine",
    [SLURM, {"kind": "kubernetes", "image": "x"}, GATEWAY],
    ids=lambda engine: str(engine["kind"]),
)
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: dict[str, Any]
) -> None:
    def missing(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module.partition('.')[0]!r}")

    monkeypatch.setattr("importlib.import_module", missing)
    options = loaded(tmp_path, **engine).engine
    with pytest.raises(StartupError) as refusal:
        cluster_of(options, memory=1 << 30, folder=tmp_path)
    assert f"pip install 'servicex-server[{options.kind}]'" in str(refusal.value)
    assert f"No module named 'dask_{options.kind}'" in str(refusal.value)


def test_every_kind_is_a_cluster_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda program: f"/usr/bin/{program}")
    engines = [
        {"kind": "local"},
        {"kind": "address", "scheduler": "tcp://a:1"},
        SLURM,
        {"kind": "kubernetes", "image": "x"},
        GATEWAY,
    ]
    made = [
        type(cluster_of(loaded(tmp_path, **engine).engine, memory=1 << 30, folder=tmp_path))
        for engine in engines
    ]
    assert len(set(made)) == len(kinds())


def test_dask_reads_from_variables_what_is_configured() -> None:
    found = dask.config.collect(paths=[], env=variables(CONFIG))
    read = {name: dask.config.get(name, config=found) for name in CONFIG}
    assert read == CONFIG
