"""The settings of the engine, from a file and from variables; each fault is one line."""

import os
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml

from servicex_server.clusters.choose import cluster_of
from servicex_server.clusters.dask_config import CONFIG, variables
from servicex_server.errors import StartupError
from servicex_server.settings.clusters import (
    GatewayOptions,
    JobQueueOptions,
    PluginOptions,
    kinds,
)
from servicex_server.settings.loading import RENAMED, load
from servicex_server.settings.service import PREFIX, Settings
from servicex_server.text.hints import install


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def loaded(folder: Path, **engine: Any) -> Settings:
    """Write a settings file for the engine, and return its settings."""
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump({"engine": engine}))
    return load(path)


SLURM = {"kind": "jobqueue", "system": "slurm"}
HTCONDOR = {"kind": "jobqueue", "system": "htcondor"}
GATEWAY = {"kind": "gateway", "address": "https://gateway.example.org"}


def test_default_engine_is_local() -> None:
    assert load().engine.kind == "local"


def test_variable_extends_and_overrides_the_file(
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


def test_option_of_a_plug_in_is_not_shown() -> None:
    """Only the plug-in knows which of its options are passwords."""
    assert "hush" not in repr(PluginOptions.model_validate({"kind": "lab", "password": "hush"}))


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"kind": "slrum"}, "engine.kind (or {E}KIND): one of local, address, jobqueue"),
        ({"system": "slurm"}, "engine.kind (or {E}KIND): one of local, address, jobqueue"),
        (
            {"kind": "local", "queue": "x"},
            "there is no setting engine.queue (there is kind, scratch_folder)",
        ),
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
            {"kind": "address", "scheduler": "tcp://a:1"},
            "engine.scheduler (or {E}SCHEDULER): a tcp:// scheduler obeys everybody who reaches",
        ),
        (
            {
                "kind": "address",
                "scheduler": "tcp://a:1",
                "allow_plain_tcp": True,
                "tls_ca_file": "ca.pem",
            },
            "engine.tls_ca_file (or {E}TLS_CA_FILE): a tcp:// scheduler takes no certificates",
        ),
        ({"kind": "kubernetes"}, "engine.image (or {E}IMAGE): needed, unless spec_file names one"),
        ({"kind": "kubernetes", "image": "x", "name": "My Own"}, "engine.name (or {E}NAME)"),
        (GATEWAY | {"auth": "magic"}, "engine.auth (or {E}AUTH): Input should be 'basic', "),
        (GATEWAY | {"password": 1234}, "engine.password (or {E}PASSWORD): Input should be a valid"),
    ],
)
def test_wrong_setting_is_named_in_one_line(
    tmp_path: Path, engine: dict[str, Any], said: str
) -> None:
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
def test_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: dict[str, Any]
) -> None:
    def missing(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module.partition('.')[0]!r}")

    monkeypatch.setattr("importlib.import_module", missing)
    options = loaded(tmp_path, **engine).engine
    with pytest.raises(StartupError) as refusal:
        cluster_of(options, memory=1 << 30, folder=tmp_path)
    assert install(options.kind) in str(refusal.value)
    assert f"No module named 'dask_{options.kind}'" in str(refusal.value)


def test_every_kind_has_its_own_cluster_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda program: f"/usr/bin/{program}")
    engines: list[dict[str, Any]] = [
        {"kind": "local"},
        {"kind": "address", "scheduler": "tcp://a:1", "allow_plain_tcp": True},
        SLURM,
        {"kind": "kubernetes", "image": "x"},
        GATEWAY,
    ]
    made = [
        type(cluster_of(loaded(tmp_path, **engine).engine, memory=1 << 30, folder=tmp_path))
        for engine in engines
    ]
    assert len(set(made)) == len(kinds())


def test_dask_reads_its_configuration_from_variables() -> None:
    found = dask.config.collect(paths=[], env=variables(CONFIG))
    read = {name: dask.config.get(name, config=found) for name in CONFIG}
    assert read == CONFIG


@pytest.mark.parametrize("where", ["file", "variable"])
@pytest.mark.parametrize(
    ("former", "new"),
    [
        ("race_replicas", "reading.speculative_reads"),
        ("mail_from", "mail.sender"),
        ("attempts", "limits.attempts"),
    ],
)
def test_former_name_of_a_setting_is_refused_with_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, former: str, new: str
) -> None:
    """The service never ignores a setting that was renamed or moved into a group."""
    config = tmp_path / "settings.yaml"
    config.write_text(f"{former}: 1\n" if where == "file" else "port: 0\n")
    if where == "variable":
        monkeypatch.setenv(PREFIX + former.upper(), "1")
    with pytest.raises(StartupError, match=former) as refusal:
        load(config)
    assert f"{new} now" in refusal.value.hint
    assert PREFIX + new.upper().replace(".", "__") in refusal.value.hint


@pytest.mark.parametrize("former", RENAMED)
def test_new_name_of_a_renamed_setting_exists(former: str) -> None:
    group, name = RENAMED[former].split(".")
    assert name in type(getattr(Settings(), group)).model_fields
    assert former not in Settings.model_fields


def test_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service does not ignore a misspelt name, and shows the most similar one."""
    monkeypatch.setenv("SERVICEX_SERVER_WORKRES", "2")
    with pytest.raises(StartupError, match=r"SERVICEX_SERVER_WORKRES.*did you mean workers"):
        load()


def test_unknown_name_in_a_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICEX_SERVER_LIMITS__ATTEMPTZ", "2")
    with pytest.raises(StartupError, match=r"no setting limits\.attemptz \(did you mean attempts"):
        load()


def test_value_in_place_of_a_group_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("limits: 3\n")
    with pytest.raises(
        StartupError, match=r"setting limits \(or .*: a group is needed, with worker_memory"
    ):
        load(config)


def test_variable_replaces_one_setting_of_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("limits: {attempts: 2, fatal_after: 5}\n")
    monkeypatch.setenv("SERVICEX_SERVER_LIMITS__ATTEMPTS", "4")
    found = load(config).limits
    assert (found.attempts, found.fatal_after) == (4, 5)


@pytest.mark.parametrize(
    ("variable", "setting"),
    [
        ("SERVICEX_SERVER_READING__ALLOWED_HOSTS", "reading.allowed_hosts"),
        ("SERVICEX_SERVER_TRUSTED_PROXIES", "trusted_proxies"),
    ],
)
def test_list_that_is_not_json_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, setting: str
) -> None:
    monkeypatch.setenv(variable, "/data")
    with pytest.raises(StartupError, match=rf"setting {setting} \({variable}\): .*no JSON"):
        load()


def test_text_where_a_list_is_needed_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICEX_SERVER_READING__LOCAL_FOLDERS", "/data")
    said = r"setting reading\.local_folders .*: a list is needed, as in \[.*, not '/data'"
    with pytest.raises(StartupError, match=said):
        load()


def test_variables_of_a_kubernetes_service_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_5000_TCP_ADDR"):
        monkeypatch.setenv(PREFIX + name, "10.0.0.1")
    load()


def test_port_variable_of_a_kubernetes_service_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Service of the same name sets this variable in every pod of the namespace."""
    monkeypatch.setenv("SERVICEX_SERVER_PORT", "tcp://10.0.0.1:5000")
    with pytest.raises(StartupError, match="enableServiceLinks: false"):
        load()
