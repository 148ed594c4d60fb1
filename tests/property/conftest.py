"""A search for defects may take as long as it takes."""

import pytest

from tests.property.examples import EXAMPLES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the time limit off the tests, if as many examples are wanted as one likes."""
    if EXAMPLES:
        for item in items:
            item.add_marker(pytest.mark.timeout(0))
