"""Fixtures that several rungs of the tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import Server


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give a server with two workers that all tests of the session share."""
    running = Server(tmp_path_factory.mktemp("server") / "data", ["--workers", "2"]).start()
    yield running
    running.stop()


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Give a function that starts servers of this test's own."""
    started: list[Server] = []

    def start(*options: str, name: str = "data", **environment: str) -> Server:
        made = Server(tmp_path / name, list(options) or ["--workers", "1"], environment)
        started.append(made)
        return made.start()

    yield start
    for running in started:
        if running.process is not None and running.process.poll() is None:
            running.stop()
