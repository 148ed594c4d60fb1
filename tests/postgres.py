"""A real PostgreSQL server for tests: made, started, broken and removed by them."""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tests.integration.servers import free_port
from tests.support import missing, needed

INSTALLED = Path("/usr/lib/postgresql")
"""Where Debian has the servers, which are on nobody's PATH."""

CONFIGURATION = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{folder}'
fsync = off                     # nothing here has to outlive the machine
full_page_writes = off
max_connections = 200
autovacuum = off
log_min_messages = fatal
"""


def program(name: str) -> str:
    """Return the path of a program of the newest server, or skip."""
    folders = sorted(INSTALLED.glob("*/bin"), key=lambda path: float(path.parent.name))
    return needed(name, "apt-get install postgresql", beside=folders[-1] if folders else None)


@dataclass
class Postgres:
    """A server in a folder of its own, with a generated password."""

    folder: Path
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_hex(8))

    def url(self, database: str = "postgres", *, driver: str = "postgresql+psycopg") -> str:
        """Return the URL of a database."""
        return f"{driver}://servicex:{self.password}@127.0.0.1:{self.port}/{database}"

    def make(self) -> None:
        """Make the files of the server; it refuses to run as root."""
        self.folder.mkdir()
        secret = self.folder.with_suffix(".password")
        secret.write_text(self.password)
        if os.getuid() == 0:
            shutil.chown(self.folder.parent, _user())
            shutil.chown(self.folder, _user())
            shutil.chown(secret, _user())
        self._run(
            "initdb",
            *("--username=servicex", f"--pwfile={secret}", "--auth=scram-sha-256"),
            # not the order of bytes, as on most servers
            *("--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en"),
            *("--no-sync", "--no-instructions"),
        )
        text = CONFIGURATION.format(port=self.port, folder=self.folder.parent)
        (self.folder / "postgresql.auto.conf").write_text(text)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._control("start")

    def stop(self, how: Literal["fast", "immediate"] = "fast") -> None:
        """End the server: politely, or as a crash does."""
        self._control("stop", "-m", how)

    def restart(self, how: Literal["fast", "immediate"]) -> None:
        """End the server and start it again."""
        self._control("restart", "-m", how)

    def run(self, statement: str, *arguments: Any, database: str = "postgres") -> list[Any]:
        """Run a statement by itself; return its rows."""
        import psycopg

        plain = self.url(database, driver="postgresql")
        with psycopg.connect(plain, autocommit=True) as connection:
            found = connection.execute(statement.encode(), arguments)
            return found.fetchall() if found.description else []

    def _control(self, *words: str) -> None:
        self._run("pg_ctl", *words, "--wait", "--silent", f"--log={self.folder}.log")

    def _run(self, name: str, *options: str) -> None:
        done = subprocess.run(
            [program(name), f"--pgdata={self.folder}", *options],
            # its children keep what they are given, so it is no pipe
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder.parent,
            user=_user() if os.getuid() == 0 else None,
            group=pwd.getpwnam(_user()).pw_gid if os.getuid() == 0 else None,
            extra_groups=[] if os.getuid() == 0 else None,
            timeout=60,
            check=False,
        )
        log = Path(f"{self.folder}.log")
        said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        assert done.returncode == 0, f"{name} {options} failed\n{said}"


def _user() -> str:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a server, or skip."""
    if find_spec("psycopg") is None:
        missing("psycopg is not installed: pip install 'psycopg[binary]'")
    program("initdb")
    # pytest's own folders are for one user only, and the server is another; and the path of a
    # socket may have a hundred characters at most
    with tempfile.TemporaryDirectory(prefix="sx-") as made:
        server = Postgres(Path(made) / "data")
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
