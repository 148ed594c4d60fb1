"""A search for defects has no time limit."""

import pytest

from tests.property.examples import EXAMPLES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Remove the time limit of the tests if the number of examples is set."""
    if EXAMPLES:
        for item in items:
            item.add_marker(pytest.mark.timeout(0))
