"""A real Rucio server on a loopback address, with SQLite behind it; and how it is filled."""

import contextlib
import os
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from tests.integration.servers import READY_SECONDS, free_port
from tests.samples import CACHE
from tests.support import missing
from tools.environments import interpreter

VERSION = "41.5.1"
PACKAGES = (f"rucio=={VERSION}", "gunicorn==27.0.1", "--no-binary", "docopt")
"""The server in an environment of its own: it wants older libraries than the service has. Of
docopt, which it needs, there is no wheel."""

ROOT, PASSWORD = "ddmlab", "secret"
"""Who may do everything."""

AT_A_TIME = 500

CONFIGURATION = """\
[common]
logdir = {home}
loglevel = WARNING
mailtemplatedir = {prefix}/rucio/etc/mail_templates
[database]
default = sqlite:///{home}/rucio.db
pool_reset_on_return = rollback
[bootstrap]
userpass_identity = {user}
userpass_pwd = {password}
userpass_email = root@localhost
[alembic]
cfg = {home}/alembic.ini
[policy]
permission = generic
schema = generic
[trace]
tracedir = {home}
[api]
[monitor]
enable_metrics = False
"""

ALEMBIC = """\
[alembic]
script_location = {packages}/rucio/db/sqla/migrate_repo/
sqlalchemy.url = sqlite:///{home}/rucio.db
[loggers]
keys = root
[logger_root]
level = WARNING
handlers =
[handlers]
keys =
[formatters]
keys =
"""


POLICY = "policy_with_blocks"
"""The package of a server whose names may have the ``#`` of a block of CMS in them."""

SCHEMA = """\
from rucio.common.schema import generic
from rucio.common.schema.generic import *

generic.NAME["pattern"] = r"^[/A-Za-z0-9][/A-Za-z0-9.\\-_#]*$"
"""


@dataclass
class Rucio:
    """A running server, and the account ``root`` of it, which may do everything."""

    url: str
    process: subprocess.Popen[bytes]
    client: httpx.Client
    database: Path

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the server without ending it: connections stay, answers do not come."""
        processes = psutil.Process(self.process.pid).children(recursive=True)
        for one in processes:
            one.suspend()
        try:
            yield
        finally:
            for one in processes:
                one.resume()

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> None:
        """Have something done; path as on the wire."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.client.request(method, path, json=body, headers=named)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"

    def account(self, name: str, password: str) -> None:
        """Add an account for users, and an identity of the same name that is it."""
        self.call("POST", f"/accounts/{name}", {"type": "USER", "email": "nobody@localhost"})
        self.call(
            "PUT",
            f"/identities/{name}/userpass",
            X_Rucio_Username=name,
            X_Rucio_Password=password,
            X_Rucio_Email="nobody@localhost",
        )

    def scope(self, name: str, account: str = "root") -> None:
        """Add a scope."""
        self.call("POST", f"/scopes/{account}/{name}")

    def rse(
        self,
        name: str,
        doors: Mapping[str, str],
        *,
        kind: str = "DISK",
        **attributes: Any,
    ) -> None:
        """Add a storage element.

        Parameters
        ----------
        doors
            Host and port of each protocol, the best first.
        attributes
            Such as its ``site``.
        """
        self.call("POST", f"/rses/{name}", {"rse_type": kind})
        for priority, (scheme, place) in enumerate(doors.items(), 1):
            host, _, port = place.rpartition(":")
            allowed = {"read": priority, "write": priority, "delete": priority}
            module = "xrootd" if scheme == "root" else "webdav"
            protocol = {
                "hostname": host,
                "port": int(port),
                "prefix": "//data/" if scheme == "root" else "/data/",
                "impl": f"rucio.rse.protocols.{module}.Default",
                "domains": {"lan": allowed, "wan": allowed},
            }
            self.call("POST", f"/rses/{name}/protocols/{scheme}", protocol)
        for key, value in attributes.items():
            self.call("POST", f"/rses/{name}/attr/{key}", {"value": value})

    def run(self, sql: str) -> None:
        """Change the rows beside the server, to what it takes no more, or never should have."""
        with contextlib.closing(sqlite3.connect(self.database)) as opened, opened:
            assert opened.execute(sql).rowcount > 0

    def block(self, rse: str) -> None:
        """Have a storage element in a downtime: nothing is to be read there."""
        self.call("PUT", f"/rses/{rse}", {"availability_read": False})

    def files(
        self, rse: str, dids: Sequence[str], *, size: int = 1, adler32: str | None = "0000000a"
    ) -> list[str]:
        """Add files, or further copies of them; return their names."""
        found = [{**_parts(did), "bytes": size, "adler32": adler32} for did in dids]
        for start in range(0, len(found), AT_A_TIME):
            some = found[start : start + AT_A_TIME]
            self.call("POST", "/replicas/", {"rse": rse, "files": some})
        return list(dids)

    def lose(self, rse: str, dids: Sequence[str]) -> None:
        """Have copies of files declared bad."""
        lost = [{**_parts(did), "rse": rse} for did in dids]
        self.call("POST", "/replicas/bad", {"replicas": lost, "reason": "a test"})

    def told(self, state: str) -> dict[str, str]:
        """Return the reasons that replicas were declared suspicious (S) or bad (B), by the file."""
        with contextlib.closing(sqlite3.connect(self.database)) as opened:
            rows = opened.execute(
                "select scope, name, reason from bad_replicas where state = ?", [state]
            ).fetchall()
        return {f"{scope}:{name}": reason for scope, name, reason in rows}

    def dataset(self, did: str, files: Sequence[str]) -> str:
        """Add a dataset of files; return its name."""
        return self._collection("DATASET", did, files)

    def container(self, did: str, parts: Sequence[str]) -> str:
        """Add a container of datasets or of containers; return its name."""
        return self._collection("CONTAINER", did, parts)

    def _collection(self, kind: str, did: str, parts: Sequence[str]) -> str:
        path = "/".join(["/dids", *(quote(one, safe="") for one in _parts(did).values())])
        self.call("POST", path, {"type": kind})
        for start in range(0, len(parts), AT_A_TIME):
            some = [_parts(one) for one in parts[start : start + AT_A_TIME]]
            self.call("POST", f"{path}/dids", {"dids": some})
        return did


