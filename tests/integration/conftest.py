"""Fixtures that several modules of this rung share."""

from typing import Any

import pytest

from servicex_server.query_processes import compiler, jobs
from servicex_server.query_processes.pool import HelperPool


class _PoolOfNone(HelperPool):
    """Runs jobs in the process of the test."""

    def start(self) -> None:
        """Start nothing."""

    async def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run a job."""
        return jobs.run(job)


@pytest.fixture
def compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have services in the test process compile queries there, without starting helper processes.

    The processes are tested by `test_query_processes`, and by each test with a real server.
    """
    monkeypatch.setattr(compiler, "HelperPool", _PoolOfNone)
