"""The layers of the rooms, checked on every import; and the cost of importing the package.

The rules are about folders. They are also the map of the package: read `LAYERS` from the bottom up.
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
    frozenset({"text", "concurrency"}),
    frozenset({"errors"}),
    frozenset({"network", "plugins"}),
    frozenset({"model"}),
    frozenset({"credentials", "observability", "storage", "columnar"}),
    frozenset({"database", "languages", "finders"}),
    frozenset({"worker"}),
    frozenset({"settings", "query_processes"}),
    frozenset({"notifications", "clusters"}),
    frozenset({"engine"}),
    frozenset({"datasets", "testing"}),
    frozenset({"replicas", "requests", "retention"}),
    frozenset({"scheduling"}),
    frozenset({"accounts"}),
    frozenset({"app"}),
    frozenset({"process"}),
    frozenset({"web"}),
    frozenset({"cli"}),
)
"""From the bottom up: a room imports itself and rooms of lower layers, none beside it."""

ONLY: Mapping[str, frozenset[str]] = {
    "columnar": frozenset({"errors", "network", "text"}),
    "storage": frozenset({"errors", "model", "plugins"}),
    "database": frozenset({"errors", "model", "storage", "text"}),
    "languages": frozenset({"columnar", "errors", "model", "text"}),
    "finders": frozenset({"concurrency", "credentials", "errors", "model", "network", "text"}),
    "worker": frozenset(
        {
            "columnar",
            "credentials",
            "errors",
            "languages",
            "model",
            "network",
            "plugins",
            "storage",
        }
    ),
    "settings": frozenset({"errors", "model", "network", "plugins", "text"}),
}
"""Rooms that import less than what lies below them. A worker knows no database and no web."""

FAMILIES: Mapping[str, frozenset[str]] = {
    "languages": frozenset({"contract"}),
    "finders": frozenset({"contract", "file_list"}),
    "storage": frozenset({"contract", "choose", "bucket"}),
    "engine": frozenset({"contract"}),
}
"""Families of implementations, and what others than `ASSEMBLY` may import of each.

A list of files comes in the request itself, and is checked there.
"""

ASSEMBLY = frozenset({"app", "scheduling.leader", "cli", "accounts.administration"})
"""The modules that put the service together may name implementations."""

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
    """An import of our own: its place, its target, and whether loading the module runs it."""

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


def room(name: str) -> str:
    """Return the room that a module is in: the folder, or the module on the top floor."""
    return name.partition(".")[0]


HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}


def fault(one: Import) -> str | None:
    """Return the rule that an import breaks, None if it breaks none."""
    if not one.importer:
        return "the package itself imports nothing of its own: it has to stay light"
    if not one.imported:
        return None
    mine, theirs = room(one.importer), room(one.imported)
    if theirs not in HEIGHT:
        return f"{theirs} is no room in the table of this test"
    if mine == theirs:
        if one.importer.endswith(".contract"):
            implementations = FAMILIES.get(mine) and "a contract imports no implementation"
            return implementations or None
        return None
    if mine in ONLY and theirs not in ONLY[mine]:
        return f"{mine} imports only {', '.join(sorted(ONLY[mine]))}"
    if HEIGHT[theirs] >= HEIGHT[mine]:
        return f"{mine} is not above {theirs}"
    if theirs in FAMILIES and not (ASSEMBLY & {mine, one.importer}):
        part = one.imported.partition(".")[2]
        if part and part not in FAMILIES[theirs]:
            return f"only {', '.join(sorted(ASSEMBLY))} name an implementation of {theirs}"
    return None


def faults(sources: Mapping[str, str]) -> list[str]:
    """Return a line for every import that breaks a rule, and for every module without a room."""
    found = []
    for name, text in sources.items():
        if name and room(name) not in HEIGHT:
            found.append(f"{name}: has no room in the table of this test")
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


def test_every_import_follows_the_layers(sources: dict[str, str]) -> None:
    assert len(sources) > 10
    broken = faults(sources)
    assert not broken, "\n".join(["", *broken])


def test_imports_have_no_cycle(sources: dict[str, str]) -> None:
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
    "engine.dask_engine",
    "errors",
    "finders.file_list",
    "finders.rucio",
    "helpers",
    "languages.contract",
    "languages.uproot_raw",
    "model",
    "plugins",
    "scheduling.dispatcher",
    "settings.service",
    "web.api.servicex",
    "worker.transform",
)


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("model", "from servicex_server.app import App", "model is not above app"),
        ("model", "from servicex_server.settings import service", "model is not above settings"),
        ("plugins", "import servicex_server.languages.contract", "plugins is not above languages"),
        ("database.tasks", "import servicex_server.scheduling.dispatcher", "database imports only"),
        (
            "scheduling.dispatcher",
            "def f():\n    from servicex_server.web.api import servicex",
            "scheduling is not above web",
        ),
        (
            "scheduling.dispatcher",
            "from servicex_server.engine.dask_engine import DaskEngine",
            "only accounts.administration, app, cli",
        ),
        ("datasets.lookup", "from servicex_server.finders.rucio import Rucio", "only accounts"),
        ("columnar.plan", "from servicex_server.model import now", "columnar imports only errors"),
        ("worker.transform", "from servicex_server import database", "worker imports only"),
        ("finders.file_list", "from servicex_server.columnar import plan", "finders imports only"),
        ("languages.contract", "import servicex_server.languages.uproot_raw", "a contract imports"),
        ("", "from servicex_server import model", "has to stay light"),
        ("helpers", "", "helpers: has no room"),
        ("model", "from servicex_server import helpers", "helpers is no room"),
    ],
)
def test_forbidden_import_is_reported_with_line_and_rule(name: str, text: str, rule: str) -> None:
    others = dict.fromkeys(OTHERS, "")
    found = [line for line in faults(others | {name: text}) if "line" in line]
    found = found or faults({name: text})
    assert len(found) == 1
    assert rule in found[0]
    assert name == "helpers" or f"line {2 if 'def' in text else 1}:" in found[0]


def test_import_cycle_is_reported() -> None:
    known = {"errors": "import servicex_server.model", "model": "import servicex_server.errors"}
    with pytest.raises(pytest.fail.Exception, match="a circle of imports"):
        test_imports_have_no_cycle(known)


def test_allowed_imports_are_accepted() -> None:
    allowed = {
        "errors": "import json",
        "model": "from servicex_server.errors import ErrorRecord",
        "requests.submission": "from servicex_server import __version__, model",
        "web.api.servicex": "from servicex_server.app import App",
        "app": "from servicex_server.storage.obstore_store import ObstoreStore",
        "storage.obstore_store": "from servicex_server.storage.contract import ObjectStore",
        "storage.contract": "",
        "engine.dask_engine": "from servicex_server.worker.transform import transform",
        "worker.transform": "from servicex_server.columnar.reading.trees import open_root",
        "columnar.reading.trees": "from servicex_server.columnar.plan import matches",
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


def test_wire_name_is_reported_in_code_and_not_in_prose() -> None:
    text = (
        '"""About result-format."""\nx = row["minio-endpoint"]\ny = f"result-format: {x} is odd"\n'
    )
    assert wire_names("model", text) == [
        "model, line 2: minio-endpoint is a wire name, which belongs below web/"
    ]


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = f"import sys, {PACKAGE}; print(*sorted(set(sys.modules) & set({HEAVY})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []
