"""Who may import whom, held by reading every import; and what an import may cost.

The table below is the map of the package. A new module needs a place in it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "servicex_server"
SOURCE = Path(__file__).parents[2] / "src" / PACKAGE

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"model", "errors"}),
    frozenset({"settings", "keys", "plugins", "telemetry", "credentials", "blocking", "webhook"}),
    frozenset(
        {
            "languages.contract",
            "finders.contract",
            "engines.contract",
            "objects.contract",
            "objects.bucket",
        }
    ),
    frozenset({"database"}),
    frozenset(
        {
            "submission",
            "lookup",
            "dispatch",
            "elsewhere",
            "fairness",
            "identity",
            "scaling",
            "quotas",
            "racing",
            "replicas",
            "retention",
            "accounts",
        }
    ),
    frozenset({"app", "candidate", "leader", "reporter", "reporting"}),
    frozenset({"web", "cli", "client_file", "doctor", "processes", "asking", "probes"}),
)
"""From the bottom up: a room imports from its own layer and from those below it."""

ONLY: Mapping[str, frozenset[str]] = {
    "columnar": frozenset({"errors"}),
    "transform": frozenset(
        {
            "result",
            "columnar",
            "languages",
            "objects",
            "credentials",
            "model",
            "errors",
            "plugins",
        }
    ),
    "probe": frozenset({"result", "columnar", "model", "errors"}),
    "result": frozenset({"columnar", "credentials", "model", "errors"}),
    "languages": frozenset({"languages.contract", "columnar", "model", "errors"}),
    "finders": frozenset({"finders.contract", "credentials", "blocking", "model", "errors"}),
    "engines": frozenset({"engines.contract", "model", "errors"}),
    "objects": frozenset({"objects.contract", "model", "errors"}),
}
"""Rooms beside the layers import themselves, or only what is named here.

