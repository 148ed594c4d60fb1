"""The examples in docstrings give what they show."""

import doctest
import importlib
import pkgutil

import pytest

import servicex_server

NAMES = [
    module.name
    for module in pkgutil.walk_packages(servicex_server.__path__, "servicex_server.")
    if "migrations" not in module.name
]


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_a_module_are_true(name: str) -> None:
    """Every example of a module runs, and prints the text in the docstring."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_docstrings_have_examples() -> None:
    """Otherwise, the other test would check nothing."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [t for n in NAMES for t in finder.find(importlib.import_module(n)) if t.examples]
    assert len(found) >= 6
