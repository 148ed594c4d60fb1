"""The number of generated examples: few and always the same ones, or as many new ones as wanted."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("SERVICEX_PROPERTY_EXAMPLES", "0"))
"""How many are wanted; none for those that are always the same."""

made_up = settings(
    derandomize=not EXAMPLES,
    print_blob=bool(EXAMPLES),
    max_examples=EXAMPLES or 120,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""Decorates a property."""
