"""Quotas of a user: requests of others do not count, and the error names the limit."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from servicex_server.app import App
from servicex_server.database import requests as request_rows
from servicex_server.database import usage
from servicex_server.errors import TooLargeError, TooManyError
from servicex_server.model import Outcome, Principal, TaskSpec, now
from servicex_server.requests import quotas
from servicex_server.settings.groups import LimitSettings
from servicex_server.settings.service import Settings
from servicex_server.testing.memory_engine import MemoryEngine
from tests.services import ended, submit

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("database_url", "compiled_here")]

ANN, BOB = Principal("ann@example.org"), Principal("bob@example.org")


def done(spec: TaskSpec) -> Outcome:
    """End a task with a result of a thousand bytes."""
    return Outcome(spec.request_id, spec.file_id, spec.attempt, url=spec.path, bytes_written=1000)


def service(folder: Path, *, slots: int = 2, **limits: Any) -> App:
    """Return a service with limits, whose tasks end at once if it has slots."""
    return App(
        Settings(data_dir=folder, limits=LimitSettings(**limits)),
        engine=MemoryEngine(done, slots=slots),
    )


async def test_requests_per_minute_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit holds for concurrent requests too. There is room when the first is a minute old."""
    async with service(tmp_path, requests_per_user_a_minute=3) as app:
        found = await asyncio.gather(
            *(submit(app, 1, who=ANN) for _ in range(5)), return_exceptions=True
        )
        refused = [one for one in found if isinstance(one, TooManyError)]
        assert len(refused) == 2
        await submit(app, 1, who=BOB)
        with pytest.raises(
            TooManyError, match=r"^3 requests were submitted in the last minute.*try again in"
        ) as e:
            await submit(app, 1, who=ANN)
        assert e.value.seconds is not None
        assert e.value.hint == f"try again in {round(e.value.seconds)} s"
        assert 30 < e.value.seconds <= 60
        later = now() + timedelta(seconds=61)
        for module in (usage, quotas):
            monkeypatch.setattr(module, "now", lambda: later)
        await submit(app, 1, who=ANN)


async def test_open_requests_are_limited(tmp_path: Path) -> None:
    """A request that has ended or is cancelled makes room."""
    async with service(tmp_path, slots=0, requests_per_user_at_once=2) as app:
        first, _ = [await submit(app, 1, who=ANN) for _ in range(2)]
        await submit(app, 1, who=BOB)
        with pytest.raises(TooManyError, match=r"^2 requests have not ended; one user may have 2"):
            await submit(app, 1, who=ANN)
        await app.database.write(request_rows.cancel, ANN, first)
        await submit(app, 1, who=ANN)


async def test_bytes_of_results_are_limited(tmp_path: Path) -> None:
    """Deleting a request makes room. Results of other users do not count."""
    async with service(tmp_path, bytes_per_user=2500) as app:
        for who in (ANN, BOB):
            await ended(app, await submit(app, 2, who=who))
        last = await submit(app, 2, who=ANN)
        await ended(app, last)
        with pytest.raises(TooLargeError, match=r"^0\.00 GB of results are stored"):
            await submit(app, 1, who=ANN)
        await submit(app, 1, who=BOB)
        await app.requests.delete(ANN, last)
        await submit(app, 1, who=ANN)


async def test_no_request_is_rejected_without_limits(tmp_path: Path) -> None:
    """A user may have any number of requests."""
    async with service(tmp_path, slots=0) as app:
        for _ in range(20):
            await submit(app, 1, who=ANN)
        found = await app.database.read(usage.of, ANN.user)
        assert replace(found, recent=()) == usage.Usage(open=20, recent=(), bytes=0)
        assert len(found.recent) == 20
