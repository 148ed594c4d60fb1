"""The forecast of the object store that the command prints."""

from datetime import UTC, datetime
from typing import Any

import pytest

from servicex_server.cli.tables import storage_plan

TODAY, LATER = datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 3, 1, tzinfo=UTC)
TB = 10**12


def found(**changes: Any) -> dict[str, Any]:
    """Return an answer of the service: 10 TB of 50, which grow by 0.25 TB a day."""
    return {"bytes": 10 * TB, "growth": 0.25 * TB, "evicts-above": 45 * TB} | changes


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {},
            [
                "Results take 10 TB, and have grown by 250 GB a day lately.",
                "On 2027-03-01 they would take 32 TB.",
                "Eviction to make room begins at 45 TB, about 2027-04-20.",
            ],
        ),
        ({"evicts-above": None}, ["Results take", "On 2027-03-01 they would take 32 TB."]),
        (
            {"bytes": 46 * TB},
            ["Results", "On", "Eviction to make room begins at 45 TB, about 2026-12-01."],
        ),
        (
            {"growth": -0.2 * TB},
            [
                "Results take 10 TB, and have not grown lately.",
                "On 2027-03-01 they would take 0 B.",
            ],
        ),
        ({"growth": None}, ["Results take 10 TB. The growth is known after two days."]),
    ],
)
def test_forecast_has_growth_size_and_the_day_of_eviction(
    changes: dict[str, Any], lines: list[str]
) -> None:
    """What is not known, or does not happen, is not said."""
    told = storage_plan(found(**changes), LATER, TODAY).splitlines()
    assert len(told) == len(lines)
    assert all(line.startswith(start) for line, start in zip(told, lines, strict=True)), told
