"""How many examples are made up: few and always the same ones, or as many new ones as wanted."""

import os

import pytest
from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("SERVICEX_PROPERTY_EXAMPLES", "0"))

settings.register_profile(
    "same",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=200,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "many",
    settings.get_profile("same"),
    derandomize=False,
    max_examples=max(EXAMPLES, 1),
    print_blob=True,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a search for defects take as long as it takes."""
    settings.load_profile("many" if EXAMPLES else "same")
    if EXAMPLES:
        for item in items:
            item.add_marker(pytest.mark.timeout(0))