For an implementation "itself" is its own module: it knows its contract, not its siblings.
"""

ASSEMBLY = frozenset({"app", "leader", "web", "cli", "doctor"})
"""Only where the service is put together may an implementation be named."""

EXTRA: Mapping[tuple[str, str], str] = {
    ("languages.contract", "columnar"): "what a language compiles to is a plan of columns",
    ("engines", "transform"): "what an engine runs on its workers",
    ("accounts.administration", "objects.store"): "a command beside the service removes results",
    ("engines.on_worker", "probe"): "what an engine has its workers look at",
    ("probes", "probe"): "the same look, from where a person is",
    ("engines.dask", "engines.clusters"): "tasks are one chapter, where workers come from another",
    ("engines.dask", "engines.on_worker"): "what runs on the other side is a chapter",
    ("engines.dask", "engines.roster"): "who is there and what each is on is a chapter",
    ("engines.dask", "engines.checking"): "asking workers beside their tasks is a chapter",
    ("engines.on_worker", "columnar.allocator"): "a process is made ready before its first task",
    ("engines.checking", "engines.on_worker"): "what is asked runs on the other side",
    ("engines.on_worker", "engines.beside"): "what runs on a worker beside its task is a chapter",
    ("engines.on_worker", "languages.family"): "what a program has started ends with its worker",
    ("engines.clusters", "engines"): "the contract of a cluster, and the choice of its kinds",
    ("engines.clusters", "engines.certificate"): "how its parts know each other is a chapter",
    ("engines.jobqueue", "engines.certificate"): "how its parts know each other is a chapter",
    ("engines.address", "engines.clusters"): "a kind of cluster knows the contract",
    ("engines.jobqueue", "engines.clusters"): "a kind of cluster knows the contract",
    ("engines.kubernetes", "engines.clusters"): "a kind of cluster knows the contract",
    ("engines.gateway", "engines.clusters"): "a kind of cluster knows the contract",
    ("engines", "engines.options"): "what each kind can be told is one chapter",
    ("engines.jobqueue", "engines.batch"): "what differs between batch systems is a chapter",
    ("engines.batch", "engines.clusters"): "how much a job needs beside its worker",
    ("settings", "accounts.mail"): "what the URL of a mail server can say stands beside it",
    ("settings", "accounts.options"): "what is told of those who vouch stands beside who asks them",
    ("settings", "engines.options"): "what each kind of cluster can be told stands beside it",
    ("languages.func_adl", "languages.qastle"): "how the text of a query is read is a chapter",
    ("languages.func_adl", "languages.func_adl_functions"): "functions are a chapter",
    ("languages.func_adl", "languages.func_adl_operators"): "operators are a chapter",
    ("languages.func_adl_operators", "languages.func_adl_functions"): "folds are in the former",
    ("languages.func_adl_operators", "languages.qastle"): "what is read are forms",
    ("languages.run_child", "languages.family"): "watching what a program starts is a chapter",
    ("finders.rucio", "finders.rucio_client"): "how its client signs in is a chapter",
    ("finders.rucio", "finders.rucio_asking"): "what is asked of its client is a chapter",
    ("finders.rucio_asking", "finders.rucio_client"): "how its client signs in is a chapter",
    ("finders.dbs", "finders.dbs_places"): "where its files are is a chapter",
    ("finders.dbs", "finders.rucio_client"): "the catalogue of places of CMS is a Rucio",
    ("finders.dbs_places", "finders.rucio_asking"): "the catalogue of places of CMS is a Rucio",
    ("finders.dbs_places", "finders.rucio_client"): "the catalogue of places of CMS is a Rucio",
    ("submission", "finders.file_list"): "a list comes in the request itself and is checked there",
}
"""Exceptions, each with its reason."""

HEAVY = ("uproot", "awkward", "numpy", "pyarrow", "distributed", "sqlalchemy", "fastapi")

WIRE_NAMES = (
    "app-version",
    "code-gen-image",
    "files-completed",
    "files-failed",
    "files-remaining",
    "finish-time",
    "generated-code-cm",
    "minio-access-key",
    "minio-endpoint",
    "minio-secret-key",
    "minio-secured",
    "result-destination",
    "result-format",
    "s3-object-name",
    "submit-time",
    "total-bytes",
    "tree-name",
)
"""Names that only the wire has. ``file-list`` is missing: a finder has that name too."""

FIELDS = (
    "codegen:",
    "did:",
    "file-list:",
    "result-destination:",
    "result-format:",
    "selection:",
    "title:",
)
"""Fields of a request: a message about one begins with its name, as the user wrote it."""


@dataclass(frozen=True)
class Import:
    """One import of ours: where it stands, what it names, whether loading the module does it."""

    importer: str
    imported: str
    line: int
    at_load: bool


def modules(source: Path) -> dict[str, Path]:
    """Return every module below a package folder, named from the package: ``columnar.plan``."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, text: str, known: Mapping[str, object]) -> Iterator[Import]:
    """Yield the imports of our own modules, also those inside functions."""
    tree = ast.parse(text)
    inside = {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
        for below in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute here"
            both = {f"{node.module}.{alias.name}" for alias in node.names}
            targets = {
                one if one[len(PACKAGE) + 1 :] in known else str(node.module) for one in both
            }
        else:
            continue
        for target in sorted(targets):
            package, _, rest = target.partition(".")
            if package == PACKAGE:
                yield Import(name, rest, node.lineno, id(node) not in inside)


def room(name: str, rooms: Mapping[str, object] | frozenset[str]) -> str | None:
    """Return the room a module is in: the longest of the given names that holds it."""
    while name and name not in rooms:
        name = name.rpartition(".")[0]
    return name or None


HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
ROOMS = frozenset(HEIGHT) | frozenset(ONLY)


def holds(names: frozenset[str], module: str) -> bool:
    """Whether one of the names is the module or a folder it is in."""
    return room(module, names) is not None


def fault(one: Import) -> str | None:
    """Return the rule that an import breaks, None if it breaks none."""
    mine, theirs = room(one.importer, ROOMS), room(one.imported, ROOMS)
    if not one.importer:
        return "the package itself imports nothing of its own: it has to stay light"
    if mine is None:
        return f"{one.importer} has no place in the table of this test"
    if not one.imported or one.imported == one.importer:
        return None
    if any(
        holds(frozenset({a}), one.importer) and holds(frozenset({b}), one.imported)
        for a, b in EXTRA
    ):
        return None
    if theirs is None:
        return f"{one.imported} has no place in the table of this test"
    if mine in ONLY:
        alone = mine in ("columnar", "transform")
        if (alone and mine == theirs) or holds(ONLY[mine], one.imported):
            return None
        return f"{mine} imports only {', '.join(sorted(ONLY[mine]))}"
    if theirs in ONLY:
        return None if mine in ASSEMBLY else f"only {', '.join(sorted(ASSEMBLY))} name {theirs}"
    if HEIGHT[theirs] > HEIGHT[mine]:
        return f"{mine} is below {theirs}"
    return None


def faults(sources: Mapping[str, str]) -> list[str]:
    """Return a line for every import that breaks a rule, and for every module without a place."""
    found = []
    for name, text in sources.items():
        if name and room(name, ROOMS) is None:
            found.append(f"{name}: has no place in the table of this test")
            continue
        for one in imports(name, text, sources):
            if rule := fault(one):
                target = f"{PACKAGE}.{one.imported}".rstrip(".")
                found.append(f"{name or PACKAGE}, line {one.line}: imports {target}, but {rule}")
    return found


def wire_names(name: str, text: str) -> list[str]:
    """Return a line for every wire name in a text of a module, docstrings and messages apart."""
    tree = ast.parse(text)
    prose = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):  # a docstring
            prose.add(id(node.value))
        elif isinstance(node, ast.JoinedStr) and ast.unparse(node)[2:].startswith(FIELDS):
            prose |= {id(part) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if id(node) in prose or node.value.startswith(FIELDS):
            continue
        found += [
            f"{name}, line {node.lineno}: {wire} is a wire name, which belongs below web/"
            for wire in WIRE_NAMES
            if wire in node.value
        ]
    return found


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in modules(SOURCE).items()}


