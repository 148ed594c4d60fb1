"""The reference pages describe everything, and the examples in all pages are valid."""

import ast
import inspect
import itertools
import json
import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
import yaml
from _pytest.mark import ParameterSet

from servicex_server import errors
from servicex_server.cli.main import cli
from servicex_server.finders.contract import Finder
from servicex_server.finders.file_list import FileList
from servicex_server.languages.uproot_raw import UprootRaw
from servicex_server.model import RequestState, ResultFormat
from servicex_server.settings.clusters import JobQueueOptions, kinds
from servicex_server.settings.groups import Group
from servicex_server.settings.service import PREFIX, Settings
from servicex_server.web.api.schemas import SubmitBody
from tests.support import routes

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def page(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """Return the rows of all tables of a page, by the code in their first cell."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip()[1:-1].split("|")]
        if line.startswith("| `"):
            found[cells[0].strip("`")] = cells[1:]
    return found


DEPENDS = (("scaling", "least_workers"), ("reading", "local_folders"))
"""Settings whose default is that of another one."""

GROUPS = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Group)
}


@pytest.mark.parametrize("group", ["", *GROUPS])
def test_every_setting_is_described_with_its_variable_and_default(group: str) -> None:
    text = page("settings")
    if group:
        text = text.partition(f"\n## `{group}`\n")[2]
    described = rows(text.partition("\n## ")[0])
    prefix = f"{PREFIX}{group.upper()}__" if group else PREFIX
    fields = GROUPS[group].model_fields if group else Settings.model_fields
    fields = {name: field for name, field in fields.items() if group or name not in GROUPS}
    assert set(described) == set(fields)
    for name, field in fields.items():
        variable, default = described[name][:2]
        assert variable == f"`{prefix}{name.upper()}`"
        if (group, name) in DEPENDS:
            continue
        if field.default_factory is None:
            shown = "none" if field.default is None else str(field.default).removesuffix(".0")
            if isinstance(field.default, tuple):
                shown = json.dumps([str(one) for one in field.default])
            assert default.strip("`").lower() == shown.lower(), name


@pytest.mark.parametrize("kind", kinds())
def test_every_option_of_an_engine_is_described(kind: str) -> None:
    text = page("settings").partition(f"\n## `engine` of kind `{kind}`\n")[2].partition("\n## ")[0]
    assert text
    described = rows(text)
    fields = {name: field for name, field in kinds()[kind].model_fields.items() if name != "kind"}
    assert set(described) == set(fields)
    for name, field in fields.items():
        variable, default = described[name][:2]
        assert variable == f"`{PREFIX}ENGINE__{name.upper()}`"
        shown = "needed" if field.is_required() else str(field.default or "none").removesuffix(".0")
        if field.default is False:
            shown = "false"
        elif field.default == 0:
            shown = "0"
        assert default.strip("`") == shown, name


def test_every_kind_of_engine_has_a_complete_example() -> None:
    text = (ROOT / "docs" / "how-to" / "run-at-a-facility.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    engines = [Settings(**yaml.safe_load(example)).engine for example in examples]
    assert {engine.kind for engine in engines} == set(kinds()) - {"local"}
    systems = {engine.system for engine in engines if isinstance(engine, JobQueueOptions)}
    assert systems == {"slurm", "htcondor"}


def finders() -> list[type[Finder]]:
    """Return the finders that the project registers, installed or not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]["servicex_server.finders"]
    found: list[type[Finder]] = [
        EntryPoint(name, value, "servicex_server.finders").load() for name, value in points.items()
    ]
    assert [kind.scheme for kind in found] == list(points)
    return found


@pytest.mark.parametrize("finder", finders(), ids=lambda finder: str(finder.scheme))
def test_every_option_of_a_finder_is_described(finder: type[Finder]) -> None:
    fields = finder.Options.model_fields
    text = page("catalogues").partition(f"\n## {finder.scheme}\n")[2].partition("\n## ")[0]
    assert text.strip() or finder is FileList
    described = {name: row for name, row in rows(text).items() if len(row) == 3}
    assert set(described) == set(fields)
    for name, field in fields.items():
        variable, default = described[name][:2]
        assert variable == f"`{PREFIX}FINDERS__{finder.scheme.upper()}__{name.upper()}`"
        shown = "needed" if field.is_required() else str(field.default or "none").removesuffix(".0")
        if isinstance(field.default, list | tuple):
            shown = json.dumps(field.default)
        assert default.strip("`") == shown, name


