"""The page on the architecture names rooms, files, classes and functions that exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_imports import LAYERS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "servicex_server"
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without its header."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = [
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    assert len(found) > 10
    return found[2:]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def definitions(path: Path) -> set[str]:
    """Return the classes, functions and methods of a module; those of classes as `Class.name`."""

    def found(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from found(node.body, f"{prefix}{node.name}.")

    return set(found(ast.parse(path.read_text(encoding="utf-8")).body, ""))


ROOMS = rows("The rooms")
PLACES = [row for row in rows("Where do I find …") if row[1]]


def test_rooms_are_those_of_the_layers_in_their_order() -> None:
    listed = [(int(layer), codes(room)[0]) for layer, room, *_ in ROOMS]
    assert set(listed) == {
        (number, room) for number, layer in enumerate(LAYERS, 1) for room in layer
    }
    assert len(listed) == len(set(listed))
    assert [layer for layer, _ in listed] == sorted(layer for layer, _ in listed)


@pytest.mark.parametrize("row", ROOMS, ids=lambda row: codes(row[1])[0])
def test_main_files_of_a_room_exist_and_are_in_it(row: list[str]) -> None:
    _, room, does, files = row
    (name,) = codes(room)
    assert does.endswith(".")
    assert codes(files)
    for path in codes(files):
        assert path == f"{name}.py" or path.startswith(f"{name}/")
        assert (SOURCE / path).is_file(), f"{path} does not exist"


@pytest.mark.parametrize("row", PLACES, ids=lambda row: row[0])
def test_place_of_a_behaviour_exists(row: list[str]) -> None:
    _, file, names = row
    (path,) = codes(file)
    assert (SOURCE / path).is_file(), f"{path} does not exist"
    assert codes(names)
    missing = set(codes(names)) - definitions(SOURCE / path)
    assert not missing, f"{path} does not define {', '.join(sorted(missing))}"


def test_every_behaviour_is_listed_once() -> None:
    listed = [row[0] for row in PLACES]
    assert len(listed) > 40
    assert len(listed) == len(set(listed))


def test_other_names_on_the_page_exist() -> None:
    prose = PAGE.partition("\n## The rooms\n")[0]
    assert prose.count("```mermaid\n") == 2
    for name, path in re.findall(r"`(\w+)` in `([\w/]+\.py)`", prose):
        assert name in definitions(SOURCE / path)
