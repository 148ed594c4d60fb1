"""What several rungs of the tests share: sample files and a real server process."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import httpx
import psutil
import pytest

READY_SECONDS = 30
TERMINAL = ("Complete", "Fatal", "Canceled", "Bad Dataset")


def sample(name: str) -> Path:
    """Return a file of the package scikit-hep-testdata."""
    spec = find_spec("skhep_testdata")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / name


def needed(program: str, install: str, *, beside: Path | None = None) -> str:
    """Return the path of a program, or skip; where everything is tested, it has to be there.

    ``beside`` is a folder to look in first.
    """
    found = (beside and shutil.which(program, path=str(beside))) or shutil.which(program)
    return found or not_here(f"there is no {program} here: {install}")


def not_here(reason: str) -> NoReturn:
    """Skip a test that needs what is not here; where everything is tested, it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Server:
    """A ``servicex-server serve`` process, and what a user and its database say about it."""

    data_dir: Path
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    url: str = ""
    client: httpx.Client = field(default_factory=httpx.Client)

    @property
    def output(self) -> str:
        """What the process has printed and logged."""
        return self.data_dir.with_suffix(".log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> "Server":
        """Start the process and wait until it says that it is ready."""
        command = [str(Path(sys.executable).with_name("servicex-server")), "serve", "--port", "0"]
        with self.data_dir.with_suffix(".log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(self.data_dir), *self.options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment,
            )
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"ready at (http://\S+)", self.output):
                self.url = found[1]
                self.client = httpx.Client(base_url=self.url, timeout=60)
                return self
            time.sleep(0.05)
        pytest.fail(f"the server did not start:\n{self.output}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> float:
        """End the process; return how many seconds that took."""
        assert self.process is not None
        self.client.close()
        began = time.monotonic()
        self.process.send_signal(how)
        self.process.wait(15)
        return time.monotonic() - began

    def descendants(self) -> list[psutil.Process]:
        """Return all processes below the server."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def rows(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Return what the database holds."""
        path = self.data_dir / "servicex.sqlite"
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return connection.execute(sql, arguments).fetchall()
        finally:
            connection.close()

    def counts(self) -> dict[str, int]:
        """Return how many rows each table has."""
        tables = ("requests", "tasks", "datasets", "files")
        return {table: self.rows(f"select count(*) from {table}")[0][0] for table in tables}

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET a path, with every slash as it is."""
        return self.client.get(f"{self.url}{path}", **options)

    def submit(self, **changes: Any) -> httpx.Response:
        """POST a request; keys as on the wire with underscores, None leaves one out."""
        body: dict[str, Any] = {
            "title": "a test",
            "file_list": [str(sample("uproot-Zmumu.root"))],
            "selection": json.dumps([{"treename": "events", "filter_name": ["E1", "Q1"]}]),
            "codegen": "uproot-raw",
            "result_destination": "object-store",
            "result_format": "parquet",
        } | changes
        wire = {k.replace("_", "-"): v for k, v in body.items() if v is not None}
        return self.client.post("/servicex/transformation", json=wire)

    def refused(self, **changes: Any) -> str:
        """Submit what a look at the files shows to be wrong; return the sentence that says so.

        Workers that have just started answer too late, and what they would have said is found out
        as the request runs; then it is submitted again.
        """
        for _ in range(10):
            before = self.counts()
            answer = self.submit(**changes)
            if answer.status_code == 400:
                assert self.counts() == before
                assert list(answer.json()) == ["message"]
                return str(answer.json()["message"])
            assert answer.status_code == 200, answer.text
            assert self.wait(answer.json()["request_id"])["status"] == "Fatal"
        pytest.fail(f"the workers find nothing wrong with {changes}")

    def wait(self, request_id: str, *, seconds: float = 60) -> dict[str, Any]:
        """Poll a request until it has ended; return its status object."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status: dict[str, Any] = self.get(f"/servicex/transformation/{request_id}").json()
            if status["status"] in TERMINAL:
                return status
            time.sleep(0.02)
        pytest.fail(f"request {request_id} did not end:\n{self.output[-3000:]}")

    def run(self, **changes: Any) -> dict[str, Any]:
        """Submit a request and wait for its end."""
        answer = self.submit(**changes)
        assert answer.status_code == 200, answer.text
        return self.wait(answer.json()["request_id"])

    def results(self, request_id: str) -> list[dict[str, Any]]:
        """Return the ended files of a request."""
        found: list[dict[str, Any]] = self.get(
            f"/servicex/transformation/{request_id}/results"
        ).json()["results"]
        return found

    def errors(self, request_id: str) -> list[dict[str, Any]]:
        """Return the failed files of a request."""
        found: list[dict[str, Any]] = self.get(
            f"/servicex/transformation/{request_id}/errors"
        ).json()["errors"]
        return found

    def stored(self, request_id: str) -> list[Path]:
        """Return the object files of a request."""
        folder = self.data_dir / "objects" / request_id
        return sorted(path for path in folder.rglob("*") if path.is_file())