def test_every_command_and_option_is_described() -> None:
    text = page("command-line")
    group = typer.main.get_command(cli)
    assert isinstance(group, typer.core.TyperGroup)
    commands = dict(group.commands)
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            commands |= {f"{name} {inner}": one for inner, one in command.commands.items()}
    for name, command in commands.items():
        section = text.partition(f"## `servicex-server {name}`")[2].partition("\n## ")[0]
        assert section, f"there is no section on {name}"
        options = {
            option
            for parameter in command.params
            for option in parameter.opts
            if option.startswith("--") and option != "--help"
        }
        assert set(rows(section)) == options


def test_every_route_is_described_and_exists() -> None:
    described = {key for key in rows(page("http-api")) if " /" in key}
    served = {route for route, in_api in routes().items() if in_api}
    results = {key for key in described if "/{request_id}/{name}" in key or "list-type" in key}
    assert described - results == served
    assert len(results) == 3


def test_every_field_of_a_request_and_every_state_is_described() -> None:
    described = rows(page("http-api"))
    for field in SubmitBody.model_fields.values():
        assert field.alias in described
    for state in RequestState:
        assert state.value in described


def test_every_error_is_described_with_its_properties() -> None:
    described = rows(page("errors"))
    classes = {
        name.removesuffix("Error"): kind
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.ServiceXError) and kind is not errors.ServiceXError
    }
    assert set(described) == set(classes)
    for name, kind in classes.items():
        status, blame, retryable = described[name][:3]
        assert blame == kind.blame, name
        assert retryable == ("yes" if kind.retryable else "no"), name
        assert status in ("", str(kind.status)), name


def test_every_format_is_described() -> None:
    assert {one.value for one in ResultFormat} <= set(rows(page("formats")))


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *itertools.chain(*project["optional-dependencies"].values()),
    ]
    names = {re.split(r"[\[>=;]", one)[0].strip() for one in wanted}
    text = (ROOT / "docs" / "explanation" / "dependencies.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ([a-z][^|]*) \|", text, re.MULTILINE)
    assert {name.strip() for cell in cells for name in cell.split(",")} - {"library"} == names


def blocks(language: str) -> list[ParameterSet]:
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for block in fence.finditer(text):
            line = text.count("\n", 0, block.start()) + 1
            found.append(pytest.param(block[1], id=f"{path.relative_to(ROOT)}:{line}"))
    return found


@pytest.mark.parametrize("text", blocks("python"))
def test_every_python_example_compiles(text: str) -> None:
    compile(text, "example", "exec")


@pytest.mark.parametrize("text", blocks("python"))
def test_every_query_in_python_examples_is_sound(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "query.UprootRaw":
            query = ast.literal_eval(node.args[0])
            UprootRaw().compile(json.dumps(query), ResultFormat.TTREE)


@pytest.mark.parametrize("text", blocks("json"))
def test_every_query_in_json_is_sound(text: str) -> None:
    UprootRaw().compile(text, ResultFormat.TTREE)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_yaml_example_is_a_configuration(text: str) -> None:
    found = yaml.safe_load(text)
    if "api_endpoints" not in found:
        Settings(**found)


def test_the_functions_of_the_query_language_are_described() -> None:
    from servicex_server.columnar.functions import FUNCTIONS

    text = (ROOT / "docs" / "how-to" / "write-a-query-uproot-raw.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^> ?`?([a-z_ \n>`]+)`?$", text, re.MULTILINE)
    named = set(re.findall(r"[a-z_]+[0-9]*[a-z]*", " ".join(quoted)))
    assert named <= FUNCTIONS
    plain = re.search(r"Functions of uproot's language: `(.*?)`", text, re.DOTALL)
    assert plain is not None
    assert set(plain[1].split()) <= FUNCTIONS


def test_examples_of_plug_ins_work() -> None:
    text = (ROOT / "docs" / "how-to" / "add-a-plug-in.md").read_text(encoding="utf-8")
    for example in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        names: dict[str, object] = {}
        exec(compile(example, "example", "exec"), names)
        assert {"MyLab", "NameList", "open_eos", "LabScheduler", "TestMyLab"} & names.keys()