def _parts(did: str) -> dict[str, str]:
    scope, _, name = did.partition(":")
    return {"scope": scope, "name": name}


@contextlib.contextmanager
def rucio(*, blocks: bool = False) -> Iterator[Rucio]:
    """Run a server that knows nothing but its root account.

    Parameters
    ----------
    blocks
        Whether its names may be those of blocks of CMS.
    """
    try:
        python = interpreter(CACHE / f"rucio-{VERSION}", PACKAGES)
    except (LookupError, OSError) as error:
        missing(str(error))
    with tempfile.TemporaryDirectory(prefix="sx-") as made:
        home, port = Path(made), free_port()
        environment = os.environ | {"RUCIO_CONFIG": str(_configured(home, python))}
        if blocks:
            package = home / POLICY
            package.mkdir()
            (package / "__init__.py").write_text("def get_algorithms():\n    return {}\n")
            (package / "schema.py").write_text(SCHEMA)
            environment |= {"RUCIO_POLICY_PACKAGE": POLICY, "PYTHONPATH": str(home)}
        output = home / "output"
        program = python.parents[1] / "rucio" / "tools" / "bootstrap.py"
        listens = ["--bind", f"127.0.0.1:{port}", "--worker-tmp-dir", str(home)]
        workers = ["--workers", "1", "--threads", "4", "--graceful-timeout", "1"]
        application = "rucio.web.rest.flaskapi.v1.main:application"
        with output.open("wb") as log:
            ran = subprocess.run(
                [str(python), str(program)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
            )
            if ran.returncode:
                pytest.fail(f"Rucio has made no database:\n{output.read_text()[-3000:]}")
            # or whoever reads a list slowly keeps all others from signing in
            with contextlib.closing(sqlite3.connect(home / "rucio.db")) as opened:
                opened.execute("pragma journal_mode = wal")
            process = subprocess.Popen(
                [str(python), "-m", "gunicorn", *listens, *workers, application],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=home,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            # gunicorn ends a connection that was idle for two seconds, maybe while it is used again
            once = httpx.Limits(max_keepalive_connections=0)
            with httpx.Client(base_url=url, timeout=60, trust_env=False, limits=once) as client:
                _until_it_answers(client, process, output)
                yield Rucio(url, process, client, home / "rucio.db")
        finally:
            process.terminate()
            process.wait(20)


def _configured(home: Path, python: Path) -> Path:
    prefix = python.parents[1]
    packages = next(prefix.glob("lib/python*/site-packages"))
    values = {"home": home, "prefix": prefix, "packages": packages}
    file = home / "rucio.cfg"
    file.write_text(CONFIGURATION.format(**values, user=ROOT, password=PASSWORD))
    (home / "alembic.ini").write_text(ALEMBIC.format(**values))
    return file


def _until_it_answers(client: httpx.Client, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    signed_in = {
        "X-Rucio-Account": "root",
        "X-Rucio-Username": ROOT,
        "X-Rucio-Password": PASSWORD,
    }
    while time.monotonic() < deadline and process.poll() is None:
        try:
            answer = client.get("/auth/userpass", headers=signed_in)
        except httpx.TransportError:
            time.sleep(0.05)
            continue
        if token := answer.headers.get("X-Rucio-Auth-Token"):
            client.headers["X-Rucio-Auth-Token"] = token
            return
        pytest.fail(f"Rucio lets nobody in: {answer.status_code} {answer.text}")
    pytest.fail(f"Rucio was not ready after {READY_SECONDS} s:\n{output.read_text()[-3000:]}")
