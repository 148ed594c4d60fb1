"""Choosing where the workers are: by file and variables, with one line for whatever is wrong."""

import os
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml

from servicex_server.clusters.choose import cluster_of
from servicex_server.clusters.dask_config import CONFIG, variables
from servicex_server.errors import StartupError
from servicex_server.settings.clusters import GatewayOptions, JobQueueOptions, kinds
from servicex_server.settings.loading import RENAMED, load
from servicex_server.settings.service import PREFIX, Settings
from servicex_server.text.hints import install


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
    assert install(options.kind) in str(refusal.value)
    assert f"No module named 'dask_{options.kind}'" in str(refusal.value)


def test_every_kind_is_a_cluster_of_its_own(
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


def test_dask_reads_from_variables_what_is_configured() -> None:
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
    """A setting that was renamed, or put into a group, is never ignored."""
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


def test_variable_that_is_no_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is misspelt is not ignored, and the most similar one is shown."""
    monkeypatch.setenv("SERVICEX_SERVER_WORKRES", "2")
    with pytest.raises(StartupError, match=r"SERVICEX_SERVER_WORKRES.*did you mean workers"):
        load()


def test_name_that_its_group_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICEX_SERVER_LIMITS__ATTEMPTZ", "2")
    with pytest.raises(StartupError, match=r"no setting limits\.attemptz \(did you mean attempts"):
        load()


def test_group_is_no_value(tmp_path: Path) -> None:
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
def test_list_that_is_no_json_is_named(
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


def test_variables_of_a_kubernetes_service_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_5000_TCP_ADDR"):
        monkeypatch.setenv(PREFIX + name, "10.0.0.1")
    load()


def test_variable_of_a_kubernetes_service_is_not_taken_for_a_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Service of the same name in the namespace sets it in every pod."""
    monkeypatch.setenv("SERVICEX_SERVER_PORT", "tcp://10.0.0.1:5000")
    with pytest.raises(StartupError, match="enableServiceLinks: false"):
        load()