def test_every_import_keeps_to_the_map(sources: dict[str, str]) -> None:
    assert len(sources) > 10
    broken = faults(sources)
    assert not broken, "\n".join(["", *broken])


def test_modules_load_in_an_order(sources: dict[str, str]) -> None:
    graph: dict[str, set[str]] = {
        name: {one.imported for one in imports(name, text, sources) if one.at_load and one.imported}
        for name, text in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' imports '.join(reversed(error.args[1]))}")


OTHERS = (
    "app",
    "columnar.plan",
    "database",
    "database.tasks",
    "dispatch",
    "engines.dask",
    "errors",
    "finders.file_list",
    "helpers",
    "languages.contract",
    "languages.other",
    "model",
    "plugins",
    "settings",
    "transform",
    "web.api",
)


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("model", "from servicex_server.app import App", "model is below app"),
        ("model", "from servicex_server import settings", "model is below settings"),
        ("plugins", "from servicex_server.languages.contract import Language", "plugins is below"),
        ("database.tasks", "import servicex_server.dispatch", "database is below dispatch"),
        ("dispatch", "def f():\n    from servicex_server.web import api", "dispatch is below web"),
        ("dispatch", "from servicex_server.engines.dask import DaskEngine", "only app, cli"),
        ("lookup", "from servicex_server.finders.file_list import FileList", "only app, cli"),
        ("columnar.read", "from servicex_server.model import now", "columnar imports only errors"),
        ("transform", "from servicex_server import database", "transform imports only"),
        ("transform", "from servicex_server.web.api import router", "transform imports only"),
        ("finders.file_list", "from servicex_server.columnar import plan", "finders imports only"),
        ("finders.file_list", "import servicex_server.database", "finders imports only"),
        ("languages.uproot_raw", "import servicex_server.languages.other", "languages imports"),
        ("", "from servicex_server import model", "has to stay light"),
        ("helpers", "", "helpers: has no place"),
        ("model", "from servicex_server import helpers", "helpers has no place"),
    ],
)
def test_a_breach_is_named_with_line_and_rule(name: str, text: str, rule: str) -> None:
    others = dict.fromkeys(OTHERS, "")
    found = [line for line in faults(others | {name: text}) if "line" in line]
    found = found or faults({name: text})
    assert len(found) == 1
    assert rule in found[0]
    assert name == "helpers" or f"line {2 if 'def' in text else 1}:" in found[0]


def test_a_circle_of_imports_is_seen() -> None:
    known = {"errors": "import servicex_server.model", "model": "import servicex_server.errors"}
    with pytest.raises(pytest.fail.Exception, match="a circle of imports"):
        test_modules_load_in_an_order(known)


def test_what_the_map_allows_is_no_breach() -> None:
    allowed = {
        "errors": "import json",
        "model": "from servicex_server.errors import ErrorRecord",
        "submission": "from servicex_server import __version__, model",
        "web.api": "from servicex_server.app import App",
        "app": "from servicex_server.objects.store import Store",
        "objects.store": "from servicex_server.objects.contract import ObjectStore",
        "objects.contract": "",
        "engines.dask": "from servicex_server.transform import transform",
        "transform": "from servicex_server.columnar.read import open_root",
        "columnar.read": "from servicex_server.columnar.plan import matches",
        "columnar.plan": "",
    }
    assert faults(allowed) == []


def test_wire_names_occur_only_below_web(sources: dict[str, str]) -> None:
    found = [
        line
        for name, text in sources.items()
        if name.partition(".")[0] != "web"
        for line in wire_names(name, text)
    ]
    assert not found, "\n".join(["", *found])


def test_a_wire_name_is_seen_in_code_and_not_in_prose() -> None:
    text = (
        '"""About result-format."""\nx = row["minio-endpoint"]\ny = f"result-format: {x} is odd"\n'
    )
    assert wire_names("model", text) == [
        "model, line 2: minio-endpoint is a wire name, which belongs below web/"
    ]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, {PACKAGE}; print(*sorted(set(sys.modules) & set({HEAVY})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []
